"""Prompt banks: several differently worded prompts for one task, as YAML.

A file (those of `labeling/prompts/` are examples):

    task: mood
    about: How the speaker of an utterance feels.
    classes:                # left out where the dataset's are taken as they are
      happy: pleased with something
      sad: unhappy about something
    none: neither of them   # left out where every utterance has a class
    multi_label: false
    prompts:
      - id: short           # names the annotator
        asks: last          # or: every utterance, or those positive for a class
        system: You know people.
        template: |
          How does the last speaker feel?
          $options
          $dialogue
        option_order: given # or: reversed, shuffled
        examples:
          - utterances:
              - {speaker: Ann, text: It rains again.}
              - {speaker: Ben, text: I love rain!}
            labels: [null, happy]  # null: not labelled; []: none of the classes
"""

import hashlib
import json
import os
import pathlib
import string
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic
import yaml

from labeling import answers, bank_errors
from ppl_jax.data import dialogues as dialogues_lib

_FOLDER = pathlib.Path(__file__).parent / "prompts"
# Of `string.Template`: from what a prompt asks for to (required, optional).
_PLACEHOLDERS = {
  "last": ({"dialogue", "options"}, {"speaker", "utterance"}),
  "every": ({"dialogue", "options"}, set()),
  "positive": ({"dialogue", "class"}, {"description", "options"}),
}


def _check_text(text: str) -> str:
  if not text.strip():
    raise ValueError(f"a text must not be empty, got {text!r}: write one")
  return text


def _check_name(name: str) -> str:
  if not name or name != " ".join(name.split()):
    raise ValueError(
      "a class's name must be one line without blanks at its ends or two in a"
      f" row, got {name!r}: correct it"
    )
  return name


_Text = Annotated[str, pydantic.AfterValidator(_check_text)]
_Name = Annotated[str, pydantic.AfterValidator(_check_name)]


class _Part(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class Turn(_Part):
  """An utterance of an example."""

  speaker: _Text
  text: _Text


class Example(_Part):
  """A dialogue with its answers.

  Attributes:
    utterances: L turns.
    labels: L labels; None for "not labelled", () for "none of the classes".
  """

  utterances: tuple[Turn, ...]
  labels: tuple[str | tuple[str, ...] | None, ...]

  def classes_of(self, utterance: int) -> tuple[str, ...]:
    """The classes of a labelled utterance."""
    label = self.labels[utterance]
    return (label,) if isinstance(label, str) else tuple(label or ())

  @property
  def labelled(self) -> tuple[int, ...]:
    """The utterances that have a label, counted from 0."""
    return tuple(i for i, x in enumerate(self.labels) if x is not None)

  @pydantic.model_validator(mode="after")
  def _check(self):
    lengths = len(self.utterances), len(self.labels)
    if not self.labels or lengths[0] != lengths[1]:
      raise ValueError(
        "an example needs a label for each of its utterances, null where there"
        f" is none; got {lengths[0]} utterances and {lengths[1]} labels: write"
        " as many"
      )
    if self.labels[-1] is None:
      raise ValueError(
        "an example's last utterance must have a label, got null: write its"
        " class, or [] for none of the classes"
      )
    return self


class Prompt(_Part):
  """One way to ask.

  Attributes:
    id: unique in its bank; names the annotator.
    asks: about the last utterance shown, every one, or which are positive for
      one class.
    system: the system message; none where empty.
    template: of the user message, in the syntax of `string.Template`.
    option_order: how the classes are listed.
    examples: shown as earlier turns of the chat.
    origin: where the prompt came from.
  """

  id: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_.-]+$")]
  asks: Literal[answers.ASKS]
  system: str = ""
  template: _Text
  option_order: Literal["given", "reversed", "shuffled"] = "given"
  examples: tuple[Example, ...] = ()
  origin: _Text = "written"

  @property
  def lists_classes(self) -> bool:
    """Whether its requests show all classes, not just the one asked for."""
    identifiers = string.Template(self.template).get_identifiers()
    return "options" in identifiers

  @pydantic.model_validator(mode="after")
  def _check(self):
    template = string.Template(self.template)
    if not template.is_valid():
      raise ValueError(
        "a template's $ must begin a placeholder, got one that does not: write"
        " $$ for a dollar sign"
      )
    found = set(template.get_identifiers())
    required, optional = _PLACEHOLDERS[self.asks]
    allowed = _dollars(required | optional)
    for name in _dollars(found - required - optional):
      raise ValueError(
        f"a template that asks for {self.asks!r} may have {', '.join(allowed)};"
        f" got {name}: correct it, or write $$ for a dollar sign"
      )
    for name in _dollars(required - found):
      raise ValueError(
        f"a template that asks for {self.asks!r} must have {name}, got only"
        f" {', '.join(_dollars(found)) or 'none'}: add it"
      )
    for name in _dollars(string.Template(self.system).get_identifiers()):
      raise ValueError(
        "the system message takes no placeholders, got"
        f" {name}: move it to the template"
      )
    for example in self.examples:
      labelled = example.labelled
      if self.asks != "last" and labelled[-1] - labelled[0] >= len(labelled):
        raise ValueError(
          f"in a prompt that asks for {self.asks!r} an example's labels must be"
          f" those of its last utterances, got {list(example.labels)}: label"
          " the ones between"
        )
    return self


