r"""Table 1: what votes add to a little gold, and pairs to votes.

    python -m ppl_jax.experiments.table1 --config=configs/dailydialog.py \
      --config.scores=scores.parquet --config.dataset.only_scored=True \
      --folder=runs/table1 --seeds=0,1,2 --gold=0,0.01,0.05,0.1,0.25

Rows are fine-tuning on gold alone, and pointwise, pairwise and joint training
on votes before it; columns are shares of gold. A method's first phase is
trained once a seed and serves all shares. Into the folder go

    table.md, table.png   means and standard deviations over seeds, and the
                          paired bootstrap of pairwise against each other method
    results.csv           a row a cell: accuracy, F1, calibration, seconds
    bootstrap.csv         the differences of each seed, and pooled
    command.json          the command, versions, seeds and commit
    cells/                the runs themselves, with their logs

all rewritten after every cell. The same command goes on where it was ended;
more seeds, shares or methods add cells to the folder.
"""

from absl import flags

from ppl_jax import commands
from ppl_jax.experiments import grid, outputs, paper

_ALONE = "fine-tune only"
_METHODS = (_ALONE, "pointwise", "pairwise", "joint")
_CHOSEN = flags.DEFINE_list("methods", list(_METHODS), "The rows.")


def variants() -> list[grid.Variant]:
  """Returns the rows of --methods.

  Raises:
    ValueError: there is no such method.
  """
  unknown = [name for name in _CHOSEN.value if name not in _METHODS]
  if unknown or not _CHOSEN.value:
    raise ValueError(
      f"--methods must be some of {', '.join(_METHODS)}, got"
      f" {','.join(_CHOSEN.value)!r}. Correct it."
    )
  return [
    grid.finetune_only(name)
    if name == _ALONE
    else grid.Variant(name, {"pretrain.objective": name})
    for name in _METHODS
    if name in _CHOSEN.value
  ]


def _paper() -> str:
  """The paper's table, which is of other data."""
  table = outputs.table(
    [f"{paper.SOURCE}", *(f"{100 * g:g} %" for g in paper.TABLE1_GOLD)],
    [[name, *map(str, row)] for name, row in paper.TABLE1.items()],
  )
  return f"The paper's, on its own intent data, which is not public:\n\n{table}"


def main(argv):
  """Runs the experiment; see the module's text."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    grid.run(
      variants(),
      reference="pairwise",
      title="Table 1",
      more_text=_paper(),
    )


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
