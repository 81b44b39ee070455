"""Variants of a run x shares of gold x seeds, as a table with intervals.

One first phase of a variant and seed serves all shares of gold: it is the cell
of gold 0, and the others start from it.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from ppl_jax.experiments import cells, compared, outputs

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
  variants: Sequence[Variant],
  folder: pathlib.Path,
  shares: Sequence[float],
) -> list[cells.Cell]:
  """Returns the cells of --seeds and shares of gold, a seed after another.

  They train no baselines, which take time, unless a variant says so.
  """
  out = []
  for seed in seeds():
    for variant in variants:

      def add(share, *, start="", serves=False, variant=variant, seed=seed):
        overrides = {
          "baselines": False,
          **variant.overrides,
          **variant.of_seed(seed),
          "seed": seed,
          "finetune.gold_fraction": float(share),
        }
        if start:
          overrides["init_from"] = str((folder / "cells" / start).absolute())
        about = {"variant": variant.name, "gold": share, "seed": seed}
        name = cell_name(variant.name, share, seed)
        out.append(cells.Cell(name, overrides, about, start, serves))

      if variant.votes:
        add(0, serves=True)
      for share in shares:
        if share:
          start = cell_name(variant.name, 0, seed) if variant.votes else ""
          add(share, start=start)
  return out


def cell_name(variant: str, share: float, seed: int) -> str:
  """Returns the name of a cell, which is its folder's too."""
  return f"{re.sub('[ +]+', '-', variant)}-gold{share:g}-seed{seed}"


def result_rows(
  todo: Sequence[cells.Cell], outcomes: Mapping[str, cells.Outcome]
) -> list[dict[str, Any]]:
  """Returns the rows of results.csv, of cells that wait for their turn too."""
  return [
    outcomes[cell.name].row()
    if cell.name in outcomes
    else {"cell": cell.name, **cell.about, "status": "waiting"}
    for cell in todo
  ]


def values(
  rows: Sequence[Mapping[str, Any]],
  variant: str,
  share: float,
  measure: str = "accuracy",
) -> dict[int, float]:
  """Returns a measure of each seed that has it; `rows` of `result_rows`."""
  return {
    row["seed"]: row[measure]
    for row in rows
    if (row["variant"], row["gold"]) == (variant, share)
    and row.get(measure, "") not in ("", None)
  }


def run(
  variants: Sequence[Variant],
  *,
  reference: str,
  title: str,
  xlabel: str = "",
  more_text: str = "",
  **facts: Any,
) -> None:
  """Runs the cells and keeps results.csv, tables and picture up to date.

  Args:
    variants: the rows.
    reference: the variant that the others are compared with.
    title: of the Markdown and the picture.
    xlabel: what the variants are, to draw them on the x axis; "" draws the
      shares of gold there.
    more_text: Markdown after the tables.
    **facts: more for command.json.

  Raises:
    ValueError: flags or the folder are not usable.
  """
  folder = outputs.folder()
  todo = make_cells(variants, folder, gold())
  cells.check(todo, folder)
  outputs.write_command(
    folder / "command.json", seeds=seeds(), gold=gold(), **facts
  )
  text = ""

  def write(outcomes):
    nonlocal text
    rows = result_rows(todo, outcomes)
    outputs.write_csv(folder / "results.csv", rows)
    names = [variant.name for variant in variants]
    text = (
      f"# {title}\n\n{progress(rows)} {_tables(names, rows)}"
      f"{_compared(folder, variants, outcomes, reference)}{more_text}"
    )
    outputs.write_text(folder / "table.md", text)
    _draw(folder / "table.png", names, rows, title, xlabel)

  outcomes = cells.run(todo, folder, write)
  print(f"{text}\nTables and pictures in {folder}")
  cells.exit_on_failures(outcomes)


def progress(rows: Sequence[Mapping[str, Any]]) -> str:
  """Says how many cells are finished, and of how many commits they are."""
  finished = [row for row in rows if row["status"] == "finished"]
  text = f"{len(finished)} of {len(rows)} cells finished."
  commits = {row["commit"] or "unknown" for row in finished}
  if len(commits) > 1:
    text += (
      f" They are of {len(commits)} commits, {', '.join(sorted(commits))};"
      " results.csv says which."
    )
  return text


def _column(share: float) -> str:
  return f"{100 * share:.4g} %"


def _tables(names: Sequence[str], rows) -> str:
  """Markdown of accuracy and macro F1, and of calibration without gold."""
  shares = gold()
  accuracy, macro_f1 = (
    outputs.table(
      ["variant", *map(_column, shares)],
      [
        [
          name,
          *(
            outputs.percent([*values(rows, name, share, measure).values()])
            for share in shares
          ),
        ]
        for name in names
      ],
    )
    for measure in ("accuracy", "macro_f1")
  )
  text = (
    "Test accuracy in percent by share of gold, mean ± standard deviation over"
    f" the seeds {', '.join(map(str, seeds()))}.\n\n{accuracy}\nMacro F1 in"
    f" percent, the same.\n\n{macro_f1}\n"
  )
  without = [name for name in names if values(rows, name, 0, "ece")]
  if without:
    table = outputs.table(
      ["variant", "ECE, 0 %", "held-out votes, nats"],
      [
        [
          name,
          outputs.mean([*values(rows, name, 0, "ece").values()]),
          outputs.mean([*values(rows, name, 0, "vote_cross_entropy").values()]),
        ]
        for name in without
      ],
    )
    text += (
      "Without gold: expected calibration error on test, and the cross-entropy"
      f" of held-out votes.\n\n{table}\n"
    )
  return text


def _draw(path, names: Sequence[str], rows, title: str, xlabel: str) -> None:
  """Draws accuracies over shares of gold, or over variants."""
  shares = gold()
  columns = [_column(share) for share in shares]
  found = {
    (name, share): [*values(rows, name, share).values()]
    for name in names
    for share in shares
  }
  if xlabel:
    lines = {
      f"{column} gold": [found[name, share] for name in names]
      for column, share in zip(columns, shares, strict=True)
    }
    outputs.draw_lines(path, lines, names, xlabel=xlabel, title=title)
  else:
    lines = {name: [found[name, share] for share in shares] for name in names}
    outputs.draw_lines(
      path, lines, columns, xlabel="share of gold", title=title
    )


def _compared(folder, variants, outcomes, reference: str) -> str:
  """Writes bootstrap.csv and first_labels.csv; returns their Markdown."""
  said = compared.Said(outcomes)
  against = []
  for share in gold():
    for variant in variants:
      if variant.name == reference:
        continue
      pairs = {
        seed: [
          cell_name(name, share, seed) for name in (reference, variant.name)
        ]
        for seed in seeds()
      }
      about = {"gold": share, "against": variant.name}
      against += [about | row for row in compared.differences(said, pairs)]
  outputs.write_csv(folder / "bootstrap.csv", against)
  text = compared.against_text(against, reference)
  first = []
  smallest = next((share for share in gold() if share), None)
  for variant in variants:
    if variant.votes and smallest:
      pairs = {
        seed: [cell_name(variant.name, share, seed) for share in (smallest, 0)]
        for seed in seeds()
      }
      about = {"variant": variant.name, "gold": smallest}
      first += [about | row for row in compared.differences(said, pairs)]
  outputs.write_csv(folder / "first_labels.csv", first)
  return text + compared.first_labels_text(first)
