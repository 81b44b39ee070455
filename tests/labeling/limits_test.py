import asyncio
import unittest

from absl.testing import absltest

from labeling import limits


class BudgetTest(unittest.IsolatedAsyncioTestCase):
  async def test_counts_calls_in_flight_in_full(self):
    budget = limits.Budget(10.0, spent=1.0)
    self.assertTrue(budget.try_reserve(5.0))
    self.assertTrue(budget.try_reserve(4.0))
    self.assertFalse(budget.try_reserve(0.1))

  async def test_waits_for_room_and_gives_up_without_hope(self):
    budget = limits.Budget(10.0, spent=0.0)
    await budget.reserve(8.0)
    second = asyncio.ensure_future(budget.reserve(8.0))
    await asyncio.sleep(0.01)
    self.assertFalse(second.done())
    await budget.settle(8.0, 2.0)
    await asyncio.wait_for(second, 1)
    await budget.settle(8.0, None)  # lost: all of it counts
    self.assertEqual(budget.spent, 10.0)
    with self.assertRaises(limits.BudgetSpentError):
      await budget.reserve(0.1)

  async def test_no_cap(self):
    budget = limits.Budget(None, spent=0.0)
    await budget.reserve(1e9)
    await budget.settle(1e9, 1.5)
    self.assertEqual(budget.spent, 1.5)

  async def test_takes_over_an_earlier_reservation(self):
    budget = limits.Budget(10.0, spent=6.0)  # 4 of it reserved
    budget.adopt(4.0)
    self.assertFalse(budget.try_reserve(5.0))
    await budget.settle(4.0, 1.0)
    self.assertEqual(budget.spent, 3.0)
    self.assertTrue(budget.try_reserve(7.0))


class GateTest(unittest.IsolatedAsyncioTestCase):
  async def _most_at_once(self, gate, calls):
    most = 0

    async def one():
      nonlocal most
      async with gate.call(1):
        most = max(most, gate.in_flight)
        await asyncio.sleep(0.002)

    await asyncio.gather(*(one() for _ in range(calls)))
    return most

  async def test_holds_the_limit(self):
    self.assertEqual(await self._most_at_once(limits.Gate(3), 20), 3)

  async def test_overload_cuts_once_for_calls_in_flight_together(self):
    now = 100.0
    gate = limits.Gate(10, clock=lambda: now)
    gate.overloaded(99.0, None)
    gate.overloaded(99.5, None)  # was in flight at the first cut
    self.assertAlmostEqual(gate.limit, 7.0)
    gate.overloaded(100.5, None)
    self.assertAlmostEqual(gate.limit, 4.9)
    for _ in range(1000):
      gate.overloaded(101.0, None)
    self.assertGreaterEqual(gate.limit, 1.0)
    for _ in range(100):
      gate.answered()
    self.assertEqual(gate.limit, 10)

  async def test_retry_after_holds_every_call(self):
    gate = limits.Gate(4)
    loop = asyncio.get_running_loop()
    gate.overloaded(0.0, 0.1)
    start = loop.time()
    async with gate.call(1):
      self.assertGreaterEqual(loop.time() - start, 0.09)

  async def test_requests_per_minute(self):
    gate = limits.Gate(100, requests_per_minute=600)  # 60 at once, then 10/s
    start = asyncio.get_running_loop().time()
    await self._most_at_once(gate, 63)
    took = asyncio.get_running_loop().time() - start
    self.assertBetween(took, 0.2, 2.0)

  async def test_few_requests_per_minute(self):
    gate = limits.Gate(100, requests_per_minute=6)
    async with asyncio.timeout(1), gate.call(1):
      pass
    with self.assertRaises(TimeoutError):  # the next is 10 s later
      async with asyncio.timeout(0.3), gate.call(1):
        pass

  async def test_tokens_per_minute(self):
    gate = limits.Gate(100, tokens_per_minute=6_000)  # 100 a second

    async def one(tokens):
      async with gate.call(tokens):
        pass

    start = asyncio.get_running_loop().time()
    await one(6_000)
    await one(30)
    took = asyncio.get_running_loop().time() - start
    self.assertBetween(took, 0.25, 2.0)

  def assertBetween(self, value, low, high):
    self.assertGreaterEqual(value, low)
    self.assertLessEqual(value, high)


if __name__ == "__main__":
  absltest.main()
