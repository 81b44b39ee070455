"""What holds calls back: money, rates, and how much the server bears."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine

import aiolimiter

_LOOK_UP = 1.0  # seconds


class BudgetSpentError(Exception):
  """The next call might cost more than is left."""


class Budget:
  """A cap on money that counts calls in flight in full.

  Args:
    cap: most money to spend, what earlier runs spent included; None for none.
    spent: by earlier runs, lost answers at their reservation.
  """

  def __init__(self, cap: float | None, spent: float):
    self._cap, self.spent, self._in_flight = cap, spent, 0.0
    self._calls = 0
    self._changed = asyncio.Condition()

  @property
  def capped(self) -> bool:
    """Whether there is a cap."""
    return self._cap is not None

  async def reserve(self, amount: float) -> None:
    """Sets money aside, waiting for calls in flight to cost less.

    Raises:
      BudgetSpentError: no call in flight can make room any more.
    """
    async with self._changed:
      while not self.try_reserve(amount):
        if not self._calls:
          raise BudgetSpentError
        await self._changed.wait()

  def try_reserve(self, amount: float) -> bool:
    """Sets money aside if there is enough now; says whether it did."""
    if self._cap is not None and (
      self.spent + self._in_flight + amount > self._cap
    ):
      return False
    self._in_flight += amount
    self._calls += 1
    return True

  def adopt(self, amount: float) -> None:
    """Takes over a reservation of an earlier run, which is in `spent`."""
    self.spent -= amount
    self._in_flight += amount
    self._calls += 1

  async def settle(self, reserved: float, cost: float | None) -> None:
    """Replaces a reservation by the cost; None: by all of the reservation."""
    async with self._changed:
      self._in_flight -= reserved
      self._calls -= 1
      self.spent += reserved if cost is None else cost
      self._changed.notify_all()


class Gate:
  """Lets as many calls through at once as the server bears.

  Starts at the most that is allowed. A sign of overload takes three tenths
  away, once for all calls that were in flight then; every call that
  is answered gives a little back (additive increase, multiplicative decrease).

  Args:
    most: calls at once.
    requests_per_minute: 0 for no limit.
    tokens_per_minute: 0 for no limit.
    clock: seconds.
    stop: once it is set nothing is held back any more, since what waits is not
      to be sent.
  """

  def __init__(
    self,
    most: int,
    requests_per_minute: int = 0,
    tokens_per_minute: int = 0,
    clock: Callable[[], float] = time.monotonic,
    stop: asyncio.Event | None = None,
  ):
    self.limit = float(most)
    self.in_flight = 0
    self._most = most
    self._clock = clock
    self._cut_at = self._open_at = -float("inf")
    self._free = asyncio.Condition()
    self._stop = stop or asyncio.Event()
    self._tokens_per_minute = tokens_per_minute
    self._requests = self._tokens = None
    # A tenth of a minute's worth may go out at once.
    if requests_per_minute:
      burst = max(1.0, requests_per_minute / 10)
      self._requests = aiolimiter.AsyncLimiter(
        burst, 60 * burst / requests_per_minute
      )
    if tokens_per_minute:
      self._tokens = aiolimiter.AsyncLimiter(tokens_per_minute, 60)

  @contextlib.asynccontextmanager
  async def call(self, tokens: int) -> AsyncIterator[float]:
    """Holds a place for one call; gives the time that it starts."""
    if self._tokens is not None:
      tokens = min(tokens, self._tokens_per_minute)
      await self._unless_stopped(self._tokens.acquire(tokens))
    if self._requests is not None:
      await self._unless_stopped(self._requests.acquire())
    async with self._free:
      while self.in_flight >= max(1, int(self.limit)):
        await self._free.wait()
      self.in_flight += 1
    try:
      while (wait := self._open_at - self._clock()) > 0:
        if self._stop.is_set():
          break
        await asyncio.sleep(min(wait, _LOOK_UP))
      yield self._clock()
    finally:
      async with self._free:
        self.in_flight -= 1
        self._free.notify()

  async def _unless_stopped(self, wait: Coroutine) -> None:
    """Waits, until it is stopped at the latest."""
    tasks = [asyncio.ensure_future(w) for w in (wait, self._stop.wait())]
    try:
      await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
      for task in tasks:
        task.cancel()

  def answered(self) -> None:
    """Takes note of an answer."""
    self.limit = min(self._most, self.limit + 1 / max(1.0, self.limit))

  def overloaded(self, started: float, retry_after: float | None) -> None:
    """Takes note of a sign of overload.

    Args:
      started: when the call started.
      retry_after: seconds that the server asks to be left alone, if it does.
    """
    now = self._clock()
    if started > self._cut_at:
      self.limit = max(1.0, 0.7 * self.limit)
      self._cut_at = now
    if retry_after is not None:
      self._open_at = max(self._open_at, now + retry_after)
