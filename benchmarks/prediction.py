"""Labels a second, milliseconds an utterance, memory and start of prediction.

    python -m benchmarks.prediction --what=batch --workdir=RUN --onnx=EXPORT \
        --pytorch=EXPORT --input=dialogues.jsonl
    python -m benchmarks.prediction --what=live ...
    python -m benchmarks.prediction --what=start ...

RUN is a run of `ppl_jax.main`; the exports are of `ppl_jax.export`, one with
--format=onnx, one with --format=pytorch, of that run. The sides take turns:

jax          our Predictor with JAX.
onnx         our Predictor with onnxruntime.
pytorch      the export in PyTorch: `inference_mode`, SDPA attention.
onnxruntime  the ONNX export in a bare session.

All make the same segments of the same utterances with the same tokenizer, and
give probabilities of every class, in float32 unless the export is int8; how
many labels differ from PyTorch's is printed. Start-up is not in the times.

batch: whole dialogues of about --utterances utterances at once, segments a
second. PyTorch and the bare session sort by length too and pad to the longest
of a batch; of several batch sizes each has the one that is fastest here.
live: --utterances utterances one at a time, in blocks of 100 by turns; the
percentiles of each round, and peak memory. A turn begins with 5 more that are
not timed: the sides before it took the processor's caches. On two cores it is
measured between blocks how far apart these are (`benchmarks/cores.py`), and the
percentiles of either case are printed too.
start: seconds from starting a process to its first answer to one live line:
`python -m ppl_jax.predict` without and with a compilation cache, on the ONNX
export, and PyTorch's side. Files are in the system's cache.

Prints medians over the rounds with the smallest and the largest, and ratios
round by round.
"""

import contextlib
import gc
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import tqdm
from absl import flags

from benchmarks import common, cores
from ppl_jax import commands, files, memory, predictor
from ppl_jax.data import segments, tokenization

_WHAT = flags.DEFINE_enum(
  "what", "batch", ["batch", "live", "start"], "What to measure."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "A run.")
_ONNX = flags.DEFINE_string("onnx", None, "Its export with model.onnx.")
_PYTORCH = flags.DEFINE_string("pytorch", None, "Its export for PyTorch.")
_INPUT = flags.DEFINE_string("input", None, "Dialogues, JSON lines or CSV.")
_UTTERANCES = flags.DEFINE_integer("utterances", 2_000, "How many to label.")
_SIDES = flags.DEFINE_list(
  "sides", "jax,onnx,pytorch,onnxruntime", "Which to run."
)

_BLOCK = 100  # utterances of a live turn
_WARM_UP = 50
_TURN_WARM_UP = 5
_FAR = 1.8  # times the least round trip; seen were 1 to 1.6, and 2.1 to 2.5
_BATCH_TOKENS = (512, 1024, 2048, 4096, 8192)


def _dialogues() -> list[files.Transcript]:
  """Returns the first dialogues, of at least --utterances utterances."""
  dialogues, utterances = [], 0
  for dialogue in files.read(pathlib.Path(_INPUT.value)):
    dialogues.append(dialogue)
    utterances += len(dialogue.texts)
    if utterances >= _UTTERANCES.value:
      return dialogues
  raise ValueError(
    f"--input must hold at least {_UTTERANCES.value} utterances, got"
    f" {utterances} in {_INPUT.value}. Lower --utterances or give more."
  )


def _lines() -> list[tuple[str, str, str]]:
  """Returns dialogue_id, speaker and text of the first utterances."""
  lines = [
    (dialogue.dialogue_id, speaker, text)
    for dialogue in _dialogues()
    for speaker, text in zip(dialogue.speakers, dialogue.texts, strict=True)
  ]
  return lines[: _UTTERANCES.value]


class _Ours:
  """Our Predictor, set up as `ppl_jax.predict` sets it up."""

  def __init__(self, folder: str):
    live = _WHAT.value == "live"
    memory.one_arena()
    self._predictor = predictor.Predictor.from_workdir(
      folder, threads=int(common.THREADS.value), live=live, batch=not live
    )
    memory.keep_freed()
    self.classes = self._predictor.classes

  def add(self, dialogue_id, speaker, text):
    return self._predictor.add(dialogue_id, speaker, text).probabilities

  def predict(self, dialogues):
    return [p.probabilities for p in self._predictor.predict(dialogues)]

  def tune(self, dialogues) -> int:
    self.predict(dialogues)
    return 0  # its own choice


