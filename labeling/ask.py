"""Asks an OpenAI-compatible server and keeps every answer."""

import asyncio
import collections
import dataclasses
import heapq
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence

import openai

from labeling import chat, limits, parse
from labeling.plan import Request
from labeling.settings import Settings
from labeling.store import Answer, Outcome, Store

Status = parse.Status
_BACKOFF, _LONGEST_BACKOFF = 0.5, 30.0  # seconds
_OVERLOAD = (429, 503, 529)


def answers_of(request: Request, samples, choices) -> list[Answer]:
  """Reads choices as the answers of samples; fewer choices leave some out."""
  answers = []
  for sample, (text, finish_reason, refusal) in zip(
    samples, choices, strict=False
  ):
    status, votes = parse.parse(request.question, text, finish_reason, refusal)
    answers.append(
      Answer(sample, status, refusal or text, finish_reason, votes)
    )
  return answers


@dataclasses.dataclass(order=True)
class _Task:
  """Samples of a request that are still to be asked for."""

  due: float
  number: int
  request: Request = dataclasses.field(compare=False)
  samples: tuple[int, ...] = dataclasses.field(compare=False)
  tries: int = dataclasses.field(compare=False, default=0)


@dataclasses.dataclass
class Progress:
  """What was done so far in this run.

  Attributes:
    there: answers that the store had already.
    answers: by status, of sampled answers.
    calls: by status, of calls that brought no answer.
    requests: calls that went out.
    given_up: answers that are missing after the last try.
    tokens: of questions and of answers, as the server counts.
  """

  there: int = 0
  answers: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  calls: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  requests: int = 0
  given_up: int = 0
  tokens: list[int] = dataclasses.field(default_factory=lambda: [0, 0])


def keep(
  store: Store,
  progress: Progress,
  call: int,
  key: str,
  reply: chat.Reply,
  cost: float | None,
  answers: Sequence[Answer],
  latency: float | None = None,
) -> None:
  """Keeps how a call ended and what it brought, and counts it."""
  tokens = reply.usage or (None, None)
  outcome = Outcome(reply.status, cost, reply.detail, latency, *tokens)
  store.finish(call, key, outcome, answers)
  progress.requests += 1
  for i, count in enumerate(tokens):
    progress.tokens[i] += count or 0
  progress.answers.update(a.status for a in answers)
  if reply.status != Status.VALID:
    progress.calls[reply.status] += 1


class AskerBase:
  """What every way of asking needs.

  Args:
    client: with retries of its own turned off.
    settings: limits and prices.
    store: keeps the answers, and what was found out about the server.
    budget: of the run.
    on_change: called whenever something came back, with the progress.
  """

  def __init__(
    self,
    client: openai.AsyncOpenAI,
    settings: Settings,
    store: Store,
    budget: limits.Budget,
    on_change: Callable[[Progress], None] = lambda progress: None,
  ):
    self._client, self._settings = client, settings
    self._store, self._budget = store, budget
    self._on_change = on_change
    self.progress = Progress()
    self._stopping = False
    self._server = f"{settings.endpoint} {settings.model}"
    # What is not known to be refused is tried.
    self._takes_n = store.fact(f"n: {self._server}") != "no"
    self._may_schema = (
      settings.structured != "never"
      and store.fact(f"json_schema: {self._server}") != "no"
    )
    self._takes_schema = self._may_schema

  def stop(self) -> bool:
    """Starts no more calls; says whether that is news."""
    news, self._stopping = not self._stopping, True
    return news

  def _one_at_a_time(self) -> None:
    """Keeps that the server gives one answer where several are asked for."""
    self._takes_n = False
    self._store.learn(f"n: {self._server}", "no")

  def _answers_without_schema(self) -> None:
    """Keeps that the server refused with a JSON schema what it now answered."""
    if self._may_schema:
      self._may_schema = False
      self._store.learn(f"json_schema: {self._server}", "no")


