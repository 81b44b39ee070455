"""Votes of any source, on the split that a config names."""

from collections.abc import Sequence

from ml_collections import config_dict

from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import vote_columns
from ppl_jax.data import votes as votes_lib


def read(
  config: config_dict.ConfigDict, paths: Sequence[str]
) -> tuple[dialogues_lib.Dataset, vote_columns.Votes]:
  """Opens a config's dataset and reads the votes on it.

  Args:
    config: with `dataset` and `votes` as in `configs/common.py`.
    paths: JSON lines, as of `ppl_jax.data.votes.read_votes`.

  Returns:
    The dataset, and the votes of all files.

  Raises:
    ValueError: data, votes or settings are not usable.
  """
  dataset = dialogues_lib.load_config(config.dataset)
  split = config.votes.split
  if split not in dataset.splits:
    raise ValueError(
      f"config.votes.split must be one of {', '.join(dataset.splits)}, got"
      f" {split!r}: name the split that was voted on"
    )
  votes = votes_lib.read_votes(
    paths, dataset.splits[split], dataset.classes, config.votes.none_label
  )
  return dataset, votes
