"""Votes to a score file, by one of several methods, and how good it is.

Shape letters: U utterances of the D dialogues that were voted on, C classes.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from labeling import dawid_skene, gold_calibrated
from ppl_jax import calibration
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import scores as scores_lib
from ppl_jax.data import vote_columns
from ppl_jax.data import votes as votes_lib

METHODS = ("uniform", "dawid_skene", "gold")


def write(
  path: str | os.PathLike[str],
  votes: vote_columns.Votes,
  dataset: dialogues_lib.Dataset,
  split: str,
  *,
  method: str = "uniform",
  gold_D: np.ndarray | None = None,
  seed: int = 0,
  about: Mapping[str, Any] | None = None,
) -> list[str]:
  """Makes scores of votes and writes them.

  Args:
    path: the Parquet file to write.
    votes: on a split of the dataset.
    dataset: whose classes and task are asked for.
    split: the split's name.
    method: one of `METHODS`. 'uniform' is the share of votes.
    gold_D: bool, the voted dialogues whose gold the method 'gold' uses; None
      for no dialogue. Quality is told for the others, whatever the method.
    seed: of what the method draws.
    about: more of the file's metadata, such as models, prompts and sampling.

  Returns:
    Lines that say what the scores are and, where there is gold, how good.

  Raises:
    ValueError: the gold is too little for the method.
  """
  if gold_D is None:
    gold_D = np.zeros(len(votes.voted.dialogue_ids), np.bool_)
  lines = []
  if method == "uniform":
    scores = votes_lib.to_scores(votes, dataset=dataset.name, split=split)
  else:
    if method == "gold":
      score_UxC, settings = gold_calibrated.gold_calibrated(
        votes, dataset.task, gold_D, seed
      )
      lines.append(
        f"aggregation: gold of {settings['gold_utterances']} utterances,"
        f" temperature {settings['temperature']:.2f}"
      )
    else:
      score_UxC, settings = dawid_skene.dawid_skene(votes, dataset.task)
      lines.append("aggregation: Dawid-Skene, from the votes alone")
    scores = votes_lib.to_scores(
      votes,
      dataset=dataset.name,
      split=split,
      weighted_UxC=score_UxC,
      aggregation=settings,
    )
  scores = scores_lib.Scores(
    scores.classes, {**scores.metadata, **(about or {})}, scores.rows
  )
  scores_lib.write_scores(path, scores)
  counts = scores.metadata["votes"]
  score_UxC = np.concatenate([row.score for row in scores.rows.values()])
  scored_U = ~np.isnan(score_UxC).any(axis=1)
  D = len(votes.voted.dialogue_ids)
  lines = [
    f"votes: {counts['all']}, of which {counts['unusable']} unusable and"
    f" {counts['none']} for none of the classes",
    *_left_out(scores.metadata.get("left_out", {})),
    *lines,
    f"scored: {scored_U.sum()} of {len(scored_U)} utterances in {D} of"
    f" {len(dataset.splits[split])} dialogues",
  ]
  if gold_D.any():
    lines.append(
      f"gold of {gold_D.sum()} dialogues is set aside; of the other"
      f" {D - gold_D.sum()}:"
    )
  kept_U = scored_U & ~gold_D[votes.voted.dialogue_U]
  return [
    *lines,
    *_quality(score_UxC, kept_U, votes, dataset.task),
    f"scores: {path}",
  ]


def draw_gold(votes: vote_columns.Votes, number: int, seed: int) -> np.ndarray:
  """Draws dialogues whose gold may be used.

  Args:
    votes: with the gold of what was voted on.
    number: of dialogues.
    seed: of the draw.

  Returns:
    bool [D].

  Raises:
    ValueError: fewer dialogues have gold.
  """
  voted = votes.voted
  labelled = np.unique(voted.dialogue_U[voted.labelled_U])
  if number > len(labelled):
    raise ValueError(
      "--gold_dialogues must be at most the number of dialogues with votes and"
      f" gold, {len(labelled)}, got {number}: lower it"
    )
  drawn = np.random.default_rng([seed, 4]).permutation(labelled)[:number]
  return np.isin(np.arange(len(voted.dialogue_ids)), drawn)


def read_gold_ids(
  votes: vote_columns.Votes, path: str | os.PathLike[str]
) -> np.ndarray:
  """Reads the ids of dialogues whose gold may be used, one a line.

  Args:
    votes: with the dialogues that were voted on.
    path: the file.

  Returns:
    bool [D].

  Raises:
    ValueError: there is no such file, or a line names no such dialogue.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
      f"--gold_ids must name a file, got {str(path)!r}: correct the path"
    )
  index = {name: d for d, name in enumerate(votes.voted.dialogue_ids)}
  gold_D = np.zeros(len(index), np.bool_)
  for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
    if not line.strip():
      continue
    d = index.get(line.strip())
    if d is None:
      raise ValueError(
        f"{path}, line {number}: a line must be the id of a dialogue that was"
        f" voted on, got {line.strip()!r}: take it out, or check"
        " config.votes.split"
      )
    gold_D[d] = True
  return gold_D


def _left_out(counts: Mapping[str, int]) -> list[str]:
  reasons = {
    "other_classes": "among other classes",
    "other_texts": "on other texts",
  }
  told = [f"{n} answers {reasons[why]}" for why, n in counts.items() if n]
  return [f"left out: {', '.join(told)}"] if told else []


def _quality(
  score_UxC: np.ndarray,
  scored_U: np.ndarray,
  votes: vote_columns.Votes,
  task: str,
) -> list[str]:
  """Lines on some scored utterances, against their gold."""
  both_U = scored_U & votes.voted.labelled_U
  if not both_U.any():
    return ["gold: none for these utterances"]
  score_UxC, gold_UxC = score_UxC[both_U], votes.voted.gold_UxC[both_U]
  if task == "single_label" and gold_UxC.shape[1] > 1:
    agree_U = score_UxC.argmax(1) == gold_UxC.argmax(1)
    agree = (agree_U & score_UxC.any(axis=1)).mean()  # else no class was named
    lines = [f"largest score (the first of equals) is gold: {agree:.1%}"]
  else:
    agree = ((score_UxC > 0.5) == gold_UxC).mean()
    lines = [f"score above one half is gold, over all classes: {agree:.1%}"]
  columns = [slice(None), *([c] for c in range(len(votes.classes)))]
  for name, c in zip(("all classes", *votes.classes), columns, strict=True):
    a, b = (
      calibration.vote_ece(score_UxC[:, c], gold_UxC[:, c], zeros=zeros)
      for zeros in ("drop", "first_bucket")
    )
    lines.append(f"ECE, {name}: {a:.3f} without S = 0, {b:.3f} with it")
  return lines
