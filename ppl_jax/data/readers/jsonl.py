"""A user's own dialogues: one JSON object a line.

The source folder holds train.jsonl and, optionally, validation.jsonl and
test.jsonl. A line (blank lines are skipped):

    {"dialogue_id": "d1", "utterances": [
      {"speaker": "USR", "text": "Hello there", "label": "greeting"}]}

`label` is a class, a list of classes, or null or missing for "not labelled";
an empty list says "labelled, none of the classes". Other fields of a dialogue
are ignored; one of an utterance is refused, as it may be a misspelt label. The
classes and the task are the config's. There are no options.
"""

import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
import pydantic

from ppl_jax.data import dialogues, lines

_LOG = logging.getLogger(__name__)
VERSION = "1"
CLASSES = None
TASK = None


def _not_blank(text: str) -> str:
  if not text.strip():
    raise ValueError("must not be empty")
  return text


_Text = Annotated[str, pydantic.AfterValidator(_not_blank)]


class _Utterance(pydantic.BaseModel):
  # A misspelt `label` would otherwise be an utterance without one.
  model_config = pydantic.ConfigDict(extra="forbid", strict=True)

  speaker: _Text
  text: _Text
  label: str | list[str] | None = None


class _Line(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="ignore", strict=True)

  dialogue_id: _Text
  utterances: Annotated[list[_Utterance], pydantic.Field(min_length=1)]


def source_files(
  source: pathlib.Path | None, options: Mapping[str, Any]
) -> list[pathlib.Path]:
  """The files that are there; ValueError where train.jsonl is not."""
  if options:
    raise ValueError(
      f"dataset 'jsonl' has no options, got {dict(options)}: leave"
      " config.dataset.options empty"
    )
  if source is None:
    raise ValueError(
      "dataset 'jsonl' reads train.jsonl from a folder, got no folder: set"
      " config.dataset.source"
    )
  files = [source / f"{split}.jsonl" for split in dialogues.SPLITS]
  if not files[0].is_file():
    raise ValueError(
      "config.dataset.source must name a folder with train.jsonl, and maybe"
      f" validation.jsonl and test.jsonl; got {str(source)!r}, which has no"
      " train.jsonl: correct the path"
    )
  others = [f for f in sorted(source.glob("*.jsonl")) if f not in files]
  if others:
    _LOG.warning(
      "%s: only train.jsonl, validation.jsonl and test.jsonl are read, and not"
      " %s.",
      source,
      ", ".join(f.name for f in others),
    )
  return [file for file in files if file.is_file()]


def read(
  source: pathlib.Path,
  split: str,
  classes: tuple[str, ...],
  options: Mapping[str, Any],
  *,
  task: str,
) -> Iterator[dialogues.Dialogue]:
  """Yields a split's dialogues; none where its file does not exist."""
  del options
  file = source / f"{split}.jsonl"
  if file.is_file():
    yield from read_file(file, classes, task)


def read_file(
  file: pathlib.Path, classes: tuple[str, ...], task: str
) -> Iterator[dialogues.Dialogue]:
  """Yields the dialogues of one file in order.

  Args:
    file: JSON lines as the module says.
    classes: C names that `label` may hold.
    task: one of `dialogues.TASKS`.

  Yields:
    Dialogues.

  Raises:
    ValueError: a line is not JSON, lacks a field, an utterance has an unknown
      one or an empty text, a label that is no class or that the task does not
      allow, or a dialogue_id that came before; or the file has no dialogue.
      Names the file and the line (from 1).
  """
  first_line: dict[str, int] = {}
  with file.open("rb") as f:
    for number, line in lines.numbered(f):
      where = f"{file}, line {number}"
      parsed = _parse(where, line)
      before = first_line.setdefault(parsed.dialogue_id, number)
      if before != number:
        raise ValueError(
          f"{where}: dialogue_id must be unique within a file, got"
          f" {parsed.dialogue_id!r}, which line {before} has: rename one"
        )
      yield _dialogue(where, parsed, classes, task)
  if not first_line:
    raise ValueError(
      f"{file}: a file must hold at least one dialogue, got none: fill it, or"
      " take it away where it is optional"
    )


def _parse(where: str, line: bytes) -> _Line:
  try:
    return _Line.model_validate_json(line)
  except pydantic.ValidationError as e:
    faults = e.errors(include_url=False, include_context=False)
    place = ".".join(str(part) for part in faults[0]["loc"])
    at = f" at {place}" if place else ""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    raise ValueError(
      f"{where}: a line must be one JSON dialogue with dialogue_id and"
      " utterances, each with speaker, text and optionally label; got"
      f" {faults[0]['msg']!r}{at}{more}: correct the line"
    ) from e


def _dialogue(
  where: str, line: _Line, classes: tuple[str, ...], task: str
) -> dialogues.Dialogue:
  gold = np.zeros((len(line.utterances), len(classes)), np.uint8)
  labelled = np.zeros(len(line.utterances), np.bool_)
  for i, utterance in enumerate(line.utterances):
    if utterance.label is None:
      continue
    labelled[i] = True
    label = utterance.label
    for name in [label] if isinstance(label, str) else label:
      if name not in classes:
        raise ValueError(
          f"{where}: a label must be one of {list(classes)}, got {name!r} for"
          f" utterance {i}: correct the label or config.dataset.classes; []"
          " says that none of them is right"
        )
      gold[i, classes.index(name)] = 1
  try:
    dialogues.check_gold(gold, labelled, task)
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from e
  return dialogues.Dialogue(
    dialogue_id=line.dialogue_id,
    speakers=tuple(u.speaker for u in line.utterances),
    texts=tuple(u.text for u in line.utterances),
    gold=gold,
    labelled=labelled,
  )
