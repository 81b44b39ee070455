"""Scores from votes and the gold of a few dialogues.

Each annotator has a confusion matrix, counted on gold; Bayes' rule makes a
posterior of an utterance's votes. An LLM's votes repeat its errors, so that the
product of their likelihoods is too sure of itself; one temperature, fitted on
gold that the matrices did not see, divides the log-likelihood:

    S_t  ~  prior_t  *  prod_v P(answer_v | annotator_v, t) ** (1 / temperature)

Shape letters: V votes, U utterances, C classes, T truths, K kinds of question,
A annotators, or pairs of an annotator and a kind, R answers.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from ppl_jax.data import vote_columns

_FOLDS = 5
# Votes that a matrix's prior weighs as much as: the pooled matrix is drawn
# towards one accuracy for all classes, an annotator's towards the pooled one.
_PRIOR_VOTES = 10.0
# Standard deviation of log temperature before any gold is seen.
_LOG_TEMPERATURE = 1.0
_LARGEST_TEMPERATURE = 20.0


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
  """One truth to find for each utterance.

  Attributes:
    columns: those of the truths that are classes' scores.
    truth_U: int, the gold, to be looked at only where it may be.
    utterance_V: int, of the votes that say something about it.
    asked_V: int, the pair of annotator and kind of question.
    answer_V: int.
    num_annotators: how many there are.
    right_KxT: int, the answer that is right.
    possible_KxR: bool, the answers that there are.
  """

  columns: slice
  truth_U: np.ndarray
  utterance_V: np.ndarray
  asked_V: np.ndarray
  answer_V: np.ndarray
  num_annotators: int
  right_KxT: np.ndarray
  possible_KxR: np.ndarray

  def cut(self, keep_U: np.ndarray) -> "_Problem":
    """Returns the problem of some utterances, numbered anew."""
    number_U = np.cumsum(keep_U) - 1
    keep_V = keep_U[self.utterance_V]
    return dataclasses.replace(
      self,
      truth_U=self.truth_U[keep_U],
      utterance_V=number_U[self.utterance_V[keep_V]],
      asked_V=self.asked_V[keep_V],
      answer_V=self.answer_V[keep_V],
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Model:
  """What gold says about votes.

  Attributes:
    log_prior: for each problem [T].
    log_answer: for each problem [A, T, R].
    temperature: above 0.
  """

  log_prior: list[np.ndarray]
  log_answer: list[np.ndarray]
  temperature: float


def gold_calibrated(
  votes: vote_columns.Votes, task: str, gold_D: np.ndarray, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
  """Fits confusion matrices and a temperature to gold, and scores with them.

  In a single-label task of several classes the truth is a class; else there is
  a truth, yes or no, for each class. A dialogue with gold is scored by what the
  gold of the others says (in five folds), and so is the temperature fitted: no
  dialogue judges itself.

  Args:
    votes: at least one.
    task: 'single_label' or 'multi_label'.
    gold_D: bool, the dialogues of `votes.voted` whose gold is used. No other
      gold is looked at.
    seed: of the folds.

  Returns:
    The posterior of each class, float32 [U, C], NaN where no valid vote could
    have named the class; and settings for the metadata.

  Raises:
    ValueError: fewer than five dialogues have both gold and valid votes.
  """
  voted = votes.voted
  _, valid_UxC = votes.counts()
  usable_U = voted.labelled_U & (valid_UxC > 0).any(axis=1)
  gold_U = gold_D[voted.dialogue_U] & usable_U
  dialogues = np.unique(voted.dialogue_U[gold_U])
  if len(dialogues) < _FOLDS:
    raise ValueError(
      f"scores from gold need at least {_FOLDS} dialogues with both gold and"
      f" valid votes, got {len(dialogues)}: give the gold of more, or choose"
      " --aggregation=uniform or --aggregation=dawid_skene"
    )
  drawn = np.random.default_rng([seed, 3]).permutation(dialogues)
  fold_D = np.full(len(gold_D), -1)
  fold_D[drawn] = np.arange(len(drawn)) % _FOLDS
  fold_U = np.where(gold_U, fold_D[voted.dialogue_U], -1)

  known = [problem.cut(gold_U) for problem in _problems(votes, task)]
  fold_G = fold_U[gold_U]
  model = _fit(known, fold_G)
  # Each is fitted without a fold, its temperature between the other four.
  without = [
    _fit([p.cut(fold_G != fold) for p in known], fold_G[fold_G != fold])
    for fold in range(_FOLDS)
  ]
  columns = []
  for i, problem in enumerate(_problems(votes, task)):
    posterior_UxT = _posterior(problem, model, i)
    for fold in range(_FOLDS):
      here_U = fold_U == fold
      posterior_UxT[here_U] = _posterior(problem.cut(here_U), without[fold], i)
    columns.append(posterior_UxT[:, problem.columns])
  score_UxC = np.where(valid_UxC > 0, np.concatenate(columns, axis=1), np.nan)
  settings = {
    "method": "gold",
    "score": "posterior by confusion matrices from gold and a temperature",
    "temperature": model.temperature,
    "folds": _FOLDS,
    "seed": seed,
    "prior_votes": _PRIOR_VOTES,
    "gold_utterances": int(gold_U.sum()),
    "gold_dialogues": [voted.dialogue_ids[d] for d in np.flatnonzero(gold_D)],
  }
  return score_UxC.astype(np.float32), settings


def _problems(votes: vote_columns.Votes, task: str) -> Iterator[_Problem]:
  """One problem of C truths, or C problems of two, one at a time."""
  C = len(votes.classes)
  gold_UxC = votes.voted.gold_UxC
  if task == "single_label" and C > 1:
    kinds, kind_V = np.unique(votes.only_V, return_inverse=True)
    any_K = (kinds == vote_columns.ANY)[:, None]
    right_KxT = np.where(
      any_K | (np.arange(C) == kinds[:, None]), np.arange(C), C
    )
    possible_KxR = any_K | (np.arange(C + 1) == kinds[:, None])
    possible_KxR[:, C] = True
    yield _Problem(
      columns=slice(None),
      truth_U=gold_UxC.argmax(axis=1),
      utterance_V=votes.utterance_V[votes.valid_V],
      asked_V=(votes.annotator_V * len(kinds) + kind_V)[votes.valid_V],
      answer_V=votes.answers()[votes.valid_V],
      num_annotators=len(votes.annotators),
      right_KxT=right_KxT,
      possible_KxR=possible_KxR,
    )
    return
  # Two kinds of question: about any class, or about one only.
  asked_V = votes.annotator_V * 2 + (votes.only_V != vote_columns.ANY)
  for c in range(C):
    used_V = votes.could_name(c)
    yield _Problem(
      columns=slice(1, None),
      truth_U=gold_UxC[:, c].astype(np.int64),
      utterance_V=votes.utterance_V[used_V],
      asked_V=asked_V[used_V],
      answer_V=votes.names(c)[used_V].astype(np.int64),
      num_annotators=len(votes.annotators),
      right_KxT=np.tile(np.arange(2), (2, 1)),
      possible_KxR=np.ones((2, 2), np.bool_),
    )


def _fit(problems: Sequence[_Problem], fold_U: np.ndarray) -> _Model:
  """Matrices from all utterances; the temperature between their folds."""
  parts = []
  for fold in np.unique(fold_U):
    here_U = fold_U == fold
    for problem in problems:
      log_prior_T, log_answer_AxTxR = _tables(problem.cut(~here_U))
      part = problem.cut(here_U)
      likelihood_UxT = _log_likelihood(part, log_answer_AxTxR)
      parts.append((log_prior_T, likelihood_UxT, part.truth_U))
  tables = [_tables(problem) for problem in problems]
  return _Model(
    [log_prior_T for log_prior_T, _ in tables],
    [log_answer_AxTxR for _, log_answer_AxTxR in tables],
    _fit_temperature(parts),
  )


def _tables(problem: _Problem) -> tuple[np.ndarray, np.ndarray]:
  """The log prior [T], and the log of each pair's confusion matrix [A, T, R].

  Both are smoothed, a matrix towards that of all annotators of its kind of
  question, and that towards one accuracy and the answers' shares, so that a
  class without gold is trusted as much as the others.
  """
  (K, T), R = problem.right_KxT.shape, problem.possible_KxR.shape[1]
  prior_T = np.bincount(problem.truth_U, minlength=T) + 1.0
  truth_V = problem.truth_U[problem.utterance_V]
  cell_V = (problem.asked_V * T + truth_V) * R + problem.answer_V
  shape = (problem.num_annotators, K, T, R)
  count_AxKxTxR = np.bincount(cell_V, minlength=np.prod(shape)).reshape(shape)
  pooled_KxTxR = count_AxKxTxR.sum(axis=0)

  share_KxR = pooled_KxTxR.sum(axis=1) + problem.possible_KxR
  share_KxR = share_KxR / share_KxR.sum(axis=1, keepdims=True)
  right_KxTxR = problem.right_KxT[:, :, None] == np.arange(R)
  # Right by more than chance, as Cohen's kappa has it; 1 keeps it below 1.
  votes_K = pooled_KxTxR.sum(axis=(1, 2))
  chance_KxT = (share_KxR[:, None] * right_KxTxR).sum(axis=2)
  chance_K = (chance_KxT * pooled_KxTxR.sum(axis=2)).sum(axis=1)
  right_K = (pooled_KxTxR * right_KxTxR).sum(axis=(1, 2))
  kappa_K = (right_K - chance_K).clip(0) / (votes_K - chance_K + 1)
  one_KxTxR = kappa_K[:, None, None] * right_KxTxR
  one_KxTxR = one_KxTxR + (1 - kappa_K)[:, None, None] * share_KxR[:, None]

  pooled_KxTxR = _smooth(pooled_KxTxR, one_KxTxR)
  answer_AxTxR = _smooth(count_AxKxTxR, pooled_KxTxR).reshape(-1, T, R)
  # Answers that a kind does not have are never looked up.
  with np.errstate(divide="ignore"):
    return np.log(prior_T / prior_T.sum()), np.log(answer_AxTxR)


def _smooth(count: np.ndarray, prior: np.ndarray) -> np.ndarray:
  """Mean of a Dirichlet posterior over the last axis."""
  total = count.sum(axis=-1, keepdims=True)
  return (count + _PRIOR_VOTES * prior) / (total + _PRIOR_VOTES)


def _log_likelihood(
  problem: _Problem, log_answer_AxTxR: np.ndarray
) -> np.ndarray:
  """[U, T], the log-probability of an utterance's votes under each truth."""
  U, T = len(problem.truth_U), problem.right_KxT.shape[1]
  out_UxT = np.empty((U, T))
  for t in range(T):
    log_V = log_answer_AxTxR[problem.asked_V, t, problem.answer_V]
    out_UxT[:, t] = np.bincount(problem.utterance_V, log_V, minlength=U)
  return out_UxT


def _fit_temperature(
  parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> float:
  """Minimises the cross-entropy of gold, given log prior and likelihood."""

  def objective(log_temperature):
    total = (log_temperature / _LOG_TEMPERATURE) ** 2 / 2
    for log_prior_T, likelihood_UxT, truth_U in parts:
      logits_UxT = log_prior_T + likelihood_UxT / np.exp(log_temperature)
      log_p_UxT = special.log_softmax(logits_UxT, axis=1)
      total -= log_p_UxT[np.arange(len(truth_U)), truth_U].sum()
    return total

  largest = np.log(_LARGEST_TEMPERATURE)
  fit = optimize.minimize_scalar(
    objective, bounds=(-largest, largest), method="bounded"
  )
  return float(np.exp(fit.x))


def _posterior(problem: _Problem, model: _Model, index: int) -> np.ndarray:
  """[U, T], of the problem of that index."""
  likelihood_UxT = _log_likelihood(problem, model.log_answer[index])
  logits_UxT = model.log_prior[index] + likelihood_UxT / model.temperature
  return special.softmax(logits_UxT, axis=1)
