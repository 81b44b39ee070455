import asyncio
import collections
import dataclasses
import os
import pathlib
import random
import sqlite3
import sys
import tempfile
import time
from unittest import mock

import httpx2
import openai
from absl.testing import absltest, parameterized

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import asking

from labeling import ask, chat, parse
from labeling import votes as votes_lib
from labeling.store import Answer, Outcome, Store

SEEDS = int(os.environ.get("LABELING_TEST_SEEDS", "3"))
CHAOS = {
  "rate_limit": 0.05,
  "server_error": 0.05,
  "drop_before": 0.03,
  "drop_after": 0.03,
  "hang": 0.01,
  "cut": 0.03,
  "length": 0.03,
  "off_label": 0.02,
  "shifted": 0.03,
  "missing": 0.03,
  "refusal": 0.03,
  "empty": 0.03,
}


class AskTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.votes = pathlib.Path(folder) / "votes.sqlite"

  def wanted(self, settings, count=6):
    return {
      (r.key, s) for r in asking.requests(settings, count) for s in r.samples
    }

  def assertTrue_to_the_log(self, settings, log, with_schema=True, count=6):
    """Every stored vote is a right answer to that very request."""
    texts = asking.delivered(log)
    by_key = {r.key: r for r in asking.requests(settings, count)}
    per_request = collections.defaultdict(list)
    for (key, _), raw in asking.stored(self.votes).items():
      per_request[key].append(raw)
    for key, raws in per_request.items():
      there = collections.Counter(
        text
        for sha in asking.sent(by_key[key], with_schema).values()
        for text in texts.get(sha, ())
      )
      self.assertFalse(collections.Counter(raws) - there)

  def test_asks_for_all_once(self):
    with asking.server() as server:
      settings = asking.settings(server.url, price_input=1.0, price_output=4.0)
      done, progress = asking.label(self.votes, settings)
      self.assertTrue(done)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      self.assertTrue_to_the_log(settings, server.log)
      calls = len(server.log)
      self.assertEqual(progress.requests, calls)
      store = Store(self.votes)
      paid = sum(record["cost"] for record in server.log)
      self.assertAlmostEqual(store.spent(), paid, places=9)
      store.close()
      # Again: nothing. More votes: those alone.
      asking.label(self.votes, settings)
      self.assertLen(server.log, calls)
      more = asking.settings(server.url, votes=6)
      asking.label(self.votes, more)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(more))
      self.assertEqual(
        sum(len(r["choices"]) for r in server.log), len(self.wanted(more))
      )

  @parameterized.parameters(
    ({"max_n": 1}, True),
    ({"refuses_n": True}, True),
    ({"json_schema": False}, False),
    ({"refuses_n": True, "json_schema": False}, False),
  )
  def test_finds_out_what_the_server_can(self, can, with_schema):
    with asking.server(**can) as server:
      settings = asking.settings(server.url, concurrency=2)
      asking.label(self.votes, settings)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      self.assertTrue_to_the_log(settings, server.log, with_schema)
      refused = [r for r in server.log if r["status"] == 400]
      self.assertLessEqual(len(refused), 6)  # two calls, three other forms
      before = len(server.log)
      asking.label(self.votes, asking.settings(server.url, votes=5))
      again = server.log[before:]
      self.assertNotEmpty(again)
      self.assertFalse([r for r in again if r["status"] == 400])

  def test_chaos(self):
    """30 % of requests fail in every way; three re-runs bring all."""
    kinds = set()
    for seed in range(SEEDS):
      self.votes.unlink(missing_ok=True)
      with asking.server(
        rates=CHAOS, seed=seed, retry_after=0.05, hang_seconds=30
      ) as server:
        settings = asking.settings(server.url, timeout=0.7, max_tries=3)
        runs = 0
        while set(asking.stored(self.votes)) != self.wanted(settings):
          asking.label(self.votes, settings)
          runs += 1
          self.assertLessEqual(runs, 4)
        self.assertTrue_to_the_log(settings, server.log)
        failed = [
          r
          for r in server.log
          if r["failure"] or not all(c["faithful"] for c in r["choices"])
        ]
        self.assertGreater(len(failed), 0.2 * len(server.log))
        db = sqlite3.connect(self.votes)
        kinds |= {s for (s,) in db.execute("SELECT status FROM answers")}
        kinds |= {s for (s,) in db.execute("SELECT status FROM calls")}
        db.close()
    unusable = {"empty", "truncated", "refused", "malformed", "mismatched"}
    lost = {"rate_limited", "server_error", "connection", "timeout"}
    self.assertContainsSubset(unusable | lost, kinds)

  def test_never_spends_more_than_the_cap(self):
    for seed in range(SEEDS):
      self.votes.unlink(missing_ok=True)
      cap = random.Random(seed).uniform(0.005, 0.03)
      with asking.server(
        rates=CHAOS, seed=seed, retry_after=0.02, hang_seconds=30
      ) as server:
        settings = asking.settings(
          server.url,
          concurrency=64,
          timeout=0.5,
          price_input=1.0,
          price_output=4.0,
          max_tokens=500,
        )
        done, _ = asking.label(self.votes, settings, max_cost=cap)
        paid = sum(record["cost"] for record in server.log)
        self.assertFalse(done)
        self.assertGreater(paid, 0.0)
        self.assertLessEqual(paid, cap)
        # What was lost counts: another run has no more to spend.
        asking.label(self.votes, settings, max_cost=cap)
        paid = sum(record["cost"] for record in server.log)
        self.assertLessEqual(paid, cap)

  @parameterized.product(
    case=(
      ({"key": "secret"}, "must accept the key, got HTTP 401"),
      ({"model": "other"}, "must have the model, got HTTP 404"),
    ),
    cost=(0.0, 1.0),
  )
  def test_stops_at_once_where_all_is_refused(self, case, cost):
    server, message = case
    with asking.server(**server) as running:
      settings = asking.settings(running.url, concurrency=4, price_input=cost)
      with self.assertRaisesRegex(chat.FatalError, message):
        asking.label(self.votes, settings)
      self.assertBetween(len(running.log), 1, 8)
    store = Store(self.votes)
    self.addCleanup(store.close)
    self.assertEqual(store.spent(), 0.0)  # a refused call costs nothing
    self.assertEqual(asking.counts(self.votes), {"rejected": len(running.log)})

  def test_batches_stop_at_once_where_all_is_refused(self):
    with asking.server(key="secret") as running:
      settings = asking.settings(running.url, price_input=1.0)
      with self.assertRaisesRegex(chat.FatalError, "must accept the key"):
        asking.label(self.votes, settings, through_batches=True)
    store = Store(self.votes)
    self.addCleanup(store.close)
    self.assertEqual(store.spent(), 0.0)
    self.assertEmpty(store.open_batches(running.url))

  def test_batches_ask_again_for_a_batch_that_is_gone(self):
    with asking.server() as server:
      settings = asking.settings(server.url, price_input=1.0, price_output=4.0)
      store = Store(self.votes)
      store.begin_batch("ours", server.url, 100)
      store.name_batch("ours", "batch_unknown")
      request = asking.requests(settings)[0]
      store.begin(request.key, request.samples, 0.5, "ours")
      store.close()
      with self.assertLogs(level="WARNING"):
        asking.label(self.votes, settings, through_batches=True)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      paid = sum(record["cost"] for record in server.log)
    store = Store(self.votes)
    self.addCleanup(store.close)
    self.assertAlmostEqual(store.spent(), paid + 0.5, places=9)

  @parameterized.parameters(False, True)
  def test_equal_requests_are_all_answered(self, through_batches):
    """Dialogues of equal text share requests, each with its own samples."""
    with asking.server(count=1, batch_seconds=0.02) as server:
      settings = asking.settings(server.url)
      copies = asking.copies(8)
      asked = asking.requests_of(copies, settings)
      self.assertLess(len({r.key for r in asked}), len(asked))
      done, _ = asking.label(
        self.votes, settings, asked=asked, through_batches=through_batches
      )
      self.assertTrue(done)
      wanted = {(r.key, s) for r in asked for s in r.samples}
      self.assertEqual(set(asking.stored(self.votes)), wanted)
      delivered = sum(len(r["choices"]) for r in server.log)
      self.assertEqual(delivered, len(wanted))
    # None of them takes the votes of the others.
    votes, _ = votes_lib.read([self.votes], copies, asking.CLASSES, "none")
    self.assertEqual(set(votes.counts()[1].ravel()), {settings.votes})

  def test_plain_asking_leaves_batches_alone(self):
    with asking.server(batch_seconds=30) as server:
      settings = asking.settings(server.url)
      self.hand_over(settings, asking.requests(settings))
      with self.assertRaisesRegex(ValueError, "must have no batches at the"):
        asking.label(self.votes, settings)
      self.assertEmpty(server.log)
      # Another server has its own.
      other = asking.settings(server.url.replace("127.0.0.1", "localhost"))
      asking.label(self.votes, other, through_batches=False)

  def hand_over(self, settings, requests):
    """Hands batches over and ends before any is collected."""

    async def run():
      store = Store(self.votes)
      api = asking.client.connect(settings)
      budget = asking.limits.Budget(None, 0.0)
      asker = asking.batch.BatchAsker(api, settings, store, budget)
      task = asyncio.ensure_future(asker.run(requests))
      while not asker.in_flight:
        await asyncio.sleep(0.01)
      task.cancel()
      await asyncio.gather(task, return_exceptions=True)
      await api.close()
      store.close()

    asyncio.run(run())

  @parameterized.parameters(4, 1)
  def test_batches_of_an_earlier_run_are_collected_whole(self, max_n):
    with asking.server(batch_seconds=0.5, max_n=max_n) as server:
      settings = asking.settings(server.url)
      if max_n == 1:  # then a batch has several calls for one request
        store = Store(self.votes)
        store.learn(f"n: {settings.endpoint} {settings.model}", "no")
        store.close()
      requests = asking.requests(settings)
      self.hand_over(settings, requests)
      # First the plan has no use for most of it, then it has.
      asking.label(
        self.votes, settings, asked=requests[:1], through_batches=True
      )
      asking.label(self.votes, settings, through_batches=True)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      self.assertTrue_to_the_log(settings, server.log)
      delivered = sum(len(r["choices"]) for r in server.log)
      self.assertEqual(delivered, len(self.wanted(settings)))
      store = Store(self.votes)
      self.addCleanup(store.close)
      self.assertEmpty(store.open_batches(settings.endpoint))
      self.assertNotIn("lost", asking.counts(self.votes))

  def test_a_second_valid_answer_is_no_vote(self):
    with asking.server() as server:
      settings = asking.settings(server.url)
      request = asking.requests(settings)[0]
      asking.label(self.votes, settings, asked=[request])
      store = Store(self.votes)
      self.addCleanup(store.close)
      call = store.begin(request.key, request.samples, 0.0)
      again = Answer(request.samples[0], parse.Status.VALID, "{}")
      outcome = Outcome(parse.Status.VALID, 0.0)
      store.finish(call, request.key, outcome, [again])
      self.assertEqual(asking.counts(self.votes)["duplicate"], 1)
      self.assertNotIn("{}", asking.stored(self.votes).values())

  @parameterized.parameters("http://127.0.0.1:9/v1", "127.0.0.1:9/v1")
  def test_a_server_that_is_not_there_costs_nothing(self, url):
    settings = asking.settings(url, price_input=1.0, max_tries=100)
    start = time.monotonic()
    with self.assertRaisesRegex(
      chat.FatalError, "must answer, got 50 failures"
    ):
      asking.label(self.votes, settings, max_cost=1.0)
    self.assertLess(time.monotonic() - start, 60)
    store = Store(self.votes)
    self.addCleanup(store.close)
    self.assertEqual(store.spent(), 0.0)
    with self.assertRaisesRegex(chat.FatalError, "must answer, got"):
      store.close()
      asking.label(self.votes, settings, through_batches=True)

  def test_answers_longer_than_was_set_aside_end_it(self):
    with asking.server() as server:
      settings = asking.settings(
        server.url,
        price_output=4.0,
        max_tokens=1,
        max_tokens_name="tokens",  # which the server does not know
        concurrency=2,
      )
      with self.assertRaisesRegex(chat.FatalError, "must not cost more than"):
        asking.label(self.votes, settings, max_cost=1.0)
      self.assertLess(len(server.log), 4)

  @parameterized.parameters(
    ({"max_n": 1}, True),
    ({"refuses_n": True}, True),
    ({"json_schema": False}, False),
    ({"refuses_n": True, "json_schema": False}, False),
  )
  def test_batches_find_out_what_the_server_can(self, can, with_schema):
    with asking.server(batch_seconds=0.05, **can) as server:
      settings = asking.settings(server.url, max_tries=6)
      asking.label(self.votes, settings, through_batches=True)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      self.assertTrue_to_the_log(settings, server.log, with_schema)
      before = len(server.log)
      more = asking.settings(server.url, votes=5, max_tries=6)
      asking.label(self.votes, more, through_batches=True)
      again = server.log[before:]
      self.assertNotEmpty(again)
      self.assertFalse([r for r in again if r["status"] == 400])

  def test_slow_answers_do_not_hold_the_others(self):
    rates = {"hang": 0.05}
    with asking.server(rates=rates, hang_seconds=30) as server:
      settings = asking.settings(server.url, timeout=20.0, concurrency=16)

      async def run():
        store = Store(self.votes)
        api = asking.client.connect(settings)
        asker = ask.Asker(api, settings, store, asking.limits.Budget(None, 0.0))
        task = asyncio.ensure_future(asker.run(asking.requests(settings)))
        end = time.monotonic() + 6
        while time.monotonic() < end and asker.progress.requests < 100:
          await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()
        store.close()
        return asker.progress.requests

      self.assertGreaterEqual(asyncio.run(run()), 100)

  def test_overload_lowers_the_number_in_flight(self):
    with asking.server(
      max_in_flight=4, retry_after=0.02, latency=0.02
    ) as server:
      settings = asking.settings(server.url, concurrency=32, max_tries=20)
      asking.label(self.votes, settings)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      last = server.log[len(server.log) // 2 :]
      refused = sum(record["status"] == 429 for record in last)
      self.assertLess(refused, 0.3 * len(last))

  def test_waiting_is_no_failed_try(self):
    """A server that only says "too many" loses no answer."""
    with (
      mock.patch.object(ask, "_BACKOFF", 0.01),
      asking.server(rates={"rate_limit": 0.5}, retry_after=0.0) as server,
    ):
      settings = asking.settings(server.url, max_tries=1)
      asking.label(self.votes, settings)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))

  def test_batches_bring_the_same(self):
    with asking.server(batch_seconds=0.1) as server:
      settings = asking.settings(
        server.url, batch_requests=20, price_input=1.0, price_output=4.0
      )
      done, _ = asking.label(self.votes, settings, through_batches=True)
      self.assertTrue(done)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      self.assertTrue_to_the_log(settings, server.log)
      self.assertTrue(all(record["batch"] for record in server.log))
      before = len(server.log)
      asking.label(self.votes, settings)
      self.assertLen(server.log, before)

  def test_batches_resubmit_only_what_is_missing(self):
    rates = {"expired": 0.1, "cut": 0.1, "server_error": 0.1}
    with asking.server(batch_seconds=0.05, rates=rates) as server:
      settings = asking.settings(server.url, batch_requests=50, max_tries=12)
      asking.label(self.votes, settings, through_batches=True)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      self.assertTrue_to_the_log(settings, server.log)
      right = collections.Counter()
      for record in server.log:
        for choice in record["choices"] or ():
          right[record["custom_id"]] += choice["faithful"]
      texts = sum(map(len, asking.delivered(server.log).values()))
      self.assertLen(asking.stored(self.votes), texts)

  def test_batches_wait_for_room_in_the_queue(self):
    with asking.server(batch_seconds=0.05, batch_tokens=60_000) as server:
      settings = asking.settings(
        server.url, batch_tokens=120_000, max_tokens=300
      )
      asking.label(self.votes, settings, through_batches=True)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))

  def test_no_room_in_the_queue_is_no_try(self):
    with asking.server(batch_seconds=0.5, batch_tokens=10_000) as server:
      settings = asking.settings(
        server.url, batch_requests=5, max_tokens=300, max_tries=1
      )
      with self.assertLogs(level="WARNING") as logs:
        _, progress = asking.label(self.votes, settings, through_batches=True)
      self.assertRegex(logs.output[0], "token")
      self.assertEqual(progress.given_up, 0)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      self.assertEqual(
        progress.answers, {"valid": len(self.wanted(settings)), "unread": 0}
      )

  def test_invalid_answers_are_not_paid_for_without_end(self):
    """A queue that is full restarts the plan; tries count all the same."""
    with asking.server(
      batch_seconds=0.5, batch_tokens=10_000, rates={"cut": 1.0}
    ) as server:
      settings = asking.settings(
        server.url, batch_requests=5, max_tokens=300, max_tries=2
      )
      with self.assertLogs(level="WARNING"):
        done, progress = asking.label(
          self.votes, settings, count=2, through_batches=True
        )
      self.assertTrue(done)
      wanted = self.wanted(settings, count=2)
      self.assertEqual(progress.given_up, len(wanted))
      delivered = sum(len(r["choices"] or ()) for r in server.log)
      self.assertEqual(delivered, 2 * len(wanted))

  def test_equal_texts_do_not_multiply_tries(self):
    with asking.server(count=1, rates={"cut": 1.0}) as server:
      settings = asking.settings(server.url, max_tries=2)
      copies = asking.copies(8)
      asked = asking.requests_of(copies, settings)
      distinct = {(r.key, s) for r in asked for s in r.samples}
      _, progress = asking.label(self.votes, settings, asked=asked)
      self.assertEqual(progress.given_up, len(distinct))
      delivered = sum(len(r["choices"] or ()) for r in server.log)
      self.assertEqual(delivered, 2 * len(distinct))

  def test_a_batch_that_was_made_behind_an_error_is_found(self):
    with asking.server(batch_seconds=0.05) as server:
      settings = asking.settings(server.url, price_input=1.0, price_output=4.0)
      create = openai.resources.batches.AsyncBatches.create

      async def gateway_times_out(self, **arguments):
        await create(self, **arguments)
        request = httpx2.Request("POST", server.url)
        response = httpx2.Response(504, request=request)
        raise openai.InternalServerError("504", response=response, body=None)

      with mock.patch.object(
        openai.resources.batches.AsyncBatches, "create", gateway_times_out
      ):
        asking.label(self.votes, settings, through_batches=True)
      self.assertEqual(set(asking.stored(self.votes)), self.wanted(settings))
      delivered = sum(len(r["choices"]) for r in server.log)
      self.assertEqual(delivered, len(self.wanted(settings)))
      paid = sum(record["cost"] for record in server.log)
    store = Store(self.votes)
    self.addCleanup(store.close)
    self.assertAlmostEqual(store.spent(), paid, places=9)

  def test_batches_that_cost_more_than_was_set_aside_end_it(self):
    with asking.server(batch_seconds=0.05) as server:
      settings = asking.settings(
        server.url, price_output=1e6, max_tokens=1, max_tokens_name="unknown"
      )
      with self.assertRaisesRegex(chat.FatalError, "must not cost more than"):
        asking.label(self.votes, settings, max_cost=1e9, through_batches=True)

  def test_reservations_of_an_earlier_run_count_once(self):
    with asking.server(batch_seconds=0.05) as server:
      settings = asking.settings(server.url, price_input=1.0)
      self.hand_over(settings, asking.requests(settings)[:3])
      store = Store(self.votes)
      for name in ("0", "z" * 32):  # killed before they were handed over
        store.begin_batch(name, settings.endpoint, 10)
        store.begin(f"other {name}", (0,), 0.25, name)
      store.close()
      asking.label(
        self.votes,
        settings,
        asked=asking.requests(settings)[:3],
        max_cost=0.2,
        through_batches=True,
      )
      self.assertLen(
        asking.stored(self.votes),
        sum(len(r.samples) for r in asking.requests(settings)[:3]),
      )

  def test_half_characters_are_replaced(self):
    reply = chat.read_reply(
      {
        "choices": [{"message": {"content": "a\ud83d"}}],
        "usage": {"prompt_tokens": 1 << 70, "completion_tokens": 1},
      }
    )
    self.assertEqual(reply.choices[0][0], "a?")
    self.assertIsNone(reply.usage)

  def test_stopping_does_not_wait_for_the_limits(self):
    with asking.server() as server:
      settings = asking.settings(
        server.url, requests_per_minute=6, concurrency=16
      )

      async def run():
        store = Store(self.votes)
        api = asking.client.connect(settings)
        asker = ask.Asker(api, settings, store, asking.limits.Budget(None, 0.0))
        task = asyncio.ensure_future(asker.run(asking.requests(settings)))
        while not asker.progress.requests:
          await asyncio.sleep(0.01)
        asker.stop()
        async with asyncio.timeout(3):
          done = await task
        await api.close()
        store.close()
        return done

      self.assertFalse(asyncio.run(run()))

  def test_what_was_not_read_is_no_vote(self):
    with asking.server() as server:
      settings = asking.settings(server.url)
      dialogues = asking.dialogues(1)
      requests = asking.requests(settings, 1)
      store = Store(self.votes)
      for request in requests:
        store.ask(request, settings.endpoint)
        call = store.begin(request.key, request.samples, 0.0)
        answers = [
          Answer(s, parse.Status.UNREAD, "{}", "stop") for s in request.samples
        ]
        store.finish(
          call, request.key, Outcome(parse.Status.VALID, 0.0), answers
        )
      store.close()
      self.assertEmpty(server.log)
      with self.assertRaisesRegex(ValueError, "vote"):
        votes_lib.read([self.votes], dialogues, asking.CLASSES, "none")

  def test_a_queue_without_room_ends_it(self):
    with asking.server(batch_seconds=0.01, batch_tokens=10) as server:
      settings = asking.settings(server.url, price_input=1.0)
      with (
        self.assertLogs(level="WARNING"),
        self.assertRaisesRegex(chat.FatalError, "must take batches, got 10"),
      ):
        asking.label(self.votes, settings, through_batches=True)
    store = Store(self.votes)
    self.addCleanup(store.close)
    self.assertEqual(store.spent(), 0.0)