class _Theirs:
  """The same segments through a function of the alternative."""

  def __init__(self):
    workdir = pathlib.Path(_WORKDIR.value)
    student = json.loads((workdir / "student.json").read_text())
    self.classes = tuple(student["classes"])
    self._tokenizer = tokenization.StudentTokenizer.load(
      workdir / "tokenizer.json", student["speaker_tokens"]
    )
    self._special = self._tokenizer.cls_id, self._tokenizer.sep_id
    self._settings = student["window"], student["max_length"]
    self._live = {}
    self.batch_tokens = _BATCH_TOKENS[0]

  def add(self, dialogue_id, speaker, text):
    window = self._live.get(dialogue_id)
    if window is None:
      window = segments.DialogueWindow(*self._settings)
      self._live[dialogue_id] = window
    ids = self._tokenizer.encode_utterance(speaker, text)
    segment, context = window.segment(ids, *self._special)
    window.add(ids)
    [values] = self._probabilities(
      np.array([segment]), np.array([len(segment)]), np.array([context])
    )
    return dict(zip(self.classes, values, strict=True))

  def predict(self, dialogues):
    speakers, texts, counts = [], [], []
    for dialogue in dialogues:
      speakers += dialogue.speakers
      texts += dialogue.texts
      counts.append(len(dialogue.texts))
    encoded = self._tokenizer.encode_utterances(speakers, texts)
    tokens = segments.UtteranceTokens(
      ids=np.concatenate(encoded),
      offsets=np.cumsum([0, *map(len, encoded)]),
      first=np.cumsum([0, *counts]),
    )
    lengths = segments.segment_lengths(tokens, *self._settings)
    contexts = segments.context_lengths(tokens, *self._settings)
    order = np.argsort(lengths, kind="stable")
    out, start = [None] * len(order), 0
    while start < len(order):
      rows = max(1, self.batch_tokens // int(lengths[order[start]]))
      chosen = order[start : start + rows]
      length = int(lengths[chosen].max())
      filled = np.full((len(chosen), length), self._tokenizer.pad_id, np.int32)
      segments.write_segments(
        tokens, chosen, filled, *self._settings, *self._special
      )
      for row, values in zip(
        chosen,
        self._probabilities(filled, lengths[chosen], contexts[chosen]),
        strict=True,
      ):
        out[row] = dict(zip(self.classes, values, strict=True))
      start += rows
    return out

  def tune(self, dialogues) -> int:
    """Takes the number of tokens a batch that is fastest here; returns it."""
    seconds = {}
    for self.batch_tokens in _BATCH_TOKENS:
      self.predict(dialogues[:5])
      start = time.perf_counter()
      self.predict(dialogues)
      seconds[self.batch_tokens] = time.perf_counter() - start
    self.batch_tokens = min(seconds, key=seconds.get)
    return self.batch_tokens

  def _probabilities(self, tokens_NxT, length_N, context_N) -> list:
    position = np.arange(tokens_NxT.shape[1])
    mask = position < length_N[:, None]
    kind = (position >= context_N[:, None]) & mask
    arrays = (tokens_NxT, mask, kind)
    return self._run(*(x.astype(np.int64) for x in arrays))


class _PyTorch(_Theirs):
  """The exported folder in PyTorch."""

  def __init__(self):
    super().__init__()
    import torch
    import transformers

    torch.set_num_threads(int(common.THREADS.value))
    transformers.utils.logging.disable_progress_bar()
    self._torch = torch
    self._model = (
      transformers.AutoModelForSequenceClassification.from_pretrained(
        _PYTORCH.value, attn_implementation="sdpa", dtype=torch.float32
      ).eval()
    )

  def _run(self, tokens, mask, kind):
    torch = self._torch
    with torch.inference_mode():
      logits = self._model(
        input_ids=torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask),
        token_type_ids=torch.from_numpy(kind),
      ).logits
      return torch.softmax(logits, -1).tolist()


class _OnnxRuntime(_Theirs):
  """The exported file in a session with nothing around it."""

  def __init__(self):
    super().__init__()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(common.THREADS.value)
    self._session = onnxruntime.InferenceSession(
      os.path.join(_ONNX.value, "model.onnx"),
      options,
      providers=["CPUExecutionProvider"],
    )

  def _run(self, tokens, mask, kind):
    feeds = {
      "input_ids": tokens,
      "attention_mask": mask,
      "token_type_ids": kind,
    }
    [logits] = self._session.run(["logits"], feeds)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (weights / weights.sum(axis=1, keepdims=True)).tolist()


