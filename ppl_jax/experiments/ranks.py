r"""Ranks: which loss is best over several tasks and shares of gold.

    python -m ppl_jax.experiments.ranks --folders=runs/acts,runs/intents \
      --output=runs/ranks

--folders are those of `table1`, one a task, whose name is the folder's; they
may be unfinished. Into --output go

    ranks.md     each row's mean over seeds by task and share of gold, the mean
                 over tasks, the mean rank over all tasks and shares, and the
                 default less each other row on the mean of tasks
    ranks.csv    the same, a line a row, task and share; task "mean" is the mean
    ranks.png    the means over tasks, and the mean ranks
    command.json the command and the commit

A task and share counts for means over tasks and for ranks where all rows are
there, of all seeds; --rows takes some of the rows. Intervals are over resampled
test dialogues within each task: of other dialogues, and not of other tasks or
seeds. Seconds, no training.
"""

import pathlib

import numpy as np
from absl import flags
from matplotlib import figure

from ppl_jax import commands
from ppl_jax.experiments import compared, outputs, ranking

_FOLDERS = flags.DEFINE_list("folders", None, "Folders of table1, one a task.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the tables.")
_ROWS = flags.DEFINE_list("rows", [], "Some of the rows; all if not given.")
_REFERENCE = flags.DEFINE_string(
  "reference", "default", "The row that the others are compared with."
)
_SHOWN = 5  # missing cells that are named


def _percent(share: float) -> str:
  return f"{100 * share:.4g} %"


def _missing_text(table: ranking.Ranking) -> str:
  """Markdown that says what is not there."""
  missing = {name: cells for name, cells in table.missing().items() if cells}
  count = sum(map(len, missing.values()))
  text = f"{table.total() - count} of {table.total()} cells are there."
  for name, cells in missing.items():
    named = "; ".join(cells[:_SHOWN])
    more = len(cells) - _SHOWN
    text += (
      f"\n- {name} lacks {len(cells)}: {named}"
      f"{f'; and {more} more' if more > 0 else ''}"
    )
  return text + "\n"


def _accuracies_text(table: ranking.Ranking) -> str:
  """Markdown of the accuracies, a line a row and a column a task and share."""
  places = [(name, share) for share in table.shares for name in table.tasks]
  header = ["row", *(f"{name}, {_percent(share)}" for name, share in places)]
  lines = []
  for row in table.rows:
    line = [row]
    for name, share in places:
      task = table.tasks[name]
      values = task.values(row, share)
      short = 0 < len(values) < len(task.seeds)
      line.append(outputs.percent(values) + "*" * short)
    lines.append(line)
  return (
    "Test accuracy in percent, mean ± standard deviation over seeds; * where"
    f" seeds are missing.\n\n{outputs.table(header, lines)}"
  )


def _ranks_text(table: ranking.Ranking) -> str:
  """Markdown of the means over tasks and the mean ranks."""
  ranks, mean_ranks = table.ranks(), table.mean_ranks()
  if not ranks:
    return "No task has all rows of a share of gold yet: nothing is ranked.\n"
  shares = [share for share in table.shares if table.whole_tasks(share)]
  means = {share: table.means(share) for share in shares}
  lines = [
    [
      row,
      *(
        f"{100 * means[share][row]:.1f}" if row in means[share] else "-"
        for share in shares
      ),
      "-" if np.isnan(mean_ranks[row]) else f"{mean_ranks[row]:.2f}",
      str(sum(row in of for of in ranks.values())),
    ]
    for row in table.rows
  ]
  of = "; ".join(
    f"{_percent(share)} of {', '.join(table.whole_tasks(share))}"
    for share in shares
  )
  header = ["row", *map(_percent, shares), "mean rank", "ranked"]
  return (
    "Mean over tasks, and the mean rank, 1 being the best, over all tasks and"
    " shares where all rows are there and how many these are. The tasks:"
    f" {of}.\n\n{outputs.table(header, lines)}"
  )


