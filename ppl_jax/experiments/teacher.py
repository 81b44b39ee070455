"""The teacher: a score file beside gold, with fewer votes, or simulated.

Shape letters: U utterances of the scored dialogues, C classes, L utterances of
one dialogue, N votes.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from ml_collections import ConfigDict

from ppl_jax import metrics
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import ensembles
from ppl_jax.data import scores as scores_lib
from ppl_jax.experiments import cells

KINDS = ("dialogue", "utterance")  # what a simulated error belongs to


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """Scores beside the gold of what was scored.

  Attributes:
    classes: the C classes, in order.
    task: 'single_label' or 'multi_label'.
    split: what was scored.
    dialogue_U: int, not decreasing.
    votes_UxC: valid votes for each class.
    valid_UxC: valid votes that could have named it.
    S_UxC: scores, NaN for none.
    gold_UxC: multi-hot.
  """

  classes: tuple[str, ...]
  task: str
  split: str
  dialogue_U: np.ndarray
  votes_UxC: np.ndarray
  valid_UxC: np.ndarray
  S_UxC: np.ndarray
  gold_UxC: np.ndarray


def score_file(
  config: ConfigDict, votes: Sequence[str], folder: pathlib.Path
) -> pathlib.Path:
  """Returns the score file: config.scores, or one made of votes.

  Args:
    config: of the command.
    votes: files with votes, for `labeling.scores`; or none.
    folder: gets the score file that is made.

  Raises:
    ValueError: neither or both are given, or the votes are not usable.
  """
  if bool(config.scores) == bool(votes):
    raise ValueError(
      "Scores must come from one place, got"
      f" config.scores={config.scores!r} and --votes={list(votes)}. Give"
      " --config.scores=FILE (a run of a generated dataset leaves one, WORKDIR/"
      "scores.parquet), or --votes=FILE."
    )
  if config.scores:
    return pathlib.Path(config.scores).expanduser()
  path = folder / "scores.parquet"
  make_scores(path, votes)
  return path


def make_scores(path: pathlib.Path, votes: Sequence[str], *flags: str) -> None:
  """Runs `python -m labeling.scores` on this command's config.

  Raises:
    ValueError: it failed; says what it said.
  """
  log = path.with_suffix(".log")
  log.unlink(missing_ok=True)
  arguments = [f"--scores={path}", *(f"--votes={v}" for v in votes), *flags]
  process = cells.start_command("labeling.scores", arguments, log)
  if process.wait():
    raise ValueError("\n".join(cells.last_lines(log)).removeprefix("error: "))


def load(dataset: dialogues_lib.Dataset, path: str | pathlib.Path) -> Teacher:
  """Reads a score file beside its dialogues' gold; labelled utterances only.

  Raises:
    ValueError: the file is not of this dataset, or nothing scored has gold.
  """
  scores = scores_lib.read_scores(path)
  split = scores.metadata["split"]
  if split not in dataset.splits:
    raise ValueError(
      f"A score file must be of one of the splits {', '.join(dataset.splits)},"
      f" got {path} of {split!r}. Name another."
    )
  dialogues = dataset.splits[split]
  parts, numbers = [], []
  matched = scores_lib.match(scores, dialogues, dataset.classes)
  for d, S_LxC in enumerate(matched):
    if S_LxC is None:
      continue
    dialogue = dialogues[d]
    row, keep = scores.rows[dialogue.dialogue_id], dialogue.labelled
    parts.append(
      (row.votes[keep], row.valid[keep], S_LxC[keep], dialogue.gold[keep])
    )
    numbers.append(np.full(keep.sum(), d))
  if not sum(map(len, numbers)):
    raise ValueError(
      f"The scored dialogues must have gold to compare with, got none for"
      f" {path}. Give a score file of labelled dialogues."
    )
  arrays = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
  return Teacher(
    dataset.classes, dataset.task, split, np.concatenate(numbers), *arrays
  )


def majority(dataset: dialogues_lib.Dataset) -> dict[str, float]:
  """Scores the most frequent set of classes of train on test."""
  train, test = (
    np.concatenate([d.gold[d.labelled] for d in dataset.splits[split]])
    for split in ("train", "test")
  )
  sets, count = np.unique(train, axis=0, return_counts=True)
  always = np.broadcast_to(sets[count.argmax()].astype(float), test.shape)
  return _scored(always, test, dataset.task)


def accuracy(
  dataset: dialogues_lib.Dataset, path: str | pathlib.Path
) -> dict[str, float | str]:
  """Scores a score file against the gold of what it scored."""
  about = load(dataset, path)
  known_U = ~np.isnan(about.S_UxC).any(axis=1)
  result = _scored(about.S_UxC[known_U], about.gold_UxC[known_U], dataset.task)
  return {**result, "split": about.split}


def _scored(
  prob_NxC: np.ndarray, gold_NxC: np.ndarray, task: str
) -> dict[str, float]:
  """Returns accuracy and macro F1 of decisions or scores."""
  counts = metrics.Classification.from_probabilities(
    prob_NxC, gold_NxC, np.ones(len(gold_NxC), bool), task
  )
  results = counts.compute([str(c) for c in range(gold_NxC.shape[1])])
  return {name: results[name] for name in ("accuracy", "macro_f1", "count")}


def thin(scores: scores_lib.Scores, size: int, seed: int) -> scores_lib.Scores:
  """Returns shares of `size` votes of each utterance, drawn by the seed.

  Fewer votes are drawn from those of a larger size.

  Raises:
    ValueError: the scores are not shares of votes.
  """
  rows = list(scores.rows.values())
  if any(row.weighted is not None for row in rows):
    raise ValueError(
      "Votes can be drawn where scores are shares of them, got scores made by"
      f" {scores.metadata['aggregation']}. Name a score file of labeling.scores"
      " --aggregation=uniform."
    )
  (votes,), (valid,) = ensembles.draw(
    np.concatenate([row.votes for row in rows]),
    np.concatenate([row.valid for row in rows]),
    (size,),
    np.random.default_rng([seed, 7]),
  )
  first = np.cumsum([0, *(len(row.votes) for row in rows)])
  thinned = {
    name: scores_lib.ScoredDialogue(
      votes[first[d] : first[d + 1]],
      valid[first[d] : first[d + 1]],
      row.text_sha256,
    )
    for d, (name, row) in enumerate(scores.rows.items())
  }
  about = {"method": "uniform", "votes_drawn": size, "seed": seed}
  metadata = {**scores.metadata, "aggregation": about}
  return scores_lib.Scores(scores.classes, metadata, thinned)


def simulate(
  dialogues: Iterable[dialogues_lib.Dialogue],
  classes: Sequence[str],
  task: str,
  *,
  kind: str,
  votes: int,
  shared: float,
  own: float,
  seed: int,
) -> scores_lib.Scores:
  """Simulates votes on train from gold, with an error that all votes share.

  A voter's preference for a class is its gold, 0 or 1, plus a normal error that
  all voters and all utterances of a dialogue share, plus one of the voter's
  own; it votes for the largest, or in a multi-label task, or of one class, for
  each above 1/2. Of kind 'utterance' the very same votes are dealt out anew
  among the utterances of equal gold: the error rate, class by class, stays as
  it is, but nothing is shared by a dialogue any more.

  Args:
    dialogues: with gold; utterances without get no votes.
    classes: the C classes, in order.
    task: 'single_label' or 'multi_label'.
    kind: of `KINDS`.
    votes: N.
    shared: standard deviation of the shared error.
    own: standard deviation of a voter's.
    seed: of the simulation.
  """
  dialogues, parts = list(dialogues), []
  for dialogue in dialogues:
    digest = hashlib.sha256(dialogue.dialogue_id.encode("utf-8")).digest()
    rng = np.random.default_rng([seed, *digest])
    L, C = dialogue.gold.shape
    error_C = shared * rng.standard_normal(C)
    own_NxLxC = own * rng.standard_normal((votes, L, C))
    preference_NxLxC = dialogue.gold + error_C + own_NxLxC
    named = metrics.preferred(preference_NxLxC.reshape(votes * L, C), task)
    parts.append(named.reshape(votes, L, C).sum(axis=0))
  votes_UxC = np.concatenate(parts).astype(np.uint32)
  labelled_U = np.concatenate([d.labelled for d in dialogues])
  if kind == "utterance":
    gold_UxC = np.concatenate([d.gold for d in dialogues])
    _, group_U = np.unique(gold_UxC, axis=0, return_inverse=True)
    rng = np.random.default_rng([seed, 8])
    for group in range(group_U.max() + 1):
      here = np.flatnonzero((group_U == group) & labelled_U)
      votes_UxC[here] = votes_UxC[rng.permutation(here)]
  votes_UxC[~labelled_U] = 0
  valid_UxC = np.zeros_like(votes_UxC)
  valid_UxC[labelled_U] = votes
  rows, start = {}, 0
  for dialogue in dialogues:
    here = slice(start, start := start + len(dialogue.texts))
    rows[dialogue.dialogue_id] = scores_lib.ScoredDialogue(
      votes_UxC[here], valid_UxC[here], dialogue.text_sha256()
    )
  metadata = {
    "dataset": "",
    "split": "train",
    "models": ["simulated"],
    "prompts": [],
    "sampling": {"shared": shared, "own": own, "error": kind, "seed": seed},
    "requests": int(votes * labelled_U.sum()),
    "aggregation": {"method": "uniform"},
  }
  return scores_lib.Scores(tuple(classes), metadata, rows)


def vote_error(scores: scores_lib.Scores, dialogues) -> float:
  """Share of the answers, over votes and classes, that gold says are wrong."""
  wrong = total = 0
  for dialogue in dialogues:
    row = scores.rows.get(dialogue.dialogue_id)
    if row is not None:
      valid = row.valid * dialogue.labelled[:, None]
      votes = row.votes * dialogue.labelled[:, None]
      wrong += np.where(dialogue.gold, valid - votes, votes).sum()
      total += valid.sum()
  return float(wrong / total)
