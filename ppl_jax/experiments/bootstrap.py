"""Intervals from resampled dialogues.

Shape letters: N utterances, D dialogues, B resamples.
"""

import dataclasses
import functools

import numpy as np

from ppl_jax import predictions

DRAWS = 10_000
LEVEL = 0.95
_AT_ONCE = 1_000


@dataclasses.dataclass(frozen=True)
class Difference:
  """An accuracy less another, on the same utterances.

  Attributes:
    mean: the difference on all of them.
    low: end of the 95 % interval over resampled dialogues.
    high: its other end.
    below_zero: share of the resamples where it is below 0.
  """

  mean: float
  low: float
  high: float
  below_zero: float


def right(said: predictions.Predictions) -> np.ndarray:
  """Says of each utterance whether the predicted set of classes is the gold.

  A single-label task of several classes is decided by the largest logit,
  otherwise each class by a logit above 0.

  Returns:
    bool [N].
  """
  logits_NxC = said.logits_NxC
  C = len(said.classes)
  if said.task == "single_label" and C > 1:
    predicted_NxC = logits_NxC.argmax(axis=1)[:, None] == np.arange(C)
  else:
    predicted_NxC = logits_NxC > 0
  return (predicted_NxC == said.gold_NxC).all(axis=1)


def weights(D: int, draws: int, seed: int = 0) -> np.ndarray:
  """How often each resample holds each dialogue, float32 [B, D]."""
  rng = np.random.default_rng([seed, 6])
  out = np.empty((draws, D), np.float32)
  for start in range(0, draws, _AT_ONCE):
    part = out[start : start + _AT_ONCE]
    part[:] = rng.multinomial(D, np.full(D, 1 / D), size=len(part))
  return out


_kept_weights = functools.lru_cache(maxsize=1)(weights)


def interval(values_B: np.ndarray) -> tuple[float, float]:
  """Returns the ends of the 95 % interval of resampled values."""
  low, high = np.nanquantile(values_B, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
  return float(low), float(high)


def difference(
  right_N: np.ndarray, other_N: np.ndarray, dialogue_N: np.ndarray
) -> Difference:
  """Compares two students on the same utterances, dialogues resampled.

  Args:
    right_N: whether the one is right on each; or a share, over seeds.
    other_N: the same of the other.
    dialogue_N: each utterance's dialogue, any values.

  Returns:
    The difference of the accuracies, and its interval.
  """
  _, dialogue_N = np.unique(dialogue_N, return_inverse=True)
  gain_D = np.bincount(dialogue_N, np.subtract(right_N, other_N, dtype=float))
  count_D = np.bincount(dialogue_N)
  weights_BxD = _kept_weights(len(count_D), DRAWS)
  drawn_B = (weights_BxD @ gain_D) / (weights_BxD @ count_D)
  return Difference(
    float(gain_D.sum() / count_D.sum()),
    *interval(drawn_B),
    float((drawn_B < 0).mean()),
  )
