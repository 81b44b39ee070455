"""What the report of a run shows, as one tree of JSON values.

Shapes: U utterances of a dialogue, N labelled utterances of a split, C classes.
"""

import dataclasses
import importlib
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm

from ppl_jax import (
  calibration,
  checkpoint,
  commands,
  logits,
  metrics,
  objective,
  predictions,
)
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import scores as scores_lib
from ppl_jax.predictor import Predictor

# What is drawn; a page of more would be slow to open.
_SHOWN, _LONGEST, _SUGGESTED = 200, 40, 100
_CHARACTERS = 2_000_000  # of the dialogues shown, all together
_SUGGESTED_OF_DIALOGUE = 2
_CONTEXT = 4  # utterances before a suggested one
_CHANCES = 5  # classes an utterance is shown with
_POINTS = 200  # of a curve
_SPLIT_BELOW = 0.6  # a top share of votes that calls them split


@dataclasses.dataclass(frozen=True)
class _Said:
  """All that is said of a dialogue.

  Attributes:
    dialogue: its texts and gold.
    student_UxC: the student's probabilities.
    votes_UxC: shares of the votes, NaN = none.
    apart_U: the largest difference, over classes, of two of student, votes and
      gold, as far as there are any.
  """

  dialogue: dialogues_lib.Dialogue
  student_UxC: np.ndarray
  votes_UxC: np.ndarray
  apart_U: np.ndarray


def collect(workdir: pathlib.Path, *, dialogues: int) -> dict[str, Any]:
  """Gathers what a finished run knows, and runs its student over some of train.

  Args:
    workdir: the run's folder.
    dialogues: most dialogues of train to look through, drawn by the run's seed;
      those that were voted on where there are votes.

  Returns:
    JSON values; `report_page/page.js` draws them.

  Raises:
    ValueError: the folder holds no finished run, or its data cannot be had.
  """
  path = workdir / "results.json"
  if not path.exists():
    raise ValueError(
      f"--workdir must hold a finished run, got {workdir} without {path.name}."
      " Let `python -m ppl_jax.main` finish, or name another folder."
    )
  results = json.loads(path.read_text())
  config = json.loads((workdir / "config.json").read_text())
  student = json.loads((workdir / "student.json").read_text())
  classes, task = tuple(student["classes"]), student["task"]
  try:
    dataset = dialogues_lib.load_config(config["dataset"])
  except (ValueError, OSError) as error:
    raise ValueError(
      f"The report shows the run's dialogues, and these cannot be had: {error}"
    ) from error
  scores = _scores(workdir, config)
  notes = _changed_files(workdir, config, dataset)
  said = _said(workdir, config, dataset, scores, dialogues)
  suggested, suggestion_note = _suggest(said, classes, task)
  if scores is None:
    notes.append(
      "This run used no votes, so there is nothing of the teacher here."
    )
  out = {
    "dataset": dataset.name,
    "workdir": workdir.name,
    "task": task,
    "classes": classes,
    "one_label": task == "single_label" and len(classes) > 1,
    "results": results,
    "settings": list(commands.flat(config).items()),
    "changed": _changed(config),
    "counts": [
      {
        "split": name,
        "dialogues": len(split),
        **_counts(split),
      }
      for name, split in dataset.splits.items()
    ],
    "votes": None if scores is None else _facts(scores.metadata),
    "history": _history(workdir),
    "test": _test(workdir, classes, task, notes),
    "teacher": _teacher(said, task, notes) if scores else None,
    "looked_at": len(said),
    "dialogues": _most_apart(said, classes, task),
    "suggested": suggested,
    "suggestion_note": suggestion_note,
    "notes": notes,
  }
  if not out["history"]:
    notes.append(
      "The run's checkpoints are gone, so there are no training curves."
    )
  return _plain(out)


def _changed_files(workdir, config, dataset) -> list[str]:
  """Says so where the page's votes or gold are not those of the run."""
  path = workdir / "data.json"
  before = json.loads(path.read_text()) if path.exists() else {}
  now = dialogues_lib.contents(config, dataset)
  changed = dialogues_lib.changed(before, now)
  if not changed:
    return []
  return [
    f"The files of {', '.join(changed)} changed after this run. Votes, gold and"
    " disagreements on this page are of the files as they are now; the student"
    " and the test metrics are of before."
  ]


