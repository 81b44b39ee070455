"""Takes training steps on meshes and writes losses, gradients and HLO.

python tests/sharded_steps.py OUT 8x1 4x2 [FLAGS of ppl_jax.distributed]

A mesh is DATAxFSDP, with `+N` for N micro-batches and `+remat`. No two sizes
are equal, so that an axis is known by its size: S shards, N rows a shard, T
tokens, M places for tokens a shard, D groups a shard, K segments a group, C
classes.
"""

import functools
import pathlib
import pickle
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from ppl_jax import distributed, objective, optim, sharding, train_step
from ppl_jax.models import bert, pretrained

S, N, T, M, D, K, C = 80, 11, 13, 137, 4, 3, 7
STEPS = 20
ENCODER = bert.BertConfig(
  vocab_size=56,
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=120,
  max_position_embeddings=32,
)
OBJECTIVE = objective.Objective(
  weights=(
    ("pairs", 1.0),
    ("swapped_pairs", 1.0),
    ("one_versus_rest", 0.5),
    ("softmax", 0.5),
    ("plurality", 0.5),
    ("gold", 1.0),
  ),
  task="single_label",
  pairs=objective.PairSettings(targets="hard", alpha=0.5),
)


def batch(step):
  """A random batch; shards differ much in how many rows and pairs count."""
  rng = np.random.default_rng(step)
  length = rng.integers(3, T + 1, (S, N))
  row = rng.random((S, N)) < rng.random((S, 1))
  scores = rng.integers(0, 5, (S, N, C)).astype(np.float32) / 4
  scores[rng.random((S, N)) < 0.2] = np.nan
  index = np.stack([rng.permutation(N + 1)[: D * K] - 1 for _ in range(S)])
  index = index.reshape(S, D, K).astype(np.int32)
  index[~np.take_along_axis(row, index.reshape(S, -1), 1).reshape(S, D, K)] = -1
  gold = np.eye(C, dtype=np.float32)[rng.integers(0, C, (S, N))]
  place = np.full((S, M), -1, np.int32)
  for shard, length_N in enumerate(length):
    found = np.flatnonzero(np.arange(T) < length_N[:, None])
    place[shard, : len(found)] = found
  return {
    "place": place,
    "tokens": rng.integers(0, ENCODER.vocab_size, (S, N, T)).astype(np.int32),
    "length": length.astype(np.int32),
    "context_length": (length // 2).astype(np.int32),
    "row": row,
    "scores": scores,
    "smoothed": 0.8 * scores + np.float32(0.05),
    "gold": gold,
    "labelled": row & (rng.random((S, N)) < 0.3),
    "dialogue": rng.integers(0, 3, (S, N)).astype(np.int32),
    "index": index,
  }


def recording():
  """Keeps the gradients in its state, and hands them on."""
  return optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda updates, _, params=None: (updates, updates),
  )


def steps(name):
  """Takes the steps on a mesh; returns losses, gradients and the HLO."""
  sizes, *more = name.split("+")
  data, fsdp = map(int, sizes.split("x"))
  accumulation = next((int(m) for m in more if m.isdigit()), 1)
  mesh = sharding.make_mesh(S, accumulation=accumulation, data=data, fsdp=fsdp)
  model = pretrained.new_classifier(
    ENCODER, C, dropout=0.1, dtype="float32", seed=0
  )
  model.bert.remat = "remat" in more
  graphdef, params = nnx.split(model, nnx.Param)
  optimizer = optax.chain(
    recording(), optim.adamw(1e-3, weight_decay=0.01, clip_norm=1.0)
  )
  take_step = train_step.make_train_step(
    graphdef, params, optimizer, OBJECTIVE, mesh, accumulation
  )
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
  state = train_step.init_state(params, optimizer, mesh)
  key = jax.random.key(3)
  local = sharding.local_shards(mesh, S)
  put = functools.partial(sharding.put_batch, mesh)
  losses, gradients = [], []
  for t in range(STEPS):
    arrays = put({k: v[local] for k, v in batch(t).items()})
    if not t:
      take_step = take_step.lower(state, arrays, key).compile()
      logits_step = train_step.make_logits_step(graphdef, params, mesh)
      logits_step = logits_step.lower(state.params, arrays).compile()
    state, scalars = take_step(state, arrays, key)
    leaves = jax.tree_util.tree_leaves_with_path(whole(state.opt_state[0]))
    gradients.append(
      {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    )
    losses.append({k: float(v) for k, v in scalars.items()})
  cut = {
    leaf.sharding.shard_shape(leaf.shape)
    for leaf in jax.tree.leaves(state.params)
  }
  return {
    "losses": losses,
    "gradients": gradients,
    "collectives": collectives(take_step.as_text()),
    "collectives_of_logits": collectives(logits_step.as_text()),
    "cut": cut,
    "whole": {leaf.shape for leaf in jax.tree.leaves(state.params)},
  }


def collectives(hlo):
  """Returns (operation, shape) of all that collectives of a program return."""
  found = []
  for line in hlo.splitlines():
    match = re.search(
      r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|"
      r"collective-permute|collective-broadcast|ragged-all-to-all)(-start)?\(",
      line,
    )
    if match:
      for shape in re.findall(r"\w+\[([\d,]*)\]", match[1]):
        sizes = tuple(int(size) for size in shape.split(",") if size)
        found.append((match[2], sizes))
  return found


def main(argv):
  distributed.join()
  _, out, *names = argv
  results = {name: steps(name) for name in names}
  if jax.process_index() == 0:
    pathlib.Path(out).write_bytes(pickle.dumps(results))


if __name__ == "__main__":
  flags.FLAGS  # noqa: B018, the flags of ppl_jax.distributed
  app.run(main)
