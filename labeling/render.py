"""A prompt and a stretch of a dialogue to one chat request."""

import dataclasses
import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

from labeling import answers
from labeling import bank as bank_lib
from ppl_jax.data import dialogues as dialogues_lib


@dataclasses.dataclass(frozen=True)
class Question:
  """What a request asks, and what an answer to it may say.

  Attributes:
    prompt_id: of the prompt.
    asks: "last", "every" or "positive".
    dialogue_id: of the dialogue.
    first: the first utterance shown, from 0.
    texts: of the utterances shown, with single blanks between words.
    asked: the utterances that an answer is about, from 0.
    options: the labels that an answer may use, in the order shown.
    class_name: the class that is asked for, for "positive"; else "".
    multi_label: whether an utterance may have any number of classes.
    none_label: the option that means none of the classes; "" if not offered.
  """

  prompt_id: str
  asks: str
  dialogue_id: str
  first: int
  texts: tuple[str, ...]
  asked: tuple[int, ...]
  options: tuple[str, ...]
  class_name: str
  multi_label: bool
  none_label: str = ""

  def text(self, utterance: int) -> str:
    """The text shown of an utterance, from 0 in the dialogue."""
    return self.texts[utterance - self.first]


def render(
  bank: bank_lib.Bank,
  prompt: bank_lib.Prompt,
  dialogue: dialogues_lib.Dialogue,
  *,
  asked: Sequence[int],
  first: int,
  order_seed: int,
  class_name: str = "",
) -> tuple[Question, list[dict[str, str]]]:
  """Writes a request's messages.

  Args:
    bank: with the classes of the dataset; see `bank.for_classes`.
    prompt: one of the bank's.
    dialogue: what is to be labelled.
    asked: the utterances to label, from 0, in a row; one where the prompt asks
      for the last. Those that follow are not shown.
    first: the first utterance to show, as context.
    order_seed: of the order of the options where the prompt shuffles it.
    class_name: the class that a prompt for "positive" asks for.

  Returns:
    What is asked, and the messages with "role" and "content".

  Raises:
    ValueError: bank, prompt and what is asked do not fit.
  """
  asked = tuple(asked)
  length = len(dialogue.texts)
  in_a_row = asked and asked == tuple(range(asked[0], asked[-1] + 1))
  if not in_a_row or not 0 <= first <= asked[0] <= asked[-1] < length:
    raise ValueError(
      "a request asks about utterances in a row, from the first shown on; got"
      f" {asked} of {length}, shown from {first}: correct the plan"
    )
  if prompt.asks == "last" and len(asked) > 1:
    raise ValueError(
      f"prompt {prompt.id!r} asks for the last utterance alone, got"
      f" {asked}: make it a request for each"
    )
  wanted = [*bank.classes] if prompt.asks == "positive" else [""]
  if not bank.classes or class_name not in wanted:
    raise ValueError(
      f"prompt {prompt.id!r} asks for {prompt.asks!r}, with a class of"
      f" {wanted}; got {class_name!r}: correct it, and fill an empty bank by"
      " for_classes"
    )
  options = _options(bank, prompt, order_seed)
  messages = []
  if prompt.system.strip():
    messages.append({"role": "system", "content": prompt.system.strip()})
  for example in prompt.examples:
    last = len(example.labels) - 1
    question, text = _ask(
      bank,
      prompt,
      "",
      [(turn.speaker, turn.text) for turn in example.utterances],
      (last,) if prompt.asks == "last" else example.labelled,
      0,
      options,
      class_name,
    )
    labels = {i: example.classes_of(i) for i in question.asked}
    messages.append({"role": "user", "content": text})
    messages.append({"role": "assistant", "content": answer(question, labels)})
  question, text = _ask(
    bank,
    prompt,
    dialogue.dialogue_id,
    list(zip(dialogue.speakers, dialogue.texts, strict=True)),
    asked,
    first,
    options,
    class_name,
  )
  messages.append({"role": "user", "content": text})
  return question, messages


