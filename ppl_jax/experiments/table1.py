r"""Table 1: what votes add to a little gold, and which loss makes most of them.

    python -m ppl_jax.experiments.table1 --config=configs/dailydialog.py \
      --config.scores=scores.parquet --config.dataset.only_scored=True \
      --folder=runs/table1 --seeds=0,1,2 --gold=0,0.01,0.05,0.1,0.25

Rows are fine-tuning on gold alone, and training on votes before it by each loss
that one would choose between; columns are shares of gold. --methods takes some
of

    fine-tune only        no votes
    paper                 the paper's loss: hard pairs two by two, its margin
    soft pairs            utterances of a dialogue ordered under each class
    one-versus-rest       a sigmoid a class, against its share of the votes
    joint                 soft pairs and one-versus-rest
    softmax on shares     a softmax, against the shares of the votes
    plurality labels      a softmax, against the class with most votes
    swapped pairs         which of two utterances has which of two classes
    soft pairs + softmax  soft pairs and softmax on shares
    default               the objective auto

All but joint and swapped pairs, which are in the default of the one task or the
other, are there if it is not given. Where classes are decided one by one, the
rows with a softmax are left out. A method's first phase is trained once a seed
and serves all shares. Into the folder go

    table.md, table.png   accuracy and macro F1, means and standard deviations
                          over seeds; calibration without gold; the paired
                          bootstrap of the default against each other method,
                          and of the least gold against none
    results.csv           a row a cell: accuracy, F1, calibration, cross-entropy
                          of held-out votes, seconds; or that it is waiting
    bootstrap.csv         the differences of each seed, and pooled
    first_labels.csv      the same of the least gold less none
    command.json          the command, versions, seeds and commit
    cells/                the runs themselves, with their logs

all rewritten after every cell. The same command goes on where it was ended;
more seeds, shares or methods add cells to the folder. `ranks` puts the folders
of several tasks together.
"""

from absl import flags

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.experiments import grid, methods, outputs, paper

_ON_REQUEST = ("joint", "swapped pairs")
_CHOSEN = flags.DEFINE_list(
  "methods",
  [name for name in methods.METHODS if name not in _ON_REQUEST],
  "The rows.",
)


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
    dataset = dialogues_lib.load_config(commands.CONFIG.value.dataset)
    rows = methods.variants(_CHOSEN.value, dataset)
    grid.run(
      rows,
      reference=methods.reference(rows),
      title="Table 1",
      more_text=_paper(),
    )


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