def _differences_text(found, reference: str) -> str:
  """Markdown of the reference less each other row."""
  if not found:
    return ""
  lines = [
    [
      difference.row,
      _percent(difference.share),
      str(len(difference.tasks)),
      *compared.points(result.mean, result.low, result.high),
      f"{result.below_zero:.1%}",
    ]
    for difference, result in ((d, d.result) for d in found)
  ]
  header = [f"{reference} less", "gold", "tasks", "mean", "95 %", "below 0"]
  return (
    "On the mean of the tasks, in points of accuracy; 10,000 resamples of the"
    " test dialogues within each task, tasks and seeds as they are."
    f"\n\n{outputs.table(header, lines)}"
  )


def _csv_rows(table: ranking.Ranking, found) -> list[dict]:
  """The rows of ranks.csv."""
  ranks, mean_ranks = table.ranks(), table.mean_ranks()
  less = {(d.row, d.share): d for d in found}
  rows = []
  for share in table.shares:
    means = table.means(share)
    for row in table.rows_at(share):
      for name, task in table.tasks.items():
        values = task.values(row, share)
        rows.append(
          {
            "row": row,
            "task": name,
            "gold": share,
            "seeds": len(values),
            "accuracy": float(np.mean(values)) if values else "",
            "standard_deviation": (
              float(np.std(values, ddof=1)) if len(values) > 1 else ""
            ),
            "rank": ranks.get((name, share), {}).get(row, ""),
          }
        )
      line = {
        "row": row,
        "task": "mean",
        "gold": share,
        "tasks": len(table.whole_tasks(share)),
        "accuracy": means.get(row, ""),
        "rank": "",
        "mean_rank": mean_ranks[row],
      }
      if (row, share) in less:
        result = less[row, share].result
        line |= {
          "reference_less": result.mean,
          "low": result.low,
          "high": result.high,
          "share_below_0": result.below_zero,
        }
      rows.append(line)
  return rows


def _draw(path: pathlib.Path, table: ranking.Ranking) -> None:
  """Draws the means over tasks by share of gold, and the mean ranks."""
  fig = figure.Figure(
    figsize=(10, max(4, 0.35 * len(table.rows) + 1.5)), layout="constrained"
  )
  left, right = fig.subplots(1, 2)
  means = {share: table.means(share) for share in table.shares}
  mean_ranks = table.mean_ranks()
  for place, row in enumerate(table.rows):
    at = [i for i, s in enumerate(table.shares) if row in means[s]]
    values = [100 * means[table.shares[i]][row] for i in at]
    (line,) = left.plot(at, values, marker="o", label=row)
    if not np.isnan(mean_ranks[row]):
      right.plot(mean_ranks[row], place, "o", color=line.get_color())
      right.annotate(
        f"{mean_ranks[row]:.2f}",
        (mean_ranks[row], place),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8,
      )
  left.set_xticks(range(len(table.shares)), [*map(_percent, table.shares)])
  left.set(
    xlabel="share of gold",
    ylabel="test accuracy, %",
    title="mean over tasks",
  )
  left.grid(axis="y", color="0.9")
  right.set_yticks(range(len(table.rows)), table.rows)
  right.set_ylim(len(table.rows) - 0.5, -0.7)
  right.set_xlim(0.5, len(table.rows) + 0.5)
  right.set(xlabel="mean rank, 1 is the best", title="over tasks and shares")
  right.grid(axis="x", color="0.9")
  fig.legend(
    *left.get_legend_handles_labels(), loc="outside lower center", ncols=5
  )
  outputs.save(fig, path)


def main(argv):
  """Runs the command; see the module's text."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    folders = [pathlib.Path(f).expanduser() for f in _FOLDERS.value]
    table = ranking.Ranking([ranking.read(f) for f in folders], _ROWS.value)
    found = table.differences(_REFERENCE.value)
    output = pathlib.Path(_OUTPUT.value).expanduser()
    output.mkdir(parents=True, exist_ok=True)
    parts = [
      f"# Ranks over {len(folders)} tasks",
      _missing_text(table),
      _accuracies_text(table),
      _ranks_text(table),
      _differences_text(found, _REFERENCE.value),
    ]
    text = "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n"
    outputs.write_command(output / "command.json")
    outputs.write_csv(output / "ranks.csv", _csv_rows(table, found))
    outputs.write_text(output / "ranks.md", text)
    _draw(output / "ranks.png", table)
    print(f"{text}\nTables and picture in {output}")


if __name__ == "__main__":
  commands.run(main, required=["folders", "output"])