def answer(question: Question, labels: Mapping[int, Sequence[str]]) -> str:
  """The answer that says given labels, in the form that is asked for.

  Args:
    question: what was asked.
    labels: from each utterance asked about to its classes.

  Returns:
    A line of JSON.
  """
  entries = []
  for i in question.asked:
    entry = {
      "number": i + 1,
      "words": answers.first_words(question.text(i)),
    }
    if question.asks == "positive":
      if question.class_name in labels[i]:
        entries.append(entry)
      continue
    if question.multi_label:
      label = {"labels": list(labels[i])}
    else:
      label = {"label": labels[i][0] if labels[i] else question.none_label}
    if question.asks == "last":
      return json.dumps(label, ensure_ascii=False)
    entries.append(entry | label)
  return json.dumps({"utterances": entries}, ensure_ascii=False)


def json_schema(question: Question) -> dict[str, Any]:
  """The `response_format` that holds a server to the answer's form.

  It depends on the prompt and not on the dialogue, since servers compile a
  schema when they first see it.
  """
  wanted = answers.form(question.asks, question.multi_label)
  return {
    "type": "json_schema",
    "json_schema": {
      "name": f"{question.asks}_answer",
      "strict": True,
      "schema": _schema(wanted, sorted(question.options)),
    },
  }


def _schema(wanted: Any, options: list[str], key: str = "") -> dict[str, Any]:
  if isinstance(wanted, dict):
    return {
      "type": "object",
      "properties": {k: _schema(v, options, k) for k, v in wanted.items()},
      "required": list(wanted),
      "additionalProperties": False,
    }
  if isinstance(wanted, list):
    return {"type": "array", "items": _schema(wanted[0], options, key)}
  if wanted is int:
    return {"type": "integer"}
  if key in ("label", "labels"):
    return {"type": "string", "enum": options}
  return {"type": "string"}


def _options(
  bank: bank_lib.Bank, prompt: bank_lib.Prompt, order_seed: int
) -> list[str]:
  """The classes in the order that a prompt lists them."""
  names = list(bank.classes)
  if prompt.option_order == "reversed":
    names.reverse()
  elif prompt.option_order == "shuffled":
    # The same on every machine and Python.
    names.sort(
      key=lambda n: hashlib.sha256(f"{order_seed} {n}".encode()).digest()
    )
  return names


def _ask(
  bank: bank_lib.Bank,
  prompt: bank_lib.Prompt,
  dialogue_id: str,
  turns: Sequence[tuple[str, str]],
  asked: tuple[int, ...],
  first: int,
  options: Sequence[str],
  class_name: str,
) -> tuple[Question, str]:
  """What is asked about one dialogue, and the user message that asks it."""
  turns = [
    (_one_line(speaker), _one_line(text))
    for speaker, text in turns[first : asked[-1] + 1]
  ]
  positive = prompt.asks == "positive"
  none_label = bank.none_label if bank.none and not positive else ""
  descriptions = bank.classes | ({none_label: bank.none} if none_label else {})
  listed = [*options, none_label] if none_label else list(options)
  question = Question(
    prompt_id=prompt.id,
    asks=prompt.asks,
    dialogue_id=dialogue_id,
    first=first,
    texts=tuple(text for _, text in turns),
    asked=asked,
    options=(class_name,) if positive else tuple(listed),
    class_name=class_name,
    multi_label=bank.multi_label,
    none_label=none_label,
  )
  speaker, text = turns[-1]
  asks_all = prompt.asks != "last"
  substituted = string.Template(prompt.template.strip()).substitute(
    {
      "dialogue": _show(turns, first, asked[0] if asks_all else first),
      "options": "\n".join(
        _option(name, descriptions[name]) for name in listed
      ),
      "class": f'"{class_name}"',
      "description": descriptions.get(class_name, ""),
      "speaker": speaker,
      "utterance": text,
    }
  )
  instruction = answers.instruction(
    prompt.asks, bank.multi_label, bool(bank.none)
  )
  return question, f"{substituted}\n\n{instruction}"


def _show(turns: Sequence[tuple[str, str]], first: int, line_at: int) -> str:
  """The dialogue with a line before utterance `line_at`, if it has context."""
  lines = []
  for i, (speaker, text) in enumerate(turns, start=first):
    if i == line_at > first:
      lines.append("---")
    lines.append(f"[{i + 1}] {speaker}: {text}")
  return "\n".join(["<dialogue>", *lines, "</dialogue>"])


def _option(name: str, description: str) -> str:
  description = _one_line(description)
  return f"- {name}: {description}" if description else f"- {name}"


def _one_line(text: str) -> str:
  return " ".join(text.split())
