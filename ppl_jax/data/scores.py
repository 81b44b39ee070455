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
import itertools
import json
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import mapped

_COUNTS = pa.list_(pa.list_(pa.uint32()))
_SHARES = pa.list_(pa.list_(pa.float32()))
_REQUIRED = {
  "dialogue_id": pa.string(),
  "votes": _COUNTS,
  "valid": _COUNTS,
  "text_sha256": pa.string(),
}
_METADATA_KEY = b"ppl_jax"
_ROWS_AT_ONCE, _UTTERANCES_AT_ONCE = 1_000, 65_536
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


class Writer:
  """Writes a score file, whole or not at all, some dialogues at a time.

  A context: the file is there once it is left after `finish`.

  Args:
    path: of the file; its folder is made where it does not exist.
    classes: the C classes, in order.
    weighted: whether rows may have weighted scores.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    classes: Sequence[str],
    *,
    weighted: bool = False,
  ):
    self._path = pathlib.Path(path)
    self._classes = list(classes)
    self._fields = dict(_REQUIRED) | ({"score": _SHARES} if weighted else {})
    self._metadata = None

  def __enter__(self) -> "Writer":
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._work = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}")
    # Without Arrow's own schema, which the metadata would not be part of: it is
    # known last.
    self._file = pq.ParquetWriter(
      self._work, pa.schema(self._fields.items()), store_schema=False
    )
    return self

  def __exit__(self, kind, *_):
    try:
      if self._metadata is not None:
        self._file.add_key_value_metadata({_METADATA_KEY: self._metadata})
      self._file.close()
      if kind is None and self._metadata is not None:
        os.replace(self._work, self._path)
    finally:
      self._work.unlink(missing_ok=True)

  def add(self, rows: Mapping[str, ScoredDialogue]) -> None:
    """Writes dialogues.

    Raises:
      ValueError: a row is not a possible one.
    """
    columns = {name: [] for name in self._fields}
    for dialogue_id, row in rows.items():
      _check_row(f"dialogue {dialogue_id!r}", row, len(self._classes))
      values = {
        "dialogue_id": dialogue_id,
        "votes": row.votes,
        "valid": row.valid,
        "text_sha256": row.text_sha256,
        "score": row.weighted,
      }
      for name, column in columns.items():
        column.append(values[name])
    arrays = [
      pa.array(columns[name], kind)
      if pa.types.is_string(kind)
      else _lists(columns[name], kind)
      for name, kind in self._fields.items()
    ]
    self._file.write_table(
      pa.table(arrays, schema=pa.schema(self._fields.items()))
    )

  def finish(self, metadata: Mapping[str, Any]) -> None:
    """Says how the scores came about; "classes" is set to the file's.

    Raises:
      ValueError: metadata lacks a key.
    """
    metadata = {**metadata, "classes": self._classes}
    missing = [key for key in _METADATA if key not in metadata]
    if missing:
      raise ValueError(
        f"a score file's metadata must have {', '.join(_METADATA)}; got none"
        f" for {', '.join(missing)}: give them, empty where there is nothing to"
        " say"
      )
    self._metadata = json.dumps(metadata).encode()


def write_scores(path: str | os.PathLike[str], scores: Scores) -> None:
  """Writes a score file, whole or not at all.

  Args:
    path: of the file; its folder is made where it does not exist.
    scores: what to write. `metadata["classes"]` is set from `classes`.

  Raises:
    ValueError: metadata lacks a key, or a row is not a possible one.
  """
  weighted = any(row.weighted is not None for row in scores.rows.values())
  with Writer(path, scores.classes, weighted=weighted) as writer:
    writer.finish(scores.metadata)
    rows = iter(scores.rows.items())
    while some := dict(itertools.islice(rows, _ROWS_AT_ONCE)):
      writer.add(some)


class ScoreFile:
  """A score file, opened; its rows are read some at a time.

  Args:
    path: of the file.

  Attributes:
    path: of the file.
    classes: the C classes, in order.
    metadata: how the scores came about; the keys are in the module's text.

  Raises:
    ValueError: there is no such file, or it is no score file.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path).expanduser()
    if not self.path.is_file():
      raise ValueError(
        f"config.scores must name a score file, got {str(path)!r}, which is no"
        " file: make one with python -m labeling.scores"
      )
    try:
      self._file = pq.ParquetFile(self.path)
    except pa.ArrowInvalid as e:
      raise self._not_parquet(e) from e
    self.metadata = _metadata(
      self.path, self._file.schema_arrow, self._file.metadata.metadata
    )
    self.classes = tuple(self.metadata["classes"])

  def dialogue_ids(self) -> list[str]:
    """Returns the dialogue_id of each row, without reading its votes."""
    try:
      return self._file.read(["dialogue_id"])["dialogue_id"].to_pylist()
    except pa.ArrowInvalid as e:
      raise self._not_parquet(e) from e

  def rows(self) -> Iterator[tuple[str, ScoredDialogue]]:
    """Yields each row: its dialogue_id and votes.

    Raises:
      ValueError: a row is not a possible one; names the file and the dialogue.
    """
    names = [*_REQUIRED]
    if "score" in self._file.schema_arrow.names:
      names.append("score")
    try:
      for batch in self._file.iter_batches(_ROWS_AT_ONCE, columns=names):
        yield from self._batch(batch)
    except pa.ArrowInvalid as e:
      raise self._not_parquet(e) from e

  def _batch(self, batch: pa.RecordBatch):
    for name in _REQUIRED:
      if batch[name].null_count:
        raise ValueError(
          f"{self.path}: column {name} must have a value in every row, got"
          f" {batch[name].null_count} nulls: make the score file anew"
        )
    C = len(self.classes)
    ids = batch["dialogue_id"].to_pylist()
    columns = {
      name: _matrices(self.path, name, batch[name], ids, C)
      for name in batch.schema.names
      if name not in ("dialogue_id", "text_sha256")
    }
    for i, text_sha256 in enumerate(batch["text_sha256"].to_pylist()):
      row = ScoredDialogue(
        votes=columns["votes"][i],
        valid=columns["valid"][i],
        text_sha256=text_sha256,
        weighted=columns["score"][i] if "score" in columns else None,
      )
      _check_row(f"{self.path}, dialogue {ids[i]!r}", row, C)
      yield ids[i], row

  def _not_parquet(self, error: Exception) -> ValueError:
    return ValueError(
      f"{self.path}: a score file must be Parquet, got {str(error)!r}: make one"
      " with python -m labeling.scores"
    )


