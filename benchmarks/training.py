"""Useful pairs and segments a second in training, ours against PyTorch's ways.

    python -m benchmarks.training --model=FOLDER \
        --config=configs/dailydialog.py --config.dataset.source=FOLDER \
        --config.dataset.only_scored=True --config.scores=scores.parquet

Real segments in their natural lengths, with real scores. A useful pair is an
unordered pair of segments of one dialogue whose hard labels differ for some
class. The sides take turns:

ours     the first phase of `ppl_jax.main`: its plan, its buckets of lengths,
         its input pipeline, its step.
packed   PyTorch on the same segments in the same batches with the same loss
         over all pairs of a group; padded to the longest of the batch.
pairs    PyTorch as TRL's RewardTrainer with a margin: a batch is --pairs useful
         pairs, drawn from all of them, both sides encoded in one pass and
         scored for all classes that differ; padded to the longest.

PyTorch's sides run `BertForSequenceClassification` with SDPA attention, dropout
as trained, clipping and the fused AdamW, in float32; the arrays of a turn are
made before it is timed. Before that, all sides take a step without dropout on
the first batch, `pairs` on its pairs, and their losses must agree.

Prints medians over the rounds with the smallest and the largest, ratios round
by round, and each process's peak memory. 10 minutes on 2 cores.
"""

import json
import pathlib
import statistics
import tempfile
import time

import numpy as np
from absl import flags

from benchmarks import common, pair_step
from ppl_jax import commands, memory
from ppl_jax.data import segments

_MODEL = flags.DEFINE_string("model", None, "Hub name or folder of a BERT.")
_STEPS = flags.DEFINE_integer("steps", 8, "Steps a turn.", lower_bound=1)
_PAIRS = flags.DEFINE_integer("pairs", 16, "Pairs a batch of the pair side.")
_SIDES = flags.DEFINE_list("sides", "ours,packed,pairs", "Which to run.")
_KEEPS = flags.DEFINE_bool(
  "torch_keeps_memory",
  False,
  "Give PyTorch our setting of glibc, to keep memory that it freed.",
)
_FOLDER = flags.DEFINE_string("folder", None, "Of child processes.")
_DROPOUT = flags.DEFINE_float("dropout", None, "Of child processes.")

_TOLERANCE = 1e-4


def useful_pairs(scores_NxC: np.ndarray) -> np.ndarray:
  """Returns the unordered pairs of segments that differ in some hard label.

  Args:
    scores_NxC: of segments of one dialogue, none NaN.

  Returns:
    int [P, 2], the first of a pair before the second.
  """
  above = scores_NxC > 0.5
  differ = (above[:, None] != above[None]).any(-1)
  return np.argwhere(np.triu(differ))


