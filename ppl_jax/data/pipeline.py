"""From a batch plan to batches of arrays, prepared while a step runs.

Grain gives batch t for any t, so the state of the pipeline is the step alone:
going on from step t is the same as starting there.

Shapes: S shards, N rows a shard, T tokens, M places for them, D groups a shard,
K segments a group, C classes, U utterances of a split.
"""

import dataclasses
import functools
from collections.abc import Iterator

import grain
import numpy as np

from ppl_jax.data import mapped, segments
from ppl_jax.data import plan as plan_lib

_PREFETCH = 4  # batches; more only help where a step is faster than a batch
_STRETCH = 16_384  # utterances looked at at once
_RELEASE_EVERY = 4  # batches, from memory that is mapped


@dataclasses.dataclass(frozen=True)
class SplitArrays:
  """One split as the pipeline reads it: tokens, and what is known of them.

  What has a value or a row an utterance may be mapped from a file.

  Attributes:
    tokens: the utterances' token ids.
    dialogue_U: int32, each utterance's dialogue.
    lengths_U: int32, each segment's token length.
    context_lengths_U: int32, each segment's tokens of type 0.
    scores_UxC: float32, the teacher's scores, NaN = none.
    valid_U: float32, the valid votes that each utterance's scores are made of.
    gold_UxC: uint8, multi-hot.
    labelled_U: bool, whether an utterance has gold.
  """

  tokens: segments.UtteranceTokens
  dialogue_U: np.ndarray
  lengths_U: np.ndarray
  context_lengths_U: np.ndarray
  scores_UxC: np.ndarray
  valid_U: np.ndarray
  gold_UxC: np.ndarray
  labelled_U: np.ndarray

  @functools.cached_property
  def scored_U(self) -> np.ndarray:
    """bool: the utterances with a score for some class."""
    scored_U = np.zeros(len(self.scores_UxC), bool)
    for start in range(0, len(scored_U), _STRETCH):
      some = slice(start, start + _STRETCH)
      scored_U[some] = ~np.isnan(self.scores_UxC[some]).all(axis=1)
      mapped.release(self.scores_UxC)
    return scored_U

  @functools.cached_property
  def mean_score_C(self) -> np.ndarray:
    """float64: each class's mean score; 0 for one that has none."""
    C = self.scores_UxC.shape[1]
    sums_C, counts_C = np.zeros(C), np.zeros(C)
    for start in range(0, len(self.scores_UxC), _STRETCH):
      some = self.scores_UxC[start : start + _STRETCH]
      sums_C += np.nansum(some, axis=0, dtype=np.float64)
      counts_C += (~np.isnan(some)).sum(axis=0)
      mapped.release(self.scores_UxC)
    return sums_C / np.maximum(counts_C, 1)


