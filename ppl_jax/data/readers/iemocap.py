"""IEMOCAP (Busso et al., 2008): scenes that two actors play, with emotions.

Transcripts and labels as the SILICONE benchmark publishes them, with its split
by dialogue. The source folder holds `{train,dev,test}.csv`. Of the eleven codes
six are classes; utterances of the others, and those on which the annotators did
not agree (xxx), stay as context and are not labelled. The speakers are F and M,
who speak in any order.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ppl_jax.data import dialogues
from ppl_jax.data.readers import _files

VERSION = "1"
TASK = "single_label"
CLASSES = (
  "anger",
  "excitement",
  "frustration",
  "happiness",
  "neutral",
  "sadness",
)
URL = f"{_files.SILICONE}/iemocap"
SHA256 = {
  "train.csv": (
    "8bd85ac4c3081b9ab9a4607dc5726b563d7ace1dcc7b427ac751ed54d853086b"
  ),
  "dev.csv": "8133acf20055d1e82733f70aa2dd381b01d2749909d77b2da8f32444c964eb51",
  "test.csv": (
    "7749583b50747f584ce4e8b7c137c546107f37c203c4c9a342ab03b8a4fa4406"
  ),
}

_LABELS = {
  "ang": "anger",
  "exc": "excitement",
  "fru": "frustration",
  "hap": "happiness",
  "neu": "neutral",
  "sad": "sadness",
  "sur": None,
  "fea": None,
  "dis": None,
  "oth": None,
  "xxx": None,
}
_COLUMNS = ("Dialogue_ID", "Utterance_Id", "Utterance", "Emotion")


def source_files(
  source: pathlib.Path, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The files of the three splits; ValueError if one is not there."""
  _files.no_options("iemocap", options)
  return _files.tables(source, "IEMOCAP's")


def read(
  source: pathlib.Path,
  split: str,
  classes: tuple[str, ...],
  options: Mapping[str, Any],
) -> Iterator[dialogues.Dialogue]:
  """Yields the dialogues of a split in the order of the file.

  Args:
    source: the folder.
    split: "train", "validation" or "test".
    classes: `CLASSES`.
    options: none.

  Yields:
    Dialogues; utterances of other codes than the six are not labelled.

  Raises:
    ValueError: a row is not as it must be; names file and line.
  """
  del options
  rows = _files.csv_rows(_files.table(source, split), _COLUMNS)
  for name, run in _files.runs(rows, "Dialogue_ID"):
    utterances = [
      _files.Utterance(
        where,
        _speaker(where, row["Utterance_Id"]),
        row["Utterance"],
        row["Emotion"],
      )
      for where, row in run
    ]
    yield _files.to_dialogue(name, utterances, classes, _LABELS)


def download(folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
  """Fetches the files that `folder` lacks; gives a folder for `source_files`.

  Raises:
    ConnectionError: the address does not answer.
    ValueError: what came is another file.
  """
  _files.no_options("iemocap", options)
  return _files.download_files(folder, URL, SHA256, "IEMOCAP")


def _speaker(where: str, utterance_id: str) -> str:
  """The letter of the last part: the session's says who wore the markers."""
  speaker = utterance_id.rpartition("_")[2][:1]
  if speaker not in ("F", "M"):
    raise ValueError(
      f"{where}: the last part of Utterance_Id must begin with F or M, who"
      f" speaks; got {utterance_id!r}: correct the line"
    )
  return speaker
