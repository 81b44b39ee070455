"""Whether an exported student computes what JAX does, on real segments.

Shape letters: N segments of a batch, M compared, T tokens, C classes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tqdm

from ppl_jax import files, predictor
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import segments, tokenization
from ppl_jax.student import Student

_ROWS = 32  # of a batch
_STEP = 16  # tokens between the lengths of batches
_ENOUGH = 500  # segments; a split with fewer gives way to a larger one

# (tokens_NxT, length_N, context_length_N), all int32, to logits [N, C].
Logits = Callable[[np.ndarray, np.ndarray, np.ndarray], np.typing.ArrayLike]


@dataclasses.dataclass(frozen=True)
class Sample:
  """Real segments to compare on.

  Attributes:
    source: where they come from, for messages.
    dialogues: all that there are.
    tokens: their utterances.
    lengths_M: tokens of each chosen segment, ascending.
    context_M: its tokens of type 0.
    utterances_M: its utterance.
    student: how segments are made.
    tokenizer: the student's.
  """

  source: str
  dialogues: Sequence[predictor.Dialogue]
  tokens: segments.UtteranceTokens
  lengths_M: np.ndarray
  context_M: np.ndarray
  utterances_M: np.ndarray
  student: Student
  tokenizer: tokenization.StudentTokenizer

  def __len__(self) -> int:
    return len(self.utterances_M)

  def utterance(self, m: int) -> tuple[str, int, str, str]:
    """Returns dialogue_id, number, speaker and text of segment m."""
    u = int(self.utterances_M[m])
    d = int(np.searchsorted(self.tokens.first, u, side="right")) - 1
    dialogue, i = self.dialogues[d], u - int(self.tokens.first[d])
    return dialogue.dialogue_id, i, dialogue.speakers[i], dialogue.texts[i]

  def place(self, m: int) -> str:
    """Names segment m for a message."""
    dialogue_id, i, _, _ = self.utterance(m)
    return (
      f"utterance {i} of dialogue {dialogue_id!r} ({self.lengths_M[m]} tokens)"
    )

  def logits(self, compute: Logits, description: str) -> np.ndarray:
    """Runs a model over all segments; shows a progress bar.

    Args:
      compute: the model.
      description: the bar's title.

    Returns:
      float32 [M, C].
    """
    bar = tqdm.tqdm(total=len(self), desc=description, unit="segment", delay=1)
    parts = []
    with bar:
      for count, batch in self._batches():
        parts.append(np.asarray(compute(*batch))[:count])
        bar.update(count)
    return np.concatenate(parts)

  def _batches(self) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
    """Yields how many rows hold a segment, and full batches, in order."""
    for start in range(0, len(self), _ROWS):
      chosen = slice(start, start + _ROWS)
      utterances_N = self.utterances_M[chosen]
      count = len(utterances_N)
      longest = int(self.lengths_M[chosen].max())
      T = min(-(-longest // _STEP) * _STEP, self.student.max_length)
      tokens_NxT = segments.padded_rows(
        self.tokens,
        utterances_N,
        (_ROWS, T),
        self.student.window,
        self.student.max_length,
        self.tokenizer,
      )
      length_N, context_N = np.ones((2, _ROWS), np.int32)
      length_N[:count] = self.lengths_M[chosen]
      context_N[:count] = self.context_M[chosen]
      yield count, (tokens_NxT, length_N, context_N)


def sample_of_run(
  workdir: pathlib.Path,
  student: Student,
  tokenizer: tokenization.StudentTokenizer,
  limit: int,
) -> Sample:
  """Returns segments of a run's test split, or validation, or train.

  Args:
    workdir: the run's folder.
    student: how segments are made.
    tokenizer: the student's.
    limit: most segments, evenly spread over all lengths; 0 takes all.

  Raises:
    ValueError: the run's data cannot be had any more.
  """
  path = workdir / "config.json"
  try:
    dataset = dialogues_lib.load_config(json.loads(path.read_text())["dataset"])
  except (ValueError, OSError, KeyError) as error:
    raise ValueError(
      "The exported model is compared on the data of the run's config.json,"
      f" got: {error}. Name dialogues to compare on with"
      " --input=dialogues.jsonl."
    ) from error
  best = None
  for name in reversed(dialogues_lib.SPLITS):
    if name not in dataset.splits:
      continue
    split = dataset.splits[name]
    tokens = tokenization.tokenize_split(
      split, tokenizer, dataset.folder / f"tokens-{name}"
    )
    if best is None or tokens.num_utterances > best[2].num_utterances:
      best = f"the {name} split", split, tokens
    if tokens.num_utterances >= _ENOUGH:
      break
  return _sample(*best, student, tokenizer, limit)


def sample_of_file(
  file: pathlib.Path,
  student: Student,
  tokenizer: tokenization.StudentTokenizer,
  limit: int,
) -> Sample:
  """The like of `sample_of_run`, of a file that prediction reads.

  Raises:
    ValueError: the file is not usable.
  """
  files.check(file)
  dialogues = list(files.read(file))
  tokens = tokenizer.encode_dialogues(dialogues)
  return _sample(file.name, dialogues, tokens, student, tokenizer, limit)


def _sample(source, dialogues, tokens, student, tokenizer, limit) -> Sample:
  settings = student.window, student.max_length
  lengths_U = segments.segment_lengths(tokens, *settings)
  shortest_first_U = np.argsort(lengths_U, kind="stable")
  count = min(limit or len(lengths_U), len(lengths_U))
  places_M = np.linspace(0, len(lengths_U) - 1, count).round().astype(int)
  utterances_M = shortest_first_U[places_M]
  return Sample(
    source=source,
    dialogues=dialogues,
    tokens=tokens,
    lengths_M=lengths_U[utterances_M],
    context_M=segments.context_lengths(tokens, *settings)[utterances_M],
    utterances_M=utterances_M,
    student=student,
    tokenizer=tokenizer,
  )


@dataclasses.dataclass(frozen=True)
class Parity:
  """How two models differ on the same segments.

  Attributes:
    segments: how many were compared.
    source: where they come from.
    largest: the largest difference of two logits; NaN where one is NaN.
    where: the segment and class that have it.
    changed: how many segments get another label.
    first_changed: one of them, with both labels; empty where there is none.
  """

  segments: int
  source: str
  largest: float
  where: str
  changed: int
  first_changed: str

  def __str__(self) -> str:
    text = (
      f"{self.segments} segments of {self.source}: largest logit difference"
      f" {self.largest:.2g} (at {self.where}), {self.changed} labels changed"
    )
    return f"{text} (such as {self.first_changed})" if self.changed else text

  def check(
    self, bound: float, max_changed: float, what: str, remedy: str
  ) -> None:
    """Refuses what differs too much.

    Args:
      bound: the largest difference of logits that is allowed.
      max_changed: the share of labels that may change.
      what: names the exported model.
      remedy: what to do, for the message.

    Raises:
      ValueError: it does; says by how much and where.
    """
    equal = self.largest <= bound  # False for NaN
    if equal and self.changed <= max_changed * self.segments:
      return
    rules = [f"logits within {bound:g}"] if np.isfinite(bound) else []
    rules.append(
      f"at most {max_changed:.2%} of the labels changed"
      if max_changed
      else "no label changed"
    )
    raise ValueError(
      f"{what} must agree with JAX, {' and '.join(rules)}; got {self}. Nothing"
      f" was written: {remedy}"
    )


def compare(
  sample: Sample, ours_MxC: np.ndarray, theirs_MxC: np.ndarray
) -> Parity:
  """Compares the logits of two models on a sample."""
  student = sample.student
  difference_MxC = np.abs(
    ours_MxC.astype(np.float64) - theirs_MxC.astype(np.float64)
  )
  difference_MxC[np.isnan(difference_MxC)] = np.inf
  m, c = np.unravel_index(difference_MxC.argmax(), difference_MxC.shape)
  ours, theirs = (_labels(z, student) for z in (ours_MxC, theirs_MxC))
  changed = [m for m in range(len(sample)) if ours[m] != theirs[m]]
  first = ""
  if changed:
    k = changed[0]
    first = f"{sample.place(k)}: {ours[k]} became {theirs[k]}"
  return Parity(
    segments=len(sample),
    source=sample.source,
    largest=float(difference_MxC[m, c]),
    where=f"class {student.classes[c]!r}, {sample.place(m)}",
    changed=len(changed),
    first_changed=first,
  )


def _labels(logits_MxC: np.ndarray, student: Student) -> list:
  """Returns each segment's class, or its list of classes."""
  if student.task == "single_label" and len(student.classes) > 1:
    return [student.classes[c] for c in logits_MxC.argmax(axis=1)]
  return [
    [student.classes[c] for c in np.flatnonzero(row_C > 0)]
    for row_C in logits_MxC
  ]