class _Ours:
  """The first phase of a run; also writes what the other sides read."""

  def __init__(self):
    memory.one_arena()  # as main does
    from benchmarks import first_phase
    from ppl_jax import inputs as inputs_lib

    config = commands.CONFIG.value
    config.model.pretrained = _MODEL.value
    # What both of PyTorch's sides compute.
    config.pretrain.objective = "pairwise"
    config.pairs.targets = "hard"
    config.pairs.alpha = 0.5
    config.model.pooling = "pooler"
    config.pretrain.optimizer.learning_rate = 1e-4
    config.pretrain.optimizer.scorer_learning_rate = 1e-4
    if _DROPOUT.value is not None:
      config.model.dropout = _DROPOUT.value
    folder = pathlib.Path(_FOLDER.value)
    workdir = folder / f"run-{config.model.dropout}"
    self._inputs = inputs_lib.prepare(config, workdir)
    steps = common.ROUNDS.value * _STEPS.value
    self._run = first_phase.FirstPhase(self._inputs, workdir, steps)
    self._steps, self._done = steps, 0
    self._counts = [self._count(t) for t in range(steps)]

  def write(self) -> dict:
    """Writes segments, scores, batches and weights for PyTorch."""
    import safetensors.numpy
    from flax import nnx

    from ppl_jax.models import pretrained

    folder, inputs = pathlib.Path(_FOLDER.value), self._inputs
    materialize = inputs.splits["train"]
    split, plan = materialize.split, self._run.phase.plan
    batches = [plan.batch(t) for t in range(self._steps)]
    rows = np.stack([b.rows_SxN for b in batches])
    shift = np.arange(rows.shape[1])[:, None, None] * rows.shape[2]
    index = np.stack(
      [np.where(b.index_SxDxK < 0, -1, b.index_SxDxK + shift) for b in batches]
    )
    usable = np.flatnonzero(split.scored_U & ~inputs.heldout_U)
    pairs = [np.zeros((0, 2), np.int64)]
    for members in np.split(
      usable, np.flatnonzero(np.diff(split.dialogue_U[usable])) + 1
    ):
      pairs.append(members[useful_pairs(split.scores_UxC[members])])
    pairs = np.random.default_rng(0).permutation(np.concatenate(pairs))
    np.savez(
      folder / "work.npz",
      ids=split.tokens.ids,
      offsets=split.tokens.offsets,
      first=split.tokens.first,
      lengths=split.lengths_U,
      contexts=split.context_lengths_U,
      scores=split.scores_UxC,
      rows=rows.reshape(len(batches), -1),
      index=index.reshape(len(batches), -1, index.shape[-1]),
      pairs=pairs,
    )
    model = nnx.merge(inputs.graphdef, inputs.params)
    safetensors.numpy.save_file(
      pretrained.hf_weights(model), folder / "weights.safetensors"
    )
    optimizer = self._run.phase.config.optimizer
    settings = {
      "encoder": inputs.student.encoder.to_hf(),
      "classes": len(inputs.student.classes),
      "dropout": inputs.student.dropout,
      "alpha": inputs.config.pairs.alpha,
      "learning_rate": optimizer.learning_rate,
      "weight_decay": optimizer.weight_decay,
      "clip_norm": optimizer.clip_norm,
      "warm_up": self._run.one_of_each_shape(),
      "segment": {
        "window": materialize.window,
        "max_length": materialize.max_length,
        "cls_id": materialize.cls_id,
        "sep_id": materialize.sep_id,
      },
      "pad_id": materialize.pad_id,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    lengths = split.lengths_U[usable]
    return {
      "segments": len(usable),
      "pairs": len(pairs),
      "median_length": float(np.median(lengths)),
      "longest": int(lengths.max()),
      "lengths": sorted({b.length for b in batches}),
      "pairs_a_segment": sum(p for _, p in self._counts)
      / sum(s for s, _ in self._counts),
    }

  def first_loss(self) -> float:
    return self._run.take(1)[0]

  def warm_up(self) -> None:
    self._run.warm_up()

  def take(self, turn: int) -> dict:
    """Takes the steps of a turn; they follow those of the turn before."""
    steps = _STEPS.value
    _, seconds = self._run.take(steps)
    counts = self._counts[turn * steps : (turn + 1) * steps]
    return {
      "seconds": seconds,
      "segments": sum(s for s, _ in counts),
      "pairs": sum(p for _, p in counts),
    }

  def memory(self) -> float:
    return common.memory()["peak"]

  def _count(self, t: int) -> tuple[int, int]:
    """Returns the segments and the useful pairs of a batch."""
    batch = self._run.phase.plan.batch(t)
    scores = self._inputs.splits["train"].split.scores_UxC
    pairs = 0
    for rows, groups in zip(batch.rows_SxN, batch.index_SxDxK, strict=True):
      for group in groups:
        members = rows[group[group >= 0]]
        pairs += len(useful_pairs(scores[members]))
    return int((batch.rows_SxN >= 0).sum()), pairs


class _Torch:
  """What both of PyTorch's sides share."""

  def __init__(self):
    import safetensors.torch
    import torch
    import transformers

    if _KEEPS.value:
      memory.one_arena()
      memory.keep_freed()
    self._torch = torch
    torch.set_num_threads(int(common.THREADS.value))
    torch.manual_seed(0)
    folder = pathlib.Path(_FOLDER.value)
    self.settings = settings = json.loads(
      (folder / "settings.json").read_text()
    )
    self.work = dict(np.load(folder / "work.npz"))
    self._tokens = segments.UtteranceTokens(
      *(self.work.pop(name) for name in ("ids", "offsets", "first"))
    )
    dropout = _DROPOUT.value
    config = transformers.BertConfig(
      **settings["encoder"],
      num_labels=settings["classes"],
      attn_implementation="sdpa",
      hidden_dropout_prob=settings["dropout"] if dropout is None else dropout,
      attention_probs_dropout_prob=0.0,
    )
    self._model = transformers.BertForSequenceClassification(config).train()
    missing, unexpected = self._model.load_state_dict(
      safetensors.torch.load_file(folder / "weights.safetensors"), strict=False
    )
    missing = [name for name in missing if "position_ids" not in name]
    if missing or unexpected:
      raise ValueError(
        "PyTorch's model must take all of our weights, got none for"
        f" {missing} and too many with {unexpected}. Check the version of"
        " transformers."
      )
    self._parameters = list(self._model.parameters())
    self._optimizer = pair_step.torch_adamw(
      self._parameters,
      learning_rate=settings["learning_rate"],
      weight_decay=settings["weight_decay"],
    )

  def first_loss(self) -> float:
    return self._step(*self._first())

  def warm_up(self) -> None:
    for batch in self._warm_up():
      self._step(*batch)

  def take(self, turn: int) -> dict:
    """Takes the steps of a turn, their arrays made before."""
    steps = range(turn * _STEPS.value, (turn + 1) * _STEPS.value)
    batches = [self._batch(t) for t in steps]
    start = time.perf_counter()
    for batch in batches:
      self._step(*batch)
    return {
      "seconds": time.perf_counter() - start,
      "segments": sum(len(inputs["input_ids"]) for inputs, *_ in batches),
      "pairs": sum(len(chosen) for _, chosen, *_ in batches),
    }

  def memory(self) -> float:
    return common.memory()["peak"]

  def _inputs(self, utterances: np.ndarray) -> dict:
    """Returns what the model is given, padded to the longest."""
    lengths = self.work["lengths"][utterances][:, None]
    contexts = self.work["contexts"][utterances][:, None]
    shape = (len(utterances), int(lengths.max()))
    rows = np.full(shape, self.settings["pad_id"], np.int32)
    segments.write_segments(
      self._tokens, utterances, rows, **self.settings["segment"]
    )
    position = np.arange(shape[1])
    arrays = {
      "input_ids": rows,
      "attention_mask": position < lengths,
      "token_type_ids": position >= contexts,
    }
    return {k: self._torch.tensor(v).long() for k, v in arrays.items()}

  def _targets(self, chosen, rejected, utterances):
    """Returns for pairs of rows and classes: sign or 0, and the margin."""
    scores = self.work["scores"][utterances]
    difference = scores[chosen] - scores[rejected]
    sign = (scores[chosen] > 0.5) * 1.0 - (scores[rejected] > 0.5)
    tensors = sign, self.settings["alpha"] * difference
    return [self._torch.tensor(x, dtype=self._torch.float32) for x in tensors]

  def _pair_batch(self, chosen, rejected, utterances):
    """A batch of segments, and pairs of its rows."""
    return (
      self._inputs(utterances),
      self._torch.tensor(chosen),
      self._torch.tensor(rejected),
      *self._targets(chosen, rejected, utterances),
    )

  def _step(self, inputs, chosen, rejected, sign, margin) -> float:
    torch = self._torch
    self._optimizer.zero_grad(set_to_none=True)
    logits = self._model(**inputs).logits
    difference = logits[chosen] - logits[rejected] - margin
    losses = torch.nn.functional.softplus(-sign * difference)
    counts = sign != 0
    loss = (losses * counts).sum() / counts.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(self._parameters, self.settings["clip_norm"])
    self._optimizer.step()
    return loss.item()

  def _planned(self, t: int):
    """Returns the utterances of a batch of the plan, and its useful pairs."""
    rows = self.work["rows"][t]
    place = np.cumsum(rows >= 0) - 1  # empty rows are left out
    pairs = [np.zeros((0, 2), np.int64)]
    for group in self.work["index"][t]:
      members = group[group >= 0]
      found = useful_pairs(self.work["scores"][rows[members]])
      pairs.append(place[members][found])
    return rows[rows >= 0], np.concatenate(pairs)


class _Packed(_Torch):
  """The plan's batches: each segment encoded once, all pairs of a group."""

  def _batch(self, t: int):
    utterances, pairs = self._planned(t)
    return self._pair_batch(pairs[:, 0], pairs[:, 1], utterances)

  def _first(self):
    return self._batch(0)

  def _warm_up(self):
    return [self._batch(t) for t in self.settings["warm_up"]]


class _Pairs(_Torch):
  """Pairs drawn from all useful ones: both sides of each are encoded."""

  def _of_pairs(self, pairs: np.ndarray):
    number = np.arange(len(pairs))
    return self._pair_batch(number, number + len(pairs), pairs.T.reshape(-1))

  def _batch(self, t: int):
    pairs, size = self.work["pairs"], _PAIRS.value
    return self._of_pairs(pairs[(np.arange(size) + t * size) % len(pairs)])

  def _first(self):
    utterances, pairs = self._planned(0)
    return self._of_pairs(utterances[pairs])

  def _warm_up(self):
    return [self._batch(t) for t in range(len(self.settings["warm_up"]))]


_KINDS = {"ours": _Ours, "packed": _Packed, "pairs": _Pairs}


def _check_losses(names, folder: str) -> None:
  """Takes a step without dropout on each side; also writes their work."""
  losses = {}
  for name in names:  # one after another: ours writes what the others read
    arguments = f"--folder={folder}", "--dropout=0"
    with common.sides([name], *arguments) as sides:
      losses[name] = sides[name].ask("first_loss")
  print("first losses without dropout:", losses, flush=True)
  far = max(losses.values()) / min(losses.values()) - 1
  if not far <= _TOLERANCE:
    raise RuntimeError(
      "The sides must do the same work, got first losses that differ:"
      f" {losses}."
    )


def main(argv):
  """Times the sides in turn and prints."""
  commands.refuse_arguments(argv)
  if common.SIDE.value:
    common.serve(_KINDS[common.SIDE.value])
    return
  common.refuse_busy()
  names = list(dict.fromkeys(["ours", *_SIDES.value]))
  with tempfile.TemporaryDirectory() as folder:
    with common.sides(["ours"], f"--folder={folder}") as writer:
      print("work:", writer["ours"].ask("write"), flush=True)
    _check_losses(names, folder)
    results = {name: [] for name in names}
    with common.sides(names, f"--folder={folder}") as sides:
      for side in sides.values():
        side.ask("warm_up")
      for turn in range(common.ROUNDS.value):
        for name, side in sides.items():
          results[name].append(side.ask("take", turn=turn))
      peaks = {name: side.ask("memory") for name, side in sides.items()}
  _print(results, peaks)


def _print(results, peaks) -> None:
  print(
    f"{common.THREADS.value} threads, {common.ROUNDS.value} rounds of"
    f" {_STEPS.value} steps"
  )
  speeds = {
    name: {
      unit: [turn[unit] / turn["seconds"] for turn in turns]
      for unit in ("pairs", "segments")
    }
    for name, turns in results.items()
  }
  for name, speed in speeds.items():
    step = [t["seconds"] / _STEPS.value for t in results[name]]
    print(
      f"{name}: {common.spread(speed['pairs'], 1)} useful pairs/s,"
      f" {common.spread(speed['segments'], 1)} segments/s,"
      f" {1e3 * statistics.median(step):.0f} ms a step,"
      f" peak {peaks[name]:.0f} MiB"
    )
  for name in list(speeds)[1:]:
    for unit in ("pairs", "segments"):
      ratio = common.ratios(speeds["ours"][unit], speeds[name][unit])
      print(f"ours / {name}, {unit}: {ratio}")


if __name__ == "__main__":
  commands.run(main, required=["config", "model"])