@dataclasses.dataclass(frozen=True)
class Materializer:
  """Turns a batch plan into arrays.

  Attributes:
    split: where the rows come from.
    window: utterances a segment may span, None = all that fit.
    max_length: the longest segment.
    cls_id: the token that opens a segment.
    sep_id: the token that ends its parts.
    pad_id: the token that fills a row up.
    row_V: what a batch has in place of each token's id; None: the id.
    gold_U: bool, labelled utterances whose gold a batch may hold; None: all.
    prior: a, how many votes the classes' mean shares weigh in smoothed scores.
    mean_C: these mean shares; None: scores are not smoothed.
  """

  split: SplitArrays
  window: int | None
  max_length: int
  cls_id: int
  sep_id: int
  pad_id: int
  row_V: np.ndarray | None = None
  gold_U: np.ndarray | None = None
  prior: float = 0.0
  mean_C: np.ndarray | None = None

  def smooth(self, scores: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns (n S + a m) / (n + a): the mean of a Dirichlet after n votes.

    Few votes are often all alike, and the logit of their share is infinite. The
    prior is what one knows of an utterance before any vote: each class's mean
    share m, as if a votes had said so.

    Args:
      scores: float32 [..., C], shares or scores made in their place.
      valid: float32 [...], n.
    """
    if self.mean_C is None or not self.prior:
      return scores
    n = valid[..., None]
    smoothed = (n * scores + self.prior * self.mean_C) / (n + self.prior)
    return smoothed.astype(np.float32)

  def __call__(
    self, plan: plan_lib.BatchPlan, shards: slice | np.ndarray = slice(None)
  ) -> dict[str, np.ndarray]:
    """Returns the arrays of some shards of a batch.

    Args:
      plan: what the batch holds.
      shards: the shards to make.

    Returns:
      tokens int32 [S, N, T], length and context_length int32 [S, N] (an empty
      row has length 1), row bool [S, N], scores float32 [S, N, C] (NaN =
      none, or a gold row), smoothed the same (see `smooth`), gold float32
      [S, N, C] (0 where not labelled), labelled bool [S, N] (has gold, and that
      may be used), dialogue int32 [S, N], index int32 [S, D, K]; and where the
      plan has room for less than N x T, place int32 [S, M], where the tokens
      lie in N x T, -1 = none.
    """
    rows = plan.rows_SxN[shards]
    row = rows >= 0
    flat = rows[row]
    split = self.split
    tokens = np.full((*rows.shape, plan.length), self.pad_id, np.int32)
    tokens[..., 0] = self.cls_id
    filled = np.full((len(flat), plan.length), self.pad_id, np.int32)
    segments.write_segments(
      split.tokens,
      flat,
      filled,
      self.window,
      self.max_length,
      self.cls_id,
      self.sep_id,
    )
    tokens[row] = filled
    if self.row_V is not None:
      tokens = self.row_V[tokens]

    def gather(values, empty):
      out = np.full((*rows.shape, *values.shape[1:]), empty, values.dtype)
      out[row] = values[flat]
      return out

    scores = gather(split.scores_UxC, np.nan)
    # Whose gold is known teaches that: its votes may be wrong, or held out.
    scores[:, : plan.gold_rows] = np.nan
    may = split.labelled_U if self.gold_U is None else self.gold_U
    labelled = gather(may, False)
    # What may not be used is not even there.
    gold = gather(split.gold_UxC, 0) * labelled[..., None]
    lengths = gather(split.lengths_U, 1)
    packed = {}
    if plan.room < rows.shape[1] * plan.length:
      packed["place"] = _places(lengths, plan.length, plan.room)
    return packed | {
      "tokens": tokens,
      "length": lengths,
      "context_length": gather(split.context_lengths_U, 1),
      "row": row,
      "scores": scores,
      "smoothed": self.smooth(scores, gather(split.valid_U, 0)),
      "gold": gold.astype(np.float32),
      "labelled": labelled,
      "dialogue": gather(split.dialogue_U, -1).astype(np.int32),
      "index": plan.index_SxDxK[shards],
    }

  def release(self) -> None:
    """Gives back the memory of what was read of mapped arrays."""
    split = self.split
    for array in (
      split.tokens.ids,
      split.tokens.offsets,
      split.tokens.first,
      split.dialogue_U,
      split.lengths_U,
      split.context_lengths_U,
      split.scores_UxC,
      split.valid_U,
      split.gold_UxC,
    ):
      mapped.release(array)


class _Source:
  """Random access to the batches of a plan, for Grain."""

  def __init__(self, plan, materialize, steps, shards):
    self._plan, self._materialize = plan, materialize
    self._steps, self._shards = steps, shards

  def __len__(self):
    return self._steps

  def __getitem__(self, t):
    if t % _RELEASE_EVERY == 0:
      self._materialize.release()
    return self._materialize(self._plan.batch(t), self._shards)


def _places(lengths_SxN: np.ndarray, length: int, room: int) -> np.ndarray:
  """Returns where a shard's tokens lie in its flattened rows, -1 = none."""
  place = np.full((len(lengths_SxN), room), -1, np.int32)
  position = np.arange(length)
  for shard, lengths_N in enumerate(lengths_SxN):
    found = np.flatnonzero(position < lengths_N[:, None])
    place[shard, : len(found)] = found
  return place


def batches(
  plan: plan_lib.Plan | plan_lib.MixedPlan,
  materialize: Materializer,
  *,
  start: int,
  stop: int,
  shards: slice | np.ndarray,
) -> Iterator[dict[str, np.ndarray]]:
  """Yields batches `start` to `stop` - 1, made ahead of their use.

  Args:
    plan: what each batch holds.
    materialize: makes its arrays.
    start: first batch, that is, the step to go on from.
    stop: one past the last batch.
    shards: the shards of this process.

  Yields:
    The arrays of `Materializer`.
  """
  source = _Source(plan, materialize, stop, shards)
  dataset = grain.MapDataset.source(source)[start:]
  # One thread: batches come from one plan, which caches its epochs.
  options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=_PREFETCH)
  yield from dataset.to_iter_dataset(options)