def _scores(workdir, config) -> scores_lib.ScoreFile | None:
  """The run's score file; a generated dataset's lies in the workdir."""
  own = workdir / "scores.parquet"
  path = config["scores"] or (own if own.exists() else "")
  if not path or (
    not objective.uses_votes(config["pretrain"])
    and not config["dataset"]["only_scored"]
  ):
    return None
  return scores_lib.ScoreFile(path)


def _said(workdir, config, dataset, scores, limit: int) -> list[_Said]:
  """Has the student read a sample of train."""
  train, C = dataset.splits["train"], len(dataset.classes)
  rng = np.random.default_rng(config["seed"])
  shares = {}
  if scores is None:
    chosen = np.sort(rng.permutation(len(train))[:limit])
    drawn = [train[int(d)] for d in chosen]
  else:
    ids = sorted(scores.dialogue_ids())
    kept = {ids[i] for i in rng.permutation(len(ids))[:limit]}
    shares = {name: row for name, row in scores.rows() if name in kept}
    drawn = [d for d in train if d.dialogue_id in kept]
  predictor = Predictor.from_workdir(workdir, live=False)
  bar = tqdm.tqdm(
    total=sum(len(d.texts) for d in drawn), desc="student", unit="utterance"
  )
  with bar:
    told = predictor.predict(drawn, bar.update)
    out = []
    for dialogue in drawn:
      L = len(dialogue.texts)
      student_UxC = np.array(
        [list(p.probabilities.values()) for p in itertools.islice(told, L)]
      )
      votes_UxC = np.full((L, C), np.nan)
      if dialogue.dialogue_id in shares:
        row = shares[dialogue.dialogue_id]
        if row.text_sha256 != dialogue.text_sha256():
          raise ValueError(
            f"{scores.path}: its texts must be those of the dataset, got others"
            f" for dialogue {dialogue.dialogue_id!r}. Name the workdir of a run"
            " whose data is still there."
          )
        votes_UxC = row.score
      out.append(
        _Said(
          dialogue,
          student_UxC,
          votes_UxC,
          _apart(dialogue, student_UxC, votes_UxC),
        )
      )
  return out


def _apart(dialogue, student_UxC, votes_UxC) -> np.ndarray:
  gold_UxC = np.where(
    dialogue.labelled[:, None], dialogue.gold.astype(float), np.nan
  )
  three = (student_UxC, votes_UxC, gold_UxC)
  return np.max(
    [
      np.nan_to_num(np.abs(a - b)).max(axis=1)
      for a, b in itertools.combinations(three, 2)
    ],
    axis=0,
  )


def _kinds(said: _Said, task: str) -> list[list[str]]:
  """Names of the disagreements about each utterance."""
  scored_U = ~np.isnan(said.votes_UxC).any(axis=1)
  votes_UxC = np.nan_to_num(said.votes_UxC)
  student, teacher = (
    metrics.decided(said.student_UxC, task),
    metrics.decided(votes_UxC, task),
  )
  gold, labelled_U = said.dialogue.gold > 0, said.dialogue.labelled
  unsure_UxC = np.minimum(votes_UxC, 1 - votes_UxC)
  split_U = unsure_UxC.max(axis=1) > 1 - _SPLIT_BELOW
  if task == "single_label" and votes_UxC.shape[1] > 1:
    split_U = votes_UxC.max(axis=1) < _SPLIT_BELOW
  differ = {
    "student_gold": labelled_U & (student != gold).any(axis=1),
    "votes_gold": labelled_U & scored_U & (teacher != gold).any(axis=1),
    "student_votes": scored_U & (student != teacher).any(axis=1),
    "split": scored_U & split_U,
  }
  return [
    [name for name, which_U in differ.items() if which_U[u]]
    for u in range(len(labelled_U))
  ]


def _most_apart(said: Sequence[_Said], classes, task) -> list[dict[str, Any]]:
  """The dialogues with most disagreement an utterance."""
  order = sorted(said, key=lambda s: -float(np.mean(s.apart_U)))
  out, left = [], _CHARACTERS
  for one in order[:_SHOWN]:
    kinds = _kinds(one, task)
    first, stop = _stretch(one.apart_U)
    left -= sum(map(len, one.dialogue.texts[first:stop]))
    if out and left < 0:
      break
    out.append(
      {
        "id": one.dialogue.dialogue_id,
        "apart": float(np.mean(one.apart_U)),
        "first": first,
        "length": len(kinds),
        "utterances": [
          _utterance(one, u, classes, task) | {"kinds": kinds[u]}
          for u in range(first, stop)
        ],
      }
    )
  return out