class Bank(_Part):
  """A task and its prompts.

  Attributes:
    task: the bank's name.
    about: what the labels say, in a line.
    classes: from name to description, in order; "" where there is none. Empty
      where `for_classes` is to fill it.
    none: what the answer "none of the classes" means; empty if it is not
      offered.
    none_label: how that answer is spelled.
    multi_label: whether an utterance may have any number of classes.
    prompts: with distinct ids.
  """

  task: _Text
  about: _Text
  classes: dict[_Name, str] = {}
  none: str = ""
  none_label: _Name = "none"
  multi_label: pydantic.StrictBool = False
  prompts: Annotated[tuple[Prompt, ...], pydantic.Field(min_length=1)]

  @pydantic.model_validator(mode="after")
  def _check(self):
    ids = [prompt.id for prompt in self.prompts]
    for twice in sorted({name for name in ids if ids.count(name) > 1}):
      raise ValueError(
        f"prompt ids must be distinct, got {twice!r} twice: rename one"
      )
    if self.none and self.none_label in self.classes:
      raise ValueError(
        "the answer that means none of the classes must not be a class, got"
        f" {self.none_label!r} of {list(self.classes)}: correct"
        " config.votes.none_label, or leave out the bank's `none`"
      )
    seen = {}
    for prompt in self.prompts:
      twin = seen.setdefault(prompt_sha256(self, prompt), prompt)
      if twin is not prompt:
        raise ValueError(
          f"prompts must differ, got {twin.id!r} and {prompt.id!r} alike: take"
          " one out"
        )
      if self.classes:
        self._check_prompt(prompt)
    return self

  def _check_prompt(self, prompt: Prompt) -> None:
    if len(self.classes) == 1 and not self.none and prompt.asks != "positive":
      raise ValueError(
        f"prompt {prompt.id!r}: with a single class only the answer none leaves"
        " a choice, which is not offered: describe it in the bank's `none` and"
        " set config.votes.none_label, or ask for 'positive'"
      )
    for number, example in enumerate(prompt.examples, start=1):
      where = f"prompt {prompt.id!r}, example {number}"
      for i in example.labelled:
        names = example.classes_of(i)
        unknown = [name for name in names if name not in self.classes]
        if unknown or len(set(names)) < len(names):
          raise ValueError(
            f"{where}: labels must be of {list(self.classes)}, each once; got"
            f" {list(names)}: correct them, [] means none of the classes"
          )
        if len(names) > 1 and not self.multi_label:
          raise ValueError(
            f"{where}: in a single-label task an utterance has one class, got"
            f" {list(names)}: leave one"
          )
        if not names and not self.none and prompt.asks != "positive":
          raise ValueError(
            f"{where}: the answer none must be offered where an example gives"
            " it, got [] without: describe it in the bank's `none` and set"
            " config.votes.none_label, or take the example out"
          )


