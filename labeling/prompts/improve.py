"""Has the LLM reword prompts from their mistakes.

A new wording is written with mistakes from one half of the gold in sight and
kept for its accuracy on the other half, so that learning the mistakes by heart
does not pay.
"""

import json
import string
from collections.abc import Sequence

import pydantic

from labeling import bank as bank_lib
from labeling import parse
from labeling.prompts.trial import Trial

_MISTAKES = 8
_SYSTEM = "You reword prompts by which utterances of dialogues are labelled."
_TASK = string.Template(
  """\
Below is a prompt template and some utterances that it got wrong. Write a new
template that would get them, and others like them, right. Say what tells the
classes apart; do not quote the utterances. Keep these placeholders exactly as
they are spelled: $placeholders.

The task: $about
The classes:
$classes

<template>
$template
</template>

<mistakes>
$mistakes
</mistakes>

Answer with one JSON object and nothing else: {"template": "..."}"""
)


class _Proposal(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid", strict=True)

  template: str


def messages(
  bank: bank_lib.Bank, prompt: bank_lib.Prompt, trial: Trial
) -> list[dict[str, str]]:
  """Returns the chat that asks for a new wording."""
  used = string.Template(prompt.template).get_identifiers()
  classes = list(bank.classes)
  return [
    {"role": "system", "content": _SYSTEM},
    {
      "role": "user",
      "content": _TASK.substitute(
        placeholders=", ".join(f"${name}" for name in used),
        about=bank.about,
        classes="\n".join(f"- {n}: {d}" for n, d in bank.classes.items()),
        template=prompt.template.strip(),
        mistakes="\n\n".join(
          _mistake(dialogue, utterance, share_C, classes)
          for dialogue, utterance, share_C in trial.mistakes[:_MISTAKES]
        ),
      ),
    },
  ]


def response_format() -> dict:
  """Returns the JSON schema of a proposal."""
  schema = _Proposal.model_json_schema()
  return {
    "type": "json_schema",
    "json_schema": {"name": "proposal", "strict": True, "schema": schema},
  }


def read(
  bank: bank_lib.Bank,
  prompt: bank_lib.Prompt,
  text: str | None,
  *,
  prompt_id: str,
  origin: str,
) -> bank_lib.Prompt:
  """Reads a proposal.

  Args:
    bank: of the prompt.
    prompt: that was to be reworded.
    text: the answer.
    prompt_id: of the new prompt.
    origin: where it comes from.

  Returns:
    The new prompt.

  Raises:
    ValueError: the answer is no usable template, or one that the bank has.
  """
  try:
    proposal = _Proposal.model_validate_json(
      parse.unfenced((text or "").strip())
    )
    new = bank_lib.Prompt.model_validate(
      prompt.model_dump()
      | {"id": prompt_id, "template": proposal.template, "origin": origin}
    )
  except pydantic.ValidationError as e:
    fault = e.errors(include_url=False)[0]
    raise ValueError(fault["msg"]) from e
  have = {bank_lib.prompt_sha256(bank, p) for p in bank.prompts}
  if bank_lib.prompt_sha256(bank, new) in have:
    raise ValueError("the bank has this wording already")
  return new


def _mistake(dialogue, utterance, share_C, classes: Sequence[str]) -> str:
  first = max(0, utterance - 3)
  shown = "\n".join(
    f"{dialogue.speakers[i]}: {dialogue.texts[i]}"
    for i in range(first, utterance + 1)
  )
  gold = [
    c for c, g in zip(classes, dialogue.gold[utterance], strict=True) if g
  ]
  votes = {
    c: round(float(s), 2) for c, s in zip(classes, share_C, strict=True) if s
  }
  return (
    f"{shown}\n(the last one is {', '.join(gold) or 'of none of the classes'};"
    f" answered: {json.dumps(votes, ensure_ascii=False)})"
  )
