"""Variants of a run x shares of gold x seeds, as a table with intervals.

One first phase of a variant and seed serves all shares of gold: it is the cell
of gold 0, and the others start from it.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from ppl_jax.experiments import bootstrap, cells, outputs

_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds, such as 0,1,2.")
_GOLD = flags.DEFINE_list(
  "gold", ["0", "0.01", "0.1"], "Shares of gold, such as 0,0.01,0.1."
)
_FINETUNE_ONLY = flags.DEFINE_multi_string(
  "finetune_only",
  [],
  "Another value for the cells without votes, such as finetune.epochs=10: more"
  " steps on gold may suit them. May be given several times.",
)


@dataclasses.dataclass(frozen=True)
class Variant:
  """One row of the table.

  Attributes:
    name: of the row.
    overrides: from keys of the config to values.
    votes: whether there is a first phase, on votes.
    of_seed: more overrides, of a cell's seed.
  """

  name: str
  overrides: Mapping[str, Any]
  votes: bool = True
  of_seed: Callable[[int], Mapping[str, Any]] = lambda seed: {}


def seeds() -> list[int]:
  """Returns --seeds."""
  return _numbers(_SEEDS, int, "whole numbers, such as 0,1,2")


def gold() -> list[float]:
  """Returns --gold, ascending."""
  shares = sorted(_numbers(_GOLD, float, "shares in [0, 1], such as 0,0.01"))
  if shares[0] < 0 or shares[-1] > 1:
    raise ValueError(
      f"--gold must be shares in [0, 1], got {shares}. Correct them."
    )
  return shares


def finetune_only(name: str) -> Variant:
  """Returns the row of gold alone, with what --finetune_only sets."""
  values = cells.parse_overrides(_FINETUNE_ONLY.value, "finetune_only")
  return Variant(name, {"pretrain.objective": "none", **values}, votes=False)


def _numbers(flag, kind, rule: str) -> list:
  try:
    values = list(dict.fromkeys(kind(text) for text in flag.value))
  except ValueError:
    values = []
  if not values:
    raise ValueError(
      f"--{flag.name} must be {rule}, got {','.join(flag.value)!r}. Correct it."
    )
  return values


def make_cells(
  variants: Sequence[Variant], folder: pathlib.Path
) -> list[cells.Cell]:
  """Returns the cells of --seeds and --gold, a seed after another."""
  out = []
  for seed in seeds():
    for variant in variants:

      def add(share, *, start="", serves=False, variant=variant, seed=seed):
        overrides = {
          **variant.overrides,
          **variant.of_seed(seed),
          "seed": seed,
          "finetune.gold_fraction": float(share),
        }
        if start:
          overrides["init_from"] = str((folder / "cells" / start).absolute())
        about = {"variant": variant.name, "gold": share, "seed": seed}
        name = _name(variant.name, share, seed)
        out.append(cells.Cell(name, overrides, about, start, serves))

      if variant.votes:
        add(0, serves=True)
      for share in gold():
        if share:
          start = _name(variant.name, 0, seed) if variant.votes else ""
          add(share, start=start)
  return out


def _name(variant: str, share: float, seed: int) -> str:
  return f"{variant.replace(' ', '-')}-gold{share:g}-seed{seed}"


def run(
  variants: Sequence[Variant],
  *,
  reference: str,
  title: str,
  xlabel: str = "",
  more_text: str = "",
  **facts: Any,
) -> None:
  """Runs the cells and keeps results.csv, table and picture up to date.

  Args:
    variants: the rows.
    reference: the variant that the others are compared with.
    title: of the Markdown and the picture.
    xlabel: what the variants are, to draw them on the x axis; "" draws the
      shares of gold there.
    more_text: Markdown after the table.
    **facts: more for command.json.

  Raises:
    ValueError: flags or the folder are not usable.
  """
  folder = outputs.folder()
  todo = make_cells(variants, folder)
  cells.check(todo, folder)
  outputs.write_command(
    folder / "command.json", seeds=seeds(), gold=gold(), **facts
  )
  text = ""

  def write(outcomes):
    nonlocal text
    text = _write(
      folder, variants, outcomes, len(todo), reference, title, xlabel, more_text
    )

  outcomes = cells.run(todo, folder, write)
  print(f"{text}\nTables and pictures in {folder}")
  cells.exit_on_failures(outcomes)


def accuracies(
  outcomes: Mapping[str, cells.Outcome], variant: str, share: float
) -> dict[int, float]:
  """Returns the test accuracy of each seed that is finished."""
  found = {}
  for outcome in outcomes.values():
    about = outcome.cell.about
    if (about["variant"], about["gold"]) == (variant, share):
      accuracy = None
      if not outcome.error:
        accuracy = outcome.results().get("test", {}).get("accuracy")
      if accuracy is not None:
        found[about["seed"]] = accuracy
  return found


def _write(
  folder, variants, outcomes, total, reference, title, xlabel, more_text
) -> str:
  """Writes all files of the outcomes so far; returns the Markdown."""
  outputs.write_csv(
    folder / "results.csv", [outcome.row() for outcome in outcomes.values()]
  )
  shares = gold()
  found = {
    (variant.name, share): list(
      accuracies(outcomes, variant.name, share).values()
    )
    for variant in variants
    for share in shares
  }
  columns = [f"{share:.4g} %" for share in 100 * np.array(shares)]
  table = outputs.table(
    ["variant", *columns],
    [
      [v.name, *(outputs.percent(found[v.name, share]) for share in shares)]
      for v in variants
    ],
  )
  compared = _compare(variants, outcomes, reference)
  outputs.write_csv(folder / "bootstrap.csv", compared)
  finished = sum(not outcome.error for outcome in outcomes.values())
  text = (
    f"# {title}\n\n{finished} of {total} cells finished. Test accuracy in"
    f" percent by share of gold, mean ± standard deviation over the seeds"
    f" {', '.join(map(str, seeds()))}.\n\n{table}\n"
    f"{_commits_text(outcomes)}{_compared_text(compared, reference)}{more_text}"
  )
  outputs.write_text(folder / "table.md", text)
  if xlabel:
    names = [variant.name for variant in variants]
    lines = {
      f"{column} gold": [found[name, share] for name in names]
      for column, share in zip(columns, shares, strict=True)
    }
    outputs.draw_lines(
      folder / "table.png", lines, names, xlabel=xlabel, title=title
    )
  else:
    lines = {
      v.name: [found[v.name, share] for share in shares] for v in variants
    }
    outputs.draw_lines(
      folder / "table.png", lines, columns, xlabel="share of gold", title=title
    )
  return text


def _commits_text(outcomes) -> str:
  """Markdown that says so where cells are not all of one commit."""
  commits = {o.commit or "unknown" for o in outcomes.values() if not o.error}
  if len(commits) < 2:
    return ""
  return (
    f"\nThe cells are of {len(commits)} commits, {', '.join(sorted(commits))};"
    " results.csv says which.\n"
  )


def _compare(variants, outcomes, reference: str) -> list[dict[str, Any]]:
  """The reference less each other variant: each seed, and all of them."""
  said = {}

  def load(name):
    outcome = outcomes.get(name)
    if outcome is None or outcome.error:
      return None
    if name not in said:
      test = outcome.test()
      said[name] = (test, bootstrap.right(test))
    return said[name]

  rows = []
  for share in gold():
    for variant in variants:
      if variant.name == reference:
        continue
      both = []
      for seed in seeds():
        pair = [
          load(_name(name, share, seed)) for name in (reference, variant.name)
        ]
        if None not in pair:
          both.append((seed, *pair))
      rights = []
      dialogues = None
      for seed, (test, one), (_, other) in both:
        dialogues = np.array(test.dialogue_ids)
        rights.append((one, other))
        rows.append(
          _row(
            share, variant, seed, 1, bootstrap.difference(one, other, dialogues)
          )
        )
      if len(rights) > 1:
        one, other = np.mean(rights, axis=0)
        result = bootstrap.difference(one, other, dialogues)
        rows.append(_row(share, variant, "pooled", len(rights), result))
  return rows


def _row(share, variant, seed, count, result) -> dict[str, Any]:
  return {
    "gold": share,
    "against": variant.name,
    "seed": seed,
    "seeds": count,
    "difference": result.mean,
    "low": result.low,
    "high": result.high,
    "share_below_0": result.below_zero,
  }


def _compared_text(compared, reference: str) -> str:
  """Markdown of the differences over most seeds."""
  best = {}
  for row in compared:  # pooled comes last
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
        f"{100 * row['difference']:+.1f}",
        f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
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
