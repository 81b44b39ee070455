"""Rows of table 1 ranked over several tasks, from the folders of their runs.

A place is a task at a share of gold. Shape letters: N utterances, D dialogues,
B resamples.
"""

import collections
import csv
import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from ppl_jax import predictions
from ppl_jax.experiments import bootstrap

Place = tuple[str, float]  # task, share of gold


@dataclasses.dataclass(frozen=True)
class Task:
  """What a folder of table 1 holds.

  Attributes:
    name: the folder's.
    folder: it.
    seeds: all that any cell has, ascending.
    cells: from (row, share of gold, seed) to a cell's name, planned ones too.
    accuracy: from the same to the test accuracy, of those finished.
  """

  name: str
  folder: pathlib.Path
  seeds: tuple[int, ...]
  cells: Mapping[tuple[str, float, int], str]
  accuracy: Mapping[tuple[str, float, int], float]

  def values(self, row: str, share: float) -> list[float]:
    """Returns the accuracies of the seeds that are finished."""
    keys = [(row, share, seed) for seed in self.seeds]
    return [self.accuracy[key] for key in keys if key in self.accuracy]


@dataclasses.dataclass(frozen=True)
class Difference:
  """The reference less another row, on the mean of tasks, at a share of gold.

  Attributes:
    row: the other row.
    share: of gold.
    tasks: whose mean it is.
    result: the difference and its interval.
  """

  row: str
  share: float
  tasks: tuple[str, ...]
  result: bootstrap.Difference


def read(folder: pathlib.Path) -> Task:
  """Reads a folder of `table1`.

  Raises:
    ValueError: it holds no results.csv of table 1.
  """
  path = folder / "results.csv"
  if not path.is_file():
    raise ValueError(
      f"--folders must be folders of table1, got {folder}, which has no"
      " results.csv. Run table1 first, or leave it out."
    )
  with path.open(encoding="utf-8", newline="") as f:
    lines = list(csv.DictReader(f))
  columns = {"cell", "variant", "gold", "seed", "status"}
  if not lines or not columns <= lines[0].keys():
    raise ValueError(
      f"--folders must be folders of table1, got {folder}, whose results.csv"
      f" lacks some of the columns {', '.join(sorted(columns))}. Leave it out."
    )
  cells, accuracy = {}, {}
  for line in lines:
    key = line["variant"], float(line["gold"]), int(line["seed"])
    cells[key] = line["cell"]
    if line["status"] == "finished" and line.get("accuracy"):
      accuracy[key] = float(line["accuracy"])
  seeds = tuple(sorted({seed for _, _, seed in cells}))
  return Task(folder.absolute().name, folder, seeds, cells, accuracy)


