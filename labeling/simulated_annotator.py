"""An annotator that reads chat requests as an LLM would, and answers from gold.

It reads what `labeling.render` writes from the text alone: the dialogue in the
last <dialogue> block, the options from their "- name" lines, and what is asked
from the first JSON object after the dialogue, the example of an answer.

Shape letters: L utterances of a dialogue, A of them asked about, C classes.
"""

import collections
import dataclasses
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ppl_jax.data import dialogues as dialogues_lib

# Standard deviations and shares as in `ppl_jax.data.readers.support.votes`.
_DIALOGUE_NOISE = 0.33
_SHARED = 0.8
_UTTERANCE_NOISE = 0.25
_ANNOTATOR_NOISE = 0.2

_UTTERANCE = re.compile(r"\[(\d+)\] (.*)")
_CONTEXT_ENDS = "---"
_FORM = re.compile(r'\{\s*"(label|labels|utterances)"\s*:')
_STRING = r'"(?:[^"\\]|\\.)*"'
_ENTRY = re.compile(r"\s*\[\s*\{((?:[^{}\"]|" + _STRING + r")*)\}")
_KEY = re.compile(rf"({_STRING})\s*:")
_TEMPLATE = re.compile(r"<template>\n(.*)\n</template>", re.DOTALL)
_LEADS = (
  "Take your time and read all of it first.",
  "Decide by what the speaker wants to bring about, not by single words.",
  "Where two answers seem right, take the one that fits more closely.",
  "Think of what was said just before.",
)


class UnreadableError(ValueError):
  """A request that the annotator can make nothing of."""


@dataclasses.dataclass(frozen=True)
class Asked:
  """What a request asks about a dialogue.

  Attributes:
    dialogue: that is shown.
    numbers: the A utterances asked about, from 0.
    form: "last", "every" or "positive".
    key: "label" or "labels", under which an answer has what it says.
    options: the labels that may be answered, in the order shown.
    class_name: that "positive" asks for, else "".
  """

  dialogue: dialogues_lib.Dialogue
  numbers: tuple[int, ...]
  form: str
  key: str
  options: tuple[str, ...]
  class_name: str


@dataclasses.dataclass(frozen=True)
class Rewording:
  """A request to write a prompt's template anew."""

  template: str


