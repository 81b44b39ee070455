"""Votes that were made elsewhere, as JSON lines, to scores."""

import gzip
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import pydantic

from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import scores as scores_lib


class _Vote(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid", strict=True)

  dialogue_id: str
  utterance: Annotated[int, pydantic.Field(ge=0)]
  annotator: str
  sample: int = 0
  label: str | None


def votes_to_scores(
  votes_path: str | os.PathLike[str],
  dialogues: Sequence[dialogues_lib.Dialogue],
  classes: Sequence[str],
  none_label: str,
  *,
  dataset: str = "",
  split: str = "train",
) -> scores_lib.Scores:
  """Counts votes that were made elsewhere; every one weighs the same.

  A line: {"dialogue_id", "utterance" (from 0), "annotator", "sample" (0 if
  left out), "label"}. A label is a class, `none_label` (a valid vote for no
  class) or null (no vote).

  Args:
    votes_path: JSON lines, gzipped where the name ends in .gz.
    dialogues: the split that was voted on.
    classes: the C classes, in order.
    none_label: the answer that means none of the classes; empty if there is
      no such answer.
    dataset: its name, for the metadata.
    split: its name, for the metadata.

  Returns:
    Scores with a row for each dialogue that has at least one line, in the order
    of `dialogues`. `metadata["votes"]` counts the lines: "all", "unusable",
    "none" (for no class) and "annotators" (a count for each); "sha256" is the
    file's.

  Raises:
    ValueError: `none_label` is a class, or a line is not usable; names the file
      and the line (from 1).
  """
  path = pathlib.Path(votes_path)
  if not path.is_file():
    raise ValueError(
      f"--votes must name a file, got {str(path)!r}: correct the path"
    )
  if none_label in classes:
    raise ValueError(
      "the answer that means none of the classes must not be a class, got"
      f" {none_label!r} of {list(classes)}: correct config.votes.none_label"
    )
  column = {name: c for c, name in enumerate(classes)}
  by_id = {d.dialogue_id: d for d in dialogues}
  votes = {}
  valid = {}
  annotators: dict[str, int] = {}
  unusable = none = 0
  first_line: dict[tuple[str, int, str, int], int] = {}
  with _open(path) as lines:
    for number, line in enumerate(lines, start=1):
      if not line.strip():
        continue
      where = f"{path}, line {number}"
      vote = _parse(where, line)
      name = vote.dialogue_id
      if name not in by_id:
        raise ValueError(
          f"{where}: dialogue_id must be one of the split's {len(by_id)}"
          f" dialogues, got {name!r}: check config.votes.split, the dataset,"
          " and that config.dataset.drop_leaks did not take it out"
        )
      length = len(by_id[name].texts)
      if vote.utterance >= length:
        raise ValueError(
          f"{where}: utterance counts from 0 to {length - 1} in dialogue"
          f" {name!r}, got {vote.utterance}: correct the line"
        )
      key = (name, vote.utterance, vote.annotator, vote.sample)
      before = first_line.setdefault(key, number)
      if before != number:
        raise ValueError(
          f"{where}: dialogue_id, utterance, annotator and sample must be"
          f" unique, got {key}, which line {before} has: take one out, or"
          " number the samples"
        )
      if name not in votes:
        votes[name] = np.zeros((length, len(classes)), np.uint32)
        valid[name] = np.zeros((length, len(classes)), np.uint32)
      annotators[vote.annotator] = annotators.get(vote.annotator, 0) + 1
      if vote.label is None:
        unusable += 1
        continue
      if none_label and vote.label == none_label:
        none += 1
      elif vote.label in column:
        votes[name][vote.utterance, column[vote.label]] += 1
      else:
        allowed = [*classes, none_label] if none_label else list(classes)
        raise ValueError(
          f"{where}: a label must be one of {allowed} or null, got"
          f" {vote.label!r}: correct the line, config.dataset.classes or"
          " config.votes.none_label"
        )
      valid[name][vote.utterance] += 1
  if not first_line:
    raise ValueError(f"{path}: a votes file must hold votes, got none: fill it")
  rows = {
    name: scores_lib.ScoredDialogue(
      votes[name], valid[name], dialogue.text_sha256()
    )
    for name, dialogue in by_id.items()
    if name in votes
  }
  metadata = {
    "dataset": dataset,
    "split": split,
    "classes": list(classes),
    "models": [],
    "prompts": [],
    "sampling": {},
    "requests": len(first_line),
    "aggregation": "share of the valid votes, each of weight 1",
    "votes": {
      "all": len(first_line),
      "unusable": unusable,
      "none": none,
      "none_label": none_label,
      "annotators": annotators,
      "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    },
  }
  return scores_lib.Scores(tuple(classes), metadata, rows)


def _open(path: pathlib.Path):
  return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def _parse(where: str, line: bytes) -> _Vote:
  try:
    return _Vote.model_validate_json(line)
  except pydantic.ValidationError as e:
    fault = e.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    at = f" at {place}" if place else ""
    raise ValueError(
      f"{where}: a line must be a JSON object with dialogue_id, utterance,"
      " annotator, label and optionally sample; got"
      f" {fault['msg']!r}{at}: correct the line"
    ) from e
