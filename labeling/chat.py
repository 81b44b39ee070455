"""One call to an OpenAI-compatible server, and what its reply says."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import openai

from labeling import parse
from labeling.settings import Settings

Status = parse.Status


# The client's library changes its name; those of its errors stay.
_NOT_SENT = ("ConnectError", "UnsupportedProtocol")
_MOST_TOKENS = 1 << 40  # of one reply; more is no count


class FatalError(ValueError):
  """The server will refuse every request; says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Reply:
  """What one call brought.

  Attributes:
    status: VALID where the server answered, whatever it answered.
    choices: (text, finish_reason, refusal) of each answer.
    usage: (prompt tokens, completion tokens), None where not told.
    code: the HTTP status, 0 where there is none.
    detail: what went wrong, in short.
    retry_after: seconds that the server asks to be left alone.
    fatal: why every request will be refused, and what to do; else empty.
    sent: whether the server can have got the request.
  """

  status: Status
  choices: tuple[tuple[str | None, str | None, str | None], ...] = ()
  usage: tuple[int, int] | None = None
  code: int = 0
  detail: str = ""
  retry_after: float | None = None
  fatal: str = ""
  sent: bool = True


async def call(
  client: openai.AsyncOpenAI, body: Mapping[str, Any], timeout: float
) -> Reply:
  """Makes one call; knows no retries.

  Args:
    client: with retries of its own turned off.
    body: the request.
    timeout: seconds for all of it.
  """
  try:
    async with asyncio.timeout(timeout):
      # `extra_body` replaces what is given beside it. Messages given there cost
      # a quarter of a call's CPU time: the client copies them type by type.
      raw = await client.chat.completions.with_raw_response.create(
        model=body["model"], messages=[], extra_body=body
      )
      reply = json.loads(raw.http_response.content)
  except (TimeoutError, openai.APITimeoutError):
    return Reply(Status.TIMEOUT, detail=f"no answer within {timeout:g} s")
  except openai.APIStatusError as e:
    return refused(e)
  except openai.APIConnectionError as e:
    cause = e.__cause__ or e
    return Reply(
      Status.CONNECTION,
      detail=f"{type(cause).__name__}: {cause}",
      sent=type(cause).__name__ not in _NOT_SENT,
    )
  except (ValueError, RecursionError) as e:
    return Reply(Status.CONNECTION, detail=f"{type(e).__name__}: {e}")
  return read_reply(reply)


def read_reply(reply: Any) -> Reply:
  """Reads the body of a chat completion, trusting nothing in it."""
  if not isinstance(reply, dict) or not isinstance(reply.get("choices"), list):
    error = reply.get("error") if isinstance(reply, dict) else None
    if not isinstance(error, dict):
      return Reply(Status.CONNECTION, detail="the reply has no choices")
    # Of a gateway whose own server failed.
    code = error.get("code")
    code = code if type(code) is int and 400 <= code < 600 else 500
    told = _clean(str(error.get("message") or error).rstrip("."))
    return Reply(status_of(code), code=code, detail=f"error {code}: {told}")
  choices = []
  for choice in reply["choices"]:
    choice = choice if isinstance(choice, dict) else {}
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    choices.append(
      tuple(
        _clean(value) if isinstance(value, str) else None
        for value in (
          message.get("content"),
          choice.get("finish_reason"),
          message.get("refusal"),
        )
      )
    )
  usage = reply.get("usage")
  usage = usage if isinstance(usage, dict) else {}
  tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
  told = all(type(t) is int and 0 <= t < _MOST_TOKENS for t in tokens)
  status, detail = Status.VALID, ""
  if not choices:
    status, detail = Status.SERVER_ERROR, "the reply's choices are none"
  return Reply(status, tuple(choices), tokens if told else None, detail=detail)


def refused(error: openai.APIStatusError) -> Reply:
  """Reads an HTTP error."""
  code = error.status_code
  told = error.body.get("message") if isinstance(error.body, dict) else None
  detail = _clean(f"HTTP {code}: {str(told or error.message).rstrip('.')}")
  fatal = ""
  if code in (401, 403):
    fatal = (
      f"The server must accept the key, got {detail}. Put the right one into"
      " the environment variable of config.labeling.api_key_variable."
    )
  elif code == 404:
    fatal = (
      f"The server must have the model, got {detail}. Check"
      " config.labeling.model and config.labeling.endpoint."
    )
  elif code == 402 or getattr(error, "code", None) == "insufficient_quota":
    fatal = (
      f"The account must have money left, got {detail}. Fill it up, and run the"
      " same command again."
    )
  return Reply(
    status_of(code),
    code=code,
    detail=detail,
    retry_after=_retry_after(error.response.headers),
    fatal=fatal,
  )


def _clean(text: str) -> str:
  """Replaces halves of characters, which JSON can have and UTF-8 cannot."""
  return text.encode("utf-8", "replace").decode()


def status_of(code: int) -> parse.Status:
  """Returns what an HTTP status of an error means."""
  if code in (408, 504):
    return Status.TIMEOUT
  if code == 429:
    return Status.RATE_LIMITED
  return Status.SERVER_ERROR if code >= 500 else Status.REJECTED


def _retry_after(headers: Mapping[str, str]) -> float | None:
  for name, unit in (("retry-after-ms", 1000), ("retry-after", 1)):
    try:
      seconds = float(headers.get(name, "")) / unit
    except ValueError:  # none, or a date, which no known server sends
      continue
    if 0 <= seconds < 3600:
      return seconds
  return None


def cost_of(settings: Settings, reply: Reply) -> float | None:
  """Returns what a call took; None where the server may have taken all."""
  if reply.usage is not None:
    return settings.cost(*reply.usage)
  if not reply.sent or (reply.code and reply.code < 500):
    return 0.0  # no work was done
  return None
