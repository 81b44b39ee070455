"""How annotators agree, and where they do not.

Shape letters: V votes, U utterances, C classes, A annotators, K answers.
"""

from collections.abc import Iterator

import krippendorff
import numpy as np
import tqdm
from scipy import special

from ppl_jax.data import vote_columns


def alphas(votes: vote_columns.Votes, task: str) -> tuple[float, np.ndarray]:
  """Krippendorff's alpha of all valid votes, each a coder's of its own.

  Alpha is 1 for full agreement and 0 for what chance gives (Krippendorff,
  Content Analysis). A class's is that of its answers yes and no. Over all
  classes, disagreement is summed over them, and "none" is one more class where
  votes name one of several; that is alpha of the nominal scale.

  Args:
    votes: of any annotators.
    task: 'single_label' or 'multi_label'.

  Returns:
    alpha over all classes, and of each, float64 [C]; NaN where no two votes
    are on one utterance, or all are alike.
  """
  alpha_K, weight_K = np.array(
    [
      _alpha(votes.utterance_V[asked_V], yes_V[asked_V])
      for asked_V, yes_V in _questions(votes, task)
    ]
  ).T
  return _pool(alpha_K, weight_K), alpha_K[: len(votes.classes)]


def pairwise(votes: vote_columns.Votes, task: str) -> np.ndarray:
  """Alpha over all classes of each pair of annotators.

  The k-th vote of one on an utterance is held against the k-th of the other.

  Args:
    votes: of any annotators.
    task: 'single_label' or 'multi_label'.

  Returns:
    float64 [A, A], symmetric; on the diagonal an annotator's agreement with
    itself over its samples. NaN as of `alphas`.
  """
  A = len(votes.annotators)
  questions = len(votes.classes) + votes.one_answer(task)
  alpha_AxAxK = np.full((A, A, questions), np.nan)
  weight_AxAxK = np.zeros((A, A, questions))
  bar = tqdm.tqdm(
    _questions(votes, task),
    "agreement by pairs",
    total=questions,
    delay=3,
    disable=None,
    leave=False,
  )
  for k, (asked_V, yes_V) in enumerate(bar):
    utterance_V, yes_V = votes.utterance_V[asked_V], yes_V[asked_V]
    annotator_V = votes.annotator_V[asked_V]
    unit_V = _unit(utterance_V, annotator_V)
    units = [unit_V[annotator_V == a] for a in range(A)]
    yes = [yes_V[annotator_V == a] for a in range(A)]
    for a in range(A):
      own = _alpha(utterance_V[annotator_V == a], yes[a])
      alpha_AxAxK[a, a, k], weight_AxAxK[a, a, k] = own
      for b in range(a):
        _, in_a, in_b = np.intersect1d(
          units[a], units[b], assume_unique=True, return_indices=True
        )
        both = _alpha(
          np.tile(np.arange(len(in_a)), 2),
          np.concatenate([yes[a][in_a], yes[b][in_b]]),
        )
        alpha_AxAxK[[a, b], [b, a], k], weight_AxAxK[[a, b], [b, a], k] = both
  return np.array(
    [
      [_pool(alpha_AxAxK[a, b], weight_AxAxK[a, b]) for b in range(A)]
      for a in range(A)
    ]
  )


def entropy(votes: vote_columns.Votes, task: str) -> np.ndarray:
  """How split the valid votes of each utterance are.

  Args:
    votes: of any annotators.
    task: 'single_label' or 'multi_label'.

  Returns:
    The entropy of their shares in bits, float64 [U], over the classes and
    "none" where votes name one of several; else that of yes and no, summed over
    the classes. 0 without votes.
  """
  votes_UxC, valid_UxC = votes.counts()
  share_UxC = votes_UxC / np.maximum(valid_UxC, 1)
  parts_UxC = special.entr(share_UxC)
  if votes.one_answer(task):
    voted_U = valid_UxC[:, 0] > 0
    none_U = np.where(voted_U, 1 - share_UxC.sum(axis=1), 0)
    total_U = parts_UxC.sum(axis=1) + special.entr(none_U.clip(0))
  else:
    no_UxC = np.where(valid_UxC > 0, 1 - share_UxC, 0)
    total_U = (parts_UxC + special.entr(no_UxC)).sum(axis=1)
  # Shares of thirds do not sum to 1 in floating point.
  return np.round(total_U / np.log(2), 9)


