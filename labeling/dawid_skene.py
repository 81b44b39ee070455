"""Dawid-Skene: scores from votes alone, weighed by how annotators agree.

Shape letters: V votes, U utterances, C classes, K answers.
"""

import logging
import warnings
from importlib import metadata
from typing import Any

import numpy as np
import tqdm

from ppl_jax.data import vote_columns

_LOG = logging.getLogger(__name__)
# On 39,205 votes of five prompts on DailyDialog no score moves by more than
# 1e-5 after 30.
_ITERATIONS = 50


def dawid_skene(
  votes: vote_columns.Votes, task: str
) -> tuple[np.ndarray, dict[str, Any]]:
  """Fits a confusion matrix for each annotator, and scores, to votes alone.

  The model of Dawid and Skene (1979): an utterance has one true answer, from
  which each annotator's votes follow by its confusion matrix, independently.
  Expectation-maximisation by crowd-kit, from shares of the votes. Where votes
  name one of several classes, the answers are the classes and "none of them".
  Where there is one class, the task is multi-label or a vote was asked for one
  class only, every class is a model of its own, with the answers yes and no.

  Args:
    votes: at least one.
    task: 'single_label' or 'multi_label'.

  Returns:
    The posterior of each class, float32 [U, C]; NaN where no valid vote could
    have named the class; what a row lacks of 1 belongs to "none of them". And
    settings for the metadata.
  """
  U, C = len(votes.voted.labelled_U), len(votes.classes)
  _, valid_UxC = votes.counts()
  one_answer = votes.one_answer(task)
  _LOG.info("Dawid-Skene: %d rounds over %d votes.", _ITERATIONS, len(votes))
  if one_answer:
    posterior_UxC = _fit(votes, votes.valid_V, votes.answers(), C + 1)[:, :C]
  else:
    posterior_UxC = np.zeros((U, C))
    for c in tqdm.trange(C, desc="Dawid-Skene", delay=3, disable=None):
      yes_V = votes.names(c).astype(int)
      posterior_UxC[:, c] = _fit(votes, votes.could_name(c), yes_V, 2)[:, 1]
  score_UxC = np.where(valid_UxC > 0, posterior_UxC, np.nan)
  settings = {
    "method": "dawid_skene",
    "score": "posterior of Dawid and Skene's model, from the votes alone",
    "answers": "the classes and none" if one_answer else "yes and no, by class",
    "iterations": _ITERATIONS,
    "library": f"crowd-kit {metadata.version('crowd-kit')}",
  }
  return score_UxC.astype(np.float32), settings


def _fit(
  votes: vote_columns.Votes,
  used_V: np.ndarray,
  answer_V: np.ndarray,
  num_answers: int,
) -> np.ndarray:
  """Posterior of the answers, float64 [U, K]; 0 where no vote is used."""
  posterior_UxK = np.zeros((len(votes.voted.labelled_U), num_answers))
  if not used_V.any():
    return posterior_UxK
  with warnings.catch_warnings():
    # crowd-kit calls pandas in ways that pandas is about to drop.
    warnings.simplefilter("ignore")
    import pandas as pd
    from crowdkit.aggregation import DawidSkene

    table = pd.DataFrame(
      {
        "task": votes.utterance_V[used_V],
        "worker": votes.annotator_V[used_V],
        "label": answer_V[used_V],
      }
    )
    # Its own stop would come too soon: the bound that it watches counts the
    # prior once a vote and not once an utterance, and falls while the
    # likelihood still rises.
    model = DawidSkene(n_iter=_ITERATIONS, tol=-np.inf).fit(table)
  probas = model.probas_
  rows, columns = probas.index.to_numpy(), probas.columns.to_numpy()
  posterior_UxK[rows[:, None], columns] = probas.to_numpy()
  return posterior_UxK.clip(0, 1)
