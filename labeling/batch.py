"""Asks through the Batch API: the same plan, in files, at a lower price.

A batch is kept in the store before it is handed over, under a name of ours
that goes along as metadata, so that a restart finds it at the server, even one
that was killed between the two.

The plan is gone through again and again: what is neither in the store nor at
the server goes into batches, and what they did not bring, because requests
failed or it expired, is found lacking the next time. Nothing of a batch is held
in memory meanwhile, so that it stays flat: answers are stored as they came, and
read when the plan comes to what was asked.
"""

import asyncio
import dataclasses
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

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
_MOST_TURNED_AWAY = 10  # one after another, with nothing of ours waiting
_MOST_SILENT = 20  # looks at batches that fail, one after another
_ROOM = ("limit", "quota")  # in the code of an error that passes
_LOOKS = 2
# What may have been done all the same.
_UNKNOWN = (
  ask.Status.CONNECTION,
  ask.Status.TIMEOUT,
  ask.Status.SERVER_ERROR,
)
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Task:
  """Samples of a request that are to be asked for."""

  request: Request
  samples: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Batch:
  """A batch at the server.

  Attributes:
    name: ours.
    remote: the server's.
    tokens: of its requests and answers, at most.
    calls: how many.
    with_schema: whether its requests give a JSON schema; None where an earlier
      run knew.
  """

  name: str
  remote: str
  tokens: int
  calls: int
  with_schema: bool | None = None


