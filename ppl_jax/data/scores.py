"""The score file: one Parquet row a dialogue.

Columns: `dialogue_id` string; `votes` and `valid` list<list<uint32>>, [L, C];
`text_sha256` string, of `Dialogue.text_sha256`; and optionally `score`
list<list<float32>>, [L, C] with NaN for none (or null for a dialogue whose
votes say it all). The file's metadata holds one JSON object under the key
`ppl_jax`: dataset, split, classes, models, prompts, sampling, requests and
aggregation, and what else the writer wants to say.

Shape letters: L utterances of one dialogue, U of several, C classes.
"""

import dataclasses
import json
import os
import pathlib
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppl_jax.data import dialogues as dialogues_lib

_COUNTS = pa.list_(pa.list_(pa.uint32()))
_SHARES = pa.list_(pa.list_(pa.float32()))
_REQUIRED = {
  "dialogue_id": pa.string(),
  "votes": _COUNTS,
  "valid": _COUNTS,
  "text_sha256": pa.string(),
}
_METADATA_KEY = b"ppl_jax"
_METADATA = (
  "dataset",
  "split",
  "classes",
  "models",
  "prompts",
  "sampling",
  "requests",
  "aggregation",
)


@dataclasses.dataclass(frozen=True)
class ScoredDialogue:
  """The votes on one dialogue.

  Attributes:
    votes: [L, C] uint32, the valid votes for the class.
    valid: [L, C] uint32, the valid votes that could have named the class.
    text_sha256: of the dialogue that was voted on.
    weighted: [L, C] float32 with NaN for none, to be used in place of the
      shares of votes, or None.
  """

  votes: np.ndarray
  valid: np.ndarray
  text_sha256: str
  weighted: np.ndarray | None = None

  @property
  def score(self) -> np.ndarray:
    """[L, C] float32 in [0, 1]; NaN where there is no score."""
    if self.weighted is not None:
      return self.weighted
    none = self.valid == 0
    share = self.votes / np.where(none, 1, self.valid)
    return np.where(none, np.nan, share).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Scores:
  """A score file.

  Attributes:
    classes: the C classes, in order.
    metadata: how the scores came about; the keys are in the module's text.
    rows: from dialogue_id to its votes, in the order of the file.
  """

  classes: tuple[str, ...]
  metadata: Mapping[str, Any]
  rows: Mapping[str, ScoredDialogue]


def write_scores(path: str | os.PathLike[str], scores: Scores) -> None:
  """Writes a score file, whole or not at all.

  Args:
    path: of the file; its folder is made where it does not exist.
    scores: what to write. `metadata["classes"]` is set from `classes`.

  Raises:
    ValueError: metadata lacks a key, or a row is not a possible one.
  """
  path = pathlib.Path(path)
  metadata = {**scores.metadata, "classes": list(scores.classes)}
  missing = [key for key in _METADATA if key not in metadata]
  if missing:
    raise ValueError(
      f"a score file's metadata must have {', '.join(_METADATA)}; got none for"
      f" {', '.join(missing)}: give them, empty where there is nothing to say"
    )
  columns = {name: [] for name in (*_REQUIRED, "score")}
  for dialogue_id, row in scores.rows.items():
    _check_row(f"dialogue {dialogue_id!r}", row, len(scores.classes))
    columns["dialogue_id"].append(dialogue_id)
    columns["votes"].append(row.votes)
    columns["valid"].append(row.valid)
    columns["text_sha256"].append(row.text_sha256)
    columns["score"].append(row.weighted)
  fields = dict(_REQUIRED)
  if any(score is not None for score in columns["score"]):
    fields["score"] = _SHARES
  schema = pa.schema(
    [pa.field(name, kind) for name, kind in fields.items()],
    metadata={_METADATA_KEY: json.dumps(metadata).encode()},
  )
  arrays = [
    pa.array(columns[name], kind)
    if pa.types.is_string(kind)
    else _lists(columns[name], kind)
    for name, kind in fields.items()
  ]
  table = pa.table(arrays, schema=schema)
  path.parent.mkdir(parents=True, exist_ok=True)
  work = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
  try:
    pq.write_table(table, work)
    os.replace(work, path)
  finally:
    work.unlink(missing_ok=True)


