"""Files of dialogues in, files of predictions out, at any size.

JSON lines hold one dialogue each, as training reads them; labels and other
fields are ignored:

    {"dialogue_id": "a1", "utterances": [{"speaker": "agent", "text": "Hello"}]}

CSV has a header with dialogue_id, speaker and text, and one utterance a row;
the rows of a dialogue follow one another, in the order of its utterances. Both
are UTF-8, and gzipped where the name ends in .gz.

Predictions are written chunk by chunk to `<output>.partial`, and how far that
got to `<output>.partial.json`. A command that was killed goes on from there.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import tqdm

from ppl_jax import predictor as predictor_lib
from ppl_jax.data import atomic, lines

_COLUMNS = ("dialogue_id", "speaker", "text")
_LONGEST_FIELD = 2**24  # characters; a quote left open must not fill memory
_QUOTING = (
  "Correct the row: a text with commas, double quotes or line breaks must be in"
  " double quotes, with each one in it doubled."
)


class Transcript(NamedTuple):
  """A dialogue without labels."""

  dialogue_id: str
  speakers: tuple[str, ...]
  texts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Summary:
  """What a file holds.

  Attributes:
    dialogues: how many.
    utterances: how many, of all of them.
    sha256: of the file, in hex.
  """

  dialogues: int
  utterances: int
  sha256: str


def read(file: pathlib.Path) -> Iterator[Transcript]:
  """Yields the dialogues of a file in order.

  CSV where the name ends in .csv or .csv.gz, else JSON lines.

  Raises:
    ValueError: a line that is not usable; names the file and the line.
  """
  rows = _read_csv if _is_csv(file) else _read_json_lines
  for number, dialogue in rows(file):
    try:
      predictor_lib.check_dialogue(dialogue)
    except ValueError as error:
      raise ValueError(f"{file}, line {number}: {error}") from error
    yield dialogue


def check(file: pathlib.Path) -> Summary:
  """Reads a file through, so that nothing is wrong halfway.

  Raises:
    ValueError: as `read`; or a dialogue_id is there twice, or no dialogue; or
      it is no file, which can be read again.
  """
  if file.exists() and not file.is_file():
    raise ValueError(
      f"--input must be a file, which is read more than once, got {file}, which"
      " is a folder or a pipe. Write a file first; --input=- takes one line an"
      " utterance from the standard input."
    )
  dialogues = utterances = 0
  # SQLite keeps the ids on disk where they are many.
  with contextlib.closing(sqlite3.connect("")) as seen:
    seen.execute("CREATE TABLE seen (id TEXT PRIMARY KEY) WITHOUT ROWID")
    bar = tqdm.tqdm(
      read(file), desc="checking", unit="dialogue", delay=3, leave=False
    )
    for dialogue in bar:
      try:
        seen.execute("INSERT INTO seen VALUES (?)", (dialogue.dialogue_id,))
      except sqlite3.IntegrityError:
        together = ", with its rows together" if _is_csv(file) else ""
        raise ValueError(
          f"{file}: a dialogue must be there once{together}, got"
          f" {dialogue.dialogue_id!r} again after other dialogues. Rename one,"
          " or sort the file."
        ) from None
      dialogues += 1
      utterances += len(dialogue.texts)
  if not dialogues:
    raise ValueError(
      f"{file}: a file must hold at least one dialogue, got none. Fill it."
    )
  with file.open("rb") as f:
    sha256 = hashlib.file_digest(f, "sha256").hexdigest()
  return Summary(dialogues, utterances, sha256)


def check_output(output: pathlib.Path, file: pathlib.Path) -> None:
  """Looks whether predictions can be written, before there are any.

  Args:
    output: the file to be.
    file: what is predicted, which must not be written over.

  Raises:
    ValueError: it is there, or cannot be.
  """
  if lines.is_gzip(output):
    raise ValueError(
      f"--output must not be gzip, got {output}. Take .gz off the name."
    )
  if output.is_dir():
    raise ValueError(
      f"--output must be a file, got the folder {output}. Name a file in it."
    )
  for written in (output, *_partial_paths(output)):
    if written.exists() and file.exists() and written.samefile(file):
      raise ValueError(
        f"--output must leave --input as it is, got {output}, which would"
        f" replace {file}. Name another."
      )
  if output.exists():
    raise ValueError(
      f"--output must be a new file, got {output}, which exists. Delete it, or"
      " name another."
    )
  home = next(p for p in output.absolute().parents if p.exists())
  if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
    raise ValueError(
      f"--output must lie where files can be made, got {output}, where {home}"
      " is not a folder that can be written to. Name another."
    )


class Partial:
  """Predictions being written, which a later process can go on with.

  The file is this process's alone until the `with` block is left.

  Args:
    output: the file to be.
    about: JSON values on which the predictions depend.

  Attributes:
    file: where they are until all are there.
    dialogues: those whose predictions are safe.
    utterances: the like.

  Raises:
    ValueError: what was begun there depended on other values, or another
      process is at it.
  """

  def __init__(self, output: pathlib.Path, about: dict):
    self._output, self._about = output, about
    self.file, self._state = _partial_paths(output)
    self.dialogues = self.utterances = self._bytes = 0
    self.file.parent.mkdir(parents=True, exist_ok=True)
    is_new = not self.file.exists()
    self._lock = atomic.hold(
      self.file,
      f"One command at a time must write an --output, got {output} with another"
      " at work. Wait for it, end it, or name another.",
    )
    if is_new or not self._state.exists():
      return
    try:
      self._go_on()
    except ValueError:
      self._lock.close()
      raise

  def __enter__(self) -> "Partial":
    return self

  def __exit__(self, *error) -> None:
    self._lock.close()

  def _go_on(self) -> None:
    """Reads how far the file got."""
    state = json.loads(self._state.read_text())
    differ = [
      key
      for key, value in self._about.items()
      if state["about"].get(key) != value
    ]
    if differ:
      raise ValueError(
        f"{self.file} must go on as it began, got another"
        f" {', another '.join(differ)}. Delete it to start anew, or name"
        " another --output."
      )
    if self.file.stat().st_size < state["bytes"]:
      raise ValueError(
        f"{self.file} must be as it was left, got fewer than the"
        f" {state['bytes']} bytes that {self._state.name} tells of. Delete both"
        " to start anew."
      )
    self.dialogues, self.utterances = state["dialogues"], state["utterances"]
    self._bytes = state["bytes"]

  def write(
    self,
    chunks: Iterable[tuple[int, Sequence[predictor_lib.Prediction]]],
    classes: Sequence[str],
  ) -> None:
    """Adds what follows, then gives the file its name.

    Args:
      chunks: dialogues and predictions of each; a chunk is safe as a whole.
      classes: of the student.
    """
    with self.file.open("r+b") as f:
      f.truncate(self._bytes)  # a chunk that was cut off
      f.seek(self._bytes)
      if _is_csv(self._output) and not self._bytes:
        f.write(_csv_text([_csv_header(classes)]))
      for dialogues, predictions in chunks:
        if _is_csv(self._output):
          f.write(_csv_text(_csv_row(p) for p in predictions))
        else:
          f.writelines(p.to_json().encode() + b"\n" for p in predictions)
        f.flush()
        os.fsync(f.fileno())
        self._bytes = f.tell()
        self.dialogues += dialogues
        self.utterances += len(predictions)
        self._save()
    self.file.replace(self._output)
    self._state.unlink()

  def _save(self) -> None:
    state = {
      "about": self._about,
      "dialogues": self.dialogues,
      "utterances": self.utterances,
      "bytes": self._bytes,
    }
    with atomic.replacing(self._state) as temporary:
      temporary.write_text(json.dumps(state, indent=2) + "\n")


def predict(
  predictor: predictor_lib.Predictor,
  file: pathlib.Path,
  summary: Summary,
  partial: Partial,
) -> None:
  """Predicts a file's dialogues, from where the output ends.

  Args:
    predictor: labels the utterances.
    file: what `read` reads.
    summary: of `check`.
    partial: where the predictions go.

  Raises:
    ValueError: the file is not what it was.
  """
  bar = tqdm.tqdm(
    total=summary.utterances,
    initial=partial.utterances,
    desc="predicting",
    unit="utterance",
  )

  def predicted():
    left = itertools.islice(read(file), partial.dialogues, None)
    for chunk in predictor_lib.in_chunks(left):
      yield len(chunk), list(predictor.predict(chunk, bar.update))
    if partial.dialogues != summary.dialogues:
      raise ValueError(
        f"{file} must stay as it is until it is predicted, got"
        f" {partial.dialogues} dialogues where there were {summary.dialogues}."
        f" Delete {partial.file}, and give the command again."
      )

  with bar:
    partial.write(predicted(), predictor.classes)


def sha256_of_student(workdir: pathlib.Path) -> str:
  """Returns a digest of all files that decide a student's predictions."""
  model = workdir / "model.onnx"
  if not model.exists():
    model = workdir / "checkpoints" / "student"
  files = [workdir / "student.json", workdir / "tokenizer.json", model]
  files += sorted(model.rglob("*"))
  digest = hashlib.sha256()
  for file in files:
    if file.is_file():
      with file.open("rb") as f:
        part = hashlib.file_digest(f, "sha256").hexdigest()
      digest.update(f"{file.relative_to(workdir)} {part}\n".encode())
  return digest.hexdigest()


