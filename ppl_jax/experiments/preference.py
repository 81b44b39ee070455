"""Pairs of utterances: how often the larger score has the positive label.

For figure 4 of arXiv 2503.05620. Shape letters: U utterances, C classes, D
dialogues, V different scores, B weightings of the dialogues, M = 5 buckets.
"""

import dataclasses

import numpy as np
import scipy.sparse
import tqdm

from ppl_jax.experiments import bootstrap

KINDS = ("one dialogue", "different dialogues", "all pairs")
BUCKETS = 5
_TOLERANCE = 1e-6  # an edge belongs to the bucket below it
_VALUES_AT_ONCE = 4_000_000


def bucket_sums(
  S_V: np.ndarray, negative_BxV: np.ndarray, positive_BxV: np.ndarray
) -> np.ndarray:
  """Sums over the ordered pairs with S_i > S_j, by buckets of S_i - S_j.

  Args:
    S_V: V scores, not decreasing.
    negative_BxV: how many utterances of label 0 have each score, B times.
    positive_BxV: the like of label 1.

  Returns:
    float64 [B, 5, 3]: pairs, pairs with y_i = 1 and y_j = 0, and the sum of
    S_i - S_j, in (0, 0.2], ..., (0.8, 1].
  """
  both_BxV = negative_BxV + positive_BxV
  pad = ((0, 0), (1, 0))
  below_both, below_negative, below_S = (
    np.pad(np.cumsum(values, axis=1), pad)
    for values in (both_BxV, negative_BxV, both_BxV * S_V)
  )
  above = np.zeros(
    (len(both_BxV), BUCKETS + 1, 3)
  )  # an edge; the last has none
  for m in range(BUCKETS):
    j_V = np.searchsorted(S_V, S_V - m / BUCKETS - _TOLERANCE)
    count = below_both[:, j_V]
    above[:, m, 0] = (both_BxV * count).sum(axis=1)
    above[:, m, 1] = (positive_BxV * below_negative[:, j_V]).sum(axis=1)
    above[:, m, 2] = (both_BxV * (S_V * count - below_S[:, j_V])).sum(axis=1)
  return above[:, :-1] - above[:, 1:]


class Pairs:
  """The pairs of a score file, for any weights of its dialogues.

  Args:
    S_UxC: scores, NaN for none.
    gold_UxC: multi-hot.
    dialogue_U: int, not decreasing.
  """

  def __init__(
    self, S_UxC: np.ndarray, gold_UxC: np.ndarray, dialogue_U: np.ndarray
  ):
    _, dialogue_U = np.unique(dialogue_U, return_inverse=True)
    self.D = int(dialogue_U[-1]) + 1
    first_D = np.searchsorted(dialogue_U, np.arange(self.D + 1))
    self._intra = np.zeros((self.D, BUCKETS, 3))
    self._columns = []
    for S_U, gold_U in zip(S_UxC.T, gold_UxC.T, strict=True):
      known_U = ~np.isnan(S_U)
      S_V, at_U = np.unique(S_U[known_U].astype(float), return_inverse=True)
      counts = [
        scipy.sparse.csr_array(
          (is_it.astype(float), (dialogue_U[known_U], at_U)),
          shape=(self.D, len(S_V)),
        )
        for is_it in (gold_U[known_U] == 0, gold_U[known_U] > 0)
      ]
      self._columns.append((S_V, *counts))
      for d in range(self.D):
        here = slice(first_D[d], first_D[d + 1])
        order = np.argsort(S_U[here])  # NaN last
        order = order[: known_U[here].sum()]
        label = gold_U[here][order][None] > 0
        self._intra[d] += bucket_sums(
          S_U[here][order].astype(float), ~label * 1.0, label * 1.0
        )[0]

  def sums(self, weights_BxD: np.ndarray) -> np.ndarray:
    """Sums of `bucket_sums` over classes, for weighted dialogues.

    A dialogue that counts twice is two with its pairs; an utterance of the one
    and its like in the other are no pair of different dialogues.

    Returns:
      float64 [B, 3, 5, 3], the second axis as `KINDS`.
    """
    weights_BxD = weights_BxD.astype(float)
    every = np.zeros((len(weights_BxD), BUCKETS, 3))
    for S_V, negative, positive in self._columns:
      step = max(1, _VALUES_AT_ONCE // len(S_V))
      for start in range(0, len(weights_BxD), step):
        here = slice(start, start + step)
        every[here] += bucket_sums(
          S_V, weights_BxD[here] @ negative, weights_BxD[here] @ positive
        )
    one, own = (
      np.einsum("bd,dmk->bmk", w, self._intra)
      for w in (weights_BxD, weights_BxD**2)
    )
    return np.stack([one, every - own, every - own + one], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
  """Straight lines through buckets; arrays of any leading shape.

  Attributes:
    slope: NaN with fewer than two buckets.
    intercept: at a difference of 0.
  """

  slope: np.ndarray
  intercept: np.ndarray


def fit(sums: np.ndarray, *, weighted: bool = True) -> Lines:
  """Least squares through buckets that hold pairs.

  Args:
    sums: [..., 5, 3], of `Pairs.sums`.
    weighted: whether a bucket weighs as its pairs, or all weigh the same.

  Returns:
    The lines of the share of pairs over the mean of S_i - S_j.
  """
  count, positive, S = np.moveaxis(sums, -1, 0)
  filled = count > 0
  some = np.where(filled, count, 1)
  x, y = S / some, positive / some
  w = count if weighted else filled.astype(float)
  total = w.sum(axis=-1, keepdims=True)
  total = np.where(total > 0, total, 1)
  x_mean = (w * x).sum(axis=-1, keepdims=True) / total
  y_mean = (w * y).sum(axis=-1, keepdims=True) / total
  spread = (w * (x - x_mean) ** 2).sum(axis=-1)
  product = (w * (x - x_mean) * (y - y_mean)).sum(axis=-1)
  known = filled.sum(axis=-1) > 1
  slope = np.where(known, product / np.where(known, spread, 1), np.nan)
  return Lines(slope, y_mean[..., 0] - slope * x_mean[..., 0])


def resample(pairs: Pairs, draws: int, seed: int) -> np.ndarray:
  """Returns `Pairs.sums` of resampled dialogues, [draws, 3, 5, 3]."""
  weights_BxD = bootstrap.weights(pairs.D, draws, seed)
  parts = np.array_split(weights_BxD, max(1, draws // 100))
  bar = tqdm.tqdm(parts, desc="resamples", delay=3, disable=None, leave=False)
  return np.concatenate([pairs.sums(part) for part in bar])


def slopes(sums: np.ndarray, resampled: np.ndarray) -> list[dict]:
  """Slopes of all kinds and the difference of the first two, by both fits."""
  rows = []
  for weighted in (True, False):
    ours = fit(sums, weighted=weighted).slope
    drawn = fit(resampled, weighted=weighted).slope
    names = [*KINDS, f"{KINDS[0]} less {KINDS[1]}"]
    ours = np.append(ours, ours[0] - ours[1])
    drawn = np.column_stack([drawn, drawn[:, 0] - drawn[:, 1]])
    for name, value, values in zip(names, ours, drawn.T, strict=True):
      low, high = bootstrap.interval(values)
      rows.append(
        {
          "buckets": "weighed by pairs" if weighted else "all alike",
          "pairs": name,
          "slope": float(value),
          "low": low,
          "high": high,
          "share_below_0": float((values < 0).mean()),
        }
      )
  return rows
