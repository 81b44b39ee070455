"""The `labeling` part of a config, checked once."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Settings:
  """How an LLM is asked.

  Attributes:
    endpoint: base URL of an OpenAI-compatible server, ending in /v1.
    model: its name there.
    bank: a file of labeling/prompts/, by name or path.
    prompts: ids of the prompts to draw from; empty for all of the bank.
    votes: N, the answers to ask for about every utterance.
    seed: of the prompts that are drawn, and of shuffled options.
    temperature: of sampling.
    top_p: share of probability that is sampled from.
    top_k: tokens that are sampled from; 0 does not send it.
    max_tokens: most tokens of an answer.
    max_tokens_name: what the server calls that.
    extra_body: other fields of a request.
    structured: whether to ask for a JSON schema: "auto" where the server
      can, or "never".
    context_turns: utterances shown before those that are asked about.
    utterances_per_request: most utterances asked about at once.
    concurrency: most requests in flight.
    requests_per_minute: 0 for no limit.
    tokens_per_minute: of question and answer together; 0 for no limit.
    timeout: seconds that an answer may take.
    max_tries: tries of one answer in one run.
    price_input: money for a million tokens of questions.
    price_output: money for a million tokens of answers.
    price_batch: share of these prices that the Batch API takes.
    batch_requests: most requests of one batch.
    batch_bytes: most bytes of one batch's file.
    batch_tokens: most tokens waiting in all batches; 0 for no limit.
    batch_poll: seconds between looks at the batches.
    api_key_variable: environment variable that holds the key.
  """

  endpoint: str
  model: str
  bank: str
  prompts: tuple[str, ...]
  votes: int
  seed: int
  temperature: float
  top_p: float
  top_k: int
  max_tokens: int
  max_tokens_name: str
  extra_body: Mapping[str, Any]
  structured: str
  context_turns: int
  utterances_per_request: int
  concurrency: int
  requests_per_minute: int
  tokens_per_minute: int
  timeout: float
  max_tries: int
  price_input: float
  price_output: float
  price_batch: float
  batch_requests: int
  batch_bytes: int
  batch_tokens: int
  batch_poll: float
  api_key_variable: str

  def __post_init__(self):
    for name in ("endpoint", "model", "bank"):
      if not getattr(self, name):
        raise ValueError(
          f"config.labeling.{name} must be given, got none. Set"
          f" --config.labeling.{name}."
        )
    for name, least in _LEAST.items():
      value = getattr(self, name)
      if value < least:
        raise ValueError(
          f"config.labeling.{name} must be at least {least}, got {value}."
          " Raise it."
        )
    reserved = {
      *("model", "messages", "n", "stream", "max_tokens", "response_format"),
      *("max_completion_tokens", self.max_tokens_name),
    }
    taken = sorted(reserved & set(self.extra_body))
    if taken:
      raise ValueError(
        "config.labeling.extra_body must leave alone what has a setting of its"
        f" own or is ours to fill in, got {', '.join(taken)}. Take it out."
      )
    if self.structured not in ("auto", "never"):
      raise ValueError(
        "config.labeling.structured must be 'auto' or 'never', got"
        f" {self.structured!r}. Choose one of them."
      )

  @classmethod
  def from_config(cls, config: Mapping[str, Any]) -> "Settings":
    """Reads a whole config: its `labeling` part, and its seed.

    Raises:
      ValueError: a value is missing or impossible.
    """
    values = dict(config["labeling"])
    values["prompts"] = tuple(values["prompts"])
    values["extra_body"] = dict(values["extra_body"])
    values["endpoint"] = values["endpoint"].rstrip("/")
    return cls(seed=config["seed"], **values)

  def check_cap(self, max_cost: float | None) -> None:
    """Raises ValueError for a --max_cost that nothing can come up to."""
    if max_cost is not None and not (self.price_input or self.price_output):
      raise ValueError(
        "--max_cost needs prices, got none. Set --config.labeling.price_input"
        " and price_output, in money for a million tokens."
      )

  def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
    """Returns the money that a call of so many tokens costs."""
    return (
      prompt_tokens * self.price_input + completion_tokens * self.price_output
    ) / 1e6


_LEAST = {
  "votes": 1,
  "temperature": 0,
  "top_p": 0,
  "top_k": 0,
  "max_tokens": 1,
  "context_turns": 0,
  "utterances_per_request": 1,
  "concurrency": 1,
  "requests_per_minute": 0,
  "tokens_per_minute": 0,
  "timeout": 0.001,
  "max_tries": 1,
  "price_input": 0,
  "price_output": 0,
  "price_batch": 0,
  "batch_requests": 1,
  "batch_bytes": 1,
  "batch_tokens": 0,
  "batch_poll": 0.001,
}