class Asker(AskerBase):
  """Sends requests until all their answers are there; see `AskerBase`."""

  def __init__(self, client, settings: Settings, store: Store, *args):
    super().__init__(client, settings, store, *args)
    self._gate = limits.Gate(
      settings.concurrency,
      settings.requests_per_minute,
      settings.tokens_per_minute,
    )
    self._numbers = itertools.count()
    self._later: list[_Task] = []
    self._tasks: collections.Counter[str] = collections.Counter()
    self._changed = asyncio.Condition()
    self._random = random.Random()
    self._fatal = ""

  @property
  def in_flight(self) -> int:
    """Calls that are on their way."""
    return self._gate.in_flight

  async def run(self, requests: Iterator[Request]) -> bool:
    """Asks for what the store lacks.

    Args:
      requests: read as places come free, so that they may be without end.

    Returns:
      Whether it came to the end of them; False where it was stopped or the
      money is spent.

    Raises:
      chat.FatalError: the server will refuse every request. What was in flight
        came in before.
    """
    async with asyncio.TaskGroup() as group:
      for _ in range(self._settings.concurrency):
        group.create_task(self._work(requests))
    if self._fatal:
      raise chat.FatalError(self._fatal)
    return not self._stopping

  async def _work(self, requests: Iterator[Request]) -> None:
    while (task := await self._next(requests)) is not None:
      try:
        await self._try(task)
      except limits.BudgetSpentError:
        self.stop()
      finally:
        async with self._changed:
          self._tasks[task.request.key] -= 1
          if not self._tasks[task.request.key]:
            del self._tasks[task.request.key]
          self._changed.notify_all()

  async def _next(self, requests: Iterator[Request]) -> _Task | None:
    """Returns what to ask next, waiting for it; None at the end."""
    async with self._changed:
      while not self._stopping:
        now = time.monotonic()
        if self._later and self._later[0].due <= now:
          return heapq.heappop(self._later)
        task = self._new(requests)
        if task is not None:
          return task
        if not self._tasks:
          return None
        wait = self._later[0].due - now if self._later else None
        try:
          async with asyncio.timeout(wait):
            await self._changed.wait()
        except TimeoutError:
          continue
      self._changed.notify_all()
      return None

  def _new(self, requests: Iterator[Request]) -> _Task | None:
    """Returns the next request that lacks an answer, if there is one."""
    for request in requests:
      self._store.ask(request, self._settings.endpoint)
      # Dialogues of equal text share a request: the first one asks.
      if request.key in self._tasks:
        continue
      samples = self._store.missing(request)
      self.progress.there += len(request.samples) - len(samples)
      if samples:
        self._tasks[request.key] += 1
        return _Task(0.0, next(self._numbers), request, samples)
    return None

  def _again(self, task: _Task, samples, delay=0.0, tries=0) -> None:
    """Asks again later, or gives up after the last try."""
    if not samples:
      return
    if tries >= self._settings.max_tries:
      self.progress.given_up += len(samples)
      return
    self._tasks[task.request.key] += 1
    heapq.heappush(
      self._later,
      _Task(
        time.monotonic() + delay,
        next(self._numbers),
        task.request,
        tuple(samples),
        tries,
      ),
    )

  async def _try(self, task: _Task) -> None:
    """Makes one call for a task and keeps what it brings."""
    request, settings = task.request, self._settings
    samples = task.samples
    if not self._takes_n and len(samples) > 1:
      samples, rest = samples[:1], samples[1:]
      self._again(task, rest, tries=task.tries)
    body = dict(request.body)
    if len(samples) > 1:
      body["n"] = len(samples)
    with_schema = self._takes_schema
    if with_schema:
      body["response_format"] = request.response_format
    bound = request.prompt_tokens_bound
    reserved = settings.cost(bound, len(samples) * settings.max_tokens)
    await self._budget.reserve(reserved)
    cost: float | None = 0.0  # until it goes out
    try:
      async with self._gate.call(sum(request.tokens_estimate)) as started:
        number = self._store.begin(request.key, samples, reserved)
        cost = None
        reply = await chat.call(self._client, body, settings.timeout)
        cost = chat.cost_of(self._settings, reply)
        answers = answers_of(request, samples, reply.choices)
        keep(
          self._store,
          self.progress,
          number,
          request.key,
          reply,
          cost,
          answers,
          time.monotonic() - started,
        )
    finally:
      await self._budget.settle(reserved, cost)
    self._follow_up(task, samples, reply, answers, started, with_schema)
    self._on_change(self.progress)

  def _follow_up(
    self, task, samples, reply, answers, started, with_schema
  ) -> None:
    """Asks again for what the call did not bring."""
    tries = task.tries + 1
    if reply.fatal:
      self._fatal = reply.fatal
      self.stop()
      return
    if reply.status == Status.VALID:
      self._gate.answered()
      if not with_schema:
        self._answers_without_schema()
      missing = samples[len(answers) :]
      if missing and answers:
        self._one_at_a_time()
        self._again(task, missing, tries=task.tries)
      else:
        self._again(task, missing, tries=tries)
      failed = [a.sample for a in answers if a.status != Status.VALID]
      self._again(task, failed, tries=tries)
      return
    if reply.status == Status.REJECTED:
      if with_schema:
        # The schema may be what it does not take; without it we shall see.
        self._takes_schema = False
        self._again(task, samples, tries=task.tries)
      elif len(samples) > 1:
        for sample in samples:
          self._again(task, (sample,), tries=task.tries)
      else:
        self._takes_schema = self._may_schema  # it was not the schema
        self._again(task, samples, tries=self._settings.max_tries)
      return
    delay = min(_LONGEST_BACKOFF, _BACKOFF * 2**task.tries)
    delay *= self._random.uniform(0.5, 1.5)
    if reply.code in _OVERLOAD or reply.status == Status.TIMEOUT:
      self._gate.overloaded(started, reply.retry_after)
    self._again(task, samples, max(delay, reply.retry_after or 0.0), tries)