class RefusalTest(absltest.TestCase):
  """What is learnt from refusals, of the same request in simpler forms."""

  def asker(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    store = Store(pathlib.Path(folder) / "votes.sqlite")
    self.addCleanup(store.close)
    settings = asking.settings("http://127.0.0.1:9/v1")
    return ask.AskerBase(None, settings, store, None), store

  def known(self, store):
    name = "http://127.0.0.1:9/v1 simulated"
    return store.fact(f"n: {name}"), store.fact(f"json_schema: {name}")

  def test_no_schema(self):
    asker, store = self.asker()
    self.assertTrue(asker._rejected("a", True, True))
    self.assertFalse(asker._takes_schema)
    asker._accepted("a", True, False)
    self.assertEqual(self.known(store), (None, "no"))

  def test_not_several_answers(self):
    asker, store = self.asker()
    self.assertTrue(asker._rejected("a", True, True))
    self.assertTrue(asker._rejected("a", True, False))
    self.assertTrue(asker._takes_schema)
    asker._accepted("a", False, True)
    self.assertEqual(self.known(store), ("no", None))

  def test_a_bad_request_teaches_nothing(self):
    asker, store = self.asker()
    self.assertTrue(asker._rejected("a", True, True))
    asker._accepted("b", True, False)  # on its way meanwhile
    self.assertTrue(asker._rejected("a", True, False))
    asker._accepted("b", False, True)
    self.assertFalse(asker._rejected("a", False, False))
    self.assertEqual(self.known(store), (None, None))
    self.assertTrue(asker._takes_schema)


class OldTextTest(absltest.TestCase):
  def test_votes_on_what_a_dialogue_said_before_are_left_out(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder) / "votes.sqlite"
    settings = asking.settings("http://127.0.0.1:9/v1")
    (now,) = asking.dialogues(1)
    texts = ("Good day to you.", *now.texts[1:])
    before = dataclasses.replace(now, texts=texts)
    plan = asking.plan(settings)
    store = Store(path)
    for dialogue in (before, now):
      for request in plan.requests(dialogue):
        store.ask(request, settings.endpoint)
        call = store.begin(request.key, request.samples, 0.0)
        label = "closing" if dialogue is before else "offer"
        only = request.question.class_name
        found = tuple(
          parse.Vote(u, () if only and only != label else (label,))
          for u in request.question.asked
        )
        answers = [
          Answer(sample, parse.Status.VALID, "", "stop", found)
          for sample in request.samples
        ]
        outcome = Outcome(parse.Status.VALID, 0.0)
        store.finish(call, request.key, outcome, answers)
    store.close()

    def shares(dialogue):
      votes, _ = votes_lib.read([path], [dialogue], asking.CLASSES, "none")
      votes_UxC, valid_UxC = votes.counts()
      self.assertTrue((valid_UxC <= settings.votes).all())
      return dict(zip(asking.CLASSES, votes_UxC.sum(0), strict=True))

    with self.assertLogs(level="WARNING"):
      self.assertEqual(shares(now)["closing"], 0)
    with self.assertLogs(level="WARNING"):
      self.assertEqual(shares(before)["offer"], 0)


class FormatTest(absltest.TestCase):
  def test_another_format_is_named(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder) / "votes.sqlite"
    store = Store(path)
    store.learn("format", "1")
    store.close()
    with self.assertRaisesRegex(ValueError, "must be of format 3, got 1"):
      Store(path)
    with self.assertRaisesRegex(ValueError, "must be of format 3, got 1"):
      votes_lib.read([path], asking.dialogues(1), asking.CLASSES, "none")


class ReadReplyTest(parameterized.TestCase):
  @parameterized.parameters(
    None, 3, "text", [[]], [{}], [{"choices": None}], [{"choices": 3}]
  )
  def test_what_is_no_reply(self, body):
    self.assertEqual(chat.read_reply(body).status, parse.Status.CONNECTION)

  def test_says_what_a_gateway_says(self):
    reply = chat.read_reply({"error": {"message": "No luck.", "code": 429}})
    self.assertEqual(reply.status, parse.Status.RATE_LIMITED)
    self.assertEqual((reply.code, reply.detail), (429, "error 429: No luck"))
    reply = chat.read_reply({"error": {"code": "bad"}, "choices": None})
    self.assertEqual(reply.status, parse.Status.SERVER_ERROR)

  def test_no_choice_is_no_answer(self):
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    reply = chat.read_reply({"choices": [], "usage": usage})
    self.assertEqual(reply.status, parse.Status.SERVER_ERROR)
    self.assertEqual(reply.usage, (3, 1))

  def test_trusts_nothing(self):
    reply = chat.read_reply(
      {
        "choices": [None, {"message": 3}, {"message": {"content": ["a"]}}],
        "usage": {"prompt_tokens": "many", "completion_tokens": -1},
      }
    )
    self.assertEqual(reply.choices, ((None, None, None),) * 3)
    self.assertIsNone(reply.usage)


if __name__ == "__main__":
  absltest.main()
