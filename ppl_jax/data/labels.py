"""Labels that people give afterwards: JSON lines, laid over a split's gold.

    {"dialogue_id": "a1", "utterance": 3, "text": "Hello", "label": "greeting"}

`utterance` is 0-based. `text` may be left out; where it is there, it must be
the utterance's. `label` is as in the dialogues themselves: a class, a list of
classes, or null for one that nobody has labelled yet, which changes nothing.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pydantic

from ppl_jax.data import lines


class _Line(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(strict=True, extra="forbid")

  dialogue_id: str
  utterance: pydantic.NonNegativeInt
  text: str | None = None
  label: str | list[str] | None = None


class Label(NamedTuple):
  """What a person says of an utterance.

  Attributes:
    where: the file and line, for messages.
    text: of the utterance, or None.
    gold_C: uint8, multi-hot.
  """

  where: str
  text: str | None
  gold_C: np.ndarray


class Overlaid(Sequence):
  """A split whose gold is replaced where there are labels.

  Args:
    split: dialogues.
    labels: of `read`.

  Raises:
    ValueError: a label is of an utterance that the split does not have, or of
      another text; names the line.
  """

  def __init__(
    self, split: Sequence, labels: Mapping[str, Mapping[int, Label]]
  ):
    self._split, self._labels = split, labels
    left = dict(labels)
    for dialogue in split:
      _check_texts(dialogue, left.pop(dialogue.dialogue_id, {}))
      if not left:
        return
    dialogue_id, first = next(iter(left.items()))
    (label, *_) = first.values()
    raise ValueError(
      f"{label.where}: dialogue_id must be one of the train split, got"
      f" {dialogue_id!r}: correct it, or use the dataset that was labelled"
    )

  def __len__(self) -> int:
    return len(self._split)

  def __getitem__(self, key: int | slice) -> Any:
    if isinstance(key, slice):
      return [self._laid_over(dialogue) for dialogue in self._split[key]]
    return self._laid_over(self._split[key])

  def __iter__(self) -> Iterator:
    return map(self._laid_over, self._split)

  def _laid_over(self, dialogue):
    labels = self._labels.get(dialogue.dialogue_id)
    if not labels:
      return dialogue
    gold, labelled = dialogue.gold.copy(), dialogue.labelled.copy()
    for utterance, label in labels.items():
      gold[utterance], labelled[utterance] = label.gold_C, True
    return dataclasses.replace(dialogue, gold=gold, labelled=labelled)


def read(
  path: str | os.PathLike[str], classes: Sequence[str], task: str
) -> dict[str, dict[int, Label]]:
  """Reads labels.

  Args:
    path: of the file.
    classes: C names, in order.
    task: 'single_label' or 'multi_label'.

  Returns:
    From dialogue_id to utterance to label; those of null are left out.

  Raises:
    ValueError: a line is not usable; names the file and the line.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise ValueError(
      f"config.dataset.gold must name a file of labels, got {str(path)!r},"
      " which is no file: correct it, or leave it empty"
    )
  labels: dict[str, dict[int, Label]] = {}
  with path.open("rb") as f:
    for number, line in lines.numbered(f):
      where = f"{path}, line {number}"
      try:
        given = _Line.model_validate_json(line)
      except pydantic.ValidationError as e:
        error = e.errors()[0]
        place = ".".join(map(str, error["loc"])) or "the line"
        raise ValueError(
          f"{where}: at {place}: {error['msg']}: correct the line"
        ) from e
      if given.label is None:
        continue
      of_dialogue = labels.setdefault(given.dialogue_id, {})
      if given.utterance in of_dialogue:
        raise ValueError(
          f"{where}: an utterance must have one line, got utterance"
          f" {given.utterance} of {given.dialogue_id!r} again after"
          f" {of_dialogue[given.utterance].where}: delete one"
        )
      gold_C = _gold(where, given.label, classes, task)
      of_dialogue[given.utterance] = Label(where, given.text, gold_C)
  return {key: value for key, value in labels.items() if value}


def _gold(where, label, classes, task) -> np.ndarray:
  chosen = [label] if isinstance(label, str) else label
  unknown = [name for name in chosen if name not in classes]
  if unknown:
    raise ValueError(
      f"{where}: label must be of {json.dumps(list(classes))}, got"
      f" {json.dumps(unknown[0])}: correct it"
    )
  least = 0 if task == "multi_label" or len(classes) == 1 else 1
  most = len(classes) if task == "multi_label" else 1
  if not least <= len(set(chosen)) <= most:
    raise ValueError(
      f"{where}: label must be {'one class' if least else 'a list of classes'}"
      f" in a {task} task, got {json.dumps(label)}: correct it"
    )
  gold_C = np.zeros(len(classes), np.uint8)
  gold_C[[classes.index(name) for name in chosen]] = 1
  return gold_C


def _check_texts(dialogue, labels: Mapping[int, Label]) -> None:
  for utterance, label in labels.items():
    if utterance >= len(dialogue.texts):
      raise ValueError(
        f"{label.where}: utterance must be below {len(dialogue.texts)}, the"
        f" length of dialogue {dialogue.dialogue_id!r}, got {utterance}: count"
        " from 0"
      )
    if label.text is not None and label.text != dialogue.texts[utterance]:
      raise ValueError(
        f"{label.where}: text must be that of utterance {utterance} of dialogue"
        f" {dialogue.dialogue_id!r}, {dialogue.texts[utterance]!r}, got"
        f" {label.text!r}: use the dataset that was labelled"
      )