def read_scores(path: str | os.PathLike[str]) -> Scores:
  """Reads a score file.

  Args:
    path: of the file.

  Returns:
    Its scores.

  Raises:
    ValueError: there is no such file, it is no score file, or a row is not a
      possible one; names the file and the dialogue.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(
      f"config.scores must name a score file, got {str(path)!r}, which is no"
      " file: make one with python -m labeling.scores"
    )
  try:
    table = pq.read_table(path)
  except pa.ArrowInvalid as e:
    raise ValueError(
      f"{path}: a score file must be Parquet, got {str(e)!r}: make one with"
      " python -m labeling.scores"
    ) from e
  metadata = _metadata(path, table.schema)
  classes = tuple(metadata["classes"])
  for name in _REQUIRED:
    if table[name].null_count:
      raise ValueError(
        f"{path}: column {name} must have a value in every row, got"
        f" {table[name].null_count} nulls: make the score file anew"
      )
  ids = table["dialogue_id"].to_pylist()
  columns = {
    name: _matrices(path, name, table[name], ids, len(classes))
    for name in ("votes", "valid", "score")
    if name in table.column_names
  }
  rows = {}
  for i, text_sha256 in enumerate(table["text_sha256"].to_pylist()):
    where = f"{path}, dialogue {ids[i]!r}"
    if ids[i] in rows:
      raise ValueError(
        f"{where}: a score file must have one row a dialogue, got another at"
        f" row {i} (from 0): make the score file anew"
      )
    rows[ids[i]] = ScoredDialogue(
      votes=columns["votes"][i],
      valid=columns["valid"][i],
      text_sha256=text_sha256,
      weighted=columns["score"][i] if "score" in columns else None,
    )
    _check_row(where, rows[ids[i]], len(classes))
  return Scores(classes, metadata, rows)


def match(
  scores: Scores,
  dialogues: Sequence[dialogues_lib.Dialogue],
  classes: Sequence[str],
) -> list[np.ndarray | None]:
  """Lays scores beside the dialogues that they were made for.

  Args:
    scores: of a score file.
    dialogues: one split, or all of it that matters.
    classes: the dataset's, in order.

  Returns:
    For each dialogue its scores, [L, C] float32 with NaN for none, or None
    where the dialogue is not in the file.

  Raises:
    ValueError: the classes, a dialogue's length or its text are not those that
      were scored, or a scored dialogue is not among `dialogues`; names the
      dialogue and both sides.
  """
  if tuple(classes) != scores.classes:
    raise ValueError(
      "the classes of the score file must be the dataset's, in its order; got"
      f" {list(scores.classes)} in the score file and {list(classes)} in the"
      " dataset: use the score file of this dataset, or make it anew"
    )
  matched = []
  found = set()
  for dialogue in dialogues:
    row = scores.rows.get(dialogue.dialogue_id)
    if row is None:
      matched.append(None)
      continue
    found.add(dialogue.dialogue_id)
    where = f"dialogue {dialogue.dialogue_id!r}"
    if len(row.votes) != len(dialogue.texts):
      raise ValueError(
        f"scores and dialogue must have as many utterances; got"
        f" {len(row.votes)} in the score file and {len(dialogue.texts)} in the"
        f" dataset for {where}: make the score file anew from this dataset"
      )
    digest = dialogue.text_sha256()
    if row.text_sha256 != digest:
      raise ValueError(
        "scores must have been made for the dialogue's present speakers and"
        f" texts; got text_sha256 {row.text_sha256} in the score file and"
        f" {digest} in the dataset for {where}: make the score file anew from"
        " this dataset"
      )
    matched.append(row.score)
  foreign = [name for name in scores.rows if name not in found]
  if foreign:
    raise ValueError(
      "every scored dialogue must be in the dataset's split; got"
      f" {foreign[0]!r} (and {len(foreign) - 1} more) in the score file only:"
      " use the score file of this dataset and split, and mind that"
      " config.dataset.drop_leaks takes dialogues out"
    )
  return matched


def _check_row(where: str, row: ScoredDialogue, num_classes: int) -> None:
  shape = row.votes.shape
  if len(shape) != 2 or shape[1] != num_classes or row.valid.shape != shape:
    raise ValueError(
      f"{where}: votes and valid must be [utterances, {num_classes}], got"
      f" {shape} and {row.valid.shape}: make the score file anew"
    )
  if (row.votes > row.valid).any():
    i, c = np.argwhere(row.votes > row.valid)[0]
    raise ValueError(
      f"{where}: there cannot be more votes than valid votes, got"
      f" {row.votes[i, c]} of {row.valid[i, c]} for utterance {i}, class {c}:"
      " make the score file anew"
    )
  if row.weighted is None:
    return
  if row.weighted.shape != shape:
    raise ValueError(
      f"{where}: score must have the shape of votes, {shape}, got"
      f" {row.weighted.shape}: make the score file anew"
    )
  wrong = (row.weighted < 0) | (row.weighted > 1)
  if wrong.any():
    i, c = np.argwhere(wrong)[0]
    raise ValueError(
      f"{where}: a score must lie in [0, 1] or be NaN, got {row.weighted[i, c]}"
      f" for utterance {i}, class {c}: make the score file anew"
    )


def _metadata(path: pathlib.Path, schema: pa.Schema) -> dict[str, Any]:
  wrong = [
    name
    for name, kind in _REQUIRED.items()
    if name not in schema.names or not schema.field(name).type.equals(kind)
  ]
  if "score" in schema.names and not schema.field("score").type.equals(_SHARES):
    wrong.append("score")
  if wrong:
    asked = {name: str(kind) for name, kind in _REQUIRED.items()}
    got = {field.name: str(field.type) for field in schema}
    raise ValueError(
      f"{path}: a score file must have the columns {asked}, and maybe score of"
      f" type {_SHARES}; got {got}, of which {', '.join(wrong)} is wrong or"
      " missing: make the score file anew"
    )
  try:
    metadata = json.loads((schema.metadata or {})[_METADATA_KEY])
    return {key: metadata[key] for key in _METADATA} | metadata
  except (KeyError, TypeError, json.JSONDecodeError) as e:
    raise ValueError(
      f"{path}: a score file must hold a JSON object with"
      f" {', '.join(_METADATA)} in its metadata under"
      f" {_METADATA_KEY.decode()!r}; got {e!r}: make the score file anew"
    ) from e


def _lists(rows: Sequence[np.ndarray | None], kind: pa.DataType) -> pa.Array:
  """Dialogues' [L, C] arrays, or None, as list<list<...>>."""
  present = [row for row in rows if row is not None]
  values = np.concatenate([row.ravel() for row in present] or [[]])
  widths = [row.shape[1] for row in present for _ in range(len(row))]
  inner = pa.ListArray.from_arrays(
    _offsets(widths), pa.array(values, kind.value_type.value_type)
  )
  lengths = [0 if row is None else len(row) for row in rows]
  missing = pa.array([row is None for row in rows], pa.bool_())
  return pa.ListArray.from_arrays(_offsets(lengths), inner, mask=missing)


