r"""Noise map: which loss makes most of votes that err in which way.

    python -m ppl_jax.experiments.noise_map --config=configs/dailydialog.py \
      --config.scores=scores.parquet --config.dataset.only_scored=True \
      --folder=runs/noise_map --seeds=0,1,2

Votes are simulated from gold, for the dialogues of config.scores where that is
given, else for all of train, and students are trained on them with no gold at
all, by each of --methods (see `table1`). The kinds of noise are

    independent    errors that each utterance has its own
    dialogue SIZE  errors that the utterances of a dialogue share, of a standard
                   deviation SIZE (gold is 0 or 1), for each of --shifts
    timing         as many as the independent, of which shares of --noise_late
                   and --noise_early name the gold of the utterance before or
                   after

--noise_shared is the size of the independent errors and of those of timing,
--noise_own that of each vote's own beside. How many answers a noise gets wrong
is not made equal but told: the wrong answers about classes, and how often what
most votes say is right. Into the folder go

    table.md, table.png   accuracy and macro F1, noises by methods, and the
                          votes' own errors; a line a method over the noises
    results.csv           a row a cell
    scores/               the simulated votes
    command.json, cells/  as of table1

and the same command goes on where it was ended.
"""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence

from absl import flags

from ppl_jax import commands
from ppl_jax.data import scores as scores_lib
from ppl_jax.experiments import (
  cells,
  grid,
  methods,
  outputs,
  score_files,
  teacher,
)

_METHODS = flags.DEFINE_list(
  "methods",
  [
    "paper",
    "soft pairs",
    "one-versus-rest",
    "softmax on shares",
    "plurality labels",
    "swapped pairs",
    methods.REFERENCE,
  ],
  "The losses: those of table1.",
)
_SHIFTS = flags.DEFINE_list(
  "shifts", ["0.25", "0.5", "0.75"], "Sizes of the errors a dialogue shares."
)
_OWN_ERROR = ("answers wrong", "most votes right")


def noises() -> dict[str, teacher.Noise]:
  """Returns the kinds of noise by name.

  Raises:
    ValueError: a flag is not usable.
  """
  try:
    sizes = [float(text) for text in _SHIFTS.value]
  except ValueError:
    sizes = [-1.0]
  if min(sizes, default=0) < 0:
    raise ValueError(
      "--shifts must be numbers of at least 0, such as 0.25,0.5, got"
      f" {','.join(_SHIFTS.value)!r}. Correct it."
    )
  return {
    "independent": score_files.noise("utterance"),
    **{
      f"dialogue {size:g}": score_files.noise("dialogue", size)
      for size in sizes
    },
    "timing": score_files.noise("timing"),
  }


def _errors(
  files: score_files.ScoreFiles, how: teacher.Noise
) -> list[list[float]]:
  """The values of `_OWN_ERROR`, a list over seeds each."""
  paths = [files.simulated(how, seed) for seed in grid.seeds()]
  wrong = [
    teacher.vote_error(
      scores_lib.read_scores(path), files.dataset.splits["train"]
    )
    for path in paths
  ]
  right = [teacher.accuracy(files.dataset, path)["accuracy"] for path in paths]
  return [wrong, right]


def _table(
  names: Sequence[str], errors: Mapping[str, list[list[float]]], rows, measure
) -> str:
  """Markdown of a measure: noises by methods, the best of each in bold."""
  lines = []
  for noise, own in errors.items():
    found = [
      [*grid.values(rows, _variant(noise, name), 0, measure).values()]
      for name in names
    ]
    texts = [outputs.percent(values) for values in found]
    if all(found):
      best = max(range(len(names)), key=lambda k: statistics.mean(found[k]))
      texts[best] = f"**{texts[best]}**"
    lines.append([noise, *map(outputs.percent, own), *texts])
  return outputs.table(["noise", *_OWN_ERROR, *names], lines)


def _variant(noise: str, name: str) -> str:
  return f"{noise}, {name}"


def _write(folder, names, errors, todo, outcomes) -> str:
  """Writes all files of the outcomes so far; returns the Markdown."""
  rows = grid.result_rows(todo, outcomes)
  wrong = {
    _variant(noise, name): statistics.mean(own[0])
    for noise, own in errors.items()
    for name in names
  }
  outputs.write_csv(
    folder / "results.csv",
    [{**row, "answers_wrong": wrong[row["variant"]]} for row in rows],
  )
  text = (
    f"# Noise map\n\n{grid.progress(rows)} Students of simulated votes alone,"
    " test accuracy in percent, mean ± standard deviation over the seeds"
    f" {', '.join(map(str, grid.seeds()))}; the largest mean of each noise in"
    " bold. Beside it the votes themselves: their wrong answers about classes,"
    " and how often what most of them say is right.\n\n"
    f"{_table(names, errors, rows, 'accuracy')}\nMacro F1 in percent, the"
    f" same.\n\n{_table(names, errors, rows, 'macro_f1')}"
  )
  outputs.write_text(folder / "table.md", text)
  lines = {
    name: [
      [*grid.values(rows, _variant(noise, name), 0).values()]
      for noise in errors
    ]
    for name in names
  }
  ticks = [
    f"{noise}\n{100 * statistics.mean(own[0]):.1f} % wrong"
    for noise, own in errors.items()
  ]
  outputs.draw_lines(
    folder / "table.png",
    lines,
    ticks,
    xlabel="errors of the votes",
    title="Noise map: students of votes alone",
  )
  return text


def main(argv):
  """Runs the experiment; see the module's text."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    folder = outputs.folder()
    files = score_files.ScoreFiles(commands.CONFIG.value, folder)
    kinds = noises()
    if methods.ALONE in _METHODS.value:
      raise ValueError(
        f"--methods must train on votes, got {methods.ALONE!r}. Leave it out."
      )
    by = methods.variants(_METHODS.value, files.dataset)
    rows = [
      grid.Variant(
        _variant(noise, method.name),
        method.overrides,
        of_seed=score_files.of_seed(files.simulated, how),
      )
      for noise, how in kinds.items()
      for method in by
    ]
    # No cell starts from another, so none keeps its weights.
    todo = [
      dataclasses.replace(cell, serves=False)
      for cell in grid.make_cells(rows, folder, [0])
    ]
    cells.check(todo, folder)
    outputs.write_command(folder / "command.json", seeds=grid.seeds())
    errors = {noise: _errors(files, how) for noise, how in kinds.items()}
    names = [method.name for method in by]
    write = functools.partial(_write, folder, names, errors, todo)
    outcomes = cells.run(todo, folder, write)
    print(f"{write(outcomes)}\nTables and picture in {folder}")
    cells.exit_on_failures(outcomes)


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
