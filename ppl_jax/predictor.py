"""Labels dialogues with a trained student, live or in batches.

    predictor = Predictor.from_workdir("runs/mine")
    predictor.add("call-17", "customer", "Where is my order?").label

Shape letters: N segments of a batch, M of a chunk, T tokens, C classes.
"""

import collections
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ppl_jax import logits
from ppl_jax.data import segments, tokenization

# Utterances that `predict` sorts by length at a time, and files keep at a time.
CHUNK = 4096
_CHECKPOINT = pathlib.Path("checkpoints", "student")


class Dialogue(Protocol):
  """What is read of a dialogue; those of `ppl_jax.data.dialogues` are such."""

  @property
  def dialogue_id(self) -> str:
    """Names it."""

  @property
  def speakers(self) -> Sequence[str]:
    """Who says each utterance."""

  @property
  def texts(self) -> Sequence[str]:
    """What is said."""


class Prediction(NamedTuple):
  """What the student says of an utterance.

  Attributes:
    dialogue_id: its dialogue.
    utterance: its number in the dialogue, from 0.
    label: the likeliest class; for a multi-label task, and for one with a
      single class, a list of the classes above 1/2. None: abstained.
    probabilities: calibrated, of every class in the student's order.
    abstained: whether the student was less sure than was asked.
  """

  dialogue_id: str
  utterance: int
  label: str | list[str] | None
  probabilities: dict[str, float]
  abstained: bool

  def to_json(self) -> str:
    """Returns one line of JSON; probabilities have six decimals."""
    values = {
      "dialogue_id": self.dialogue_id,
      "utterance": self.utterance,
      "label": self.label,
      "probabilities": {c: round(p, 6) for c, p in self.probabilities.items()},
    }
    if self.abstained:
      values["abstained"] = True
    return json.dumps(values, ensure_ascii=False)


class Backend(Protocol):
  """What computes logits.

  Attributes:
    lengths: token lengths that segments are padded to, ascending.
    parallel: batches that are computed at the same time.
  """

  lengths: tuple[int, ...]
  parallel: int

  def rows(self, length: int) -> int:
    """Returns how many segments of a length make a batch."""

  def start(
    self,
    tokens_NxT: np.ndarray,
    length_N: np.ndarray,
    context_length_N: np.ndarray,
  ) -> np.typing.ArrayLike:
    """Starts computing logits [N, C] float32; np.asarray waits for them."""


