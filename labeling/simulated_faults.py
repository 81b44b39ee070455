"""The ways in which a simulated server can be told to fail."""

import enum
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from labeling import simulated_annotator as annotator_lib


class Fault(enum.StrEnum):
  """A way to fail."""

  # Of a request.
  RATE_LIMIT = "rate_limit"  # 429 with Retry-After
  SERVER_ERROR = "server_error"  # 500
  DROP_BEFORE = "drop_before"  # the connection ends; nothing is billed
  DROP_AFTER = "drop_after"  # it ends within the answer, which is billed
  HANG = "hang"  # the answer is billed and does not come
  EXPIRED = "expired"  # of a request in a batch
  # Of each answer.
  CUT = "cut"  # half an answer, as if it were whole
  LENGTH = "length"  # half an answer, with finish_reason "length"
  OFF_LABEL = "off_label"  # not where a schema names the labels
  SHIFTED = "shifted"  # the numbers and words do not belong together
  MISSING = "missing"  # utterances are left out
  REFUSAL = "refusal"
  EMPTY = "empty"


OF_ANSWER = tuple(Fault)[list(Fault).index(Fault.CUT) :]
OF_REQUEST = tuple(f for f in Fault if f not in OF_ANSWER)

_FILTERED = "content_filter"
_OFF_LABEL = "another label"
_REFUSAL = "I'm sorry, but I can't help with that."


def draw(
  rng: np.random.Generator,
  rates: Mapping[str, float],
  among: Iterable[Fault],
) -> Fault | None:
  """Draws at most one fault, each as often as its rate says."""
  left = rng.random()
  for fault in among:
    left -= rates.get(fault, 0.0)
    if left < 0:
      return fault
  return None


def choice(
  fault: Fault | None,
  asked: annotator_lib.Asked | annotator_lib.Rewording,
  answer: dict[str, Any],
  rng: np.random.Generator,
  *,
  schema: bool,
) -> dict[str, Any]:
  """Puts an answer into words, faithfully or with a fault.

  A fault that the answer can not have is left out: an answer about one
  utterance has no numbers to shift, for one.

  Args:
    fault: one of `OF_ANSWER`, or None.
    asked: what the answer is about.
    answer: the annotator's.
    rng: of this answer.
    schema: whether the answer must obey a JSON schema.

  Returns:
    "text", "finish_reason" and "refusal" as a client gets them, and "fault",
    None for a faithful answer.
  """
  text, finish_reason, refusal = _dumps(answer), "stop", None
  if fault == Fault.REFUSAL:
    text = None
    if rng.random() < 0.5:
      finish_reason = _FILTERED
    else:
      refusal = _REFUSAL
  elif fault == Fault.EMPTY:
    text = (None, "", " \n")[rng.integers(3)]
  elif fault in (Fault.CUT, Fault.LENGTH):
    text = text[: rng.integers(1, len(text))]
    if fault == Fault.LENGTH:
      finish_reason = "length"
  elif fault is not None:
    changed = None
    if isinstance(asked, annotator_lib.Asked):
      if fault == Fault.SHIFTED:
        changed = _shift(asked, answer, rng)
      elif fault == Fault.MISSING:
        changed = _leave_out(asked, answer, rng)
      elif not schema:
        changed = _off_label(asked, answer, rng)
    if changed is None:
      fault = None
    else:
      text = _dumps(changed)
  return {
    "text": text,
    "finish_reason": finish_reason,
    "refusal": refusal,
    "fault": fault,
  }


def _dumps(answer: dict[str, Any]) -> str:
  return json.dumps(answer, ensure_ascii=False)


def _shift(
  asked: annotator_lib.Asked, answer: dict[str, Any], rng: np.random.Generator
) -> dict[str, Any] | None:
  """Numbers one too high, or with what belongs to the next one."""
  entries = answer.get("utterances")
  if not entries:
    return None
  numbers = [entry["number"] for entry in entries]
  if rng.random() < 0.5:
    numbers = [number + 1 for number in numbers]
  else:
    entries = [*entries[1:], entries[0]]
  if not any(
    _shows(asked, number, entry["words"])
    for number, entry in zip(numbers, entries, strict=True)
  ):
    # Neighbours that begin alike: only a number from elsewhere shows.
    numbers = [number + len(asked.dialogue.texts) for number in numbers]
  return {
    "utterances": [
      {**entry, "number": number}
      for number, entry in zip(numbers, entries, strict=True)
    ]
  }


def _shows(asked: annotator_lib.Asked, number: int, words: str) -> bool:
  """Whether no reader can take `words` for that utterance's first ones."""
  if number - 1 not in asked.numbers:
    return True
  text, said = asked.dialogue.texts[number - 1], _letters(words)
  own = text.split()[:3] == words.split()
  return not own and (not said or not _letters(text).startswith(said))


def _letters(text: str) -> str:
  return "".join(filter(str.isalnum, text.casefold()))


def _leave_out(
  asked: annotator_lib.Asked, answer: dict[str, Any], rng: np.random.Generator
) -> dict[str, Any] | None:
  """Without one entry or more, where each utterance must have one."""
  if asked.form != "every":
    return None
  entries = answer["utterances"]
  out = rng.permutation(len(entries))[: rng.integers(1, len(entries) + 1)]
  return {"utterances": [e for i, e in enumerate(entries) if i not in out]}


def _off_label(
  asked: annotator_lib.Asked, answer: dict[str, Any], rng: np.random.Generator
) -> dict[str, Any] | None:
  """With a label in one place that was not offered."""
  if asked.form == "positive":
    return None
  label = _OFF_LABEL
  while label.casefold() in {name.casefold() for name in asked.options}:
    label += "?"
  said = {asked.key: [label] if asked.key == "labels" else label}
  if asked.form == "last":
    return said
  entries = list(answer["utterances"])
  i = rng.integers(len(entries))
  entries[i] = {**entries[i], **said}
  return {"utterances": entries}
