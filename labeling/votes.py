"""Votes of any source, on the split that a config names."""

import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import config_dict

from labeling import stored_votes
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import vote_columns
from ppl_jax.data import votes as votes_lib


def read(
  config: config_dict.ConfigDict, paths: Sequence[str]
) -> tuple[dialogues_lib.Dataset, vote_columns.Votes, dict[str, Any]]:
  """Opens a config's dataset and reads the votes on it.

  Args:
    config: with `dataset` and `votes` as in `configs/common.py`.
    paths: vote stores, or JSON lines as of `ppl_jax.data.votes.add_votes`.

  Returns:
    The dataset, the votes of all files, and what the stores say of themselves,
    for the metadata of a score file.

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
  dialogues, none_label = dataset.splits[split], config.votes.none_label
  builder = vote_columns.Builder(dialogues, dataset.classes, none_label)
  stores = []
  for path in map(pathlib.Path, paths):
    if path.is_file() and stored_votes.is_store(path):
      stored_votes.read_into(builder, path, len(stores), dialogues)
      stores.append(path)
    else:
      votes_lib.add_votes(path, builder, none_label)
  about = stored_votes.about(stores) if stores else {}
  return dataset, builder.build(), about