class Predictor:
  """Predicts the label of each utterance from it and those before it.

  Methods may be called from several threads. Those that `add` take turns, so
  that more threads do not make it faster; utterances of one dialogue must come
  in their order.

  Args:
    backend: computes logits.
    tokenizer: the student's.
    classes: C names in the order of the logits.
    task: 'single_label' or 'multi_label'.
    window: utterances that a segment spans, None = all that fit.
    max_length: the longest segment, in tokens.
    abstain_below: give no label where the student is less sure than this
      probability: of the likeliest class, or, where each class has a sigmoid,
      of the least sure yes or no.
    idle_minutes: forget a live dialogue after so long without an utterance;
      one of the same id is a new dialogue from then on.
    clock: seconds that only grow.

  Raises:
    ValueError: a value is out of range.
  """

  def __init__(
    self,
    backend: Backend,
    tokenizer: tokenization.StudentTokenizer,
    *,
    classes: Iterable[str],
    task: str,
    window: int | None,
    max_length: int,
    abstain_below: float = 0.0,
    idle_minutes: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
  ):
    segments.check(window, max_length)
    if not 0 <= abstain_below <= 1:
      raise ValueError(
        f"abstain_below must lie in [0, 1], got {abstain_below}. Give a"
        " probability."
      )
    if not idle_minutes > 0:
      raise ValueError(
        f"idle_minutes must be above 0, got {idle_minutes}. Give the minutes"
        " after which a silent dialogue is forgotten."
      )
    self.classes = tuple(classes)
    self._backend, self._tokenizer = backend, tokenizer
    self._task = task
    self._one_label = task == "single_label" and len(self.classes) > 1
    self._window, self._max_length = window, max_length
    self._abstain_below = abstain_below
    self._idle_seconds = 60 * idle_minutes
    self._clock = clock
    lengths = np.arange(max_length + 1)
    # By a segment's length, what it is padded to.
    self._padded = np.take(
      backend.lengths, np.searchsorted(backend.lengths, lengths)
    ).tolist()
    self._lock = threading.Lock()
    # From a live dialogue to its window and when it was last heard of, in the
    # order of the latter.
    self._live: collections.OrderedDict[
      str, tuple[segments.DialogueWindow, float]
    ] = collections.OrderedDict()

  @classmethod
  def from_workdir(
    cls,
    workdir: str | os.PathLike,
    *,
    threads: int | None = None,
    abstain_below: float = 0.0,
    idle_minutes: float = 30.0,
    live: bool = True,
    batch: bool = True,
  ) -> "Predictor":
    """Loads a student: an exported model.onnx, else a run's checkpoint.

    With `live` and `batch` everything is compiled here, and nothing later.

    Args:
      workdir: a folder with student.json, tokenizer.json and either model.onnx
        or checkpoints/student.
      threads: cores to use, None = all. With JAX it must be given before
        anything else in the process uses JAX.
      abstain_below: see `Predictor`.
      idle_minutes: see `Predictor`.
      live: compile the shapes that `add` needs now, not when they first come.
      batch: the like for `predict`.

    Raises:
      ValueError: the folder lacks a file, or has a broken one.
    """
    workdir = pathlib.Path(workdir).expanduser()
    student = _read_student(workdir)
    tokenizer = tokenization.StudentTokenizer.load(
      workdir / "tokenizer.json", student["speaker_tokens"]
    )
    # Imported here, since each is slow to import and only one is needed.
    if (workdir / "model.onnx").exists():
      from ppl_jax.onnx_backend import OnnxBackend

      backend = OnnxBackend(
        workdir / "model.onnx",
        student["max_length"],
        threads,
        live=live,
        batch=batch,
      )
    else:
      if threads:
        os.environ["PJRT_NPROC"] = str(threads)  # read when JAX starts
      from ppl_jax.jax_backend import JaxBackend

      backend = JaxBackend(workdir, threads, live=live, batch=batch)
    return cls(
      backend,
      tokenizer,
      classes=student["classes"],
      task=student["task"],
      window=student["window"],
      max_length=student["max_length"],
      abstain_below=abstain_below,
      idle_minutes=idle_minutes,
    )

  def add(self, dialogue_id: str, speaker: str, text: str) -> Prediction:
    """Predicts the next utterance of a live dialogue, at once.

    Args:
      dialogue_id: which dialogue; one that is not known begins.
      speaker: who speaks: a role that the student knows, or any other name.
      text: what is said.

    Raises:
      ValueError: one of them is not a string, is blank, or cannot be written as
        UTF-8. The dialogue is as it was before.
    """
    check_text("dialogue_id", dialogue_id)
    check_text("speaker", speaker)
    check_text("text", text)
    ids = self._tokenizer.encode_utterance(speaker, text)
    with self._lock:
      now = self._clock()
      self._forget_idle(now)
      window, _ = self._live.get(dialogue_id, (None, 0))
      if window is None:
        window = segments.DialogueWindow(self._window, self._max_length)
      probabilities_1xC = self._probabilities(self._start_one(window, ids))
      utterance = window.utterances
      window.add(ids)
      self._live[dialogue_id] = window, now
      self._live.move_to_end(dialogue_id)
    return self._prediction(dialogue_id, utterance, probabilities_1xC[0])

  def predict(
    self,
    dialogues: Iterable[Dialogue],
    progress: Callable[[int], None] = lambda utterances: None,
  ) -> Iterator[Prediction]:
    """Predicts all utterances of whole dialogues, in batches.

    Live dialogues are left alone. About `CHUNK` utterances are held at a time.

    Args:
      dialogues: each has `dialogue_id`, `speakers` and `texts`.
      progress: is told of utterances as they are done.

    Yields:
      A prediction for each utterance, in order.

    Raises:
      ValueError: as `add`; says which utterance of which dialogue.
    """
    for chunk in in_chunks(dialogues):
      for dialogue in chunk:
        check_dialogue(dialogue)
      tokens = self._tokenizer.encode_dialogues(chunk)
      probabilities_MxC = iter(self._run(tokens, progress))
      for dialogue in chunk:
        for utterance in range(len(dialogue.texts)):
          yield self._prediction(
            dialogue.dialogue_id, utterance, next(probabilities_MxC)
          )

  def _start_one(self, window: segments.DialogueWindow, ids: list[int]):
    tokenizer = self._tokenizer
    segment, context_length = window.segment(
      ids, tokenizer.cls_id, tokenizer.sep_id
    )
    length = len(segment)
    tokens_1xT = np.full((1, self._padded[length]), tokenizer.pad_id, np.int32)
    tokens_1xT[0, :length] = segment
    return self._backend.start(
      tokens_1xT,
      np.array([length], np.int32),
      np.array([context_length], np.int32),
    )

  def _run(self, tokens: segments.UtteranceTokens, progress) -> np.ndarray:
    """Returns probabilities [M, C] of all utterances, shortest first run."""
    settings = self._window, self._max_length
    lengths_M = segments.segment_lengths(tokens, *settings)
    contexts_M = segments.context_lengths(tokens, *settings)
    out_MxC = np.zeros((len(lengths_M), len(self.classes)))
    running = collections.deque()

    def fetch():
      rows, values = running.popleft()
      out_MxC[rows] = self._probabilities(values)[: len(rows)]
      progress(len(rows))

    for length, rows in self._batches(lengths_M):
      tokens_NxT = segments.padded_rows(
        tokens,
        rows,
        (self._backend.rows(length), length),
        *settings,
        self._tokenizer,
      )
      length_N, context_N = np.ones((2, len(tokens_NxT)), np.int32)
      length_N[: len(rows)] = lengths_M[rows]
      context_N[: len(rows)] = contexts_M[rows]
      started = self._backend.start(tokens_NxT, length_N, context_N)
      running.append((rows, started))
      if len(running) > self._backend.parallel:  # while the others run
        fetch()
    while running:
      fetch()
    return out_MxC

  def _batches(self, lengths_M: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields batches as their token length and the utterances in them."""
    if not len(lengths_M):
      return
    padded_M = np.take(self._padded, lengths_M)
    order_M = np.argsort(lengths_M, kind="stable")
    starts = np.flatnonzero(np.diff(padded_M[order_M], prepend=-1))
    left = order_M[:0]
    for start, stop in zip(starts, [*starts[1:], len(order_M)], strict=True):
      length = int(padded_M[order_M[start]])
      # What does not fill a batch rides along with the next longer ones.
      rows = np.concatenate([left, order_M[start:stop]])
      N = self._backend.rows(length)
      last = stop == len(order_M)
      whole = len(rows) if last else len(rows) - len(rows) % N
      for first in range(0, whole, N):
        yield length, rows[first : first + N]
      left = rows[whole:]

  def _forget_idle(self, now: float) -> None:
    while self._live:
      dialogue_id, (_, heard) = next(iter(self._live.items()))
      if now - heard <= self._idle_seconds:
        return
      del self._live[dialogue_id]

  def _probabilities(self, logits_NxC) -> np.ndarray:
    """Waits for the logits."""
    return logits.probabilities(np.asarray(logits_NxC), self._task)

  def _prediction(self, dialogue_id, utterance, probabilities_C) -> Prediction:
    values = probabilities_C.tolist()
    if self._one_label:
      sure = max(values)
      label = self.classes[values.index(sure)]
    else:
      sure = min(max(p, 1 - p) for p in values)
      label = [c for c, p in zip(self.classes, values, strict=True) if p > 0.5]
    abstained = sure < self._abstain_below
    return Prediction(
      dialogue_id,
      utterance,
      None if abstained else label,
      dict(zip(self.classes, values, strict=True)),
      abstained,
    )


def in_chunks(dialogues: Iterable[Dialogue]) -> Iterator[list[Dialogue]]:
  """Yields whole dialogues of about `CHUNK` utterances together, in order."""
  chunk, utterances = [], 0
  for dialogue in dialogues:
    chunk.append(dialogue)
    utterances += len(dialogue.texts)
    if utterances >= CHUNK:
      yield chunk
      chunk, utterances = [], 0
  if chunk:
    yield chunk


def check_dialogue(dialogue: Dialogue) -> None:
  """Raises ValueError where `Predictor.add` would, saying where."""
  check_text("dialogue_id", dialogue.dialogue_id)
  pairs = zip(dialogue.speakers, dialogue.texts, strict=True)
  for i, (speaker, text) in enumerate(pairs):
    try:
      check_text("speaker", speaker)
      check_text("text", text)
    except ValueError as error:
      raise ValueError(
        f"utterance {i} of dialogue {dialogue.dialogue_id!r}: {error}"
      ) from error


def check_text(name: str, value: str) -> None:
  """Raises ValueError unless a value is text: not blank, and UTF-8 holds it."""
  try:
    if value.strip():
      value.encode()
      return
  except (AttributeError, UnicodeEncodeError):
    pass
  raise ValueError(
    f"{name} must be a string that is not blank and that UTF-8 can hold, got"
    f" {json.dumps(value, default=repr)[:80]}. Correct it."
  )


def _read_student(workdir: pathlib.Path) -> dict:
  """Reads student.json without JAX, which onnxruntime does not need.

  Raises:
    ValueError: the folder holds neither a finished run nor an export.
  """
  path = workdir / "student.json"
  if not path.exists():
    raise ValueError(
      f"--workdir must hold student.json, got {workdir} without it. Name the"
      " folder of a run of `python -m ppl_jax.main`, or of an export."
    )
  models = workdir / "model.onnx", workdir / _CHECKPOINT
  if not any(model.exists() for model in models):
    raise ValueError(
      f"--workdir must hold {_CHECKPOINT} or model.onnx, got {workdir} with"
      " neither. Let the run finish, or export it."
    )
  return json.loads(path.read_text())
