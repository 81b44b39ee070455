"""Votes that were made elsewhere, as JSON lines; and votes to scores."""

import collections
import hashlib
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import pydantic
import tqdm

from ppl_jax.data import lines, vote_columns
from ppl_jax.data import scores as scores_lib

_LOG = logging.getLogger(__name__)
_UNIFORM = {
  "method": "uniform",
  "score": "share of the valid votes, each of weight 1",
}


class _Vote(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid", strict=True)

  dialogue_id: str
  utterance: Annotated[int, pydantic.Field(ge=0)]
  annotator: str
  sample: Annotated[int, pydantic.Field(ge=0, lt=2**31)] = 0
  label: str | list[str] | None


def to_scores(
  votes: vote_columns.Votes,
  *,
  dataset: str,
  split: str,
  weighted_UxC: np.ndarray | None = None,
  aggregation: Mapping[str, Any] = _UNIFORM,
) -> scores_lib.Scores:
  """Puts votes, and scores made of them, into the form of a score file.

  Args:
    votes: on the dialogues of one split.
    dataset: its name, for the metadata.
    split: its name, for the metadata.
    weighted_UxC: scores in [0, 1] or NaN to be used in place of the shares of
      votes, or None for the shares.
    aggregation: what the scores are, for the metadata.

  Returns:
    Scores with a row for each dialogue that has at least one vote, in the order
    of the split. `metadata["votes"]` counts them: "all", "unusable", "none"
    (for no class) and "annotators" (a count for each); "sources" names the
    files with their SHA-256.
  """
  votes_UxC, valid_UxC = votes.counts()
  voted = votes.voted
  rows = {}
  for d, (name, digest) in enumerate(
    zip(voted.dialogue_ids, voted.text_sha256, strict=True)
  ):
    here = slice(voted.first[d], voted.first[d + 1])
    rows[name] = scores_lib.ScoredDialogue(
      votes_UxC[here],
      valid_UxC[here],
      digest,
      None
      if weighted_UxC is None
      else np.asarray(weighted_UxC[here], np.float32),
    )
  named_V = np.zeros(len(votes), np.bool_)
  named_V[votes.label_vote_N] = True
  any_V = votes.only_V == vote_columns.ANY
  per_annotator = np.bincount(votes.annotator_V)
  metadata = {
    "dataset": dataset,
    "split": split,
    "classes": list(votes.classes),
    "models": [],
    "prompts": [],
    "sampling": {},
    "requests": len(votes),
    "aggregation": dict(aggregation),
    "votes": {
      "all": len(votes),
      "unusable": int((~votes.valid_V).sum()),
      "none": int((votes.valid_V & any_V & ~named_V).sum()),
      "none_label": votes.none_label,
      "annotators": dict(
        zip(votes.annotators, per_annotator.tolist(), strict=True)
      ),
      "sources": [dict(source) for source in votes.sources],
    },
  }
  return scores_lib.Scores(votes.classes, metadata, rows)


def add_votes(
  path: pathlib.Path,
  builder: vote_columns.Builder,
  none_label: str,
  task: str,
) -> None:
  """Adds the votes of one file that were made elsewhere.

  A line: {"dialogue_id", "utterance" (from 0), "annotator", "sample" (0 if
  left out), "label"}. A label is a class, `none_label` (a valid vote for no
  class) or null (no vote); in a multi-label task also a list of classes, [] for
  none of them. A list is one vote, valid for each class.

  Args:
    path: JSON lines, gzipped where the name ends in .gz.
    builder: takes the votes.
    none_label: the answer that means none of the classes; empty if there is
      no such answer.
    task: "single_label" or "multi_label".

  Raises:
    ValueError: a line is not usable; names the file and the line (from 1).
  """
  if not path.is_file():
    raise ValueError(
      f"--votes must name a file, got {str(path)!r}: correct the path"
    )
  with path.open("rb") as f:
    builder.source(path, hashlib.file_digest(f, "sha256").hexdigest())
  number_of_votes, named = 0, set()
  with lines.opened(path) as f:
    bar = tqdm.tqdm(
      f, desc=path.name, unit=" lines", delay=3, disable=None, leave=False
    )
    for number, line in lines.numbered(bar):
      vote = _parse(path, number, line)
      labels = add_vote(builder, number, vars(vote), none_label, task)
      named.update(labels or ())
      number_of_votes += 1
  if not number_of_votes:
    raise ValueError(f"{path}: a votes file must hold votes, got none: fill it")
  never = sorted(set(builder.classes) - builder.count_as(named))
  if named and never:
    _LOG.warning(
      "%s: no vote names %s, so all count against them. Where the annotators"
      " were not offered them, take them out of config.dataset.classes.",
      path,
      never,
    )


def add_vote(
  builder: vote_columns.Builder,
  number: int,
  vote: Mapping[str, Any],
  none_label: str,
  task: str = "single_label",
) -> Sequence[str] | None:
  """Adds one vote, the object of a line of `add_votes`; returns its labels."""
  label = vote["label"]
  labels = label
  if isinstance(label, str):
    labels = [label]
  elif label is not None and task != "multi_label":
    raise ValueError(
      f"{builder.place(number)}: a label must be one class or null in a"
      f" {task} task, got the list {label}: correct it, or set"
      " config.dataset.task to 'multi_label'"
    )
  if none_label and labels and none_label in labels:
    if set(labels) != {none_label}:
      raise ValueError(
        f"{builder.place(number)}: the answer {none_label!r} must stand alone,"
        f" got {label}: leave it out, or the classes"
      )
    labels = []
  builder.add(
    number,
    dialogue_id=vote["dialogue_id"],
    utterance=vote["utterance"],
    annotator=vote["annotator"],
    sample=vote["sample"],
    labels=labels,
  )
  return labels


def add_up(
  before: Mapping[str, Any] | None, metadata: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the metadata of two parts of a split, from that of each.

  Args:
    before: of `to_scores`, or of this; None: there is nothing before.
    metadata: of `to_scores`, for other dialogues of the split.
  """
  if before is None:
    return dict(metadata)
  votes, more = before["votes"], metadata["votes"]
  counts = {key: votes[key] + more[key] for key in ("all", "unusable", "none")}
  annotators = collections.Counter(votes["annotators"])
  annotators.update(more["annotators"])
  return {
    **before,
    "requests": before["requests"] + metadata["requests"],
    "votes": {
      **votes,
      **counts,
      "annotators": dict(sorted(annotators.items())),
    },
  }


def _parse(path: pathlib.Path, number: int, line: bytes) -> _Vote:
  try:
    return _Vote.model_validate_json(line)
  except pydantic.ValidationError as e:
    fault = e.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    at = f" at {place}" if place else ""
    raise ValueError(
      f"{path}, line {number}: a line must be a JSON object with dialogue_id,"
      " utterance, annotator, label and optionally sample; got"
      f" {fault['msg']!r}{at}: correct the line"
    ) from e