class _Answers:
  """Times one student in a child process."""

  def __init__(self):
    kind = {
      "jax": lambda: _Ours(_WORKDIR.value),
      "onnx": lambda: _Ours(_ONNX.value),
      "pytorch": _PyTorch,
      "onnxruntime": _OnnxRuntime,
    }[common.SIDE.value]
    self._student = kind()
    self._labels = []

  def warm_up(self) -> int:
    """Does the work once; returns the tokens a batch that were chosen, or 0."""
    tokens = 0
    if _WHAT.value == "batch":
      tokens = self._student.tune(_dialogues())
    else:
      self._warm_up(_WARM_UP)
    gc.collect()
    gc.freeze()  # as `ppl_jax.predict` does, for all sides
    return tokens

  def _warm_up(self, utterances: int) -> None:
    for _, speaker, text in _lines()[:utterances]:
      self._student.add("warm-up", speaker, text)

  def batch(self) -> float:
    dialogues = _dialogues()
    start = time.perf_counter()
    found = self._student.predict(dialogues)
    seconds = time.perf_counter() - start
    self._labels = [max(values, key=values.get) for values in found]
    return len(found) / seconds

  def live(self, turn: int, first: int) -> list[float]:
    """Returns the seconds of each utterance of a block."""
    seconds, add = [], self._student.add
    if not first:
      self._labels = []
    self._warm_up(_TURN_WARM_UP)
    for dialogue_id, speaker, text in _lines()[first : first + _BLOCK]:
      # Each round's dialogues are new ones.
      dialogue_id = f"{turn}-{dialogue_id}"
      start = time.perf_counter()
      values = add(dialogue_id, speaker, text)
      seconds.append(time.perf_counter() - start)
      self._labels.append(max(values, key=values.get))
    return seconds

  def first(self) -> None:
    """Answers one line, as a process that has just started."""
    self._student.add(*_lines()[0])

  def labels(self) -> list[str]:
    return self._labels

  def memory(self) -> float:
    return common.memory()["peak"]


def _batch(sides) -> None:
  speeds = {name: [] for name in sides}
  for _ in tqdm.trange(common.ROUNDS.value, desc="rounds"):
    for name, side in sides.items():
      speeds[name].append(side.ask("batch"))
  for name, values in speeds.items():
    print(f"{name}: {common.spread(values, 1)} segments/s")
  _print_ratios(speeds)


def _live(sides) -> None:
  names, ranks = ("p50", "p95", "p99"), (50, 95, 99)
  percentiles = {rank: {name: [] for name in sides} for rank in names}
  means = {name: [] for name in sides}
  blocks = {name: [] for name in sides}
  with _round_trips() as round_trip:
    for turn in tqdm.trange(common.ROUNDS.value, desc="rounds"):
      seconds = {name: [] for name in sides}
      for first in range(0, _UTTERANCES.value, _BLOCK):
        for name, side in sides.items():
          before = round_trip()
          found = side.ask("live", turn=turn, first=first)
          blocks[name].append((before, round_trip(), found))
          seconds[name] += found
      for name, values in seconds.items():
        means[name].append(1e3 * statistics.mean(values))
        found = 1e3 * np.percentile(values, ranks)
        for rank, value in zip(names, found.tolist(), strict=True):
          percentiles[rank][name].append(value)
  for name in sides:
    text = ", ".join(
      f"{rank} {common.spread(percentiles[rank][name])}" for rank in names
    )
    tail = common.ratios(percentiles["p99"][name], percentiles["p50"][name])
    print(f"{name}: {text}, mean {common.spread(means[name])} ms")
    print(f"{name}: p99 / p50 {tail}")
  for rank in names:
    print(f"{rank}:", end=" ")
    _print_ratios(percentiles[rank])
  if common.THREADS.value == "2":
    _print_by_distance(blocks)


@contextlib.contextmanager
def _round_trips() -> Iterator[Callable[[], float]]:
  """Gives a function that measures how far apart the cores are, in ns."""
  if common.THREADS.value == "1":
    yield lambda: 0.0
    return
  with common.sides(["cores"]) as sides:
    yield lambda: sides["cores"].ask("measure")


