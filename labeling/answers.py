"""The form of an LLM's answers, in one place for those who ask and who parse.

An answer is one JSON object. One that is about more than one utterance repeats
each utterance's number and first words, since a shifted answer would be a wrong
label for every utterance.
"""

import json
import unicodedata
from typing import Any

ASKS = ("last", "every", "positive")
_NUM_WORDS = 3


def form(asks: str, multi_label: bool) -> dict[str, Any]:
  """The keys of an answer with the types of their values.

  Args:
    asks: one of `ASKS`.
    multi_label: whether an utterance may have any number of classes.

  Returns:
    A dict from key to `str`, `int`, a list of one of these forms, or a dict.
  """
  label = {"labels": [str]} if multi_label else {"label": str}
  if asks == "last":
    return label
  entry = {"number": int, "words": str}
  if asks == "every":
    entry |= label
  return {"utterances": [entry]}


def has_form(value: Any, wanted: Any) -> bool:
  """Whether a value read from JSON has a form, with no key more or less."""
  if isinstance(wanted, dict):
    return (
      type(value) is dict
      and value.keys() == wanted.keys()
      and all(has_form(value[key], wanted[key]) for key in wanted)
    )
  if isinstance(wanted, list):
    return type(value) is list and all(has_form(v, wanted[0]) for v in value)
  return type(value) is wanted  # True is no number.


def instruction(asks: str, multi_label: bool, offers_none: bool) -> str:
  """What a request says about the form of its answer, with one example.

  Args:
    asks: one of `ASKS`.
    multi_label: as in `form`.
    offers_none: whether "none of the classes" may be answered.

  Returns:
    Lines; the first JSON object in them has the keys that are asked for.
  """
  example = json.dumps(_placeholders(form(asks, multi_label)))
  lines = [
    "Answer with one JSON object of this form, and with nothing else:",
    example,
  ]
  if asks != "last":
    who = {
      "every": "every utterance of the dialogue",
      "positive": "each utterance of that class, and for no other",
    }[asks]
    lines.append(
      f"Give one entry for {who}, in order. If a line --- stands in the"
      " dialogue, leave out the utterances above it: they are context."
    )
    if asks == "positive":
      lines.append("If there is no such utterance, the list is empty.")
    lines.append(
      '"number" is the number in square brackets. "words" are the first'
      f" {_NUM_WORDS} words of the text after the speaker's name, copied as"
      " they stand there, or all words where there are fewer."
    )
  if asks == "positive":
    return "\n".join(lines)
  if not multi_label:
    lines.append('"label" is one of the labels listed, spelled as listed.')
  elif offers_none:
    lines.append(
      '"labels" are all the listed labels that apply, spelled as listed; the'
      " list is empty where none of them applies."
    )
  else:
    lines.append(
      '"labels" are all the listed labels that apply, at least one, spelled as'
      " listed."
    )
  return "\n".join(lines)


def first_words(text: str) -> str:
  """The words by which an answer names an utterance."""
  return " ".join(text.split()[:_NUM_WORDS])


def is_echo(text: str, words: str) -> bool:
  """Whether an answer's `words` are the first words of a text.

  Case and punctuation do not count: neither their spelling nor, where they
  stand alone, as words.
  """
  if " ".join(words.split()) == first_words(text):
    return True
  with_letters = [word for word in text.split() if _letters(word)]
  said = _letters(words)
  return said != "" and said in (
    _letters(first_words(text)),
    _letters(first_words(" ".join(with_letters))),
  )


def _letters(text: str) -> str:
  folded = unicodedata.normalize("NFKC", text).casefold()
  return "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")


def _placeholders(wanted: Any) -> Any:
  if isinstance(wanted, dict):
    return {key: _placeholders(value) for key, value in wanted.items()}
  if isinstance(wanted, list):
    return [_placeholders(wanted[0])]
  return 0 if wanted is int else "..."
