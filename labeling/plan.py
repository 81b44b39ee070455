"""Which requests label a dialogue: a pure function of settings and dialogue.

A vote is a (prompt, sampled answer) pair: for sample s of a dialogue a prompt
is drawn, and all of the dialogue is asked about with it. Asking for more votes,
prompts or dialogues leaves the requests that were there before as they were
(a new prompt takes over its share of the draws).
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from labeling import bank as bank_lib
from labeling import render
from labeling.settings import Settings
from ppl_jax.data import dialogues as dialogues_lib

# Tokens of a chat request beside its texts: roles and separators.
_TOKENS_PER_MESSAGE = 8
_TOKENS_PER_REQUEST = 16


@dataclasses.dataclass(frozen=True)
class Request:
  """One chat request, and which of its sampled answers are wanted.

  Attributes:
    question: what is asked, for the reader of the answer.
    text_sha256: of the dialogue; see `Dialogue.text_sha256`.
    prompt_sha256: of the prompt.
    classes: those that it lists; () where it asks about one and lists none.
    body: the request without `n` and `response_format`.
    samples: numbers of the wanted answers; equal requests differ by them.
    key: hex SHA-256 of endpoint and body. With a sample's number it names an
      answer for good. How the answer's form is enforced is not in it.
  """

  question: render.Question
  text_sha256: str
  prompt_sha256: str
  classes: tuple[str, ...]
  body: Mapping[str, Any]
  samples: tuple[int, ...]
  key: str

  @functools.cached_property
  def response_format(self) -> dict[str, Any]:
    """The JSON schema of the answer, as a request gives it."""
    return render.json_schema(self.question)

  @functools.cached_property
  def prompt_tokens_bound(self) -> int:
    """More tokens than the request can have: one a byte."""
    messages = self.body["messages"]
    texts = sum(len(m["content"].encode("utf-8")) for m in messages)
    schema = len(json.dumps(self.response_format))
    return (
      texts + schema + _TOKENS_PER_MESSAGE * len(messages) + _TOKENS_PER_REQUEST
    )

  @functools.cached_property
  def tokens_estimate(self) -> tuple[int, int]:
    """Likely tokens of the request and of one answer.

    Four bytes a token, and what a right answer of the asked form takes.
    """
    asked = self.question.asked
    answer = 10 if self.question.asks == "last" else 10 + 20 * len(asked)
    return self.prompt_tokens_bound // 4, answer


class Plan:
  """The requests of a labelling run.

  Args:
    settings: how to ask.
    bank: of the task; see `bank.for_classes`.

  Raises:
    ValueError: `settings.prompts` names a prompt that the bank lacks.
  """

  def __init__(self, settings: Settings, bank: bank_lib.Bank):
    self._settings = settings
    self._bank = bank
    have = {prompt.id: prompt for prompt in bank.prompts}
    unknown = [name for name in settings.prompts if name not in have]
    if unknown:
      raise ValueError(
        f"config.labeling.prompts must be prompts of the bank, got {unknown}."
        f" It has {list(have)}."
      )
    self.prompts = {
      name: have[name] for name in (settings.prompts or tuple(have))
    }
    self.prompt_sha256 = {
      name: bank_lib.prompt_sha256(bank, prompt)
      for name, prompt in self.prompts.items()
    }

  def draws(self, dialogue_id: str) -> dict[str, list[int]]:
    """Returns the numbers of the samples that each prompt was drawn for."""
    drawn: dict[str, list[int]] = {}
    for sample in range(self._settings.votes):
      # The prompt of the highest hash: a new prompt moves only its own share.
      name = max(
        self.prompts,
        key=lambda name: _hash(self._settings.seed, dialogue_id, sample, name),
      )
      drawn.setdefault(name, []).append(sample)
    return drawn

  def requests(self, dialogue: dialogues_lib.Dialogue) -> Iterator[Request]:
    """Yields the requests that label a dialogue N times."""
    text_sha256 = dialogue.text_sha256()
    for name, samples in self.draws(dialogue.dialogue_id).items():
      prompt = self.prompts[name]
      shuffled = prompt.option_order == "shuffled"
      for some in [(s,) for s in samples] if shuffled else [tuple(samples)]:
        order = _hash(
          self._settings.seed, dialogue.dialogue_id, some[0], "order"
        )
        for first, asked, class_name in self._stretches(
          prompt, len(dialogue.texts)
        ):
          question, messages = render.render(
            self._bank,
            prompt,
            dialogue,
            asked=asked,
            first=first,
            order_seed=order,
            class_name=class_name,
          )
          yield self._request(question, messages, some, text_sha256)

  def answers(self, dialogue_id: str, length: int) -> int:
    """Returns how many answers label a dialogue of so many utterances."""
    return sum(
      len(samples) * len(list(self._stretches(self.prompts[name], length)))
      for name, samples in self.draws(dialogue_id).items()
    )

  def _stretches(
    self, prompt: bank_lib.Prompt, length: int
  ) -> Iterator[tuple[int, Sequence[int], str]]:
    """Yields the first utterance shown, those asked about, and the class."""
    size = 1 if prompt.asks == "last" else self._settings.utterances_per_request
    classes = tuple(self._bank.classes) if prompt.asks == "positive" else ("",)
    for start in range(0, length, size):
      first = max(0, start - self._settings.context_turns)
      asked = range(start, min(length, start + size))
      for class_name in classes:
        yield first, asked, class_name

  def _request(self, question, messages, samples, text_sha256) -> Request:
    settings = self._settings
    prompt = self.prompts[question.prompt_id]
    body = {
      "model": settings.model,
      "messages": messages,
      "temperature": settings.temperature,
      "top_p": settings.top_p,
      settings.max_tokens_name: settings.max_tokens,
      **({"top_k": settings.top_k} if settings.top_k else {}),
      **settings.extra_body,
    }
    return Request(
      question=question,
      text_sha256=text_sha256,
      prompt_sha256=self.prompt_sha256[question.prompt_id],
      classes=tuple(self._bank.classes) if prompt.lists_classes else (),
      body=body,
      samples=samples,
      key=request_key(settings.endpoint, body),
    )


def request_key(endpoint: str, body: Mapping[str, Any]) -> str:
  """Returns what names a request for good; see `Request`."""
  return _sha256(endpoint, body)


def _hash(*parts: object) -> int:
  return int(_sha256(*parts)[:16], 16)


def _sha256(*parts: object) -> str:
  line = json.dumps(parts, sort_keys=True, ensure_ascii=False)
  return hashlib.sha256(line.encode("utf-8", "surrogatepass")).hexdigest()


def in_shard(dialogue_id: str, shard: tuple[int, int]) -> bool:
  """Says whether a dialogue belongs to shard i of n, i from 0."""
  index, count = shard
  return _hash("shard", dialogue_id) % count == index
