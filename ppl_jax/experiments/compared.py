"""Cells compared on the same test utterances, seed by seed and pooled."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ppl_jax.experiments import bootstrap, cells, outputs


class Said:
  """What finished cells were right about on test, each read once.

  Args:
    outcomes: by the names of the cells.
  """

  def __init__(self, outcomes: Mapping[str, cells.Outcome]):
    self._outcomes = outcomes
    self._read = {}

  def right(self, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns bool [N] and N ids of dialogues; None where there is nothing."""
    outcome = self._outcomes.get(name)
    if outcome is None or outcome.error:
      return None
    if name not in self._read:
      test = outcome.test()
      self._read[name] = bootstrap.right(test), np.array(test.dialogue_ids)
    return self._read[name]


def differences(
  said: Said, pairs: Mapping[int, Sequence[str]]
) -> list[dict[str, Any]]:
  """Compares one cell with another of each seed, and all seeds together.

  Args:
    said: of the cells.
    pairs: from a seed to the names of two cells; the second is taken from the
      first. A seed where either is not finished is left out.

  Returns:
    Rows for a CSV file: one a seed, and where there are several a last one
    whose `seed` is "pooled": the mean over seeds of what is right.
  """
  rows, rights, dialogues = [], [], None
  for seed, names in pairs.items():
    both = [said.right(name) for name in names]
    if any(one is None for one in both):
      continue
    (one, dialogues), (other, _) = both
    rights.append((one, other))
    rows.append(_row(seed, 1, bootstrap.difference(one, other, dialogues)))
  if len(rights) > 1:
    one, other = np.mean(rights, axis=0)
    result = bootstrap.difference(one, other, dialogues)
    rows.append(_row("pooled", len(rights), result))
  return rows


def _row(seed, count: int, result: bootstrap.Difference) -> dict[str, Any]:
  return {
    "seed": seed,
    "seeds": count,
    "difference": result.mean,
    "low": result.low,
    "high": result.high,
    "share_below_0": result.below_zero,
  }


def points(mean: float, low: float, high: float) -> list[str]:
  """Returns a difference and its interval, in points of accuracy."""
  return [f"{100 * mean:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"]


def against_text(rows: Sequence[Mapping[str, Any]], reference: str) -> str:
  """Markdown of the reference less each other variant, over most seeds."""
  best = {}
  for row in rows:  # pooled comes last
    best[row["gold"], row["against"]] = row
  if not best:
    return ""
  table = outputs.table(
    [f"{reference} less", "gold", "seeds", "difference", "95 %", "below 0"],
    [
      [
        row["against"],
        f"{100 * row['gold']:.4g} %",
        str(row["seeds"]),
        *points(row["difference"], row["low"], row["high"]),
        f"{row['share_below_0']:.1%}",
      ]
      for row in best.values()
    ],
  )
  return (
    "Paired bootstrap over test dialogues, 10,000 resamples, in points of"
    " accuracy; of several seeds the mean is compared, so that the interval is"
    " of other dialogues and not of other seeds. bootstrap.csv has each seed."
    f"\n\n{table}\n"
  )


def first_labels_text(rows: Sequence[Mapping[str, Any]]) -> str:
  """Markdown of the least gold less none, with the spread over seeds."""
  best, seeds = {}, {}
  for row in rows:
    best[row["variant"]] = row
    if row["seed"] != "pooled":
      seeds.setdefault(row["variant"], []).append(100 * row["difference"])
  if not best:
    return ""
  table = outputs.table(
    ["variant", "gold", "seeds", "difference", "95 %", "seed by seed"],
    [
      [
        name,
        f"{100 * row['gold']:.4g} % less 0 %",
        str(row["seeds"]),
        *points(row["difference"], row["low"], row["high"]),
        outputs.mean(seeds[name], digits=1, sign="+"),
      ]
      for name, row in best.items()
    ],
  )
  return (
    "What the first labels add: the same bootstrap, and the mean ± standard"
    f" deviation over seeds. first_labels.csv has each seed.\n\n{table}\n"
  )
