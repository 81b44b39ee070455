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

# What a simulated error belongs to: a dialogue, each utterance, or each
# utterance and some the utterances beside it.
KINDS = ("dialogue", "utterance", "timing")
# Of votes and of the majority class.
MEASURES = ("accuracy", "one_versus_rest_accuracy", "macro_f1", "count")


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


@dataclasses.dataclass(frozen=True)
class Noise:
  """How simulated votes err; see `simulate`.

  Attributes:
    kind: of `KINDS`.
    votes: N of an utterance.
    shared: standard deviation of the error that all votes share.
    own: standard deviation of each vote's own.
    late: of kind 'timing', the share of wrong votes that name the gold of the
      utterance before.
    early: and of the utterance after.
  """

  kind: str
  votes: int
  shared: float
  own: float
  late: float = 0.0
  early: float = 0.0

  def __post_init__(self):
    if min(self.late, self.early) < 0 or self.late + self.early > 1:
      raise ValueError(
        "Shares of errors that are late and early must be at least 0 and at"
        f" most 1 together, got {self.late} and {self.early}. Correct them."
      )


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
  """Returns accuracies and macro F1 of decisions or scores."""
  counts = metrics.Classification.from_probabilities(
    prob_NxC, gold_NxC, np.ones(len(gold_NxC), bool), task
  )
  results = counts.compute([str(c) for c in range(gold_NxC.shape[1])])
  return {name: results[name] for name in MEASURES}


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
  noise: Noise,
  seed: int,
) -> scores_lib.Scores:
  """Simulates votes on train from gold.

  A voter's preference for a class is its gold, 0 or 1, plus a normal error that
  all voters and all utterances of a dialogue share, plus one of the voter's
  own; it votes for the largest, or in a multi-label task, or of one class, for
  each above 1/2. Of kind 'utterance' the very same votes are dealt out anew
  among the utterances of equal gold: the error rate, class by class, stays as
  it is, but nothing is shared by a dialogue any more. Of kind 'timing' some of
  the votes that are wrong then name the gold of the utterance before or after
  instead, where that is another: as many are wrong, only otherwise.

  Args:
    dialogues: with gold; utterances without get no votes.
    classes: the C classes, in order.
    task: 'single_label' or 'multi_label'.
    noise: how the votes err.
    seed: of the simulation.

  Returns:
    The votes as scores; of kind 'timing' metadata["sampling"] has the shares of
    wrong votes that were `moved_late` and `moved_early`, which are less than
    asked for where too few golds differ from the one before or after.
  """
  dialogues, parts = list(dialogues), []
  for dialogue in dialogues:
    digest = hashlib.sha256(dialogue.dialogue_id.encode("utf-8")).digest()
    rng = np.random.default_rng([seed, *digest])
    L, C = dialogue.gold.shape
    error_C = noise.shared * rng.standard_normal(C)
    own_NxLxC = noise.own * rng.standard_normal((noise.votes, L, C))
    preference_NxLxC = dialogue.gold + error_C + own_NxLxC
    named = metrics.preferred(
      preference_NxLxC.reshape(noise.votes * L, C), task
    )
    parts.append(named.reshape(noise.votes, L, C))
  named_NxUxC = np.concatenate(parts, axis=1)
  labelled_U = np.concatenate([d.labelled for d in dialogues])
  gold_UxC = np.concatenate([d.gold for d in dialogues]).astype(bool)
  if noise.kind != "dialogue":
    _, group_U = np.unique(gold_UxC, axis=0, return_inverse=True)
    rng = np.random.default_rng([seed, 8])
    for group in range(group_U.max() + 1):
      here = np.flatnonzero((group_U == group) & labelled_U)
      named_NxUxC[:, here] = named_NxUxC[:, rng.permutation(here)]
  sampling = {
    "shared": noise.shared,
    "own": noise.own,
    "error": noise.kind,
    "seed": seed,
  }
  if noise.kind == "timing":
    dialogue_U = np.repeat(
      np.arange(len(dialogues)), [len(d.texts) for d in dialogues]
    )
    sampling |= _mistime(
      named_NxUxC, gold_UxC, labelled_U, dialogue_U, noise, seed
    )
  votes_UxC = named_NxUxC.sum(axis=0, dtype=np.uint32)
  votes_UxC[~labelled_U] = 0
  valid_UxC = np.zeros_like(votes_UxC)
  valid_UxC[labelled_U] = noise.votes
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
    "sampling": sampling,
    "requests": int(noise.votes * labelled_U.sum()),
    "aggregation": {"method": "uniform"},
  }
  return scores_lib.Scores(tuple(classes), metadata, rows)


def _mistime(
  named_NxUxC, gold_UxC, labelled_U, dialogue_U, noise: Noise, seed: int
) -> dict[str, float]:
  """Has shares of the wrong votes name a neighbour's gold, in place."""
  rng = np.random.default_rng([seed, 9])
  U = len(dialogue_U)
  free_NxU = (named_NxUxC != gold_UxC).any(axis=2) & labelled_U
  wrong = int(free_NxU.sum())
  moved = {}
  for name, share, step in (
    ("late", noise.late, -1),
    ("early", noise.early, 1),
  ):
    beside_U = np.clip(np.arange(U) + step, 0, U - 1)  # itself at the ends
    of_UxC = gold_UxC[beside_U]
    another_U = (of_UxC != gold_UxC).any(axis=1) & labelled_U[beside_U]
    another_U &= dialogue_U[beside_U] == dialogue_U
    voter, at = np.nonzero(free_NxU & another_U)
    count = min(round(share * wrong), len(at))
    chosen = rng.choice(len(at), count, replace=False)
    named_NxUxC[voter[chosen], at[chosen]] = of_UxC[at[chosen]]
    free_NxU[voter[chosen], at[chosen]] = False
    moved[f"moved_{name}"] = count / max(wrong, 1)
  return moved


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
