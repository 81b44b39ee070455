"""MELD (Poria et al., 2019): scenes of a television comedy, several speakers.

The source folder holds `{train,dev,test}_sent_emo.csv`. A dialogue is a run of
rows with one `Dialogue_ID`, which starts again in every split: the reader's id
is `<split>-<Dialogue_ID>`. Rows are in order; their numbers have gaps. Copies
from before November 2020, with Windows' characters read as C1 controls, give
the same text but for three rows with a no-break space.

Option `labels`: "sentiment" (3 classes, the default) or "emotion" (7).
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ppl_jax.data import dialogues
from ppl_jax.data.readers import _files

VERSION = "1"
TASK = "single_label"
URL = (
  "https://raw.githubusercontent.com/declare-lab/MELD/"
  "2d2011b409d3ca2d7e94460cd007d434b1d0a102/data/MELD"
)
SHA256 = {
  "train_sent_emo.csv": (
    "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db"
  ),
  "dev_sent_emo.csv": (
    "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c"
  ),
  "test_sent_emo.csv": (
    "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888"
  ),
}

_CLASSES = {
  "sentiment": ("neutral", "positive", "negative"),
  "emotion": (
    "neutral",
    "joy",
    "surprise",
    "anger",
    "sadness",
    "disgust",
    "fear",
  ),
}
_END = "_sent_emo"
_COLUMN = {"sentiment": "Sentiment", "emotion": "Emotion"}
# Old copies hold cp1252's characters as the control of the same number.
_C1 = {
  number: bytes([number]).decode("cp1252", "ignore") or chr(number)
  for number in range(0x80, 0xA0)
}


def class_names(options: Mapping[str, Any]) -> tuple[str, ...]:
  """The classes of the labels that are asked for."""
  return _CLASSES[_kind(options)]


def source_files(
  source: pathlib.Path, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The files of the three splits; ValueError if one is not there."""
  _kind(options)
  return _files.tables(source, "MELD's", _END)


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
    classes: those of `class_names`.
    options: see the module.

  Yields:
    Dialogues, every utterance labelled.

  Raises:
    ValueError: a row is not as it must be; names file and line.
  """
  label = _COLUMN[_kind(options)]
  labels = {name: name for name in classes}
  file = _files.table(source, split, _END)
  rows = _files.csv_rows(file, ("Utterance", "Speaker", "Dialogue_ID", label))
  for name, run in _files.runs(rows, "Dialogue_ID"):
    utterances = [
      _files.Utterance(
        where,
        row["Speaker"].translate(_C1),
        row["Utterance"].translate(_C1),
        row[label],
      )
      for where, row in run
    ]
    yield _files.to_dialogue(f"{split}-{name}", utterances, classes, labels)


def download(folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
  """Fetches the files that `folder` lacks; gives a folder for `source_files`.

  Raises:
    ConnectionError: the address does not answer.
    ValueError: what came is another file.
  """
  _kind(options)
  return _files.download_files(folder, URL, SHA256, "MELD")


def _kind(options: Mapping[str, Any]) -> str:
  return _files.option("meld", options, "labels", _CLASSES)