def _stretch(apart_U: np.ndarray) -> tuple[int, int]:
  """The part of a long dialogue that is shown: where most disagreement is."""
  if len(apart_U) <= _LONGEST:
    return 0, len(apart_U)
  total = np.convolve(apart_U, np.ones(_LONGEST), "valid")
  first = int(total.argmax())
  return first, first + _LONGEST


def _utterance(said: _Said, u: int, classes, task) -> dict[str, Any]:
  dialogue = said.dialogue
  student_C, votes_C = said.student_UxC[u], said.votes_UxC[u]
  gold = votes = voted = None
  if dialogue.labelled[u]:
    gold = np.flatnonzero(dialogue.gold[u])
  if not np.isnan(votes_C).any():
    votes = _largest(votes_C)
    voted = np.flatnonzero(metrics.decided(votes_C[None], task)[0])
  return {
    "speaker": dialogue.speakers[u],
    "text": dialogue.texts[u],
    "gold": gold,
    "student": np.flatnonzero(metrics.decided(student_C[None], task)[0]),
    "chances": _largest(student_C),
    "votes": votes,
    "voted": voted,
  }


def _largest(values_C: np.ndarray) -> list[list]:
  """The largest values above 0: [class, value]."""
  order = np.argsort(-values_C, kind="stable")[:_CHANCES]
  return [[int(c), round(float(values_C[c]), 4)] for c in order if values_C[c]]


def _suggest(said: Sequence[_Said], classes, task):
  """The utterances that a person should label next, and what they are of."""
  unlabelled = any(not s.dialogue.labelled.all() for s in said)
  found = []
  for one in said:
    doubt_U = _doubt(one.student_UxC, task)
    scored_U = ~np.isnan(one.votes_UxC).any(axis=1)
    votes_U = _doubt(np.nan_to_num(one.votes_UxC), task)
    doubt_U = np.where(scored_U, (doubt_U + votes_U) / 2, doubt_U)
    if unlabelled:
      doubt_U = np.where(one.dialogue.labelled, -1, doubt_U)
    best = np.argsort(-doubt_U, kind="stable")[:_SUGGESTED_OF_DIALOGUE]
    found += [(float(doubt_U[u]), one, int(u)) for u in best if doubt_U[u] > 0]
  found.sort(key=lambda entry: -entry[0])
  note = (
    "Of utterances without a label."
    if unlabelled
    else "All utterances that were looked at have a label already, which is not"
    " shown."
  )
  return [
    _utterance(one, u, classes, task)
    | {
      "id": one.dialogue.dialogue_id,
      "utterance": u,
      "doubt": doubt,
      "gold": None,
      "context": [
        {"speaker": one.dialogue.speakers[v], "text": one.dialogue.texts[v]}
        for v in range(max(0, u - _CONTEXT), u)
      ],
    }
    for doubt, one, u in found[:_SUGGESTED]
  ], note


def _doubt(values_UxC: np.ndarray, task: str) -> np.ndarray:
  """Entropy [U] over the most there can be, in [0, 1]."""
  if task == "single_label" and values_UxC.shape[1] > 1:
    rest_U = np.maximum(1 - values_UxC.sum(axis=1), 0)  # votes for no class
    p = np.concatenate([values_UxC, rest_U[:, None]], axis=1)
    most = np.log(p.shape[1])
    return -(p * np.log(np.maximum(p, 1e-12))).sum(axis=1) / most
  p = np.clip(values_UxC, 1e-12, 1 - 1e-12)
  return (-(p * np.log(p) + (1 - p) * np.log1p(-p)) / np.log(2)).max(axis=1)


def _test(workdir, classes, task, notes) -> dict[str, Any] | None:
  path = predictions.path(workdir, "test")
  if not path.exists():
    notes.append(
      "There are no predictions of a test split: the data has none, or the run"
      " is of an earlier version. Nothing here says how good the student is on"
      " dialogues that it has not seen."
    )
    return None
  said = predictions.load(path)
  chances_NxC = logits.probabilities(said.logits_NxC, task)
  counts = metrics.Classification.from_probabilities(
    chances_NxC, said.gold_NxC, np.ones(len(chances_NxC), bool), task
  )
  decided_NxC = metrics.decided(chances_NxC, task)
  sure_N = chances_NxC.max(axis=1)
  if task == "multi_label" or len(classes) == 1:
    sure_N = np.maximum(chances_NxC, 1 - chances_NxC).min(axis=1)
  right_N = (decided_NxC == (said.gold_NxC > 0)).all(axis=1)
  return {
    "metrics": counts.compute(classes),
    "confusion": counts.confusion,
    "reliability": _bins(counts.reliability),
    "coverage": _coverage(sure_N, right_N),
  }