def _partial_paths(output: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns the files of unfinished predictions, and of how far they are."""
  name = f"{output.name}.partial"
  return output.with_name(name), output.with_name(f"{name}.json")


def _is_csv(file: pathlib.Path) -> bool:
  return file.name.lower().endswith((".csv", ".csv.gz"))


def _decoded(file: pathlib.Path, number: int, line: bytes) -> str:
  try:
    return line.decode()
  except UnicodeDecodeError as error:
    near = line[max(0, error.start - 20) : error.start + 20]
    raise ValueError(
      f"{file}, line {number}: a file must be UTF-8, got {near!r}. Save it as"
      " UTF-8."
    ) from error


def _read_json_lines(
  file: pathlib.Path,
) -> Iterator[tuple[int, Transcript]]:
  with lines.opened(file) as f:
    for number, line in lines.numbered(f):
      text = _decoded(file, number, line)
      try:
        values = json.loads(text)
        utterances = values["utterances"]
        if not utterances or not isinstance(utterances, list):
          raise TypeError("no utterances")
        yield (
          number,
          Transcript(
            values["dialogue_id"],
            tuple(u["speaker"] for u in utterances),
            tuple(u["text"] for u in utterances),
          ),
        )
      except (ValueError, TypeError, KeyError, RecursionError) as error:
        said = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
          f"{file}, line {number}: a line must be one JSON dialogue with"
          " dialogue_id and utterances, each with speaker and text; got:"
          f" {said}. Correct the line."
        ) from error


def _read_csv(file: pathlib.Path) -> Iterator[tuple[int, Transcript]]:
  csv.field_size_limit(_LONGEST_FIELD)
  with lines.opened(file) as f:
    # Bytes that are no UTF-8 come through, for their line to be known.
    text = io.TextIOWrapper(f, "utf-8-sig", "surrogateescape", newline="")
    checked = (
      _decoded(file, number, line.encode(errors="surrogateescape"))
      for number, line in enumerate(text, start=1)
    )
    for dialogue_id, group in itertools.groupby(
      _csv_rows(file, checked), key=lambda row: row[1][0]
    ):
      numbers, rows_L = zip(*group, strict=True)
      _, speakers, texts = zip(*rows_L, strict=True)
      yield numbers[0], Transcript(dialogue_id, speakers, texts)


def _csv_rows(
  file: pathlib.Path, texts: Iterable[str]
) -> Iterator[tuple[int, list[str]]]:
  """Yields the `_COLUMNS` of the rows, with the lines where they begin."""
  reader = csv.reader(texts, strict=True)
  number = 1
  try:
    header = next(reader, [])
    missing = [c for c in _COLUMNS if c not in header]
    if missing:
      raise ValueError(
        f"{file}: the header must have {', '.join(_COLUMNS)}, with commas"
        f" between, got none for {', '.join(missing)} in"
        f" {','.join(header)[:200]!r}. Correct it, or save the file as CSV with"
        " commas."
      )
    places = [header.index(c) for c in _COLUMNS]
    number = reader.line_num + 1
    for row in reader:
      if row and len(row) != len(header):
        raise ValueError(
          f"{file}, line {number}: a row must have the {len(header)} fields of"
          f" the header, got {len(row)}. {_QUOTING}"
        )
      if row:
        yield number, [row[i] for i in places]
      number = reader.line_num + 1
  except csv.Error as error:
    raise ValueError(
      f"{file}: the row that begins on line {number} must be CSV, got:"
      f" {error}. {_QUOTING}"
    ) from error


def _csv_header(classes: Sequence[str]) -> list[str]:
  probabilities = [f"probability_{name}" for name in classes]
  return ["dialogue_id", "utterance", "label", "abstained", *probabilities]


def _csv_row(prediction: predictor_lib.Prediction) -> list:
  label = prediction.label
  if isinstance(label, list):
    label = json.dumps(label, ensure_ascii=False)
  return [
    prediction.dialogue_id,
    prediction.utterance,
    label,
    str(prediction.abstained).lower(),
    *(round(p, 6) for p in prediction.probabilities.values()),
  ]


def _csv_text(rows: Iterable[Sequence]) -> bytes:
  text = io.StringIO()
  csv.writer(text, lineterminator="\n").writerows(rows)
  return text.getvalue().encode()
