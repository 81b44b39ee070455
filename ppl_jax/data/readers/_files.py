"""What the readers of published files share: checks, tables and downloads."""

import csv
import hashlib
import http.client
import itertools
import os
import pathlib
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tqdm

from ppl_jax.data import dialogues

SILICONE = (
  "https://raw.githubusercontent.com/eusip/SILICONE-benchmark/"
  "daef3dc14340530a71b2b02d5c4f0200b104c373"
)
# The names that publishers give to the splits.
_DEV = {"train": "train", "validation": "dev", "test": "test"}
VAL = {"train": "train", "validation": "val", "test": "test"}

_TIMEOUT_SECONDS = 30


class Utterance(NamedTuple):
  """One row of a published file.

  Attributes:
    where: file and line, for messages.
    speaker: name or role.
    text: what is said.
    label: as it is written in the file.
  """

  where: str
  speaker: str
  text: str
  label: str


def option(
  dataset: str, options: Mapping[str, Any], key: str, values: Iterable[str]
) -> str:
  """Returns the value of a reader's only option; the first is the default.

  Raises:
    ValueError: there is another option, or another value.
  """
  values = tuple(values)
  value = options.get(key, values[0])
  if set(options) - {key} or value not in values:
    raise ValueError(
      f"config.dataset.options of {dataset} may hold only {key!r}, one of"
      f" {', '.join(values)}; got {dict(options)}: correct it"
    )
  return value


def no_options(dataset: str, options: Mapping[str, Any]) -> None:
  """Raises ValueError where there are options."""
  if options:
    raise ValueError(
      f"dataset {dataset!r} has no options, got {dict(options)}: leave"
      " config.dataset.options empty"
    )


def existing(
  source: pathlib.Path, files: Iterable[pathlib.Path], what: str
) -> list[pathlib.Path]:
  """Returns the files.

  Args:
    source: the folder that the user named.
    files: in it.
    what: what the folder is, for the message.

  Raises:
    ValueError: one of them does not exist.
  """
  files = list(files)
  for file in files:
    if not file.is_file():
      raise ValueError(
        f"config.dataset.source must name {what}; got {str(source)!r}, which"
        f" lacks {str(file.relative_to(source))!r}: correct the path, or leave"
        " it empty to download the files"
      )
  return files


def table(source: pathlib.Path, split: str, end: str = "") -> pathlib.Path:
  """Returns the CSV file of a split, `{train,dev,test}<end>.csv`."""
  return source / f"{_DEV[split]}{end}.csv"


def tables(
  source: pathlib.Path, dataset: str, end: str = ""
) -> list[pathlib.Path]:
  """Returns the CSV files of all splits; ValueError if one is not there."""
  files = [table(source, split, end) for split in dialogues.SPLITS]
  return existing(source, files, f"the folder with {dataset} CSV files")


