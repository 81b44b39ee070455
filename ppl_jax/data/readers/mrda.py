"""MRDA (Shriberg et al., 2004): meetings with dialogue acts, 5 basic tags.

Option `edition`, two readings of the corpus that differ in text, labels and
split:

"corpus", the default: NathanDuran's MRDA-Corpus. The source folder holds
`mrda_data/metadata/{train,val,test}_split.txt`, names of meetings, and for each
`mrda_data/{train,val,test}/<meeting>.txt`, lines of
`speaker|text|basic|general|full`. The text is cleaned; a line that the
annotators cut is several; 51, 12 and 12 meetings.

"silicone": the SILICONE benchmark. The source folder holds
`{train,dev,test}.csv`. The text keeps its marks (`==`, `@`, `|`), s also stands
for utterances without a label; 56, 6 and 11 meetings, two of the 75 are not in.

A meeting is one dialogue, of up to 3,391 utterances and three to nine speakers.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ppl_jax.data import dialogues
from ppl_jax.data.readers import _files

VERSION = "1"
TASK = "single_label"
CLASSES = (
  "statement",
  "backchannel",
  "disruption",
  "floor-grabber",
  "question",
)
REPOSITORY = "https://github.com/NathanDuran/MRDA-Corpus"
COMMIT = "58006b32d4e36ca518e365899924cd56035466a2"
URL = f"{_files.SILICONE}/mrda"
SHA256 = {
  "train.csv": (
    "d7a963aac70eb80d315b76b9e71d82a7888532ef8c6752c84487e34dfce3b7eb"
  ),
  "dev.csv": "dc795c60b3825645a20dbb0700e279271fc52eef4bc297564a0227f608a19619",
  "test.csv": (
    "8426417d316cb0aa57f13e46e866e8964eed71f719212ab1da1c3cbaa23ea414"
  ),
}

_DATA = "mrda_data"
_EDITIONS = ("corpus", "silicone")
_FIELDS = ("speaker", "text", "basic", "general", "full")
# The CSV's first column has another name in test than in train and dev.
_COLUMNS = ("Dialogue_Act", "Speaker", "Dialogue_ID", "Utterance")
_LABELS = dict(zip("SBDFQ", CLASSES, strict=True))
_SILICONE_LABELS = {tag.lower(): name for tag, name in _LABELS.items()}


def source_files(
  source: pathlib.Path, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The files of the edition; ValueError if one is not there."""
  if _edition(options) == "silicone":
    return _files.tables(source, "MRDA's")
  what = f"the folder that holds {_DATA} of MRDA-Corpus"
  return _files.listed_files(source / _DATA, what)


def read(
  source: pathlib.Path,
  split: str,
  classes: tuple[str, ...],
  options: Mapping[str, Any],
) -> Iterator[dialogues.Dialogue]:
  """Yields the meetings of a split, the corpus's by name.

  Args:
    source: the folder.
    split: "train", "validation" or "test".
    classes: `CLASSES`.
    options: see the module.

  Yields:
    Dialogues, every utterance labelled; the id is the meeting's name.

  Raises:
    ValueError: a line is not as it must be; names file and line.
  """
  if _edition(options) == "silicone":
    rows = _files.csv_rows(_files.table(source, split), _COLUMNS)
    for name, run in _files.runs(rows, "Dialogue_ID"):
      utterances = [
        _files.Utterance(
          where, row["Speaker"], row["Utterance"], row["Dialogue_Act"]
        )
        for where, row in run
      ]
      yield _files.to_dialogue(name, utterances, classes, _SILICONE_LABELS)
    return
  for name, file in _files.listed(source / _DATA, split).items():
    utterances = [
      _files.Utterance(*line[:4]) for line in _files.piped(file, _FIELDS)
    ]
    yield _files.to_dialogue(name, utterances, classes, _LABELS)


def download(folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
  """Fetches an edition, unless it is there; gives a folder for `source_files`.

  Raises:
    ConnectionError: the address does not answer.
    ValueError: what came is something else.
  """
  if _edition(options) == "silicone":
    return _files.download_files(folder / "silicone", URL, SHA256, "MRDA")
  return _files.download_repository(folder, REPOSITORY, COMMIT, _DATA)


def _edition(options: Mapping[str, Any]) -> str:
  return _files.option("mrda", options, "edition", _EDITIONS)