class Annotator:
  """Answers requests about the dialogues of a dataset.

  Args:
    dialogues: that may be asked about.
    classes: the C classes of their gold, in order.
    none_label: the answer that means none of the classes; "" for no such.
    task: one of `dialogues.TASKS`.

  Raises:
    ValueError: `none_label` is a class.
  """

  def __init__(
    self,
    dialogues: Iterable[dialogues_lib.Dialogue],
    classes: Sequence[str],
    none_label: str,
    task: str,
  ):
    if none_label in classes:
      raise ValueError(
        "the answer that means none of the classes must not be a class, got"
        f" {none_label!r} of {list(classes)}: correct config.votes.none_label"
      )
    self._classes = tuple(classes)
    self._none_label = none_label
    self._multi_label = task == "multi_label"
    self._columns = {name: c for c, name in enumerate(classes)}
    if none_label:
      self._columns[none_label] = len(self._classes)
    self._dialogues = []
    self._lines = []
    # From an utterance's number and line to the dialogues that have it.
    self._having = collections.defaultdict(
      lambda: collections.defaultdict(list)
    )
    for dialogue in dialogues:
      lines = tuple(
        f"{_one_line(speaker)}: {_one_line(text)}"
        for speaker, text in zip(dialogue.speakers, dialogue.texts, strict=True)
      )
      for i, line in enumerate(lines):
        self._having[i][line].append(len(self._dialogues))
      self._dialogues.append(dialogue)
      self._lines.append(lines)

  def read(self, body: Mapping[str, Any]) -> Asked | Rewording:
    """Reads what is asked from the last user message of a request.

    Raises:
      UnreadableError: there is no dialogue that the annotator knows, or what
        is asked does not show.
    """
    text = _last_user_message(body["messages"])
    before, shown, after = _split(text)
    if shown is None:
      template = _TEMPLATE.search(text)
      if template is None:
        raise UnreadableError(
          "The last user message must have a <dialogue> block, got none."
        )
      return Rewording(template[1])
    shown, asked = _numbered(shown)
    dialogue = self._find(shown)
    form, key = _form(after)
    if form == "last":
      asked = asked[-1:]
    class_name, options = "", ()
    if form == "positive":
      class_name = self._positive(before, after)
    else:
      options = self._options(before + after, body.get("response_format"))
    return Asked(dialogue, tuple(asked), form, key, options, class_name)

  def answer(
    self,
    asked: Asked | Rewording,
    rng: np.random.Generator,
    *,
    seed: int,
    noise: float,
  ) -> dict[str, Any]:
    """Answers as an annotator of its own would.

    The error model is that of `ppl_jax.data.readers.support.votes`: the shift
    that a dialogue's annotators share and the noise of its utterances depend
    on `seed` and the dialogue's id alone, all else is drawn from `rng`. None of
    the classes is gold where no class is.

    Args:
      asked: from `read`.
      rng: of this answer.
      seed: of what all answers about a dialogue share.
      noise: scales all standard deviations; with 0 the answer is gold.

    Returns:
      The JSON object of the answer, in the form that is asked for.
    """
    if isinstance(asked, Rewording):
      lead = _LEADS[rng.integers(len(_LEADS))]
      return {"template": f"{lead}\n\n{asked.template}"}
    labels_A = self._labels(asked, rng, seed, noise)
    if asked.form == "last":
      return {asked.key: labels_A[0]}
    entries = []
    for i, label in zip(asked.numbers, labels_A, strict=True):
      words = " ".join(asked.dialogue.texts[i].split()[:3])
      entry = {"number": i + 1, "words": words}
      if asked.form == "every":
        entries.append({**entry, asked.key: label})
      elif asked.class_name in label:
        entries.append(entry)
    return {"utterances": entries}

  def _labels(
    self, asked: Asked, rng: np.random.Generator, seed: int, noise: float
  ) -> list[Any]:
    """For each utterance asked about a label, or a list of labels."""
    C = len(self._classes)
    offered = asked.options or (*self._classes, self._none_label)
    columns = [self._columns.get(name, C) for name in offered]
    preference_AxC = self._preference(asked, columns, rng, seed, noise)
    labels = []
    for preference_C in preference_AxC:
      best = columns[preference_C[columns].argmax()]
      names = [self._classes[best]] if best < C else []
      if self._multi_label and asked.key != "label":
        liked = [c for c in columns if c < C and preference_C[c] > 0.5]
        # Where none of the classes is no answer, the nearest one is.
        if liked or C in columns:
          names = [self._classes[c] for c in liked]
      if asked.key == "label":
        labels.append(names[0] if names else self._none_label)
      else:
        labels.append(names)
    return labels

  def _preference(
    self,
    asked: Asked,
    columns: Sequence[int],
    rng: np.random.Generator,
    seed: int,
    noise: float,
  ) -> np.ndarray:
    """[A, C + 1] preferences; the last column is none of the classes."""
    dialogue, numbers = asked.dialogue, list(asked.numbers)
    L, C = dialogue.gold.shape
    shift_C, noise_LxC = _shared_errors(dialogue.dialogue_id, L, C, seed)
    own_shift_C = rng.standard_normal(C) * np.sqrt(1 - _SHARED)
    own_AxC = rng.standard_normal((len(numbers), C + 1)) * _ANNOTATOR_NOISE
    errors_AxC = noise_LxC[numbers] + own_AxC
    errors_AxC[:, :C] += (shift_C + own_shift_C) * _DIALOGUE_NOISE
    preference_AxC = errors_AxC * noise
    gold_AxC = dialogue.gold[numbers]
    preference_AxC[:, :C] += gold_AxC
    preference_AxC[:, C] += ~gold_AxC.any(axis=1)
    for row, i in enumerate(numbers):
      if not dialogue.labelled[i]:  # any of the options is as good
        preference_AxC[row] = 0
        preference_AxC[row, columns[rng.integers(len(columns))]] = 1
    return preference_AxC

  def _find(self, shown: Sequence[tuple[int, str]]) -> dialogues_lib.Dialogue:
    """The first dialogue that has all lines shown at their numbers."""
    having = [self._having.get(i, {}).get(line, ()) for i, line in shown]
    for d in min(having, key=len):
      lines = self._lines[d]
      if all(i < len(lines) and lines[i] == line for i, line in shown):
        return self._dialogues[d]
    number, line = shown[0][0] + 1, shown[0][1]
    raise UnreadableError(
      "A dialogue must be one of the dataset that this server was started with,"
      f" with its utterances numbered from 1; got one with [{number}] {line}"
    )

  def _options(
    self, lines: Sequence[str], response_format: Any
  ) -> tuple[str, ...]:
    """The labels that the text lists, and the schema allows."""
    listed = [self._option(line) for line in lines if line.startswith("- ")]
    names = dict.fromkeys(name for name in listed if name)
    allowed = _enum(response_format)
    if allowed is not None:
      names = names or dict.fromkeys(self._columns)
      names = [name for name in names if name in allowed]
    if not names:
      raise UnreadableError(
        "A request must list labels, one a line as '- name: description', got"
        f" none of {list(self._columns)} that its schema allows."
      )
    return tuple(names)

  def _option(self, line: str) -> str:
    """The label that an option's line names; "" for another line."""
    rest = line.removeprefix("- ").rstrip()
    parts = rest.split(": ")
    for end in range(len(parts), 0, -1):  # a name may have a colon in it
      name = ": ".join(parts[:end])
      if name in self._columns:
        return name
    return ""

  def _positive(self, before: Sequence[str], after: Sequence[str]) -> str:
    """The class in double quotes, the last before the dialogue or the first."""
    for lines, find in ((before, str.rfind), (after, str.find)):
      text = "\n".join(x for x in lines if not x.startswith("- "))
      places = {find(text, f'"{name}"'): name for name in self._classes}
      places.pop(-1, None)
      if places:
        return places[max(places) if lines is before else min(places)]
    raise UnreadableError(
      "A request for the utterances of one class must name it in double quotes,"
      f" got none of {list(self._classes)}."
    )


