r"""Tables 2 and 3: majority class, teacher, fine-tuning alone, and ours.

    python -m ppl_jax.experiments.tables23 --config=configs/dailydialog.py \
      --config.scores=scores.parquet --config.dataset.only_scored=True \
      --folder=runs/tables23 --seeds=0,1,2 --gold=0.1

One command a dataset; all that share --folder make one table, with the paper's
figures beside ours. The teacher is the class of the largest score (the first of
equals; of a multi-label task the classes above 1/2) on the labelled utterances
that --teacher, else config.scores, holds: the table says on which split.
"ours" trains by config.pretrain.objective first; both use the largest share of
--gold, 1 for all of it. Unless config.baselines says no, TF-IDF and a linear
probe are trained on the votes and gold that ours is. Without scores there are
only the majority, fine-tuning alone, and those two on its gold.

A dataset has a second line with the one-versus-rest accuracy: how often "of
this class or not" is right, mean over the classes. Of C classes an utterance
has one of, it is 1 - 2 (1 - accuracy) / C, and so far above accuracy.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from absl import flags
from ml_collections import config_flags

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.experiments import cells, grid, outputs, paper, teacher

_TEACHER = flags.DEFINE_string(
  "teacher", "", "Score file of the teacher's row, such as one of test."
)
_METHODS = ("fine-tune only", "ours")
# Of results.json's, and the column.
_BASELINES = {"tfidf": "TF-IDF", "probe": "linear probe"}
_MEASURES = {
  "accuracy": "accuracy",
  "one_versus_rest_accuracy": "one-versus-rest",
}
_NOTE = (
  'One-versus-rest is the share of right answers to "of this class or not",'
  " mean over the classes. An inference, which the paper does not state: its"
  " sentiment figures look like one-versus-rest accuracy, and are then to be"
  " compared with that line."
)


def _row(name: str, folder: pathlib.Path, todo, outcomes, fixed, share) -> None:
  """Writes what is known of a dataset, and the table of all datasets."""
  place = folder / "rows"
  place.mkdir(exist_ok=True)
  rows = grid.result_rows(todo, outcomes)
  known = {**fixed, "gold": share, "measures": {}}
  for measure in _MEASURES:
    found = {
      method: grid.values(rows, f"{name} {method}", share, measure)
      for method in _METHODS
    }
    found |= {
      title: _baseline(outcomes, share, key, measure)
      for key, title in _BASELINES.items()
    }
    known["measures"][measure] = found
  outputs.write_text(place / f"{name}.json", json.dumps(known, indent=2) + "\n")
  outputs.write_csv(place / f"{name}.csv", rows)
  _table(folder)


def _baseline(outcomes, share, key, measure) -> dict[int, float]:
  """Returns a baseline's measure on test, by seed."""
  found = {}
  for outcome in outcomes.values():
    about = outcome.cell.about
    if not outcome.error and about["gold"] == share:
      baseline = outcome.results().get("baselines", {}).get(key, {})
      if measure in baseline.get("test", {}):
        found[about["seed"]] = baseline["test"][measure]
  return found


def _of(row: Mapping[str, Any], measure: str) -> dict[str, list[float]]:
  """From the columns of a dataset's row to their values, maybe none."""
  values = row.get("measures", {}).get(measure, {})
  of_seeds = (*_BASELINES.values(), *_METHODS)
  return {
    "majority class": _one(row["majority"], measure),
    "teacher": _one(row["teacher"], measure),
    **{column: list(values.get(column, {}).values()) for column in of_seeds},
  }


def _one(values: Mapping[str, Any], measure: str) -> list[float]:
  return [values[measure]] if values.get(measure) is not None else []


def _table(folder: pathlib.Path) -> str:
  """Writes the table of all datasets in the folder; returns the Markdown."""
  lines, flat, series = [], [], {}
  for path in sorted((folder / "rows").glob("*.json")):
    row = json.loads(path.read_text())
    name, told = path.stem, row["teacher"]
    theirs = paper.TABLE23.get(name, (None,) * len(paper.TABLE23_COLUMNS))
    series[name] = {
      **_of(row, "accuracy"),
      paper.SOURCE: [] if theirs[-1] is None else [theirs[-1] / 100],
    }
    for measure, title in _MEASURES.items():
      texts = {
        column: outputs.percent(values)
        for column, values in _of(row, measure).items()
      }
      if told:
        texts["teacher"] += f" ({told['split']}, {told['count']:,})"
      first = measure == "accuracy"
      lines.append(
        [
          name,
          title,
          f"{100 * row['gold']:g} %",
          *texts.values(),
          *(
            f"{value:g}" if first and value is not None else "-"
            for value in theirs
          ),
        ]
      )
    flat.append(
      {
        "dataset": name,
        **{
          f"majority_{key}": row["majority"].get(key, "")
          for key in teacher.MEASURES
        },
        **{
          f"teacher_{key}": told.get(key, "")
          for key in (*teacher.MEASURES, "split")
        },
        "gold": row["gold"],
        **{
          f"{column}, {title}, seed {seed}": value
          for measure, title in _MEASURES.items()
          for column, values in row.get("measures", {}).get(measure, {}).items()
          for seed, value in values.items()
        },
        **{
          f"{paper.SOURCE}: {column}": "" if value is None else value / 100
          for column, value in zip(paper.TABLE23_COLUMNS, theirs, strict=True)
        },
      }
    )
  legends = list(next(iter(series.values())))
  header = ["dataset", "measure", "gold", *legends[:-1]]
  header += [f"paper: {column}" for column in paper.TABLE23_COLUMNS]
  text = (
    "# Tables 2 and 3\n\nIn percent on test, mean ± standard deviation over"
    " seeds; the teacher's on the labelled utterances that it voted on, of the"
    " split named. The columns marked paper are those of"
    f" {paper.SOURCE}, of its own teacher, student and gold.\n\n"
    f"{outputs.table(header, lines)}\n{_NOTE}\n"
  )
  outputs.write_csv(folder / "results.csv", flat)
  outputs.write_text(folder / "table.md", text)
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
    baselines = {"baselines": config.baselines}
    overrides = {**rows[-1].overrides, **baselines}
    rows[-1] = dataclasses.replace(rows[-1], overrides=overrides)
    share = grid.gold()[-1]
    todo = grid.make_cells(rows, folder, [share])
    cells.check(todo, folder)
    outputs.write_command(
      folder / f"command-{name}.json", seeds=grid.seeds(), gold=share
    )
    outcomes = cells.run(
      todo, folder, lambda done: _row(name, folder, todo, done, fixed, share)
    )
    print(f"{_table(folder)}\nTables and pictures in {folder}")
    cells.exit_on_failures(outcomes)


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