def listed(data: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
  """Returns the files of a split in a folder of NathanDuran's corpora, by name.

  `metadata/{train,val,test}_split.txt` has the names of those in `train`, `val`
  or `test`, which may hold others too.
  """
  folder = data / VAL[split]
  return {name: folder / f"{name}.txt" for name in names_in(_list(data, split))}


def listed_files(data: pathlib.Path, what: str) -> list[pathlib.Path]:
  """Returns the lists and the files of all splits, see `listed`.

  Args:
    data: the folder, in the one that the user named.
    what: what the latter is, for the message.

  Raises:
    ValueError: one of them does not exist.
  """
  lists = [_list(data, split) for split in dialogues.SPLITS]
  files = existing(data.parent, lists, what)
  for split in dialogues.SPLITS:
    files += existing(data.parent, listed(data, split).values(), what)
  return files


def _list(data: pathlib.Path, split: str) -> pathlib.Path:
  return data / "metadata" / f"{VAL[split]}_split.txt"


def csv_rows(
  file: pathlib.Path, columns: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields the rows of a CSV file with a header, each after file and line.

  Args:
    file: UTF-8, fields quoted where they must be.
    columns: those that the header must have; it may have more.

  Raises:
    ValueError: a column is missing, or the file is no such CSV.
  """
  with file.open(encoding="utf-8-sig", newline="") as f:
    reader = csv.DictReader(f, strict=True)
    try:
      missing = [c for c in columns if c not in (reader.fieldnames or ())]
      if missing:
        raise ValueError(
          f"{file}: the header must have the columns {', '.join(columns)}; got"
          f" {reader.fieldnames} without {', '.join(missing)}: take the"
          " published file"
        )
      for row in reader:
        where = f"{file}, line {reader.line_num}"
        if None in row or None in row.values():
          raise ValueError(
            f"{where}: a row must have {len(reader.fieldnames)} fields, as the"
            f" header has, got another number: correct the line"
          )
        yield where, row
    except (csv.Error, UnicodeDecodeError) as e:
      raise ValueError(
        f"{file}: must be CSV in UTF-8, got {e} after line {reader.line_num}:"
        " take the published file"
      ) from e


def runs(
  rows: Iterable[tuple[str, dict[str, str]]], column: str
) -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
  """Yields runs of rows with one value in a column, each after that value.

  Raises:
    ValueError: a value comes back after its run.
  """
  seen, run, value = set(), [], None
  for where, row in rows:
    if run and row[column] != value:
      yield value, run
      run = []
    if not run:
      value = row[column]
      if value in seen:
        raise ValueError(
          f"{where}: the rows of a dialogue must be together, got {column}"
          f" {value!r}, which ended before: put its rows in one place"
        )
      seen.add(value)
    run.append((where, row))
  if run:
    yield value, run


def piped(file: pathlib.Path, names: Sequence[str]) -> Iterator[list[str]]:
  """Yields lines of fields parted by `|`, each with file and line in front.

  Args:
    file: UTF-8; only a line feed ends a line.
    names: of the fields, for the message.

  Raises:
    ValueError: a line has another number of fields.
  """
  with file.open(encoding="utf-8", newline="\n") as f:
    for number, line in enumerate(f, start=1):
      fields = line.rstrip("\r\n").split("|")
      where = f"{file}, line {number}"
      if len(fields) != len(names):
        raise ValueError(
          f"{where}: a line must be {'|'.join(names)}, got {len(fields)}"
          " fields: correct the line"
        )
      yield [where, *fields]


def to_dialogue(
  dialogue_id: str,
  utterances: Sequence[Utterance],
  classes: Sequence[str],
  labels: Mapping[str, str | None],
) -> dialogues.Dialogue:
  """Makes a dialogue, in which every utterance has one label or none.

  Args:
    dialogue_id: unique within the split.
    utterances: L, in order.
    classes: C names.
    labels: from the label in the file to the class; None: not labelled.

  Raises:
    ValueError: a label is not among these, or a speaker or text is empty.
  """
  gold = np.zeros((len(utterances), len(classes)), np.uint8)
  labelled = np.zeros(len(utterances), np.bool_)
  column = {name: c for c, name in enumerate(classes)}
  for i, utterance in enumerate(utterances):
    if not utterance.text.strip() or not utterance.speaker.strip():
      raise ValueError(
        f"{utterance.where}: an utterance must have a speaker and a text, got"
        f" {utterance.speaker!r} and {utterance.text!r}: correct the line or"
        " take it out"
      )
    if utterance.label not in labels:
      raise ValueError(
        f"{utterance.where}: a label must be of {', '.join(labels)}; got"
        f" {utterance.label!r}: correct the line"
      )
    name = labels[utterance.label]
    if name is not None:
      gold[i, column[name]] = 1
      labelled[i] = True
  return dialogues.Dialogue(
    dialogue_id=dialogue_id,
    speakers=tuple(u.speaker.strip() for u in utterances),
    texts=tuple(u.text.strip() for u in utterances),
    gold=gold,
    labelled=labelled,
  )


def names_in(file: pathlib.Path) -> list[str]:
  """Returns the names in a list, one a line, sorted.

  Raises:
    ValueError: a name comes twice, or there is none.
  """
  names = sorted(file.read_text("utf-8").split())
  twice = [a for a, b in itertools.pairwise(names) if a == b]
  if twice or not names:
    raise ValueError(
      f"{file}: a list must hold names, each once; got"
      f" {f'{twice[0]!r} twice' if twice else 'none'}: take the published file"
    )
  return names


def fetch(url: str, target: pathlib.Path, name: str) -> None:
  """Downloads a file.

  Args:
    url: its address.
    target: where it goes.
    name: of the dataset, for the progress bar and messages.

  Raises:
    ConnectionError: the address does not answer.
  """
  try:
    with (
      urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer,
      target.open("wb") as out,
      tqdm.tqdm(
        desc=f"downloading {name}",
        total=int(answer.headers.get("Content-Length") or 0) or None,
        unit="B",
        unit_scale=True,
      ) as bar,
    ):
      while block := answer.read(1 << 16):
        out.write(block)
        bar.update(len(block))
      if bar.total and bar.n != bar.total:
        raise ConnectionError(f"{bar.n} of {bar.total} bytes came")
  except (OSError, http.client.HTTPException) as e:
    raise ConnectionError(
      f"{name} could not be downloaded from {url}, got {e!r}: set"
      " config.dataset.source to a folder with the unpacked files, or try again"
      " with a network"
    ) from e


def download_files(
  folder: pathlib.Path, base: str, sha256: Mapping[str, str], name: str
) -> pathlib.Path:
  """Downloads those published files that the folder does not have yet.

  Args:
    folder: where they go; is made.
    base: the address that they share.
    sha256: from a file's name to the SHA-256 of its content.
    name: of the dataset.

  Returns:
    The folder.

  Raises:
    ConnectionError: an address does not answer.
    ValueError: what came is another file.
  """
  folder.mkdir(parents=True, exist_ok=True)
  for file, wanted in sha256.items():
    target = folder / file
    if target.exists():
      continue
    with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=folder) as work:
      came = pathlib.Path(work, file)
      fetch(f"{base}/{file}", came, f"{name} {file}")
      got = hashlib.sha256(came.read_bytes()).hexdigest()
      if got != wanted:
        raise ValueError(
          f"{base}/{file} must have the SHA-256 {wanted}, got {got}: take the"
          " file from elsewhere and set config.dataset.source to its folder"
        )
      os.replace(came, target)
  return folder


def download_repository(
  folder: pathlib.Path, repository: str, commit: str, part: str
) -> pathlib.Path:
  """Downloads one folder of a GitHub repository, unless it is there.

  Args:
    folder: where the repository's folder goes; is made.
    repository: its address.
    commit: which state.
    part: the folder of it that is kept.

  Returns:
    The repository's folder, which holds `part`.

  Raises:
    ConnectionError: the address does not answer.
    ValueError: what came is no archive with such a folder.
  """
  name = repository.rpartition("/")[2]
  url = f"{repository}/archive/{commit}.zip"
  root = f"{name}-{commit}"
  unpacked = folder / root
  if unpacked.exists():
    return unpacked
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=folder) as work:
    archive = pathlib.Path(work, "archive.zip")
    fetch(url, archive, name)
    try:
      with zipfile.ZipFile(archive) as z:
        wanted = f"{root}/{part}/"
        members = [m for m in z.namelist() if m.startswith(wanted)]
        z.extractall(work, members)
    except zipfile.BadZipFile as e:
      members, cause = [], e
    else:
      cause = None
    if not members:
      raise ValueError(
        f"the archive at {url} must hold {root}/{part}, got"
        f" {cause or 'none'}: unpack the files by hand and set"
        " config.dataset.source to their folder"
      ) from cause
    try:
      os.rename(pathlib.Path(work, root), unpacked)
    except OSError:
      # Another process was faster: what it unpacked is the same.
      if not unpacked.exists():
        raise
  return unpacked
