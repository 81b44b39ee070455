"""Asks an OpenAI-compatible server and keeps every answer."""

import asyncio
import collections
import contextlib
import dataclasses
import heapq
import itertools
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import openai

from labeling import chat, limits, parse
from labeling.plan import Request
from labeling.settings import Settings
from labeling.store import Answer, Outcome, Store

Status = parse.Status
_BACKOFF, _LONGEST_BACKOFF = 0.5, 30.0  # seconds
_OVERLOAD = (429, 503, 529)
_OVERLOADED = (Status.TIMEOUT, Status.CONNECTION)
_LOOK_UP = 1.0  # seconds, to see whether it was stopped
_MOST_FAILURES = 50  # calls one after another that bring nothing
_PATIENCE = 60.0  # seconds without an answer, where there was one
_DETAIL = 160  # characters of what a server says
_MOST_DETAILS = 1000  # that are counted
KNOWN_AT_ONCE = 256  # requests, before others have their turn


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
  waits: int = dataclasses.field(compare=False, default=0)


@dataclasses.dataclass
class Progress:
  """What was done so far in this run.

  Attributes:
    there: answers that the store had already.
    answers: by status, of sampled answers.
    calls: by status, of calls that brought no answer.
    details: by status and what the server said of such a call, in a line.
    requests: calls that went out.
    given_up: answers that are missing after the last try.
    rejected: how many of these because the server refuses to be asked.
    tokens: of questions and of answers, as the server counts.
  """

  there: int = 0
  answers: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  calls: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  details: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  requests: int = 0
  given_up: int = 0
  rejected: int = 0
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
    line = " ".join(reply.detail.split())
    if len(line) > _DETAIL:
      line = line[: _DETAIL - 3] + "..."
    said = (reply.status, line)
    if said in progress.details or len(progress.details) < _MOST_DETAILS:
      progress.details[said] += 1


def keep_question(
  store: Store, request: Request, endpoint: str
) -> collections.Counter[Status]:
  """Keeps what a request asks, and reads answers that waited for it.

  Returns:
    How many it read, by what they are.
  """

  def read(text, finish_reason):
    return answers_of(request, (0,), [(text, finish_reason, None)])[0]

  store.ask(request, endpoint)
  return collections.Counter(store.read_unread(request, read))


def unread(samples, choices) -> list[Answer]:
  """Keeps answers for when it is known what was asked."""
  return [
    Answer(
      sample,
      Status.REFUSED if refusal else Status.UNREAD,
      refusal or text,
      finish_reason,
    )
    for sample, (text, finish_reason, refusal) in zip(
      samples, choices, strict=False
    )
  ]


def may_take_schema(store: Store, settings: Settings) -> bool:
  """Says whether to give the server a JSON schema: until it refused one."""
  known = store.fact(f"json_schema: {settings.endpoint} {settings.model}")
  return settings.structured != "never" and known != "no"


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
    self._server = f"{settings.endpoint} {settings.model}"
    # What is not known to be refused is tried.
    self._takes_n = store.fact(f"n: {self._server}") != "no"
    self._may_schema = may_take_schema(store, settings)
    self._takes_schema = self._may_schema
    # (request, whether several answers, whether with a schema) that was refused
    self._refused: set[tuple[str, bool, bool]] = set()
    self._stop = asyncio.Event()
    self.out_of_money = False

  def stop(self) -> bool:
    """Starts no more calls; says whether that is news."""
    news = not self._stopping
    self._stop.set()
    return news

  @property
  def _stopping(self) -> bool:
    return self._stop.is_set()

  async def _sleep(self, seconds: float) -> None:
    """Sleeps, until it is stopped at the latest."""
    with contextlib.suppress(TimeoutError):
      async with asyncio.timeout(seconds):
        await self._stop.wait()

  def _overrun(self, cost: float | None, reserved: float) -> str:
    """Returns what to say of a call that cost more than it could."""
    if cost is None or cost <= reserved or not self._budget.capped:
      return ""
    return (
      "An answer must not cost more than was set aside for it, got"
      f" {cost:.6f} for {reserved:.6f}: the server does not hold to"
      f" {self._settings.max_tokens_name}. Set config.labeling.max_tokens_name"
      " to the name that it takes, such as max_tokens."
    )

  def _one_at_a_time(self) -> None:
    """Keeps that the server gives one answer where several are asked for."""
    if self._takes_n:
      self._takes_n = False
      self._store.learn(f"n: {self._server}", "no")

  def _rejected(self, key: str, several: bool, with_schema: bool) -> bool:
    """Takes note of a refusal; says whether there is a simpler form to try."""
    self._refused.add((key, several, with_schema))
    # Without the schema, then one answer at a time, then as it was before.
    self._takes_schema = self._may_schema and not with_schema
    return with_schema or several

  def _accepted(self, key: str, several: bool, with_schema: bool) -> None:
    """Takes note of what the server bears that refused the same otherwise."""
    if not several and (key, True, with_schema) in self._refused:
      self._one_at_a_time()
    if not with_schema and (key, several, True) in self._refused:
      if self._may_schema:
        self._store.learn(f"json_schema: {self._server}", "no")
      self._may_schema = self._takes_schema = False
    elif self._refused:
      self._refused -= {
        (key, one, other) for one in (False, True) for other in (False, True)
      }