def names() -> list[str]:
  """The banks that come with the package."""
  return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def load(path_or_name: str | os.PathLike[str]) -> Bank:
  """Reads a bank.

  Args:
    path_or_name: a YAML file, or one of `names()`.

  Returns:
    The bank.

  Raises:
    ValueError: there is no such bank, or its file is not usable; names the file
      and the place in it.
  """
  path = pathlib.Path(path_or_name).expanduser()
  if str(path_or_name) in names():
    path = _FOLDER / f"{path_or_name}.yaml"
  if not path.is_file():
    raise ValueError(
      "a prompt bank must be a YAML file or one of"
      f" {', '.join(names())}; got {str(path_or_name)!r}: correct it"
    )
  try:
    data = yaml.load(path.read_bytes(), _Loader)
  except (yaml.YAMLError, ValueError, RecursionError) as e:
    raise ValueError(
      f"{path}: a prompt bank must be YAML, got {' '.join(str(e).split())}:"
      " correct the file"
    ) from e
  return _validate(data, str(path))


def for_classes(
  bank: Bank,
  classes: Sequence[str] | Mapping[str, str],
  none_label: str,
  task: str,
) -> Bank:
  """Fits a bank to a dataset.

  Args:
    bank: with the dataset's classes, or with none to take them as they are.
    classes: the dataset's, in order; as a mapping with descriptions, of which
      those that are not empty replace the bank's.
    none_label: the answer that means none of the classes; "" to not offer it.
    task: "single_label" or "multi_label".

  Returns:
    A bank with exactly these classes in this order.

  Raises:
    ValueError: bank and dataset do not fit.
  """
  where = f"prompt bank {bank.task!r}"
  own = classes if isinstance(classes, Mapping) else dict.fromkeys(classes, "")
  missing = [name for name in own if name not in bank.classes]
  extra = [name for name in bank.classes if name not in own]
  if bank.classes and (missing or extra):
    raise ValueError(
      f"{where}: a bank must have the dataset's classes {list(own)}; got"
      f" {list(bank.classes)}, without {missing} and with {extra} besides:"
      " choose another bank, or the generic one"
    )
  multi_label = task == "multi_label"
  if bank.classes and multi_label != bank.multi_label:
    raise ValueError(
      f"{where}: multi_label must be {str(multi_label).lower()} for a dataset"
      f" of task {task!r}, got {str(bank.multi_label).lower()}: choose another"
      " bank, or the generic one"
    )
  data = bank.model_dump() | {
    "classes": {name: own[name] or bank.classes.get(name, "") for name in own},
    "none": bank.none if none_label else "",
    "none_label": none_label or bank.none_label,
    "multi_label": multi_label,
  }
  return _validate(data, where)


def for_dataset(
  path_or_name: str | os.PathLike[str],
  dataset: dialogues_lib.Dataset,
  none_label: str,
) -> Bank:
  """Reads a bank and fits it to a dataset; see `load` and `for_classes`."""
  return for_classes(
    load(path_or_name), dataset.classes, none_label, dataset.task
  )


def prompt_sha256(bank: Bank, prompt: Prompt) -> str:
  """Hex SHA-256 of all of a bank and a prompt that shapes its requests."""
  shaping = {
    "classes": list(bank.classes.items()),
    "none": [bank.none, bank.none_label] if bank.none else None,
    "prompt": prompt.model_dump(mode="json", exclude={"id", "origin"}),
    "instruction": answers.instruction(
      prompt.asks, bank.multi_label, bool(bank.none)
    ),
  }
  line = json.dumps(shaping, sort_keys=True)
  return hashlib.sha256(line.encode("utf-8")).hexdigest()


class _Loader(yaml.SafeLoader):
  """Refuses a key that stands twice, of which YAML would keep the last."""

  def construct_mapping(self, node, deep=False):
    keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for i, key in enumerate(keys):
      if key.value in [before.value for before in keys[:i]]:
        raise yaml.constructor.ConstructorError(
          None, None, f"the key {key.value!r} twice", key.start_mark
        )
    return super().construct_mapping(node, deep)


def _validate(data: Any, where: str) -> Bank:
  try:
    return Bank.model_validate(data)
  except pydantic.ValidationError as e:
    parts = (Bank, Prompt, Example, Turn)
    keys = {key for part in parts for key in part.model_fields}
    raise ValueError(bank_errors.describe(data, where, e, keys)) from e


def _dollars(identifiers: Sequence[str] | set[str]) -> list[str]:
  return [f"${name}" for name in sorted(identifiers)]
