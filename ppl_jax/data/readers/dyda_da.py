"""DailyDialog's acts as the SILICONE benchmark publishes them (dyda_da).

These are DailyDialog's dialogues in lower case, in the same order and with the
same splits and duplicates: a student of one of the two must not be tested on
the other's test split after it has seen this one's.

The source folder holds `{train,dev,test}.csv`. A dialogue is a run of rows with
one `Dialogue_ID`, which starts at 1 in every split: the reader's id is
`<split>-<Dialogue_ID>`. There is no column of speakers, who take turns: A, B.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ppl_jax.data import dialogues
from ppl_jax.data.readers import _files

VERSION = "1"
TASK = "single_label"
CLASSES = ("inform", "question", "directive", "commissive")
URL = f"{_files.SILICONE}/dyda"
SHA256 = {
  "train.csv": (
    "9710558dd08351e1544424fcf43f8aed5a3e99daba3e1f133e86acf2373fb4c6"
  ),
  "dev.csv": "66be9ec11f0234686cd338d5e7a374e1706ffd998b54fd3e6b72ef18598470b2",
  "test.csv": (
    "3b711ebac2a1a64067aea5252c6bbbb1abe1f9f1434d2e94f9dd4a99706fc2ce"
  ),
}

_LABELS = {name: name for name in CLASSES}
_COLUMNS = ("Utterance", "Dialogue_Act", "Dialogue_ID")


def source_files(
  source: pathlib.Path, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The files of the three splits; ValueError if one is not there."""
  _files.no_options("dyda_da", options)
  return _files.tables(source, "dyda's")


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
    Dialogues, every utterance labelled.

  Raises:
    ValueError: a row is not as it must be; names file and line.
  """
  del options
  rows = _files.csv_rows(_files.table(source, split), _COLUMNS)
  for name, run in _files.runs(rows, "Dialogue_ID"):
    utterances = [
      _files.Utterance(
        where, "AB"[i % 2], row["Utterance"], row["Dialogue_Act"]
      )
      for i, (where, row) in enumerate(run)
    ]
    yield _files.to_dialogue(f"{split}-{name}", utterances, classes, _LABELS)


def download(folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
  """Fetches the files that `folder` lacks; gives a folder for `source_files`.

  Raises:
    ConnectionError: the address does not answer.
    ValueError: what came is another file.
  """
  _files.no_options("dyda_da", options)
  return _files.download_files(folder, URL, SHA256, "dyda_da")
