r"""Tables 2 and 3: majority class, teacher, fine-tuning alone, and ours.

    python -m ppl_jax.experiments.tables23 --config=configs/dailydialog.py \
      --config.scores=scores.parquet --config.dataset.only_scored=True \
      --folder=runs/tables23 --seeds=0,1,2 --gold=0.1

One command a dataset; all that share --folder make one table, with the paper's
figures beside ours. The teacher is the class of the largest score (the first of
equals; of a multi-label task the classes above 1/2) on the labelled utterances
that --teacher, else config.scores, holds: the table says on which split.
Without scores only the majority and fine-tuning alone are there. "ours" trains
by config.pretrain.objective first; both use the largest share of --gold.
"""

import json
import pathlib

from absl import flags
from ml_collections import config_flags

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.experiments import cells, grid, outputs, paper, teacher

_TEACHER = flags.DEFINE_string(
  "teacher", "", "Score file of the teacher's row, such as one of test."
)
_METHODS = ("fine-tune only", "ours")
_KEPT = ("accuracy", "macro_f1", "count")


def _row(name: str, folder: pathlib.Path, outcomes, fixed, share) -> None:
  """Writes what is known of a dataset, and the table of all datasets."""
  rows = folder / "rows"
  rows.mkdir(exist_ok=True)
  known = {**fixed, "gold": share}
  for method in _METHODS:
    found = grid.accuracies(outcomes, f"{name} {method}", share)
    known[method] = {str(seed): value for seed, value in found.items()}
  outputs.write_text(rows / f"{name}.json", json.dumps(known, indent=2) + "\n")
  outputs.write_csv(
    rows / f"{name}.csv", [outcome.row() for outcome in outcomes.values()]
  )
  _table(folder)


def _table(folder: pathlib.Path) -> str:
  """Writes the table of all datasets in the folder; returns the Markdown."""
  lines, flat, series = [], [], {}
  for path in sorted((folder / "rows").glob("*.json")):
    row = json.loads(path.read_text())
    told = row["teacher"]
    theirs = paper.TABLE23.get(path.stem, (None,) * len(paper.TABLE23_COLUMNS))
    series[path.stem] = {
      "majority class": [row["majority"]["accuracy"]],
      "teacher": [told["accuracy"]] if told else [],
      **{method: list(row[method].values()) for method in _METHODS},
      paper.SOURCE: [] if theirs[-1] is None else [theirs[-1] / 100],
    }
    texts = {
      name: outputs.percent(values)
      for name, values in series[path.stem].items()
    }
    if told:
      texts["teacher"] += f" ({told['split']}, {told['count']:,})"
    lines.append(
      [
        path.stem,
        texts["majority class"],
        texts["teacher"],
        f"{100 * row['gold']:g} %",
        *(texts[method] for method in _METHODS),
        *("-" if value is None else f"{value:g}" for value in theirs),
      ]
    )
    flat.append(
      {
        "dataset": path.stem,
        **{f"majority_{key}": row["majority"][key] for key in _KEPT},
        **{f"teacher_{key}": told.get(key, "") for key in (*_KEPT, "split")},
        "gold": row["gold"],
        **{
          f"{method}, seed {seed}": value
          for method in _METHODS
          for seed, value in row[method].items()
        },
        **{
          f"{paper.SOURCE}: {column}": "" if value is None else value / 100
          for column, value in zip(paper.TABLE23_COLUMNS, theirs, strict=True)
        },
      }
    )
  header = ["dataset", "majority class", "teacher (on)", "gold", *_METHODS]
  header += [f"paper: {column}" for column in paper.TABLE23_COLUMNS]
  text = (
    "# Tables 2 and 3\n\nAccuracy in percent on test, mean ± standard deviation"
    " over seeds; the teacher's on the labelled utterances that it voted on, of"
    f" the split named. The columns marked paper are those of {paper.SOURCE},"
    f" of its own teacher, student and gold.\n\n{outputs.table(header, lines)}"
  )
  outputs.write_csv(folder / "results.csv", flat)
  outputs.write_text(folder / "table.md", text)
  legends = next(iter(series.values()))
  outputs.draw_lines(
    folder / "table.png",
    {legend: [row[legend] for row in series.values()] for legend in legends},
    list(series),
    xlabel="dataset",
    title="Tables 2 and 3",
    joined=False,
  )
  return text


def main(argv):
  """Runs the experiment; see the module's text."""
  commands.refuse_arguments(argv)
  config = commands.CONFIG.value
  with commands.user_errors():
    folder = outputs.folder()
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    name = pathlib.Path(path).stem
    dataset = dialogues_lib.load_config(config.dataset)
    if "test" not in dataset.splits:
      raise ValueError(
        f"Tables need a test split, got {name} with"
        f" {', '.join(dataset.splits)}. Add one."
      )
    told = _TEACHER.value or config.scores
    fixed = {
      "majority": teacher.majority(dataset),
      "teacher": teacher.accuracy(dataset, told) if told else {},
    }
    rows = [grid.finetune_only(f"{name} fine-tune only")]
    if config.scores:
      rows.append(grid.Variant(f"{name} ours", {}))
    share = grid.gold()[-1]
    todo = [
      cell
      for cell in grid.make_cells(rows, folder)
      if cell.about["gold"] in (0, share)
    ]
    cells.check(todo, folder)
    outputs.write_command(
      folder / f"command-{name}.json", seeds=grid.seeds(), gold=share
    )
    outcomes = cells.run(
      todo, folder, lambda done: _row(name, folder, done, fixed, share)
    )
    print(f"{_table(folder)}\nTables and pictures in {folder}")
    cells.exit_on_failures(outcomes)


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