def read_scores(path: str | os.PathLike[str]) -> Scores:
  """Reads a score file into memory.

  Args:
    path: of the file.

  Returns:
    Its scores.

  Raises:
    ValueError: there is no such file, it is no score file, or a row is not a
      possible one; names the file and the dialogue.
  """
  file = ScoreFile(path)
  rows = {}
  for dialogue_id, row in file.rows():
    if dialogue_id in rows:
      raise _twice(file.path, dialogue_id)
    rows[dialogue_id] = row
  return Scores(file.classes, file.metadata, rows)


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
  _check_classes(scores.classes, classes)
  matched = [None] * len(dialogues)
  for d, row in _matched("the score file", scores.rows.items(), dialogues):
    matched[d] = row.score
  return matched


def lay_out(
  path: str | os.PathLike[str],
  dialogues: Sequence[dialogues_lib.Dialogue],
  first: np.ndarray,
  classes: Sequence[str],
  folder: str | os.PathLike[str],
) -> tuple[np.ndarray, np.ndarray]:
  """Reads a score file for a split, in memory that does not grow with it.

  Args:
    path: of the file.
    dialogues: the split.
    first: [D + 1] int, the first utterance of each dialogue, and U.
    classes: the dataset's, in order.
    folder: where there is room for U x C values while they are in use.

  Returns:
    The scores, float32 [U, C] with NaN for none, mapped from a file; and how
    many valid votes each utterance has, float32 [U].

  Raises:
    ValueError: as of `read_scores` and `match`.
  """
  file = ScoreFile(path)
  _check_classes(file.classes, classes)
  U, C = int(first[-1]), len(classes)
  valid_U = np.zeros(U, np.float32)
  with mapped.Rows(folder, np.float32, (C,)) as out:
    for start in range(0, U, _UTTERANCES_AT_ONCE):
      count = min(_UTTERANCES_AT_ONCE, U - start)
      out.append(np.full((count, C), np.nan, np.float32))
    for d, row in _matched(file.path, file.rows(), dialogues):
      out.put(int(first[d]), row.score)
      valid_U[first[d] : first[d + 1]] = row.valid.max(axis=1)
    return out.map(), valid_U


def _check_classes(theirs: Sequence[str], classes: Sequence[str]) -> None:
  if tuple(classes) != tuple(theirs):
    raise ValueError(
      "the classes of the score file must be the dataset's, in its order; got"
      f" {list(theirs)} in the score file and {list(classes)} in the"
      " dataset: use the score file of this dataset, or make it anew"
    )


def _matched(
  path: str | os.PathLike[str],
  rows: Iterable[tuple[str, ScoredDialogue]],
  dialogues: Sequence[dialogues_lib.Dialogue],
) -> Iterator[tuple[int, ScoredDialogue]]:
  """Yields the number and the row of each dialogue that has one."""
  ahead = iter(enumerate(dialogues))
  passed = {}  # ids of dialogues that were passed over; few, if rows are sorted
  is_matched_D = np.zeros(len(dialogues), np.bool_)
  foreign = []
  for dialogue_id, row in rows:
    d = passed.pop(dialogue_id, None)
    if d is not None:
      dialogue = dialogues[d]
    else:
      for d, dialogue in ahead:
        if dialogue.dialogue_id == dialogue_id:
          break
        passed[dialogue.dialogue_id] = d
      else:
        foreign.append(dialogue_id)
        continue
    is_matched_D[d] = True
    _check_text(row, dialogue)
    yield d, row
  if not foreign:
    return
  if any(
    dialogues[int(d)].dialogue_id == foreign[0]
    for d in np.flatnonzero(is_matched_D)
  ):
    raise _twice(path, foreign[0])
  raise ValueError(
    "every scored dialogue must be in the dataset's split; got"
    f" {foreign[0]!r} (and {len(foreign) - 1} more) in the score file only:"
    " use the score file of this dataset and split, and mind that"
    " config.dataset.drop_leaks takes dialogues out"
  )


def _twice(path, dialogue_id: str) -> ValueError:
  return ValueError(
    f"{path}, dialogue {dialogue_id!r}: a score file must have one row a"
    " dialogue, got several: make the score file anew"
  )


def _check_text(row: ScoredDialogue, dialogue: dialogues_lib.Dialogue) -> None:
  """Refuses scores of another text."""
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


def _metadata(
  path: pathlib.Path, schema: pa.Schema, found: Mapping[bytes, bytes] | None
) -> dict[str, Any]:
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
    metadata = json.loads((found or {})[_METADATA_KEY])
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
  lists: pa.ListArray,
  ids: Sequence[str],
  num_classes: int,
) -> list[np.ndarray | None]:
  """The inverse of `_lists`; None only for a null in column `score`."""
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
