"""Dialogues with labels, prepared once and read by index.

A dataset is one module in `ppl_jax/data/readers/`, found by the dataset's name:

    VERSION: str                 a new one prepares the data anew
    CLASSES: tuple[str, ...]     in order; None: the config names them
    TASK: str                    one of `TASKS`; None: the config names it
    source_files(source, options) -> list[Path]
        the files that `read` reads, after checking that they exist. `source` is
        None where the config names no folder and the reader downloads nothing.
    read(source, split, classes, options) -> Iterator[Dialogue]
        in order; nothing for a split that the dataset does not have. A reader
        whose TASK is None is told the config's by the keyword `task`.
    class_names(options) -> tuple[str, ...]      optional, instead of CLASSES
    download(folder, options) -> Path            optional; gives the source

Errors of `source_files`, `read` and `download` are the user's to read: they
name the file, the place in it and the remedy.

Shape letters: L utterances of one dialogue, C classes.
"""

import dataclasses
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ppl_jax.data import labels, storage

SPLITS = ("train", "validation", "test")
TASKS = ("single_label", "multi_label")


@dataclasses.dataclass(frozen=True)
class Dialogue:
  """One dialogue, with the gold of those utterances that have one.

  Attributes:
    dialogue_id: unique within its split.
    speakers: L names or roles.
    texts: L texts, none of them blank.
    gold: [L, C] uint8, 1 where the utterance is of the class.
    labelled: [L] bool; where False, the row of `gold` means nothing.
  """

  dialogue_id: str
  speakers: tuple[str, ...]
  texts: tuple[str, ...]
  gold: np.ndarray
  labelled: np.ndarray

  def text_sha256(self) -> str:
    """Hex SHA-256 of the speakers and texts, to tie scores to them."""
    pairs = list(zip(self.speakers, self.texts, strict=True))
    line = json.dumps(pairs, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(line.encode("utf-8")).hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared dataset.

  Attributes:
    name: the reader's name.
    classes: the C classes, in the order of `Dialogue.gold`.
    task: one of `TASKS`.
    key: names the content: source files, reader version, classes, options.
    folder: the prepared folder; files made from this data may be kept there.
    splits: from those of `SPLITS` that the dataset has to their dialogues, in
      their original order, read from disk by index.
  """

  name: str
  classes: tuple[str, ...]
  task: str
  key: str
  folder: pathlib.Path
  splits: Mapping[str, Sequence[Dialogue]]


def load_config(config: Mapping[str, Any]) -> Dataset:
  """Opens the dataset that the `dataset` part of a config names.

  What people labelled afterwards is laid over train's gold; see `labels` and
  `load`.
  """
  dataset = load(
    config["name"],
    source=config["source"],
    data_dir=config["data_dir"],
    classes=config["classes"],
    task=config["task"],
    drop_leaks=config["drop_leaks"],
    options=config["options"],
  )
  if not config.get("gold"):
    return dataset
  given = labels.read(config["gold"], dataset.classes, dataset.task)
  train = labels.Overlaid(dataset.splits["train"], given)
  return dataclasses.replace(dataset, splits={**dataset.splits, "train": train})


def load(
  name: str,
  *,
  source: str | os.PathLike[str] = "",
  data_dir: str | os.PathLike[str] = "~/.cache/ppl_jax",
  classes: Sequence[str] = (),
  task: str = "single_label",
  drop_leaks: bool = False,
  options: Mapping[str, Any] | None = None,
) -> Dataset:
  """Prepares a dataset where that was not done before, and opens it.

  Args:
    name: a module of `ppl_jax/data/readers/`.
    source: folder with the original files; empty to download or generate them.
    data_dir: where prepared data is kept, in `<data_dir>/<name>/<key>`.
    classes: the classes in order, for a reader that leaves them to the config;
      else empty or exactly the reader's.
    task: "single_label" (one class an utterance, or with a single class one or
      none) or "multi_label" (any number).
    drop_leaks: leave out those train dialogues whose texts are, word for word,
      those of a dialogue in validation or test.
    options: flat JSON values for the reader.

  Returns:
    The dataset.

  Raises:
    ValueError: the dataset, its files or its settings are not usable.
  """
  reader = _reader(name)
  options = dict(options or {})
  if isinstance(classes, str):  # else each letter is one
    classes = (classes,)
  classes = _classes(reader, name, tuple(classes), options)
  _check_task(reader, name, task)
  if not str(data_dir):  # else the folder one happens to be in
    raise ValueError(
      "config.dataset.data_dir must name a folder, got ''. Name where prepared"
      " data may be kept."
    )
  home = pathlib.Path(data_dir).expanduser() / name
  origin = pathlib.Path(source).expanduser() if source else None
  if origin is None and hasattr(reader, "download"):
    origin = reader.download(home / "download", options)
  files = reader.source_files(origin, options)
  key = _key(
    format=storage.FORMAT,
    name=name,
    version=reader.VERSION,
    classes=classes,
    task=task,
    drop_leaks=bool(drop_leaks),
    options=options,
    files=[(os.path.relpath(f, origin), file_sha256(f)) for f in files],
  )
  folder = home / key
  if not folder.exists():

    def read(split: str) -> Iterator[Dialogue]:
      told = {} if reader.TASK else {"task": task}
      return reader.read(origin, split, classes, options, **told)

    parts = _parts(name, read, len(classes), task, bool(drop_leaks))
    storage.write(folder, parts, len(classes))
  splits = {
    split: _Split(records) for split, records in storage.read(folder).items()
  }
  return Dataset(name, classes, task, key, folder, splits)


def check_gold(gold: np.ndarray, labelled: np.ndarray, task: str) -> None:
  """Refuses gold that the task does not allow.

  Args:
    gold: [L, C] uint8.
    labelled: [L] bool.
    task: one of `TASKS`.

  Raises:
    ValueError: a labelled utterance of a single-label task with more than one
      class, or, where there are two classes or more, with none.
  """
  if task == "multi_label":
    return
  count_L = gold.sum(axis=1)
  wrong_L = (count_L != 1) if gold.shape[1] > 1 else (count_L > 1)
  for i in np.flatnonzero(wrong_L & labelled):
    raise ValueError(
      "in a single-label task a labelled utterance has exactly one class, got"
      f" {count_L[i]} for utterance {i}: leave its label null if it has none,"
      " or set config.dataset.task to 'multi_label'"
    )


def _reader(name: str) -> types.ModuleType:
  folder = pathlib.Path(__file__).parent / "readers"
  names = sorted(p.stem for p in folder.glob("[!_]*.py"))
  if name not in names:
    raise ValueError(
      f"config.dataset.name must be one of {', '.join(names)}; got {name!r}:"
      " correct it"
    )
  return importlib.import_module(f"ppl_jax.data.readers.{name}")


def _classes(
  reader: types.ModuleType,
  name: str,
  asked: tuple[str, ...],
  options: Mapping[str, Any],
) -> tuple[str, ...]:
  """The reader's classes, or the config's for a reader without."""
  if hasattr(reader, "class_names"):
    own = reader.class_names(options)
  else:
    own = reader.CLASSES
  if own is None:
    if not asked:
      raise ValueError(
        f"dataset {name!r} takes its classes from the config, got none: set"
        " config.dataset.classes"
      )
    if len(asked) == 1 and "," in asked[0]:
      names = asked[0].strip("()[]").split(",")
      names = tuple(n.strip(" '\"") for n in names)
      raise ValueError(
        "a class alone must have no comma in its name, got the one class"
        f" {asked[0]!r}: for several give"
        f' --config.dataset.classes="{names}"'
      )
    own = asked
  elif asked and asked != tuple(own):
    raise ValueError(
      f"dataset {name!r} has the classes {list(own)}, got {list(asked)}: leave"
      " config.dataset.classes empty or give exactly these"
    )
  if len(set(own)) != len(own) or not all(own):
    raise ValueError(
      f"classes must be distinct and not empty, got {list(own)}: correct"
      " config.dataset.classes"
    )
  return tuple(own)


def _check_task(reader: types.ModuleType, name: str, task: str) -> None:
  allowed = (reader.TASK,) if reader.TASK else TASKS
  if task not in allowed:
    raise ValueError(
      f"the task of dataset {name!r} must be {' or '.join(allowed)}, got"
      f" {task!r}: correct config.dataset.task"
    )


def file_sha256(file: pathlib.Path) -> str:
  """Returns the SHA-256 of a file's contents, in hexadecimal."""
  with file.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def contents(config: Mapping[str, Any], dataset: Dataset) -> dict[str, str]:
  """Returns what identifies a config's data, by the keys that name it."""
  return {"config.dataset": dataset.key} | config_files(config)


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
  """Returns the keys of `contents` before whose data is another now."""
  return [key for key in before if now.get(key) != before[key]]


def config_files(config: Mapping[str, Any]) -> dict[str, str]:
  """Returns the `file_sha256` of files that a config names, by their keys."""
  named = {
    "config.scores": config["scores"],
    "config.dataset.gold": config["dataset"]["gold"],
  }
  files = {
    key: pathlib.Path(name).expanduser() for key, name in named.items() if name
  }
  return {key: file_sha256(f) for key, f in files.items() if f.is_file()}


def _key(**parts: Any) -> str:
  try:
    line = json.dumps(parts, sort_keys=True, ensure_ascii=False)
  except TypeError as e:
    raise ValueError(
      f"config.dataset.options must hold JSON values only, got"
      f" {parts['options']!r}"
    ) from e
  return hashlib.sha256(line.encode("utf-8")).hexdigest()[:20]


def _parts(
  name: str,
  read: Callable[[str], Iterator[Dialogue]],
  num_classes: int,
  task: str,
  drop_leaks: bool,
) -> dict[str, Iterator[dict[str, Any]]]:
  """The records of those splits that have any, checked as they are drawn."""
  parts = {split: read(split) for split in SPLITS}
  if drop_leaks:
    parts = _without_leaks(parts, read)
  present = {}
  for split, dialogues in parts.items():
    first = next(dialogues, None)
    if first is not None:
      chained = itertools.chain([first], dialogues)
      checked = _checked(split, chained, num_classes, task)
      present[split] = map(_record, checked)
  if "train" not in present:
    raise ValueError(
      f"a dataset needs train dialogues, got none for {name!r}: check"
      " config.dataset.source, and config.dataset.drop_leaks if it is set"
    )
  return present


def _without_leaks(
  parts: Mapping[str, Iterator[Dialogue]],
  read: Callable[[str], Iterator[Dialogue]],
) -> dict[str, Iterator[Dialogue]]:
  """Train without the texts that validation or test have."""
  held_out = {
    _texts_digest(dialogue)
    for split in SPLITS
    if split != "train"
    for dialogue in read(split)
  }
  kept = (d for d in parts["train"] if _texts_digest(d) not in held_out)
  return {**parts, "train": kept}


def _texts_digest(dialogue: Dialogue) -> bytes:
  line = json.dumps(dialogue.texts, ensure_ascii=False)
  return hashlib.sha256(line.encode("utf-8")).digest()


def _checked(
  split: str, dialogues: Iterable[Dialogue], num_classes: int, task: str
) -> Iterator[Dialogue]:
  """Holds every reader to the contract of `Dialogue`."""
  seen = set()
  for dialogue in dialogues:
    where = f"{split} dialogue {dialogue.dialogue_id!r}"
    if dialogue.dialogue_id in seen:
      raise ValueError(
        f"dialogue_id must be unique within a split, got {where} twice:"
        " rename one"
      )
    seen.add(dialogue.dialogue_id)
    length = len(dialogue.texts)
    shapes = (
      len(dialogue.speakers),
      dialogue.gold.shape,
      dialogue.labelled.shape,
    )
    if not length or shapes != (length, (length, num_classes), (length,)):
      raise ValueError(
        "a dialogue needs at least one utterance, and a speaker and a row of"
        f" gold for each; got {length} texts, {shapes[0]} speakers, gold"
        f" {shapes[1]} and labelled {shapes[2]} for {where}: correct the reader"
      )
    for i, text in enumerate(dialogue.texts):
      if not text.strip():
        raise ValueError(
          f"a text must not be empty, got {text!r} for utterance {i} of"
          f" {where}: take the utterance out or give its text"
        )
    try:
      check_gold(dialogue.gold, dialogue.labelled, task)
    except ValueError as e:
      raise ValueError(f"{where}: {e}") from e
    yield dialogue


def _record(dialogue: Dialogue) -> dict[str, Any]:
  return {
    "dialogue_id": dialogue.dialogue_id,
    "utterances": {
      "speaker": dialogue.speakers,
      "text": dialogue.texts,
      "gold": dialogue.gold.astype(np.uint8),
      "labelled": dialogue.labelled.astype(np.bool_),
    },
  }


class _Split(Sequence[Dialogue]):
  """The dialogues of one split, decoded when asked for."""

  def __init__(self, records: Sequence[Mapping[str, Any]]):
    self._records = records

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index):
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    if not -len(self) <= index < len(self):
      raise IndexError(f"dialogue {index} of {len(self)}")
    record = self._records[int(index) % len(self)]
    utterances = record["utterances"]
    return Dialogue(
      dialogue_id=record["dialogue_id"].decode("utf-8"),
      speakers=tuple(s.decode("utf-8") for s in utterances["speaker"]),
      texts=tuple(t.decode("utf-8") for t in utterances["text"]),
      gold=np.stack(utterances["gold"]),
      labelled=np.array(utterances["labelled"], np.bool_),
    )
