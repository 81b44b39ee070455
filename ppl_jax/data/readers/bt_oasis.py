"""BT-Oasis (Leech and Weisser, 2003): calls to a telephone company, 42 acts.

The source folder holds `oasis_data` of NathanDuran's BT-Oasis-Corpus: the names
of each split's calls in `metadata/{train,val,test}_split.txt`, and for each
call a file of lines `speaker|text|label` in `train`, `val` or `test`. The
concatenations beside them (`*_set.txt`) do not say where a call ends. `val` and
`test` hold calls of an earlier split besides: the lists say what belongs where,
not the folders. The speakers are a, an operator, and b, who calls.

Option `edition`: "corpus", the split of the lists (the default), or "silicone",
the earlier one, which the SILICONE benchmark has: train is the same, 29 calls
of validation and test are exchanged. It is found by the copies left over: such
a call is listed for one split and lies in the folders of both.
"""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from ppl_jax.data import dialogues
from ppl_jax.data.readers import _files

VERSION = "1"
TASK = "single_label"
CLASSES = (
  *("inform", "ackn", "reqInfo", "backch", "answ", "init", "thank", "greet"),
  *("accept", "answElab", "informIntent", "bye", "direct", "confirm"),
  *("expressRegret", "hold", "expressOpinion", "offer", "echo", "appreciate"),
  *("refer", "suggest", "reqDirect", "negate", "exclaim", "pardon"),
  *("identifySelf", "expressPossibility", "raiseIssue", "expressWish"),
  *("reqModal", "complete", "directElab", "correct", "refuse"),
  *("informIntent-hold", "informDisc", "informCont", "selfTalk", "correctSelf"),
  *("expressRegret-inform", "thank-identifySelf"),
)
REPOSITORY = "https://github.com/NathanDuran/BT-Oasis-Corpus"
COMMIT = "af27bce2ca78c94d79a825254b9d6699660d70d6"

_DATA = "oasis_data"
_EDITIONS = ("corpus", "silicone")
_OTHER = {"validation": "test", "test": "validation"}
_FIELDS = ("speaker", "text", "label")
_LABELS = {name: name for name in CLASSES}


def source_files(
  source: pathlib.Path, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The lists and the calls' files; ValueError if one is not there."""
  edition = _edition(options)
  what = f"the folder that holds {_DATA} of BT-Oasis-Corpus"
  files = _files.listed_files(source / _DATA, what)
  if edition == "silicone":
    for split in _OTHER:
      files += _copies(source, split).values()
  return files


def read(
  source: pathlib.Path,
  split: str,
  classes: tuple[str, ...],
  options: Mapping[str, Any],
) -> Iterator[dialogues.Dialogue]:
  """Yields the calls of a split, by name.

  Args:
    source: the folder.
    split: "train", "validation" or "test".
    classes: `CLASSES`.
    options: see the module.

  Yields:
    Dialogues, every utterance labelled; the id is the file's name.

  Raises:
    ValueError: a line is not as it must be; names file and line.
  """
  calls = _files.listed(source / _DATA, split)
  if _edition(options) == "silicone" and split in _OTHER:
    moved = _copies(source, split)
    came = _copies(source, _OTHER[split])
    calls = {n: f for n, f in calls.items() if n not in moved} | came
  for name, file in sorted(calls.items()):
    utterances = [
      _files.Utterance(*line) for line in _files.piped(file, _FIELDS)
    ]
    yield _files.to_dialogue(name, utterances, classes, _LABELS)


def download(folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
  """Fetches the corpus, unless it is there; gives a folder for `source_files`.

  Raises:
    ConnectionError: the address does not answer.
    ValueError: what came is something else.
  """
  _edition(options)
  return _files.download_repository(folder, REPOSITORY, COMMIT, _DATA)


def _edition(options: Mapping[str, Any]) -> str:
  return _files.option("bt_oasis", options, "edition", _EDITIONS)


def _copies(source: pathlib.Path, split: str) -> dict[str, pathlib.Path]:
  """Those of a split's calls that also lie in the other one's folder.

  Raises:
    ValueError: there are none, or a copy is not one.
  """
  other = source / _DATA / _files.VAL[_OTHER[split]]
  copies = {}
  for name, file in _files.listed(source / _DATA, split).items():
    copy = other / file.name
    if copy.is_file():
      if copy.read_bytes() != file.read_bytes():
        raise ValueError(
          f"{file} and {copy} must be the same, got two texts: take the"
          " published files"
        )
      copies[name] = copy
  if not copies:
    raise ValueError(
      "the silicone edition of bt_oasis is known by calls that are listed for"
      f" {_files.VAL[split]} and lie in {other} too, got none: take the"
      " published folders whole, or the corpus edition"
    )
  return copies