class Ranking:
  """The rows of several tasks, ranked where all of them are there.

  A share of gold has those rows that any task has there, planned ones too:
  fine-tuning alone has no place at a share of 0. A row is there if all seeds
  of the task's folder are finished.

  Args:
    tasks: of different names.
    rows: the names of those to rank; or none, for all.

  Raises:
    ValueError: two tasks have one name, or no task has one of the rows.
  """

  def __init__(self, tasks: Sequence[Task], rows: Sequence[str] = ()):
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
      raise ValueError(
        f"--folders must have different names, those of their tasks, got"
        f" {', '.join(names)}. Rename some."
      )
    known = list(dict.fromkeys(row for t in tasks for row, _, _ in t.cells))
    unknown = set(rows).difference(known)
    if unknown:
      raise ValueError(
        f"--rows must be some of {', '.join(known)}, got"
        f" {', '.join(sorted(unknown))}. Correct it."
      )
    self.tasks = {task.name: task for task in tasks}
    self.rows = [row for row in known if row in rows or not rows]
    self.shares = sorted({share for t in tasks for _, share, _ in t.cells})
    self._has = {(row, share) for t in tasks for row, share, _ in t.cells}

  def rows_at(self, share: float) -> list[str]:
    """Returns the rows that a share of gold has."""
    return [row for row in self.rows if (row, share) in self._has]

  def missing(self) -> dict[str, list[str]]:
    """Returns which cells each task lacks, as texts."""
    return {
      name: [
        f"{row}, {100 * share:.4g} %, seed {seed}"
        for share in self.shares
        for row in self.rows_at(share)
        for seed in task.seeds
        if (row, share, seed) not in task.accuracy
      ]
      for name, task in self.tasks.items()
    }

  def total(self) -> int:
    """Returns how many cells there would be."""
    return sum(
      len(self.rows_at(share)) * len(task.seeds)
      for task in self.tasks.values()
      for share in self.shares
    )

  def is_whole(self, name: str, share: float) -> bool:
    """Says whether all rows of a place are there."""
    task = self.tasks[name]
    return all(
      len(task.values(row, share)) == len(task.seeds)
      for row in self.rows_at(share)
    )

  def whole_tasks(self, share: float) -> list[str]:
    """Returns the tasks of which all rows are there."""
    return [name for name in self.tasks if self.is_whole(name, share)]

  def ranks(self) -> dict[Place, dict[str, float]]:
    """Returns the rows' ranks at each place, 1 the best; equals share theirs.

    They are ranked by the mean over seeds of the accuracy.
    """
    out = {}
    for share in self.shares:
      rows = self.rows_at(share)
      for name in self.whole_tasks(share):
        means = [np.mean(self.tasks[name].values(row, share)) for row in rows]
        # Digits that results.csv does not have decide nothing.
        ranks = scipy.stats.rankdata(-np.round(means, 7))
        out[name, share] = dict(zip(rows, map(float, ranks), strict=True))
    return out

  def mean_ranks(self) -> dict[str, float]:
    """Returns the mean over all places where a row is ranked; NaN without."""
    found = collections.defaultdict(list)
    for ranks in self.ranks().values():
      for row, rank in ranks.items():
        found[row].append(rank)
    return {
      row: float(np.mean(found[row])) if found[row] else float("nan")
      for row in self.rows
    }

  def means(self, share: float) -> dict[str, float]:
    """Returns each row's mean over the tasks where all rows are there."""
    tasks = [self.tasks[name] for name in self.whole_tasks(share)]
    if not tasks:
      return {}
    return {
      row: float(np.mean([np.mean(task.values(row, share)) for task in tasks]))
      for row in self.rows_at(share)
    }

  def differences(self, reference: str) -> list[Difference]:
    """Compares a row with all others, on the mean of the tasks.

    Test dialogues are resampled within each task, the tasks stay; tasks of the
    very same dialogues are resampled together.

    Raises:
      ValueError: there is no such row, or what a finished cell said of test is
        not there.
    """
    if reference not in self.rows:
      raise ValueError(
        f"--reference must be one of the rows {', '.join(self.rows)}, got"
        f" {reference!r}. Name another."
      )
    gains = collections.defaultdict(dict)  # of (row, share): by task
    for name, task in self.tasks.items():
      drawn = None
      for share in self.shares:
        rows = self.rows_at(share)
        if reference not in rows or not self.is_whole(name, share):
          continue
        one_N, dialogue_N = _right(task, reference, share)
        if drawn is None:
          drawn = _Resampled(dialogue_N)
        for row in rows:
          if row != reference:
            other_N, _ = _right(task, row, share)
            gains[row, share][name] = drawn.mean(one_N - other_N)
    out = []
    for (row, share), of_tasks in gains.items():
      mean, drawn_B = (
        np.mean(values, axis=0)
        for values in zip(*of_tasks.values(), strict=True)
      )
      result = bootstrap.Difference(
        float(mean), *bootstrap.interval(drawn_B), float((drawn_B < 0).mean())
      )
      out.append(Difference(row, share, tuple(of_tasks), result))
    return sorted(out, key=lambda d: (d.share, self.rows.index(d.row)))


def _right(task: Task, row: str, share: float) -> tuple[np.ndarray, np.ndarray]:
  """Returns the share of seeds that are right on each utterance, and ids."""
  rights = []
  for seed in task.seeds:
    workdir = task.folder / "cells" / task.cells[row, share, seed]
    said = predictions.load(predictions.path(workdir, "test"))
    rights.append(bootstrap.right(said))
  return np.mean(rights, axis=0), np.array(said.dialogue_ids)


class _Resampled:
  """Means over a task's utterances, and over resamples of its dialogues."""

  def __init__(self, dialogue_N: np.ndarray):
    names, self._at_N = np.unique(dialogue_N, return_inverse=True)
    self._count_D = np.bincount(self._at_N)
    digest = hashlib.sha256("\n".join(names).encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    self._weights_BxD = bootstrap.weights(len(names), bootstrap.DRAWS, seed)
    self._counts_B = self._weights_BxD @ self._count_D

  def mean(self, values_N: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the mean of values, and float [B] of resamples."""
    sum_D = np.bincount(self._at_N, values_N)
    drawn_B = (self._weights_BxD @ sum_D) / self._counts_B
    return float(values_N.mean()), drawn_B