def accuracy(
  votes: vote_columns.Votes, task: str
) -> tuple[np.ndarray, np.ndarray]:
  """The share of each annotator's valid votes that gold bears out.

  Args:
    votes: with the gold of what was voted on.
    task: 'single_label' or 'multi_label'.

  Returns:
    float64 [A], NaN without gold; and bool [A], what it is a share of. True:
    votes for one of several classes or none, right where they name gold. False:
    each yes and no to a class, which are easier to get right.
  """
  voted = votes.voted
  labelled_V = voted.labelled_U[votes.utterance_V]
  A, C = len(votes.annotators), len(votes.classes)
  one_answer_A = np.full(A, task == "single_label" and C > 1)
  one_answer_A[votes.annotator_V[votes.only_V != vote_columns.ANY]] = False
  one_answer_V = one_answer_A[votes.annotator_V]
  right_A, all_A = np.zeros(A), np.zeros(A)
  for c in range(C):
    gold_V = voted.gold_UxC[votes.utterance_V, c] == 1
    asked_V = votes.could_name(c) & labelled_V & (gold_V | ~one_answer_V)
    right_V = asked_V & (votes.names(c) == gold_V)
    right_A += np.bincount(votes.annotator_V[right_V], minlength=A)
    all_A += np.bincount(votes.annotator_V[asked_V], minlength=A)
  right_A = np.where(all_A > 0, right_A / np.maximum(all_A, 1), np.nan)
  return right_A, one_answer_A


def _questions(
  votes: vote_columns.Votes, task: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """For each class, and maybe none: which votes answer, and which say yes."""
  for c in range(len(votes.classes)):
    yield votes.could_name(c), votes.names(c)
  if votes.one_answer(task):
    yield votes.valid_V, votes.answers() == len(votes.classes)


def _alpha(utterance_V: np.ndarray, yes_V: np.ndarray) -> tuple[float, float]:
  """Alpha of yes and no, and the disagreement that chance would give."""
  if not len(utterance_V):
    return np.nan, 0.0
  all_U = np.bincount(utterance_V)
  yes_U = np.bincount(utterance_V[yes_V], minlength=len(all_U))
  pairs_U = all_U > 1
  count_Ux2 = np.stack([all_U - yes_U, yes_U], axis=1)[pairs_U]
  no, yes = count_Ux2.sum(axis=0)
  if not no * yes:
    return np.nan, 0.0
  alpha = krippendorff.alpha(
    value_counts=count_Ux2, level_of_measurement="nominal"
  )
  return float(alpha), float(no * yes / (no + yes - 1))


def _pool(alpha_K: np.ndarray, weight_K: np.ndarray) -> float:
  """One minus summed observed over summed expected disagreement."""
  known_K = weight_K > 0
  if not known_K.any():
    return float("nan")
  return float(np.average(alpha_K[known_K], weights=weight_K[known_K]))


def _unit(utterance_V: np.ndarray, annotator_V: np.ndarray) -> np.ndarray:
  """A number for each utterance and vote of an annotator on it, in order."""
  place_V = np.arange(len(utterance_V))
  new_V = (np.diff(utterance_V, prepend=-1) != 0) | (
    np.diff(annotator_V, prepend=-1) != 0
  )
  rank_V = place_V - np.maximum.accumulate(np.where(new_V, place_V, 0))
  return utterance_V * (rank_V.max(initial=0) + 1) + rank_V