def _coverage(sure_N: np.ndarray, right_N: np.ndarray) -> list[list[float]]:
  """[share answered, accuracy on it, least sure], the surest first."""
  order = np.argsort(-sure_N, kind="stable")
  accuracy_N = np.cumsum(right_N[order]) / np.arange(1, len(order) + 1)
  # From 1 % on: the first few are right or wrong by luck.
  least = max(1, len(order) // 100)
  places = np.linspace(least, len(order), _POINTS).round().astype(int)
  return [
    [n / len(order), float(accuracy_N[n - 1]), float(sure_N[order[n - 1]])]
    for n in dict.fromkeys(places.tolist())
  ]


def _teacher(said: Sequence[_Said], task, notes) -> dict[str, Any] | None:
  """How good the votes are where train has gold, used in training or not."""
  shares, golds = [], []
  for one in said:
    keep_U = one.dialogue.labelled & ~np.isnan(one.votes_UxC).any(axis=1)
    shares.append(one.votes_UxC[keep_U])
    golds.append(one.dialogue.gold[keep_U])
  shares_NxC, gold_NxC = np.concatenate(shares), np.concatenate(golds)
  if not len(gold_NxC):
    notes.append(
      "No utterance has both votes and a label, so nothing says how good the"
      " votes are."
    )
    return None
  shown = shares_NxC > 0
  return {
    "count": len(gold_NxC),
    "accuracy": float(
      (metrics.decided(shares_NxC, task) == (gold_NxC > 0)).all(axis=1).mean()
    ),
    "ece": calibration.vote_ece(shares_NxC, gold_NxC),
    "ece_with_zeros": calibration.vote_ece(
      shares_NxC, gold_NxC, zeros="first_bucket"
    ),
    "reliability": _bins(
      calibration.reliability(shares_NxC[shown], gold_NxC[shown], bins=5)
    ),
  }


def _bins(buckets: calibration.Reliability) -> list[list[float]]:
  """[mean confidence, accuracy, share] of each bucket that has any."""
  total = max(int(buckets.count.sum()), 1)
  return [
    [confidence / count, correct / count, count / total]
    for count, confidence, correct in zip(
      buckets.count, buckets.confidence, buckets.correct, strict=True
    )
    if count
  ]


def _counts(split: Sequence[dialogues_lib.Dialogue]) -> dict[str, int]:
  utterances = labelled = 0
  for dialogue in split:
    utterances += len(dialogue.texts)
    labelled += int(dialogue.labelled.sum())
  return {"utterances": utterances, "labelled": labelled}


def _changed(config) -> list[list[Any]] | None:
  """[dotted key, value, default] of the settings that differ from the defaults.

  None where the defaults cannot be had: they lie beside the packages.
  """
  try:
    common = importlib.import_module("configs.common")
  except ModuleNotFoundError:
    return None
  defaults = common.get_config().copy_and_resolve_references().to_json()
  before = commands.flat(json.loads(defaults))
  return [
    [key, value, before.get(key, "–")]
    for key, value in commands.flat(config).items()
    if key not in before or before[key] != value
  ]


def _facts(metadata) -> list[list[str]]:
  """Names and values of a score file's metadata, as texts."""
  rows = []
  for key, value in commands.flat(metadata).items():
    text = value if isinstance(value, str) else json.dumps(value)
    rows.append([key, text if len(text) <= 300 else f"{text[:300]} …"])
  return rows


def _history(workdir) -> list[dict[str, Any]]:
  if not (workdir / "checkpoints" / "state").is_dir():
    return []
  checkpoints = checkpoint.StateCheckpoints(workdir)
  meta = checkpoints.meta() or {"history": []}
  checkpoints.close()
  return meta["history"]


def _plain(value: Any) -> Any:
  """Turns NumPy into what JSON has; NaN, which it has not, into None."""
  if isinstance(value, dict):
    return {key: _plain(v) for key, v in value.items()}
  if isinstance(value, np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, list | tuple):
    return [_plain(v) for v in value]
  if isinstance(value, np.generic):
    return _plain(value.item())
  if isinstance(value, float) and not np.isfinite(value):
    return None
  return value
