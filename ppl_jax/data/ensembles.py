"""Scores from fewer votes than there are, and their calibration error.

Shape letters: U utterances, C classes, N ensemble sizes, Q questions, A answers
to one.
"""

from collections.abc import Sequence

import numpy as np
import tqdm

from ppl_jax import calibration

TREATMENTS = ("drop", "first_bucket")  # of S = 0, see calibration.vote_ece
_SIZES = 30


def draw(
  votes_UxC: np.ndarray,
  valid_UxC: np.ndarray,
  sizes: Sequence[int],
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws some of each utterance's votes, without replacement.

  An utterance's votes are put into a random order once; of size n are the first
  n of them, or all that there are. So a smaller ensemble lies in every larger
  one. Where a vote may name one class at most, whole votes are drawn, otherwise
  the votes on each class for themselves.

  Args:
    votes_UxC: valid votes for each class.
    valid_UxC: valid votes that could have named it.
    sizes: the N sizes.
    rng: of the order.

  Returns:
    Votes and valid votes, uint32 [N, U, C] each.
  """
  U, C = votes_UxC.shape
  votes_UxC, valid_UxC = votes_UxC.astype(int), valid_UxC.astype(int)
  none_U = valid_UxC[:, 0] - votes_UxC.sum(axis=1)
  one_answer = (valid_UxC == valid_UxC[:, :1]).all() and (none_U >= 0).all()
  if one_answer:
    count_QxA = np.concatenate([votes_UxC, none_U[:, None]], axis=1)
  else:
    yes_and_no = np.stack([votes_UxC, valid_UxC - votes_UxC], axis=-1)
    count_QxA = yes_and_no.reshape(U * C, 2)
  Q, A = count_QxA.shape
  cell = np.repeat(np.arange(Q * A), count_QxA.ravel())
  cell = cell[np.lexsort((rng.random(len(cell)), cell // A))]
  first_Q = np.cumsum(count_QxA.sum(axis=1)) - count_QxA.sum(axis=1)
  rank = np.arange(len(cell)) - first_Q[cell // A]
  drawn_votes = np.empty((len(sizes), U, C), np.uint32)
  drawn_valid = np.empty_like(drawn_votes)
  for k, size in enumerate(sizes):
    drawn = np.bincount(cell[rank < size], minlength=Q * A)
    if one_answer:
      drawn = drawn.reshape(U, A)
      drawn_votes[k] = drawn[:, :C]
      drawn_valid[k] = drawn.sum(axis=1, keepdims=True)
    else:
      drawn = drawn.reshape(U, C, A)
      drawn_votes[k] = drawn[..., 0]
      drawn_valid[k] = drawn.sum(axis=-1)
  return drawn_votes, drawn_valid


def ensemble_ece(
  votes_UxC: np.ndarray,
  valid_UxC: np.ndarray,
  gold_UxC: np.ndarray,
  seed: int,
  *,
  draws: int = 20,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws votes at random and measures the error of their shares.

  For figure 3 of arXiv 2503.05620.

  Args:
    votes_UxC: valid votes for each class.
    valid_UxC: valid votes that could have named it.
    gold_UxC: multi-hot; rows without gold must be left out by the caller.
    seed: of the draws.
    draws: how many.

  Returns:
    sizes int64 [N], from 1 to the most votes on any utterance, spread over them
    where there are many; and the errors over all classes, float64
    [draws, N, 2], the last axis as `TREATMENTS`.

  Raises:
    ValueError: no valid vote is on an utterance with gold.
  """
  most = int(valid_UxC.max(initial=0))
  if not most:
    raise ValueError(
      "ensembles need valid votes on utterances with gold, got none: give gold"
    )
  sizes = np.arange(1, most + 1)
  if most > _SIZES:
    sizes = np.unique(np.geomspace(1, most, _SIZES).round().astype(int))
  rng = np.random.default_rng([seed, 5])
  errors = np.empty((draws, len(sizes), len(TREATMENTS)))
  bar = tqdm.trange(draws, desc="ensembles", delay=3, disable=None, leave=False)
  for d in bar:
    votes, valid = draw(votes_UxC, valid_UxC, sizes, rng)
    share = np.where(valid > 0, votes / np.maximum(valid, 1), np.nan)
    for i, share_UxC in enumerate(share):
      for j, zeros in enumerate(TREATMENTS):
        errors[d, i, j] = calibration.vote_ece(share_UxC, gold_UxC, zeros=zeros)
  return sizes, errors
