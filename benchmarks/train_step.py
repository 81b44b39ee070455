"""Segments a second of our training step against the same step in PyTorch.

    python -m benchmarks.train_step --model=FOLDER [--threads=2]

One step is encoder, pair loss, gradients, clipping and AdamW over 32 segments
of up to 64 tokens: 4 groups of 8, 4 classes. Ours is the project's own jitted
step; PyTorch's is `BertModel` with SDPA attention, its fused AdamW and the
same pairs. Attention has no dropout on either side. Both start from the same
weights, and the losses of their first steps must agree.

Each side runs in a child process, pinned to the same cores; the sides take
turns, and only one works at a time. Prints medians over the rounds, and the
ratio ours / PyTorch with its smallest and largest round. Refuses on a busy
machine unless --busy_ok. Three minutes on 2 cores.
"""

import time

import numpy as np
from absl import app, flags

from benchmarks import common, pair_step

_MODEL = flags.DEFINE_string(
  "model", None, "Hub name or folder of the encoder.", required=True
)
_STEPS = flags.DEFINE_integer("steps", 3, "Steps a turn.")
_DROPOUT = flags.DEFINE_multi_float("dropout", [0.0, 0.1], "Rates to time.")
_ADAMW = flags.DEFINE_enum(
  "torch_adamw", "fused", ["fused", "default"], "PyTorch's implementation."
)

_N, _T, _K, _C = 32, 64, 8, 4


def _batch(vocab_size):
  """Arrays of one batch, without the shard axis; every group has pairs."""
  rng = np.random.default_rng(0)
  length = rng.integers(_T // 2 + 1, _T + 1, _N).astype(np.int32)
  scores = rng.integers(0, 6, (_N, _C)).astype(np.float32) / 5
  return {
    "tokens": rng.integers(1, vocab_size, (_N, _T)).astype(np.int32),
    "length": length,
    "context_length": length // 2,
    "row": np.ones(_N, bool),
    "scores": scores,
    "index": np.arange(_N, dtype=np.int32).reshape(-1, _K),
  }


def _jax_side(folder, dropout):
  """Returns a function that takes a step and returns the loss."""
  import jax
  from flax import nnx

  from ppl_jax import sharding
  from ppl_jax.models import pretrained

  model = pretrained.load_classifier(
    folder, _C, 0, dropout=dropout, dtype="float32", seed=0
  )
  model.scorer.kernel[...] = _scorer(model.bert.config.hidden_size)
  graphdef, params = nnx.split(model, nnx.Param)
  mesh = sharding.make_mesh(1)
  step, state = pair_step.ours(graphdef, params, mesh)
  arrays = _batch(model.bert.config.vocab_size)
  batch = sharding.put_batch(mesh, {k: v[None] for k, v in arrays.items()})
  key = jax.random.key(0)

  def take():
    nonlocal state
    state, scalars = step(state, batch, key)
    return float(scalars["loss"])

  return take


def _torch_side(folder, dropout):
  """Returns a function that takes a step and returns the loss."""
  import torch
  import transformers

  torch.set_num_threads(int(common.THREADS.value))
  transformers.utils.logging.disable_progress_bar()
  bert = transformers.BertModel.from_pretrained(
    folder,
    attn_implementation="sdpa",
    hidden_dropout_prob=dropout,
    attention_probs_dropout_prob=0.0,
  ).float()
  scorer = torch.nn.Linear(bert.config.hidden_size, _C)
  with torch.no_grad():
    scorer.weight.copy_(torch.tensor(_scorer(bert.config.hidden_size)).T)
    scorer.bias.zero_()
  model = torch.nn.ModuleList([bert, torch.nn.Dropout(dropout), scorer]).train()
  parameters = list(model.parameters())
  optimizer = pair_step.torch_adamw(
    parameters, fused=_ADAMW.value == "fused" or None
  )
  batch = {
    k: torch.tensor(v) for k, v in _batch(bert.config.vocab_size).items()
  }
  position = torch.arange(_T)
  inputs = {
    "input_ids": batch["tokens"].long(),
    "attention_mask": (position < batch["length"][:, None]).long(),
    "token_type_ids": (position >= batch["context_length"][:, None]).long(),
  }
  loss_of = pair_step.torch_loss(batch["scores"], batch["index"])

  def take():
    optimizer.zero_grad(set_to_none=True)
    logits = scorer(model[1](bert(**inputs).pooler_output))
    loss = loss_of(logits)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, pair_step.CLIP_NORM)
    optimizer.step()
    return loss.item()

  return take


def _scorer(hidden_size):
  rng = np.random.default_rng(1)
  return rng.normal(0, 0.02, (hidden_size, _C)).astype(np.float32)


class _Answers:
  """Takes steps in a child process."""

  def __init__(self):
    side = {"jax": _jax_side, "torch": _torch_side}[common.SIDE.value]
    self._take = side(_MODEL.value, _DROPOUT.value[-1])

  def take(self, steps: int) -> tuple[float, float]:
    """Returns the last loss and the seconds of all steps."""
    start = time.perf_counter()
    for _ in range(steps):
      loss = self._take()
    return loss, time.perf_counter() - start


def _compare(folder, dropout):
  with common.sides(
    ["jax", "torch"], f"--model={folder}", f"--dropout={dropout}"
  ) as sides:
    losses = {
      n: s.ask("take", steps=1)[0] for n, s in sides.items()
    }  # compiles
    if not dropout and abs(losses["jax"] / losses["torch"] - 1) > 1e-4:
      raise RuntimeError(f"The first losses must agree, got {losses}.")
    speeds = {n: [] for n in sides}
    for turn in range(common.ROUNDS.value + 1):
      for name, side in sides.items():
        _, seconds = side.ask("take", steps=_STEPS.value)
        if turn:  # the first warms up
          speeds[name].append(_N * _STEPS.value / seconds)
  print(
    f"dropout {dropout}: ours {common.spread(speeds['jax'], 1)}, PyTorch"
    f" {common.spread(speeds['torch'], 1)} segments/s; ratio"
    f" {common.ratios(speeds['jax'], speeds['torch'])}",
    flush=True,
  )


def main(argv):
  """Times both sides at every dropout rate."""
  if argv[1:]:
    raise app.UsageError(f"Takes flags only, got {' '.join(argv[1:])}.")
  if common.SIDE.value:
    common.serve(_Answers)
    return
  from ppl_jax.models import pretrained

  common.refuse_busy()
  print(
    f"{_N} segments, T={_T}, {common.THREADS.value} threads,"
    f" {common.ROUNDS.value} rounds of {_STEPS.value} steps, PyTorch's"
    f" {_ADAMW.value} AdamW"
  )
  folder = pretrained.resolve(_MODEL.value)
  for dropout in _DROPOUT.value:
    _compare(folder, dropout)


if __name__ == "__main__":
  app.run(main)
