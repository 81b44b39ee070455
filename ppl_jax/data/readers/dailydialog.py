"""DailyDialog (Li et al., 2017): two speakers in turn, acts and emotions.

The source folder holds `<split>/dialogues_<split>.txt` (a dialogue a line, each
utterance followed by `__eou__`), `<split>/dialogues_act_<split>.txt` and
`<split>/dialogues_emotion_<split>.txt` (a number an utterance). The files have
no ids and no speakers: a dialogue is `<split>-<line, from 0>`, its speakers are
A and B.

Option `labels`: "act" (4 classes, the default), "emotion" (7 with "none") or
"intent" (1: questions and directives have an intent, other acts have none).
"""

import itertools
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ppl_jax.data import dialogues
from ppl_jax.data.readers import _files

VERSION = "1"
TASK = "single_label"
URL = "http://yanran.li/files/ijcnlp_dailydialog.zip"

# From the digit in the files to the class, None for none of the classes; the
# classes are in digit order.
_LABELS = {
  "act": {
    "1": "inform",
    "2": "question",
    "3": "directive",
    "4": "commissive",
  },
  "emotion": {
    "0": "none",
    "1": "anger",
    "2": "disgust",
    "3": "fear",
    "4": "happiness",
    "5": "sadness",
    "6": "surprise",
  },
  "intent": {"1": None, "2": "intent", "3": "intent", "4": None},
}
_FILE = {"act": "act", "emotion": "emotion", "intent": "act"}
_END = "__eou__"


def class_names(options: Mapping[str, Any]) -> tuple[str, ...]:
  """The classes in digit order; ValueError for an unknown option."""
  names = _LABELS[_kind(options)].values()
  return tuple(dict.fromkeys(name for name in names if name))


def source_files(
  source: pathlib.Path, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The text and label files of the three splits; ValueError if one is not."""
  kind = _kind(options)
  files = [f for split in dialogues.SPLITS for f in _pair(source, split, kind)]
  what = "the unpacked DailyDialog folder with train, validation and test in it"
  return _files.existing(source, files, what)


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
    ValueError: text and labels of a line do not match; names file and line.
  """
  kind = _kind(options)
  names = _LABELS[kind]
  column = {name: c for c, name in enumerate(classes)}
  text_file, label_file = _pair(source, split, kind)
  with (
    text_file.open(encoding="utf-8", newline="\n") as text_lines,
    label_file.open(encoding="utf-8", newline="\n") as label_lines,
  ):
    pairs = itertools.zip_longest(text_lines, label_lines)
    for line, (text_line, label_line) in enumerate(pairs):
      if text_line is None or label_line is None:
        short = text_file if text_line is None else label_file
        raise ValueError(
          f"{text_file.name} and {label_file.name} must have as many lines, got"
          f" no line {line + 1} in {short}: take both from the same archive"
        )
      texts = [text.strip() for text in text_line.split(_END)]
      if not texts[-1]:
        texts.pop()
      labels = label_line.split()
      where = f"{text_file}, line {line + 1}"
      if not texts or not all(texts):
        raise ValueError(
          f"{where}: every utterance must have a text, got {len(texts)}"
          f" utterances with {sum(not t for t in texts)} of them empty: correct"
          " the line"
        )
      if len(texts) != len(labels):
        raise ValueError(
          f"{where}: a line must have one label an utterance, got {len(texts)}"
          f" utterances and {len(labels)} labels in {label_file.name}: take"
          " both files from the same archive (one edition is known to have"
          " this fault) or correct the line"
        )
      unknown = [label for label in labels if label not in names]
      if unknown:
        raise ValueError(
          f"{label_file}, line {line + 1}: {kind} labels must be of"
          f" {', '.join(names)}; got {unknown[0]!r}: correct the line"
        )
      gold = np.zeros((len(texts), len(classes)), np.uint8)
      for i, label in enumerate(labels):
        if names[label]:
          gold[i, column[names[label]]] = 1
      yield dialogues.Dialogue(
        dialogue_id=f"{split}-{line}",
        speakers=tuple("AB"[i % 2] for i in range(len(texts))),
        texts=tuple(texts),
        gold=gold,
        labelled=np.ones(len(texts), np.bool_),
      )


def download(folder: pathlib.Path, options: Mapping[str, Any]) -> pathlib.Path:
  """Fetches and unpacks the published archive, unless `folder` has it.

  Args:
    folder: where to keep the files.
    options: see the module; the files of all options are unpacked.

  Returns:
    A folder as `source_files` wants it.

  Raises:
    ConnectionError: the address does not answer.
    ValueError: what came is not the archive that we know.
  """
  _kind(options)
  unpacked = folder / "ijcnlp_dailydialog"
  if unpacked.exists():
    return unpacked
  folder.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(prefix=".incomplete-", dir=folder) as work:
    archive = pathlib.Path(work, "archive.zip")
    _files.fetch(URL, archive, "DailyDialog")
    whole = pathlib.Path(work, "whole")
    _unpack(archive, whole)
    try:
      os.rename(whole, unpacked)
    except OSError:
      # Another process was faster: what it unpacked is the same.
      if not unpacked.exists():
        raise
  return unpacked


def _kind(options: Mapping[str, Any]) -> str:
  return _files.option("dailydialog", options, "labels", _LABELS)


def _pair(source: pathlib.Path, split: str, kind: str) -> list[pathlib.Path]:
  return [
    source / split / f"dialogues_{split}.txt",
    source / split / f"dialogues_{_FILE[kind]}_{split}.txt",
  ]


def _unpack(archive: pathlib.Path, whole: pathlib.Path) -> None:
  """Takes the nine files that we read, and nothing else, out of the archive."""
  try:
    with zipfile.ZipFile(archive) as outer:
      for split in dialogues.SPLITS:
        with (
          outer.open(f"ijcnlp_dailydialog/{split}.zip") as stream,
          zipfile.ZipFile(stream) as inner,
        ):
          _unpack_split(inner, whole, split)
  except (zipfile.BadZipFile, KeyError) as e:
    raise ValueError(
      f"the archive at {URL} must hold ijcnlp_dailydialog/{{train,validation,"
      f"test}}.zip with the text and label files in them, got {e}: unpack the"
      " files by hand and set config.dataset.source to their folder"
    ) from e


def _unpack_split(
  inner: zipfile.ZipFile, whole: pathlib.Path, split: str
) -> None:
  names = {_pair(whole, split, kind)[k] for kind in _LABELS for k in (0, 1)}
  for target in sorted(names):
    found = f"{split}/{target.name}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with inner.open(found) as member, target.open("wb") as out:
      shutil.copyfileobj(member, out)
