"""Votes of any source, on a dataset's split."""

import collections
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from labeling import stored_votes
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import vote_columns
from ppl_jax.data import votes as votes_lib


def read(
  paths: Sequence[str],
  dialogues: Sequence[dialogues_lib.Dialogue],
  classes: Sequence[str],
  none_label: str,
  counts_as: Mapping[str, str] | None = None,
  task: str = "single_label",
) -> tuple[vote_columns.Votes, dict[str, Any]]:
  """Reads votes.

  Args:
    paths: vote stores, or JSON lines as of `ppl_jax.data.votes.add_votes`.
    dialogues: the split that was voted on.
    classes: the C classes, in order.
    none_label: the answer that means none of the classes; "" for no such.
    counts_as: from labels of the votes to the class that they count as, or to
      `none_label`; other labels must be classes.
    task: "single_label" or "multi_label".

  Returns:
    The votes of all files, and what the stores say of themselves and what
    `counts_as` says, for the metadata of a score file.

  Raises:
    ValueError: a file is not usable.
  """
  builder = vote_columns.Builder(dialogues, classes, none_label, counts_as)
  stores = []
  left_out: collections.Counter[str] = collections.Counter()
  for path in (pathlib.Path(p).expanduser() for p in paths):
    if path.is_file() and stored_votes.is_store(path):
      left_out.update(
        stored_votes.read_into(builder, path, len(stores), dialogues)
      )
      stores.append(path)
    else:
      votes_lib.add_votes(path, builder, none_label, task)
  about = {}
  if stores:
    about = {**stored_votes.about(stores), "left_out": dict(left_out)}
  if counts_as:
    about["counts_as"] = dict(counts_as)
  return builder.build(), about
