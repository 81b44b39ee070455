"""The dialogues that a config has labelled."""

from collections.abc import Sequence

from ml_collections import config_dict

from ppl_jax.data import dialogues as dialogues_lib


def open_split(
  config: config_dict.ConfigDict,
) -> tuple[dialogues_lib.Dataset, Sequence[dialogues_lib.Dialogue]]:
  """Opens a config's dataset.

  Args:
    config: with `dataset` and `votes` as in `configs/common.py`.

  Returns:
    The dataset, and the split of it that is voted on.

  Raises:
    ValueError: the data or the settings are not usable.
  """
  dataset = dialogues_lib.load_config(config.dataset)
  split = config.votes.split
  if split not in dataset.splits:
    raise ValueError(
      f"config.votes.split must be one of {', '.join(dataset.splits)}, got"
      f" {split!r}: name the split that is voted on"
    )
  return dataset, dataset.splits[split]