class Asker(AskerBase):
  """Sends requests until all their answers are there; see `AskerBase`."""

  def __init__(self, client, settings: Settings, store: Store, *args):
    super().__init__(client, settings, store, *args)
    self._gate = limits.Gate(
      settings.concurrency,
      settings.requests_per_minute,
      settings.tokens_per_minute,
      stop=self._stop,
    )
    self._numbers = itertools.count()
    self._later: list[_Task] = []
    self._tasks: collections.Counter[str] = collections.Counter()
    self._changed = asyncio.Condition()
    self._parked: dict[str, list[Request]] = {}
    self._ready: list[Request] = []
    self._random = random.Random()
    self._failures = 0  # one after another
    self._answered: float | None = None  # when the last answer came
    self._begun = time.monotonic()
    self._given_up: set[tuple[str, int]] = set()
    self._fatal = ""

  @property
  def in_flight(self) -> int:
    """Calls that are on their way."""
    return self._gate.in_flight

  @property
  def stopping(self) -> str:
    """What to tell a user who stopped it."""
    return (
      f"Stopping: waiting for {self.in_flight} calls in flight. Ctrl-C again"
      " drops them; they may be charged."
    )

  async def run(self, requests: Iterable[Request]) -> bool:
    """Asks for what the store lacks.

    Args:
      requests: gone through as places come free, here once; through the Batch
        API once for every try.

    Returns:
      Whether it came to the end of them; False where it was stopped or the
      money is spent.

    Raises:
      chat.FatalError: the server will refuse every request. What was in flight
        came in before.
    """
    waiting = self._store.open_batches(self._settings.endpoint)
    if waiting:
      raise ValueError(
        f"{self._store.path} must have no batches at the server, got"
        f" {len(waiting)}. Collect them first with `python -m labeling.main"
        " --batch`; what they ask for would be paid for twice."
      )
    try:
      plan = iter(requests)
      async with asyncio.TaskGroup() as group:
        for _ in range(self._settings.concurrency):
          group.create_task(self._work(plan))
    except ExceptionGroup as group:
      raise group.exceptions[0] from None
    if self._fatal:
      raise chat.FatalError(self._fatal)
    return not self._stopping

  async def _work(self, requests: Iterator[Request]) -> None:
    while (task := await self._next(requests)) is not None:
      try:
        await self._try(task)
      except limits.BudgetSpentError:
        self.out_of_money = True
        self.stop()
      finally:
        async with self._changed:
          self._tasks[task.request.key] -= 1
          if not self._tasks[task.request.key]:
            del self._tasks[task.request.key]
            self._ready += self._parked.pop(task.request.key, [])
          self._changed.notify_all()

  async def _next(self, requests: Iterator[Request]) -> _Task | None:
    """Returns what to ask next, waiting for it; None at the end."""
    async with self._changed:
      while not self._stopping:
        now = time.monotonic()
        if self._later and self._later[0].due <= now:
          return heapq.heappop(self._later)
        task = await self._new(requests)
        if task is not None:
          return task
        if not self._tasks:
          return None
        wait = self._later[0].due - now if self._later else _LOOK_UP
        try:
          async with asyncio.timeout(min(wait, _LOOK_UP)):
            await self._changed.wait()
        except TimeoutError:
          continue
      self._changed.notify_all()
      return None

  async def _new(self, requests: Iterator[Request]) -> _Task | None:
    """Returns the next request that lacks an answer, if there is one."""
    while self._ready:
      if task := self._lacking(self._ready.pop()):
        return task
    for number, request in enumerate(requests, start=1):
      keep_question(self._store, request, self._settings.endpoint)
      if task := self._lacking(request):
        return task
      if number % KNOWN_AT_ONCE == 0:
        await asyncio.sleep(0)
        if self._stopping:
          break
    return None

  def _lacking(self, request: Request) -> _Task | None:
    """Returns what a request lacks, if nobody asks for it now."""
    # Dialogues of equal text share a request, each with samples of its own.
    if request.key in self._tasks:
      self._parked.setdefault(request.key, []).append(request)
      return None
    samples = self._store.missing(request)
    self.progress.there += len(request.samples) - len(samples)
    samples = tuple(
      s for s in samples if (request.key, s) not in self._given_up
    )
    if not samples:
      return None
    self._tasks[request.key] += 1
    return _Task(0.0, next(self._numbers), request, samples)

  def _again(self, task: _Task, samples, delay=0.0, tries=0, waits=0) -> None:
    """Asks again later, or gives up after the last try."""
    if not samples:
      return
    if tries >= self._settings.max_tries:
      self.progress.given_up += len(samples)
      self._given_up |= {(task.request.key, s) for s in samples}
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
        waits,
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
      question, answer = request.tokens_estimate
      tokens = question + len(samples) * answer
      async with self._gate.call(tokens) as started:
        if self._stopping:
          return
        number = self._store.begin(request.key, samples, reserved)
        cost = None
        reply = await chat.call(self._client, body, settings.timeout)
        cost = chat.cost_of(self._settings, reply)
        if overrun := self._overrun(cost, reserved):
          self._stop_for(overrun)
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
    key, several = task.request.key, len(samples) > 1
    # Once it has answered, "forbidden" is said of a text, not of the key.
    of_this = reply.code == 403 and self._answered is not None
    if reply.fatal and not of_this:
      self._stop_for(reply.fatal)
      return
    if reply.status == Status.VALID:
      self._failures, self._answered = 0, time.monotonic()
      self._gate.answered()
      if answers:
        self._accepted(key, several, with_schema)
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
      simpler = self._rejected(key, several, with_schema)
      if with_schema:
        self._again(task, samples, tries=task.tries)
      elif several:
        for sample in samples:
          self._again(task, (sample,), tries=task.tries)
      else:
        self.progress.rejected += len(samples)
        self._again(task, samples, tries=self._settings.max_tries)
      if not simpler:
        self._failed(reply)
      return
    waits = task.waits
    if reply.status != Status.RATE_LIMITED:
      self._failed(reply)
    elif time.monotonic() - max(self._answered or 0, self._begun) < _PATIENCE:
      # Too early is no failed try, as long as others are answered.
      tries, waits = task.tries, waits + 1
    delay = min(_LONGEST_BACKOFF, _BACKOFF * 2 ** (task.tries + task.waits))
    delay *= self._random.uniform(0.5, 1.5)
    if reply.code in _OVERLOAD or reply.status in _OVERLOADED:
      self._gate.overloaded(started, reply.retry_after)
    delay = max(delay, reply.retry_after or 0.0)
    self._again(task, samples, delay, tries, waits)

  def _failed(self, reply: chat.Reply) -> None:
    """Counts a call that brought nothing; stops after many."""
    self._failures += 1
    # A server that answered may be starting again.
    answered = self._answered or -float("inf")
    patient = time.monotonic() - answered < _PATIENCE
    if self._failures >= _MOST_FAILURES and not patient:
      advice = (
        "Change the setting that it rejects, such as"
        " config.labeling.context_turns, max_tokens_name or extra_body."
        if reply.status == Status.REJECTED
        else "Check config.labeling.endpoint, and give the same command again."
      )
      self._stop_for(
        f"The server must answer, got {self._failures} failures one after"
        f" another, the last: {reply.detail}. {advice}"
      )

  def _stop_for(self, message: str) -> None:
    """Stops for good; what is in flight comes in."""
    self._fatal = self._fatal or message
    self.stop()
