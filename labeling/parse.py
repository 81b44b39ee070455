"""An answer's text to votes, or to the reason why there are none."""

import dataclasses
import enum
import json
import re
from collections.abc import Sequence
from typing import Any

from labeling import answers
from labeling import render as render_lib

_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)```", re.DOTALL | re.IGNORECASE)
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


class Status(enum.StrEnum):
  """What became of a request for one answer."""

  VALID = "valid"
  EMPTY = "empty"
  TRUNCATED = "truncated"
  REFUSED = "refused"
  MALFORMED = "malformed"
  OFF_LABEL = "off_label"
  PARTIAL = "partial"
  MISMATCHED = "mismatched"
  # Valid, and not needed any more.
  DUPLICATE = "duplicate"
  # Collected when nobody could tell what was asked; read when somebody can.
  UNREAD = "unread"
  # Without an answer.
  RATE_LIMITED = "rate_limited"
  SERVER_ERROR = "server_error"
  TIMEOUT = "timeout"
  CONNECTION = "connection"
  REJECTED = "rejected"
  TURNED_AWAY = "turned_away"  # the server had no room for the batch
  MISSING = "missing"


@dataclasses.dataclass(frozen=True)
class Vote:
  """The classes that an answer gives an utterance.

  Attributes:
    utterance: from 0 in the dialogue.
    labels: names of classes; () for none of them.
  """

  utterance: int
  labels: tuple[str, ...]


def parse(
  question: render_lib.Question,
  text: str | None,
  finish_reason: str | None,
  refusal: str | None = None,
) -> tuple[Status, tuple[Vote, ...]]:
  """Reads an answer.

  Where an answer has several faults, the first that holds is named: refused,
  truncated, empty, malformed, off-label, mismatched (a number that was not
  asked for or that came before, or other words than the utterance's), partial.

  Args:
    question: what was asked.
    text: the answer's content.
    finish_reason: as the API gives it.
    refusal: as the API gives it.

  Returns:
    `VALID` and a vote for each utterance asked about, in order; or another
    status, and no votes.
  """
  if refusal or finish_reason == "content_filter":
    return Status.REFUSED, ()
  if finish_reason == "length":
    return Status.TRUNCATED, ()
  if text is None or not text.strip():
    return Status.EMPTY, ()
  try:
    labels = _read(question, text.strip())
  except _UnusableError as e:
    return e.status, ()
  return Status.VALID, tuple(Vote(i, labels[i]) for i in question.asked)


def unfenced(text: str) -> str:
  """Returns a text without the one code fence that may be around it."""
  fence = _FENCE.fullmatch(text)
  return fence[1] if fence else text


class _UnusableError(Exception):
  def __init__(self, status: Status):
    super().__init__(status)
    self.status = status


def _read(
  question: render_lib.Question, text: str
) -> dict[int, tuple[str, ...]]:
  """From each utterance asked about to its classes."""
  if question.asks == "last":
    bare = [name for name in question.options if _bare(name) == _bare(text)]
    if len(bare) == 1:
      return {question.asked[0]: _labels(question, bare)}
  said = _json(text)
  form = answers.form(question.asks, question.multi_label)
  if not answers.has_form(said, form):
    raise _UnusableError(Status.MALFORMED)
  if question.asks == "last":
    return {question.asked[0]: _labels_of(question, said)}
  entries = said["utterances"]
  positive = question.asks == "positive"
  read = [
    (question.class_name,) if positive else _labels_of(question, entry)
    for entry in entries
  ]
  labels = {}
  for entry, names in zip(entries, read, strict=True):
    i = entry["number"] - 1
    if i not in question.asked or i in labels:
      raise _UnusableError(Status.MISMATCHED)
    if not answers.is_echo(question.text(i), entry["words"]):
      raise _UnusableError(Status.MISMATCHED)
    labels[i] = names
  if positive:
    return dict.fromkeys(question.asked, ()) | labels
  if len(labels) < len(question.asked):
    raise _UnusableError(Status.PARTIAL)
  return labels


def _labels_of(
  question: render_lib.Question, entry: dict[str, Any]
) -> tuple[str, ...]:
  if question.multi_label:
    return _labels(question, entry["labels"])
  return _labels(question, [entry["label"]])


def _labels(
  question: render_lib.Question, said: Sequence[str]
) -> tuple[str, ...]:
  """The classes that labels name, () for the answer none."""
  names = [_option(question.options, label) for label in said]
  if len(set(names)) < len(names):
    raise _UnusableError(Status.MALFORMED)
  if question.none_label:
    if names == [question.none_label]:
      return ()
    if question.none_label in names:
      raise _UnusableError(Status.MALFORMED)
  elif not names:
    raise _UnusableError(Status.MALFORMED)
  return tuple(names)


def _option(options: Sequence[str], label: str) -> str:
  if label in options:
    return label
  alike = [name for name in options if name.casefold() == label.casefold()]
  if len(alike) != 1:
    raise _UnusableError(Status.OFF_LABEL)
  return alike[0]


def _bare(text: str) -> str:
  stripped = text.strip(_QUOTES).removesuffix(".").strip(_QUOTES)
  return stripped.strip().casefold()


def _json(text: str) -> Any:
  try:
    return json.loads(
      unfenced(text),
      object_pairs_hook=_without_twins,
    )
  except (ValueError, RecursionError) as e:
    raise _UnusableError(Status.MALFORMED) from e


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(dict(pairs)) < len(pairs):
    raise ValueError("a key stands twice")
  return dict(pairs)
