"""Calibration error of scores from fewer votes than there are.

Shape letters: V votes, U utterances, C classes, N ensemble sizes.
"""

import numpy as np
import tqdm

from ppl_jax import calibration
from ppl_jax.data import vote_columns

TREATMENTS = ("drop", "first_bucket")  # of S = 0, see calibration.vote_ece
_DRAWS = 20
_SIZES = 30


def ensemble_ece(
  votes: vote_columns.Votes, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws votes at random and measures the error of their shares.

  For figure 3 of arXiv 2503.05620. An ensemble of size n is n of an utterance's
  valid votes on a class, drawn without replacement, or all that there are.

  Args:
    votes: with the gold of what was voted on; utterances without are left out.
    seed: of the draws.

  Returns:
    sizes int64 [N], from 1 to the most votes on any utterance, spread over them
    where there are many; and the errors over all classes, float64
    [draws, N, 2], the last axis as `TREATMENTS`.

  Raises:
    ValueError: no valid vote is on an utterance with gold.
  """
  voted = votes.voted
  labelled_V = voted.labelled_U[votes.utterance_V]
  number_U = np.cumsum(voted.labelled_U) - 1
  ballots = []
  for c in range(len(votes.classes)):
    asked = np.flatnonzero(votes.could_name(c) & labelled_V)
    utterance = number_U[votes.utterance_V[asked]]
    ballots.append((asked, utterance, votes.names(c)[asked]))
  most = max(np.bincount(u).max(initial=0) for _, u, _ in ballots)
  if not most:
    raise ValueError(
      "ensembles need valid votes on utterances with gold, got none: give gold"
    )
  sizes = np.arange(1, most + 1)
  if most > _SIZES:
    sizes = np.unique(np.geomspace(1, most, _SIZES).round().astype(int))
  gold_UxC = voted.gold_UxC[voted.labelled_U]
  U, C = gold_UxC.shape
  rng = np.random.default_rng([seed, 5])
  errors = np.empty((_DRAWS, len(sizes), len(TREATMENTS)))
  bar = tqdm.trange(
    _DRAWS, desc="ensembles", delay=3, disable=None, leave=False
  )
  for draw in bar:
    key_V = rng.random(len(votes))
    share_NxUxC = np.empty((len(sizes), U, C), np.float32)
    for c, (asked, utterance, yes) in enumerate(ballots):
      order = np.lexsort((key_V[asked], utterance))
      share_NxUxC[:, :, c] = _shares(utterance[order], yes[order], U, sizes)
    for i, share_UxC in enumerate(share_NxUxC):
      for j, zeros in enumerate(TREATMENTS):
        errors[draw, i, j] = calibration.vote_ece(
          share_UxC, gold_UxC, zeros=zeros
        )
  return sizes, errors


def _shares(
  utterance_V: np.ndarray, yes_V: np.ndarray, num_utterances: int, sizes
) -> np.ndarray:
  """[N, U], the share of yes among an utterance's first votes; NaN for none."""
  first = np.searchsorted(utterance_V, np.arange(num_utterances + 1))
  yes_before = np.concatenate([[0], np.cumsum(yes_V)])
  end_NxU = np.minimum(first[:-1] + sizes[:, None], first[1:])
  count_NxU = end_NxU - first[:-1]
  yes_NxU = yes_before[end_NxU] - yes_before[first[:-1]]
  return np.where(count_NxU > 0, yes_NxU / np.maximum(count_NxU, 1), np.nan)
