"""Asks through the Batch API: the same plan, in files, at a lower price.

A batch is kept in the store before it is handed over, under a name of ours
that goes along as metadata, so that a restart finds it at the server, even one
that was killed between the two. What a batch did not bring, because
requests failed or it expired, goes into the next one, and nothing else does.
"""

import asyncio
import collections
import dataclasses
import json
import logging
import uuid
from collections.abc import Iterator, Mapping

import openai

from labeling import ask, chat
from labeling.plan import Request
from labeling.store import Outcome

_ENDED = ("completed", "failed", "expired", "cancelled")
_METADATA = "ppl_jax_batch"
_URL = "/v1/chat/completions"
_NOT_BROUGHT = chat.Reply(
  ask.Status.MISSING, detail="not in the batch's output"
)
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass
class _Task:
  """Samples of a request that are still to be asked for."""

  request: Request
  samples: tuple[int, ...]
  tries: int = 0


@dataclasses.dataclass(frozen=True)
class _Call:
  """A request within a batch.

  Attributes:
    key: of the request.
    samples: that it asks for.
    reserved: money.
    task: None until the plan comes to it.
    with_schema: whether it gives a JSON schema; None where an earlier run knew.
  """

  key: str
  samples: tuple[int, ...]
  reserved: float
  task: _Task | None = None
  with_schema: bool | None = None


@dataclasses.dataclass
class _Batch:
  """A batch at the server.

  Attributes:
    name: ours.
    remote: the server's.
    tokens: of its requests and answers, at most.
    calls: by their number in the store.
  """

  name: str
  remote: str
  tokens: int
  calls: dict[int, _Call]