def _offsets(lengths: Sequence[int]) -> pa.Array:
  return pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())


def _matrices(
  path: pathlib.Path,
  name: str,
  column: pa.ChunkedArray,
  ids: Sequence[str],
  num_classes: int,
) -> list[np.ndarray | None]:
  """The inverse of `_lists`; None only for a null in column `score`."""
  lists = column.combine_chunks()
  inner = lists.flatten()
  lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
  ends = np.cumsum(lengths)
  widths = inner.value_lengths().fill_null(-1).to_numpy()
  values = inner.flatten()
  wrong = np.flatnonzero(widths != num_classes)
  if len(wrong) or values.null_count:
    first = wrong[0] if len(wrong) else values.is_null().index(True).as_py()
    if not len(wrong):
      first //= num_classes
    dialogue = np.searchsorted(ends, first, side="right")
    raise ValueError(
      f"{path}, dialogue {ids[dialogue]!r}: {name} must hold {num_classes}"
      f" values an utterance, got {inner[int(first)].as_py()}: make the score"
      " file anew"
    )
  flat = values.to_numpy().reshape(-1, num_classes)
  return [
    flat[end - length : end] if is_there else None
    for end, length, is_there in zip(
      ends, lengths, lists.is_valid().to_pylist(), strict=True
    )
  ]