@functools.lru_cache(maxsize=4096)
def _shared_errors(
  dialogue_id: str, L: int, C: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """The [C] shift and the [L, C + 1] noise that all annotators share."""
  digest = hashlib.sha256(dialogue_id.encode("utf-8")).digest()
  rng = np.random.default_rng([seed, int.from_bytes(digest)])
  shift_C = rng.standard_normal(C) * np.sqrt(_SHARED)
  return shift_C, rng.standard_normal((L, C + 1)) * _UTTERANCE_NOISE


def text_of(message: Mapping[str, Any]) -> str:
  """The text of a chat message, which may come in parts."""
  content = message.get("content") or ""
  if isinstance(content, str):
    return content
  return "\n".join(str(part.get("text", "")) for part in content)


def _one_line(text: str) -> str:
  return " ".join(text.split())


def _last_user_message(messages: Sequence[Mapping[str, Any]]) -> str:
  for message in reversed(messages):
    if message["role"] == "user":
      return text_of(message)
  raise UnreadableError("A request must have a user message, got none.")


def _split(text: str) -> tuple[list[str], list[str] | None, list[str]]:
  """The lines before, in and after the last <dialogue> block; in: or None."""
  lines = text.split("\n")
  ends = [i for i, line in enumerate(lines) if line == "</dialogue>"]
  if not ends:
    return lines, None, []
  start = ends[-1] - 1
  while start >= 0 and (
    _UTTERANCE.match(lines[start]) or not lines[start].endswith("<dialogue>")
  ):
    start -= 1
  if start < 0:
    return lines, None, []
  return lines[: start + 1], lines[start + 1 : ends[-1]], lines[ends[-1] + 1 :]


def _numbered(
  lines: Sequence[str],
) -> tuple[list[tuple[int, str]], list[int]]:
  """The (number, line) shown and the numbers asked about, both from 0."""
  shown, asked = [], []
  for line in lines:
    found = _UTTERANCE.fullmatch(line)
    if found:
      shown.append((int(found[1]) - 1, found[2]))
      asked.append(shown[-1][0])
    elif line == _CONTEXT_ENDS:
      asked = []
    else:
      raise UnreadableError(
        "A line of a dialogue must read '[number] speaker: text', got"
        f" {line!r}."
      )
  if not asked:
    raise UnreadableError("A dialogue must have lines to label, got none.")
  return shown, asked


def _form(after: Sequence[str]) -> tuple[str, str]:
  """What is asked and the key of a label, from the example of an answer."""
  text = "\n".join(after)
  found = _FORM.search(text)
  if found and found[1] != "utterances":
    return "last", found[1]
  entry = _ENTRY.match(text, found.end()) if found else None
  if entry is None:
    raise UnreadableError(
      "After the dialogue there must be an example of an answer, a JSON object"
      " with label, labels or a list of utterances; got none."
    )
  keys = _KEY.findall(entry[1])
  for key in ("label", "labels"):
    if f'"{key}"' in keys:
      return "every", key
  return "positive", ""


def _enum(schema: Any) -> list[str] | None:
  """The labels that a JSON schema allows; None if it names none."""
  parts = []
  if isinstance(schema, dict):
    for key in ("label", "labels"):
      part = schema.get(key)
      if isinstance(part, dict):
        items = part.get("items")
        part = items if isinstance(items, dict) else part
        if isinstance(part.get("enum"), list):
          return part["enum"]
    parts = schema.values()
  elif isinstance(schema, list):
    parts = schema
  for part in parts:
    found = _enum(part)
    if found is not None:
      return found
  return None
