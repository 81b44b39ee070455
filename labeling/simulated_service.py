"""What a simulated server answers and bills, without the HTTP."""

import collections
import dataclasses
import functools
import hashlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pydantic

from labeling import simulated_annotator as annotator_lib
from labeling import simulated_faults as faults
from labeling import simulated_log as log
from labeling.simulated_faults import Fault

_TOKEN = re.compile(r"\w+|[^\w\s]")
_TOKENS_PER_MESSAGE = 3
_NOT_IN_BATCH = (Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.HANG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """How a simulated server behaves.

  Attributes:
    seed: of answers and faults.
    noise: scales the annotator's errors; 0 answers gold.
    model: the one model that is served.
    key: the API key that a client must send; "" asks for none.
    latency: seconds that an answer takes.
    max_n: most answers to one request, whatever it asks for; 0 for no limit.
    refuses_n: whether a request for several answers is refused with 400.
    json_schema: whether `response_format` may be a JSON schema.
    max_in_flight: requests at once above which it is 429; 0 for no limit.
    retry_after: seconds, sent with each 429.
    hang_seconds: after which a connection that hangs is closed.
    price_input: money for a million tokens of questions.
    price_output: money for a million tokens of answers.
    price_batch: share of these prices that a batch takes.
    batch_seconds: that a batch takes.
    batch_tokens: most tokens of questions in all batches at work, above which
      a batch fails; 0 for no limit.
    rates: from a `Fault` to the share of requests, or of answers, that have it.

  Raises:
    ValueError: a value is out of range.
  """

  seed: int = 0
  noise: float = 1.0
  model: str = "simulated"
  key: str = ""
  latency: float = 0.0
  max_n: int = 0
  refuses_n: bool = False
  json_schema: bool = True
  max_in_flight: int = 0
  retry_after: float = 1.0
  hang_seconds: float = 600.0
  price_input: float = 1.0
  price_output: float = 4.0
  price_batch: float = 0.5
  batch_seconds: float = 1.0
  batch_tokens: int = 0
  rates: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    for name, value in dataclasses.asdict(self).items():
      if isinstance(value, int | float) and value < 0:
        raise ValueError(f"{name} must be at least 0, got {value}: raise it")
    names = [str(fault) for fault in Fault]
    unknown = sorted(set(self.rates) - set(names))
    if unknown:
      raise ValueError(
        f"a rate must be of one of {names}, got {unknown}: correct the name"
      )
    for among in (faults.OF_REQUEST, faults.OF_ANSWER):
      rates = [self.rates.get(fault, 0.0) for fault in among]
      if min(rates) < 0 or sum(rates) > 1 + 1e-9:
        raise ValueError(
          f"the rates of {', '.join(among)} must be at least 0 and at most 1"
          f" together, got {rates}: correct them"
        )

  @property
  def fails(self) -> bool:
    """Whether any rate is above 0."""
    return any(self.rates.values())


class ApiError(Exception):
  """A refusal, as the API words it.

  Args:
    status: of HTTP.
    message: for a person.
    kind: the API's "type".
    param: the parameter at fault.
    code: for a program.
  """

  def __init__(
    self,
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
  ):
    super().__init__(message)
    self.status = status
    self.code = code
    self.body = {
      "error": {"message": message, "type": kind, "param": param, "code": code}
    }


@dataclasses.dataclass(frozen=True)
class Reply:
  """What a request gets.

  Attributes:
    status: of HTTP.
    body: JSON.
    fault: of a request, or None; what is to go wrong on the way.
    record: for `simulated_log.Log`.
  """

  status: int
  body: dict[str, Any]
  fault: Fault | None
  record: dict[str, Any]


class _Message(pydantic.BaseModel):
  role: str
  content: str | list[dict[str, Any]] | None = None


class _Request(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(strict=True)

  model: str
  messages: list[_Message] = pydantic.Field(min_length=1)
  n: int | None = pydantic.Field(None, ge=1, le=128)
  temperature: float | None = pydantic.Field(None, ge=0, le=2)
  max_tokens: int | None = pydantic.Field(None, ge=1)
  max_completion_tokens: int | None = pydantic.Field(None, ge=1)
  response_format: dict[str, Any] | None = None
  stream: Literal[False] | None = None

  @property
  def has_schema(self) -> bool:
    return (self.response_format or {}).get("type") == "json_schema"


class Service:
  """Answers requests.

  Args:
    annotator: whose answers they are.
    settings: may be replaced between requests.
  """

  def __init__(self, annotator: annotator_lib.Annotator, settings: Settings):
    self._annotator = annotator
    self.settings = settings
    self._attempts = collections.Counter()
    self._name, self._responses = secrets.token_hex(4), 0

  def check_key(self, authorization: str) -> None:
    """Raises ApiError where a header does not have the key."""
    key = self.settings.key
    if key and authorization != f"Bearer {key}":
      raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

  def check_model(self, model: str) -> None:
    """Raises ApiError for a model that is not served."""
    if model != self.settings.model:
      raise ApiError(
        404,
        f"The model `{model}` does not exist or you do not have access to it.",
        param="model",
        code="model_not_found",
      )

  def refuse(self, body: Any, error: ApiError) -> Reply:
    """Answers a request, which may be anything, with an error."""
    return _refusal(self._record(body), error)

  def answer(self, body: Any, in_batch: bool = False) -> Reply:
    """Answers a chat request and bills it.

    Args:
      body: of the request.
      in_batch: whether it is of a batch, where it can expire but has no
        connection to lose.

    Returns:
      The reply; with a status other than 200 where it is an error.
    """
    record = self._record(body)
    try:
      request = self._read(body)
      asked = self._annotator.read(body)
    except annotator_lib.UnreadableError as e:
      return _refusal(record, ApiError(400, str(e), param="messages"))
    except ApiError as e:
      return _refusal(record, e)
    self._attempts[record["request"]] += 1
    key = (record["request"], record["attempt"])
    fault = self.draw_fault(*key)
    if fault in (_NOT_IN_BATCH if in_batch else (Fault.EXPIRED,)):
      fault = None
    record["failure"] = fault
    error = error_of(fault)
    if error is not None:
      return _refusal(record, error)
    if fault in (Fault.DROP_BEFORE, Fault.EXPIRED):
      return Reply(200, {}, fault, record)
    choices = self._choices(request, asked, *key)
    prompt_tokens = count_tokens(body)
    completion_tokens = sum(choice.pop("tokens") for choice in choices)
    share = self.settings.price_batch if in_batch else 1.0
    cost = (
      prompt_tokens * self.settings.price_input
      + completion_tokens * self.settings.price_output
    )
    self._responses += 1
    record |= {
      "id": f"chatcmpl-{self._name}-{self._responses}",
      "choices": choices,
      "prompt_tokens": prompt_tokens,
      "completion_tokens": completion_tokens,
      "cost": share * cost / 1e6,
    }
    return Reply(200, _completion(record, request.model), fault, record)

  def draw_fault(self, *parts: Any) -> Fault | None:
    """What goes wrong with a request; the same for the same `parts`."""
    if not self.settings.fails:
      return None
    rng = self._rng("request", *parts)
    return faults.draw(rng, self.settings.rates, faults.OF_REQUEST)

  def _rng(self, *parts: Any) -> np.random.Generator:
    """Depends on the seed and on `parts` alone."""
    line = json.dumps([self.settings.seed, *parts]).encode()
    digest = hashlib.sha256(line).digest()
    return np.random.default_rng(int.from_bytes(digest))

  def _record(self, body: Any) -> dict[str, Any]:
    """Of a request that was not answered yet."""
    digest = None if body is None else log.request_sha256(body)
    return {
      "time": time.time(),
      "request": digest,
      "attempt": self._attempts[digest],
      "id": None,
      "n": body.get("n") or 1 if isinstance(body, dict) else None,
      "choices": [],
      "status": 200,
      "failure": None,
      "prompt_tokens": 0,
      "completion_tokens": 0,
      "cost": 0.0,
      "batch": None,
      "custom_id": None,
    }

  def _read(self, body: Any) -> _Request:
    try:
      request = _Request.model_validate(body)
    except pydantic.ValidationError as e:
      fault = e.errors(include_url=False, include_context=False)[0]
      place = ".".join(str(part) for part in fault["loc"]) or "the body"
      raise ApiError(400, f"{place}: {fault['msg']}", param=place) from e
    self.check_model(request.model)
    if request.has_schema and not self.settings.json_schema:
      raise ApiError(
        400,
        "'response_format' of type 'json_schema' is not supported with this"
        " model.",
        param="response_format",
      )
    if self.settings.refuses_n and (request.n or 1) > 1:
      raise ApiError(400, "'n' must be 1 with this model.", param="n")
    return request

  def _choices(
    self,
    request: _Request,
    asked: annotator_lib.Asked | annotator_lib.Rewording,
    digest: str,
    attempt: int,
  ) -> list[dict[str, Any]]:
    """The answers as the log has them, and the "tokens" of each."""
    settings = self.settings
    n = min(request.n or 1, settings.max_n or 128)
    choices = []
    for i in range(n):
      # At temperature 0 all answers are one, but what goes wrong with them is
      # drawn each time: or else no repetition would ever help.
      draw = (attempt, i) if request.temperature != 0 else (0, 0)
      rng = self._rng("answer", digest, *draw)
      said = self._annotator.answer(
        asked, rng, seed=settings.seed, noise=settings.noise
      )
      fault = None
      if settings.fails:
        rng = self._rng("fault", digest, attempt, i)
        fault = faults.draw(rng, settings.rates, faults.OF_ANSWER)
      choice = faults.choice(fault, asked, said, rng, schema=request.has_schema)
      text = choice["text"] or choice["refusal"] or ""
      tokens = list(_TOKEN.finditer(text))
      most = request.max_completion_tokens or request.max_tokens
      if most and len(tokens) > most:
        tokens = tokens[:most]
        choice |= {
          "text": text[: tokens[-1].end()],
          "finish_reason": "length",
          "refusal": None,
          "fault": Fault.LENGTH,
        }
      choice["faithful"] = choice["fault"] is None
      choice["tokens"] = max(1, len(tokens))
      choices.append(choice)
    return choices


def _refusal(record: dict[str, Any], error: ApiError) -> Reply:
  record["status"] = error.status
  record["failure"] = record["failure"] or error.code or "invalid_request"
  return Reply(error.status, error.body, None, record)


def _completion(record: Mapping[str, Any], model: str) -> dict[str, Any]:
  """The body of a response."""
  tokens = record["prompt_tokens"], record["completion_tokens"]
  return {
    "id": record["id"],
    "object": "chat.completion",
    "created": int(record["time"]),
    "model": model,
    "choices": [
      {
        "index": i,
        "message": {
          "role": "assistant",
          "content": choice["text"],
          "refusal": choice["refusal"],
        },
        "logprobs": None,
        "finish_reason": choice["finish_reason"],
      }
      for i, choice in enumerate(record["choices"])
    ],
    "usage": {
      "prompt_tokens": tokens[0],
      "completion_tokens": tokens[1],
      "total_tokens": sum(tokens),
    },
  }


def error_of(fault: Fault | None) -> ApiError | None:
  """The error that a fault of a request is, if it is one."""
  if fault == Fault.RATE_LIMIT:
    return ApiError(
      429,
      "Rate limit reached for requests. Please try again later.",
      kind="requests",
      code="rate_limit_exceeded",
    )
  if fault == Fault.SERVER_ERROR:
    return ApiError(
      500,
      "The server had an error while processing your request.",
      kind="server_error",
    )
  return None


def count_tokens(body: Any) -> int:
  """Tokens of a request's messages; 0 of what is no request.

  Words and punctuation marks count, and three for each message and for all.
  """
  try:
    messages = _Request.model_validate(body).messages
  except pydantic.ValidationError:
    return 0
  words = sum(_count(annotator_lib.text_of(m)) for m in body["messages"])
  return words + _TOKENS_PER_MESSAGE * (len(messages) + 1)


@functools.lru_cache(maxsize=4096)
def _count(text: str) -> int:
  return len(_TOKEN.findall(text))