class BatchAsker(ask.AskerBase):
  """Like `ask.Asker`, through the Batch API.

  Stopped, it leaves its batches at the server; the next run collects them.
  """

  def __init__(self, *args):
    super().__init__(*args)
    self._open: list[_Batch] = []
    self._missing = 0  # answers, of the plan so far
    self._full = False  # whether the server takes no more for now
    self._turned_away = self._silent = 0  # batches, looks; one after another
    self._since = time.time()

  @property
  def in_flight(self) -> int:
    """Requests in batches that are not collected yet."""
    return sum(batch.calls for batch in self._open)

  @property
  def stopping(self) -> str:
    """What to tell a user who stopped it."""
    return (
      f"Stopping: {len(self._open)} batches with {self.in_flight} requests stay"
      " at the server. Give the same command again to collect them."
    )

  async def run(self, requests: Iterable[Request]) -> bool:
    """Asks for what the store lacks; see `ask.Asker.run`."""
    try:
      return await self._run(requests)
    except openai.OpenAIError as error:
      raise chat.FatalError(
        f"The server must answer, got {error}. Check config.labeling.endpoint,"
        " and give the same command again; what was handed over is collected"
        " then."
      ) from error

  async def _run(self, requests: Iterable[Request]) -> bool:
    await self._adopt()
    first = True
    while not self._stopping:
      await self._pass(requests, first)
      first = False
      if self._missing == self.progress.given_up and not self._stopping:
        return True
    async for _ in self._lacking(requests, first):  # reads what came last
      pass
    return not self._missing

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
      calls = self._store.batch_calls(name)
      if name in remotes:
        self._store.name_batch(name, remotes[name])
        self._open.append(_Batch(name, remotes[name], tokens, len(calls)))
        for _, _, _, reserved in calls:
          self._budget.adopt(reserved)
      else:  # killed before it was handed over
        with self._store.transaction():
          for number, key, _, _ in calls:
            self._store.finish(
              number, key, Outcome(ask.Status.MISSING, 0.0, "not sent"), []
            )
          self._store.end_batch(name)
        self._budget.spent -= sum(reserved for *_, reserved in calls)

  async def _pass(self, requests: Iterable[Request], first: bool) -> None:
    """Hands over what is lacking, and collects it."""
    self._full = False
    tasks = self._lacking(requests, first)
    ahead = await anext(tasks, None)
    while (ahead is not None or self._open) and not self._stopping:
      there = len(self._open)
      if ahead is not None:
        ahead = await self._hand_over(ahead, tasks)
      handed_over = len(self._open) > there
      collected = [await self._collect(batch) for batch in list(self._open)]
      if self._full:  # the next pass goes on when there is room
        ahead = None
      if self._open and not any(collected) and not (handed_over and ahead):
        await self._sleep(self._settings.batch_poll)
    await tasks.aclose()

  async def _lacking(
    self, requests: Iterable[Request], first: bool
  ) -> AsyncIterator[_Task]:
    """Yields what is neither in the store nor at the server."""
    self._missing = self.progress.given_up = self.progress.rejected = 0
    for number, request in enumerate(requests):
      if number % ask.KNOWN_AT_ONCE == 0:
        await asyncio.sleep(0)
      read = ask.keep_question(self._store, request, self._settings.endpoint)
      unread = self.progress.answers[ask.Status.UNREAD] - read.total()
      self.progress.answers[ask.Status.UNREAD] = max(0, unread)
      samples = self._store.missing(request)
      if first:  # what was read now counts as there
        self.progress.there += len(request.samples) - len(samples)
      else:
        self.progress.answers.update(read)
      self._missing += len(samples)
      away = self._store.under_way(request)
      samples = tuple(s for s in samples if s not in away)
      tries = self._store.tries(request, self._since)
      again = tuple(s for s in samples if tries[s] < self._settings.max_tries)
      key = request.key
      if (key, False, False) in self._refused:  # in the simplest form
        again = ()
        self.progress.rejected += len(samples)
      self.progress.given_up += len(samples) - len(again)
      if not again:
        continue
      if self._takes_n and (key, True, False) not in self._refused:
        yield _Task(request, again)
      else:
        for sample in again:
          yield _Task(request, (sample,))

  async def _hand_over(
    self, ahead: _Task, tasks: AsyncIterator[_Task]
  ) -> _Task | None:
    """Hands one batch to the server; returns the task that did not fit."""
    settings, lines, size, tokens = self._settings, [], 0, 0
    waiting = sum(batch.tokens for batch in self._open)
    name = uuid.uuid4().hex
    with self._store.transaction():
      while ahead is not None and len(lines) < settings.batch_requests:
        line, room = self._line(ahead), self._bound(ahead)
        reserved = settings.price_batch * settings.cost(*room)
        fits = size + len(line) < settings.batch_bytes and (
          not settings.batch_tokens
          or waiting + tokens + sum(room) <= settings.batch_tokens
        )
        if not fits and not lines and not self._open:
          raise ValueError(
            "A request must fit into a batch alone, got one of"
            f" {len(line)} bytes and up to {sum(room)} tokens. Raise"
            " config.labeling.batch_bytes or batch_tokens, or lower max_tokens."
          )
        if not fits:
          break
        if not self._budget.try_reserve(reserved):
          if not lines and not self._open:
            self.out_of_money = True
            self.stop()
          break
        number = self._store.begin(
          ahead.request.key, ahead.samples, reserved, name
        )
        lines.append(line.replace(b"CALL", str(number).encode(), 1))
        size += len(line)
        tokens += sum(room)
        ahead = await anext(tasks, None)
        if self._stopping:
          break
      if lines:
        self._store.begin_batch(name, settings.endpoint, tokens)
    if lines:
      batch = _Batch(name, "", tokens, len(lines), self._takes_schema)
      if self._stopping:
        stopped = chat.Reply(ask.Status.TURNED_AWAY, detail="not sent")
        await self._end(batch, {}, stopped)
      else:
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
    except openai.APIError as error:
      reply = chat.Reply(ask.Status.CONNECTION, detail=str(error))
      if isinstance(error, openai.APIStatusError):
        reply = chat.refused(error)
      remote = None
      if reply.status in _UNKNOWN:
        remote = await self._look_for(batch)
      if remote is None:
        away = dataclasses.replace(reply, status=ask.Status.TURNED_AWAY)
        await self._end(batch, {}, away)
      if reply.code == 404:
        raise chat.FatalError(
          f"The server must have the Batch API, got {reply.detail}. Leave"
          " --batch out, or check config.labeling.endpoint."
        ) from error
      if reply.fatal:
        raise chat.FatalError(reply.fatal) from error
      if reply.status == ask.Status.REJECTED:
        raise chat.FatalError(
          f"The server must take the batch, got {reply.detail}. Lower"
          " config.labeling.batch_requests or batch_bytes if it is too large."
        ) from error
      if remote is None:
        await self._turn_away(reply)
        return
    self._store.name_batch(batch.name, remote.id)
    self._open.append(dataclasses.replace(batch, remote=remote.id))

  async def _look_for(self, batch: _Batch):
    """Returns a batch that may have been started all the same, if it was."""
    looked = failed = 0
    while looked < _LOOKS:  # the list may lag behind
      await asyncio.sleep(self._settings.batch_poll)
      try:
        async for remote in self._client.batches.list():
          if (remote.metadata or {}).get(_METADATA) == batch.name:
            return remote
        looked += 1
      except openai.APIError:
        failed += 1
        if failed >= _MOST_SILENT:  # it stays open, for the next run to find
          raise
    return None

  async def _turn_away(self, reply: chat.Reply) -> None:
    """Waits for room at the server; gives up where none comes."""
    self._full = True
    if self._open:  # what is collected makes room
      return
    self._turned_away += 1
    if self._turned_away >= _MOST_TURNED_AWAY:
      raise chat.FatalError(
        f"The server must take batches, got {self._turned_away} failures one"
        f" after another, the last: {reply.detail}. Lower"
        " config.labeling.batch_tokens to what may wait there at once, and give"
        " the same command again."
      )
    await self._sleep(max(self._settings.batch_poll, reply.retry_after or 0))

  async def _collect(self, batch: _Batch) -> bool:
    """Takes in what a batch brought, if it ended; says whether it did."""
    replies = {}
    try:
      remote = await self._client.batches.retrieve(batch.remote)
      self._silent = 0
      if remote.status not in _ENDED:
        return False
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
        await self._end(batch, replies, gone, None)
        return True
      if reply.fatal:
        raise chat.FatalError(reply.fatal) from error
      return self._not_heard(batch, reply.detail)
    except openai.APIConnectionError as error:
      return self._not_heard(batch, str(error))
    rest = _NOT_BROUGHT
    turned_away = remote.status == "failed" and not replies
    if turned_away:
      rest = dataclasses.replace(rest, status=ask.Status.TURNED_AWAY)
    if remote.errors and remote.errors.data:
      detail = "; ".join(str(e.message) for e in remote.errors.data)
      _LOG.warning("Batch %s %s: %s", remote.id, remote.status, detail)
      rest = dataclasses.replace(rest, detail=detail)
    self._open.remove(batch)
    # What is not in the output of a whole batch may have been lost and charged.
    whole = remote.status == "completed"
    await self._end(batch, replies, rest, None if whole else 0.0)
    if replies:
      self._turned_away = 0
    elif turned_away:  # its queue may be full
      codes = [
        str(e.code) for e in (remote.errors and remote.errors.data) or ()
      ]
      if codes and not any(word in code for word in _ROOM for code in codes):
        raise chat.FatalError(
          f"The server must take the batch, got {', '.join(codes)}:"
          f" {rest.detail}. Check config.labeling.model, and whether it can be"
          " asked in batches."
        )
      await self._turn_away(rest)
    return True

  def _not_heard(self, batch: _Batch, detail: str) -> bool:
    """Takes note of a look at a batch that failed; returns False."""
    self._silent += 1
    if self._silent == 1:
      _LOG.warning("Batch %s cannot be looked at: %s", batch.remote, detail)
    if self._silent >= _MOST_SILENT:
      raise chat.FatalError(
        f"The server must tell how batches are, got {self._silent} failures one"
        f" after another, the last: {detail}. Give the same command again to"
        " collect them."
      )
    return False

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
    settled, overrun = [], ""
    with self._store.transaction():
      for number, key, samples, reserved in self._store.batch_calls(batch.name):
        reply = replies.get(number, rest)
        cost = 0.0 if number in replies else rest_cost
        if reply.usage is not None:
          cost = self._settings.price_batch * self._settings.cost(*reply.usage)
        elif reply.choices or reply.status == ask.Status.CONNECTION:
          cost = None  # an answer that nobody can read, or count
        overrun = overrun or self._overrun(cost, reserved)
        answers = ask.unread(samples, reply.choices)
        ask.keep(self._store, self.progress, number, key, reply, cost, answers)
        if batch.with_schema is not None:
          self._learn(key, samples, reply, batch.with_schema)
        settled.append((reserved, cost))
      self._store.end_batch(batch.name)
    for reserved, cost in settled:
      await self._budget.settle(reserved, cost)
    self._on_change(self.progress)
    if overrun:
      raise chat.FatalError(overrun)

  def _learn(
    self, key: str, samples: Sequence[int], reply: chat.Reply, with_schema: bool
  ) -> None:
    """Takes note of what a reply says of the server."""
    several = len(samples) > 1
    if reply.choices:
      if len(reply.choices) < len(samples):
        self._one_at_a_time()
      self._accepted(key, several, with_schema)
    elif reply.status == ask.Status.REJECTED:
      self._rejected(key, several, with_schema)


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
