"""Ways to train a student, as rows of a table: the losses to choose between."""

from collections.abc import Sequence

from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.experiments import grid

ALONE = "fine-tune only"
REFERENCE = "default"  # what the others are compared with
# Overrides of the config, in the order of the tables; `ppl_jax/objective.py`
# says what each minimises.
METHODS = {
  ALONE: {},  # those of `grid.finetune_only`
  "paper": {"pretrain.objective": "paper"},
  "soft pairs": {"pretrain.objective": "pairwise"},
  "one-versus-rest": {"pretrain.objective": "pointwise"},
  "joint": {"pretrain.objective": "joint"},
  "softmax on shares": {"pretrain.objective": "softmax"},
  "plurality labels": {"pretrain.objective": "plurality"},
  "swapped pairs": {"pretrain.objective": "swapped"},
  "soft pairs + softmax": {
    "pretrain.objective": "softmax",
    "pretrain.terms.pairs": 1.0,
  },
  REFERENCE: {"pretrain.objective": "auto"},
}
# These compare the classes of an utterance.
_SOFTMAX = {
  "softmax on shares",
  "plurality labels",
  "swapped pairs",
  "soft pairs + softmax",
}


def variants(
  names: Sequence[str], dataset: dialogues_lib.Dataset
) -> list[grid.Variant]:
  """Returns the rows that a dataset's task has a place for, in our order.

  Prints which are left out.

  Args:
    names: of `METHODS`, those of --methods.
    dataset: of the config.

  Raises:
    ValueError: there is no such method, or no row is left.
  """
  unknown = [name for name in names if name not in METHODS]
  if unknown or not names:
    raise ValueError(
      f"--methods must be some of {', '.join(METHODS)}, got"
      f" {','.join(names)!r}. Correct it."
    )
  left_out = set()
  if dataset.task != "single_label" or len(dataset.classes) == 1:
    left_out = _SOFTMAX.intersection(names)
  chosen = [name for name in METHODS if name in names and name not in left_out]
  if left_out:
    told = [name for name in METHODS if name in left_out]
    text = (
      f"{', '.join(told)}: a softmax has no place where classes are decided one"
      " by one"
    )
    if not chosen:
      raise ValueError(
        f"--methods must be for the dataset's task, got {text}. Name others."
      )
    print(f"Left out: {text}.")
  return [
    grid.finetune_only(name)
    if name == ALONE
    else grid.Variant(name, METHODS[name])
    for name in chosen
  ]


def reference(rows: Sequence[grid.Variant]) -> str:
  """Returns the name of the row that the others are compared with."""
  names = [row.name for row in rows]
  return REFERENCE if REFERENCE in names else names[-1]