def _print_by_distance(blocks) -> None:
  """Prints percentiles of blocks with the cores near, and far apart."""
  trips = [
    trip for found in blocks.values() for block in found for trip in block[:2]
  ]
  limit = _FAR * min(trips)
  print(f"between the cores: {common.spread(trips, 0)} ns there and back")
  for name, found in blocks.items():
    for where, is_of in (
      (f"below {limit:.0f} ns", lambda trip: trip < limit),
      ("above it", lambda trip: trip >= limit),
    ):
      values = [
        1e3 * seconds
        for before, after, block in found
        if is_of(before) and is_of(after)
        for seconds in block
      ]
      if values:
        p50, p99 = np.percentile(values, (50, 99))
        print(
          f"{name}, {where}: p50 {p50:.2f}, p99 {p99:.2f} ms, p99 / p50"
          f" {p99 / p50:.2f}, of {len(values)} utterances"
        )


def _print_ratios(values) -> None:
  """Prints ours over each of the others."""
  parts = [
    f"{ours} / {other} {common.ratios(values[ours], values[other])}"
    for ours in ("jax", "onnx")
    for other in ("pytorch", "onnxruntime")
    if {ours, other} <= values.keys()
  ]
  print("; ".join(parts), flush=True)


def _first_answer(workdir: str, cache: str) -> float:
  """Returns the seconds from starting `ppl_jax.predict` to its answer."""
  dialogue_id, speaker, text = _lines()[0]
  line = json.dumps(
    {"dialogue_id": dialogue_id, "speaker": speaker, "text": text}
  )
  threads = int(common.THREADS.value)
  cores = sorted(os.sched_getaffinity(0))[:threads]
  start = time.perf_counter()
  process = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "ppl_jax.predict",
      f"--workdir={workdir}",
      "--input=-",
      f"--cache={cache}",
      f"--threads={threads}",
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
    preexec_fn=lambda: os.sched_setaffinity(0, cores),
  )
  print(line, file=process.stdin, flush=True)
  answer = process.stdout.readline()
  seconds = time.perf_counter() - start
  process.communicate()
  if "probabilities" not in answer:
    raise ChildProcessError(
      f"ppl_jax.predict must answer, got {answer!r} of {workdir}."
    )
  return seconds


def _first_answer_of_side(name: str) -> float:
  start = time.perf_counter()
  with common.sides([name]) as sides:
    sides[name].ask("first")
    return time.perf_counter() - start


def _start() -> None:
  with tempfile.TemporaryDirectory() as folder:
    seconds = {"jax, no cache": [], "jax, cache": [], "onnx": [], "pytorch": []}
    for turn in tqdm.trange(common.ROUNDS.value, desc="rounds"):
      cache = os.path.join(folder, str(turn))
      for name in ("jax, no cache", "jax, cache"):
        seconds[name].append(_first_answer(_WORKDIR.value, cache))
      seconds["onnx"].append(_first_answer(_ONNX.value, cache))
      seconds["pytorch"].append(_first_answer_of_side("pytorch"))
  for name, values in seconds.items():
    print(f"{name}: {common.spread(values)} s to the first answer")


def main(argv):
  """Measures one thing and prints."""
  commands.refuse_arguments(argv)
  if common.SIDE.value:
    is_cores = common.SIDE.value == "cores"
    common.serve(cores.RoundTrip if is_cores else _Answers)
    return
  common.refuse_busy()
  print(
    f"{_WHAT.value}: {_UTTERANCES.value} utterances, {common.THREADS.value}"
    f" threads, {common.ROUNDS.value} rounds",
    flush=True,
  )
  if _WHAT.value == "start":
    _start()
    return
  with common.sides(_SIDES.value) as sides:
    for name, side in sides.items():
      tokens = side.ask("warm_up")
      if tokens:
        print(f"{name}: {tokens} tokens a batch", flush=True)
    {"batch": _batch, "live": _live}[_WHAT.value](sides)
    labels = {name: side.ask("labels") for name, side in sides.items()}
    theirs = labels.get("pytorch", next(iter(labels.values())))
    for name, side in sides.items():
      changed = sum(a != b for a, b in zip(labels[name], theirs, strict=True))
      print(f"{name}: {changed} of {len(theirs)} labels differ from PyTorch's")
      if _WHAT.value == "live":  # choosing a batch size takes memory
        print(f"{name}: peak {side.ask('memory'):.0f} MiB")


if __name__ == "__main__":
  commands.run(main, required=["workdir", "onnx", "pytorch", "input"])