class BatchAsker(ask.AskerBase):
  """Like `ask.Asker`, through the Batch API.

  Stopped, it leaves its batches at the server; the next run collects them.
  """

  def __init__(self, *args):
    super().__init__(*args)
    self._open: list[_Batch] = []
    self._again: collections.deque[_Task] = collections.deque()
    # How many tasks of a request are under way, and who waits for them.
    self._asked: collections.Counter[str] = collections.Counter()
    self._parked: dict[str, list[Request]] = {}

  @property
  def in_flight(self) -> int:
    """Requests in batches that are not collected yet."""
    return sum(len(batch.calls) for batch in self._open)

  async def run(self, requests: Iterator[Request]) -> bool:
    """Asks for what the store lacks; see `ask.Asker.run`."""
    try:
      return await self._run(requests)
    except openai.OpenAIError as error:
      raise chat.FatalError(
        f"The server must answer, got {error}. Check config.labeling.endpoint,"
        " and give the same command again; what was handed over is collected"
        " then."
      ) from error

  async def _run(self, requests: Iterator[Request]) -> bool:
    await self._adopt()
    tasks = self._lacking(requests)
    if self._open:  # answers can be read once the plan has told the questions
      tasks = iter(list(tasks))
    ahead = next(tasks, None)
    while ahead is not None or self._again or self._open:
      if self._stopping:
        return False
      if ahead is not None or self._again:
        ahead = await self._hand_over(ahead, tasks)
      collected = [await self._collect(batch) for batch in list(self._open)]
      if self._open and not any(collected):
        await asyncio.sleep(self._settings.batch_poll)
    return True

  async def _adopt(self) -> None:
    """Finds the batches of an earlier run at the server."""
    known = self._store.open_batches(self._settings.endpoint)
    remotes = {name: remote for name, remote, _ in known if remote}
    if len(remotes) < len(known):
      async for remote in self._client.batches.list():
        name = (remote.metadata or {}).get(_METADATA)
        if name is not None:
          remotes.setdefault(name, remote.id)
    for name, _, tokens in known:
      calls = {
        call: _Call(key, samples, reserved)
        for call, key, samples, reserved in self._store.batch_calls(name)
      }
      if name in remotes:
        self._store.name_batch(name, remotes[name])
        self._open.append(_Batch(name, remotes[name], tokens, calls))
        for call in calls.values():
          self._budget.adopt(call.reserved)
      else:  # killed before it was handed over
        with self._store.transaction():
          for number, call in calls.items():
            self._store.finish(
              number, call.key, Outcome(ask.Status.MISSING, 0.0, "not sent"), []
            )
          self._store.end_batch(name)
        self._budget.spent = self._store.spent()

  def _lacking(self, requests: Iterator[Request]) -> Iterator[_Task]:
    """Yields what is neither in the store nor under way."""
    adopted = collections.defaultdict(list)
    for batch in self._open:
      for number, call in batch.calls.items():
        adopted[call.key].append((batch, number))
    for request in requests:
      ask.keep_question(self._store, request, self._settings.endpoint)
      for batch, number in adopted.pop(request.key, ()):
        call = batch.calls[number]
        task = _Task(request, call.samples)
        batch.calls[number] = dataclasses.replace(call, task=task)
        self._asked[request.key] += 1
      if task := self._task(request):
        yield task

  def _task(self, request: Request) -> _Task | None:
    """Returns what a request lacks, if nobody asks for it now."""
    # Dialogues of equal text share a request, each with samples of its own.
    if self._asked[request.key]:
      self._parked.setdefault(request.key, []).append(request)
      return None
    samples = self._store.missing(request)
    self.progress.there += len(request.samples) - len(samples)
    if not samples:
      return None
    self._asked[request.key] += 1
    return _Task(request, samples)

  def _done(self, key: str) -> None:
    """Lets those go on that wait for a request."""
    self._asked[key] -= 1
    if not self._asked[key]:
      del self._asked[key]
      for request in self._parked.pop(key, ()):
        if task := self._task(request):
          self._again.append(task)

  async def _hand_over(
    self, ahead: _Task | None, tasks: Iterator[_Task]
  ) -> _Task | None:
    """Hands one batch to the server; returns the task that did not fit."""
    settings, lines, calls, size = self._settings, [], {}, 0
    name = uuid.uuid4().hex
    waiting = tokens = sum(batch.tokens for batch in self._open)
    with self._store.transaction():
      while len(lines) < settings.batch_requests:
        task = self._again.popleft() if self._again else ahead
        if task is None:
          break
        own = task is not ahead
        if not self._takes_n and len(task.samples) > 1:
          for sample in task.samples[1:]:
            self._again.append(_Task(task.request, (sample,), task.tries))
            self._asked[task.request.key] += 1
          task.samples = task.samples[:1]
        line = self._line(task)
        room = self._bound(task)
        reserved = settings.price_batch * settings.cost(*room)
        fits = size + len(line) < settings.batch_bytes and (
          not settings.batch_tokens
          or tokens + sum(room) <= settings.batch_tokens
        )
        if not fits and not lines and not self._open:
          raise ValueError(
            "A request must fit into a batch alone, got one of"
            f" {len(line)} bytes and up to {sum(room)} tokens. Raise"
            " config.labeling.batch_bytes or batch_tokens, or lower max_tokens."
          )
        if fits and not self._budget.try_reserve(reserved):
          fits = False
          if not lines and not self._open:
            self.stop()
        if not fits:
          if own:
            self._again.appendleft(task)
          break
        number = self._store.begin(
          task.request.key, task.samples, reserved, name
        )
        calls[number] = _Call(
          task.request.key, task.samples, reserved, task, self._takes_schema
        )
        lines.append(line.replace(b"CALL", str(number).encode(), 1))
        size += len(line)
        tokens += sum(room)
        if not own:
          ahead = next(tasks, None)
      if lines:
        self._store.begin_batch(name, self._settings.endpoint, tokens - waiting)
    if lines:
      batch = _Batch(name, "", tokens - waiting, calls)
      await self._send(batch, b"".join(lines))
    return ahead

  def _line(self, task: _Task) -> bytes:
    """Returns a line of the input file, with CALL for the call's number."""
    body = dict(task.request.body)
    if len(task.samples) > 1:
      body["n"] = len(task.samples)
    if self._takes_schema:
      body["response_format"] = task.request.response_format
    line = {"custom_id": "CALL", "method": "POST", "url": _URL, "body": body}
    return json.dumps(line).encode() + b"\n"

  def _bound(self, task: _Task) -> tuple[int, int]:
    """Returns the most tokens of a request and of its answers."""
    answers = len(task.samples) * self._settings.max_tokens
    return task.request.prompt_tokens_bound, answers

  async def _send(self, batch: _Batch, content: bytes) -> None:
    """Uploads a batch and has the server start it."""
    try:
      file = await self._client.files.create(
        file=(f"{batch.name}.jsonl", content), purpose="batch"
      )
      remote = await self._client.batches.create(
        input_file_id=file.id,
        endpoint=_URL,
        completion_window="24h",
        metadata={_METADATA: batch.name},
      )
    except openai.APIStatusError as error:
      reply = chat.refused(error)
      await self._end(batch, {}, reply)
      if reply.code == 404:
        raise chat.FatalError(
          f"The server must have the Batch API, got {reply.detail}. Leave"
          " --batch out, or check config.labeling.endpoint."
        ) from error
      if reply.fatal:
        raise chat.FatalError(reply.fatal) from error
      await asyncio.sleep(
        max(self._settings.batch_poll, reply.retry_after or 0)
      )
      return
    except openai.APIConnectionError as error:
      # It may have been started all the same: only a look at the list tells.
      await asyncio.sleep(self._settings.batch_poll)
      found = None
      async for remote in self._client.batches.list():
        if (remote.metadata or {}).get(_METADATA) == batch.name:
          found = remote
      if found is None:
        reply = chat.Reply(ask.Status.CONNECTION, detail=str(error))
        await self._end(batch, {}, reply)
        return
      remote = found
    batch.remote = remote.id
    self._store.name_batch(batch.name, remote.id)
    self._open.append(batch)

  async def _collect(self, batch: _Batch) -> bool:
    """Takes in what a batch brought, if it ended; says whether it did."""
    try:
      remote = await self._client.batches.retrieve(batch.remote)
      if remote.status not in _ENDED:
        return False
      replies = {}
      for file in (remote.output_file_id, remote.error_file_id):
        if file:
          content = await self._client.files.content(file)
          replies |= _replies(content.content)
    except openai.APIStatusError as error:
      reply = chat.refused(error)
      if reply.code == 404:
        _LOG.warning(
          "The server must know batch %s, got %s. It counts as paid for in full"
          " and is asked for again.",
          batch.remote,
          reply.detail,
        )
        self._open.remove(batch)
        gone = dataclasses.replace(_NOT_BROUGHT, detail=reply.detail)
        await self._end(batch, {}, gone, None)
        return True
      if reply.fatal:
        raise chat.FatalError(reply.fatal) from error
      return False
    except openai.APIConnectionError:
      return False
    rest = _NOT_BROUGHT
    if remote.errors and remote.errors.data:
      detail = "; ".join(str(e.message) for e in remote.errors.data)
      _LOG.warning("Batch %s %s: %s", remote.id, remote.status, detail)
      rest = dataclasses.replace(rest, detail=detail)
    self._open.remove(batch)
    await self._end(batch, replies, rest)
    if remote.status == "failed" and not replies:  # its queue may be full
      await asyncio.sleep(self._settings.batch_poll)
    return True

  async def _end(
    self,
    batch: _Batch,
    replies: Mapping[int, chat.Reply],
    rest: chat.Reply,
    rest_cost: float | None = 0.0,
  ) -> None:
    """Keeps all that a batch brought, in one transaction.

    Args:
      batch: that ended.
      replies: by call.
      rest: to calls that have no reply.
      rest_cost: of each of those; None where it is not known.
    """
    settled = []
    with self._store.transaction():
      for number, call in batch.calls.items():
        reply = replies.get(number, rest)
        cost = 0.0 if number in replies else rest_cost
        if reply.usage is not None:
          cost = self._settings.price_batch * self._settings.cost(*reply.usage)
        elif reply.choices:
          cost = None
        if call.task is not None:
          answers = ask.answers_of(
            call.task.request, call.samples, reply.choices
          )
        else:
          answers = ask.unread(call.samples, reply.choices)
        ask.keep(
          self._store, self.progress, number, call.key, reply, cost, answers
        )
        settled.append((call, reply, answers, cost))
      self._store.end_batch(batch.name)
    for call, reply, answers, cost in settled:
      await self._budget.settle(call.reserved, cost)
      if call.task is not None:
        self._follow_up(call, reply, answers)
    self._on_change(self.progress)

  def _follow_up(self, call: _Call, reply: chat.Reply, answers) -> None:
    """Puts into the next batch what this one did not bring."""
    tries, several = call.task.tries + 1, len(call.samples) > 1
    if answers and len(answers) < len(call.samples):
      self._one_at_a_time()
    if call.with_schema is not None:
      if answers:
        self._accepted(call.key, several, call.with_schema)
      elif reply.status == ask.Status.REJECTED:
        self._rejected(call.key, several, call.with_schema)
    valid = {a.sample for a in answers if a.status == ask.Status.VALID}
    missing = tuple(s for s in call.samples if s not in valid)
    if missing and tries < self._settings.max_tries:
      self._again.append(_Task(call.task.request, missing, tries))
      return
    self.progress.given_up += len(missing)
    self._done(call.key)


def _replies(content: bytes) -> dict[int, chat.Reply]:
  """Reads a batch's output or error file; broken lines bring nothing."""
  replies = {}
  for line in content.splitlines():
    try:
      fields = json.loads(line)
      number = int(fields["custom_id"])
      response = fields.get("response") or {}
      code = response.get("status_code")
      if code == 200:
        reply = chat.read_reply(response["body"])
      else:
        error = fields.get("error") or response.get("body")
        status = chat.status_of(code if isinstance(code, int) else 500)
        reply = chat.Reply(status, detail=json.dumps(error)[:1000])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
      continue
    replies[number] = reply
  return replies
