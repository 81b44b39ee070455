"""Runs the segments of a split through the student."""

import jax
import numpy as np
import tqdm

from ppl_jax import logits as logits_lib
from ppl_jax import metrics, sharding
from ppl_jax.data import pipeline, plan


def outputs(
  step,
  params,
  materialize: pipeline.Materializer,
  utterances_M: np.ndarray,
  *,
  mesh: jax.sharding.Mesh,
  buckets: tuple[int, ...],
  rows: int,
  shards: int,
  description: str = "",
):
  """Returns what a function of the student gives for some utterances, in order.

  Args:
    step: (params, batch) -> arrays [S, N, ...], as of
      `train_step.make_logits_step`.
    params: the student's parameters.
    materialize: makes the batches.
    utterances_M: utterances of the split, at least one.
    mesh: where the batches go.
    buckets: token lengths.
    rows: rows a shard.
    shards: shards a batch.
    description: the progress bar's title; empty shows none.

  Returns:
    The arrays, [M, ...].
  """
  split = materialize.split
  plans = plan.in_order(
    np.arange(len(utterances_M)),
    split.lengths_U[utterances_M],
    buckets=buckets,
    rows=rows,
    shards=shards,
  )
  out = None
  bar = tqdm.tqdm(
    total=len(utterances_M),
    desc=description,
    unit="segment",
    disable=not description or jax.process_index() > 0,
    leave=False,
  )
  pending = None
  with bar:
    for batch_plan in [*plans, None]:
      running = None
      if batch_plan is not None:
        local = materialize(
          batch_plan.of(utterances_M), sharding.local_shards(mesh, shards)
        )
        batch = sharding.put_batch(mesh, local)
        running = (batch_plan, step(params, batch))
      if pending is not None:  # fetched while the next batch runs
        rows_SxN, arrays = pending[0].rows_SxN, jax.device_get(pending[1])
        if out is None:
          out = jax.tree.map(
            lambda x: np.empty((len(utterances_M), *x.shape[2:]), x.dtype),
            arrays,
          )
        is_row_SxN = rows_SxN >= 0
        for whole, part in zip(
          jax.tree.leaves(out), jax.tree.leaves(arrays), strict=True
        ):
          whole[rows_SxN[is_row_SxN]] = part[is_row_SxN]
        bar.update(int(is_row_SxN.sum()))
      pending = running
  return out


def classification(
  logits_MxC: np.ndarray, gold_MxC: np.ndarray, labelled_M, task: str
) -> metrics.Classification:
  """Scores logits against gold; unlabelled rows count nowhere."""
  return metrics.Classification.from_probabilities(
    logits_lib.probabilities(logits_MxC, task), gold_MxC, labelled_M, task
  )
