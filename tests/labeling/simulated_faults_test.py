import asyncio
import collections
import contextlib
import json
import time

import numpy as np
import openai
from absl.testing import absltest, parameterized

from labeling import simulated_log
from labeling.simulated_faults import OF_ANSWER, Fault
from tests.labeling.served import (
  CLASSES,
  DIALOGUES,
  EVERY,
  LAST,
  OPTIONS,
  POSITIVE,
  ServerTestCase,
  body,
  user,
)


class FaultsTest(ServerTestCase):
  def failing(self, fault, text=None, **settings):
    """What comes of a request that fails; the record of it."""
    self.serve(noise=0, rates={fault: 1.0}, **settings)
    with self.assertRaises(openai.OpenAIError) as raised:
      self.ask(text or user(1, EVERY))
    (record,) = self.server.log
    self.assertEqual(record["failure"], fault)
    return raised.exception, record

  def test_rate_limit(self):
    error, record = self.failing("rate_limit", retry_after=0.25)
    self.assertIsInstance(error, openai.RateLimitError)
    self.assertEqual(error.response.headers["Retry-After"], "0.25")
    self.assertEqual(error.code, "rate_limit_exceeded")
    self.assertEqual((record["status"], record["cost"]), (429, 0))
    self.assertTrue(record["delivered"])
    self.assertEmpty(record["choices"])

  def test_server_error(self):
    error, record = self.failing("server_error")
    self.assertEqual(error.status_code, 500)
    self.assertEqual(error.type, "server_error")
    self.assertEqual((record["status"], record["cost"]), (500, 0))

  def test_dropped_before_it_is_billed(self):
    error, record = self.failing("drop_before")
    self.assertIsInstance(error, openai.APIConnectionError)
    self.assertEqual((record["delivered"], record["cost"]), (False, 0))
    self.assertEmpty(record["choices"])

  def test_dropped_after_it_is_billed(self):
    error, record = self.failing("drop_after")
    self.assertIsInstance(error, openai.APIConnectionError)
    self.assertFalse(record["delivered"])
    self.assertGreater(record["cost"], 0)
    self.assertTrue(record["choices"][0]["faithful"])

  def test_hang(self):
    self.serve(rates={"hang": 1.0})
    start = time.monotonic()
    with self.assertRaises(openai.APITimeoutError):
      self.client.with_options(timeout=0.5).chat.completions.create(
        **body(user(0, LAST))
      )
    self.assertLess(time.monotonic() - start, 5)
    record = self.wait_for_record()
    self.assertEqual(record["failure"], "hang")
    self.assertFalse(record["delivered"])
    self.assertGreater(record["cost"], 0)

  def test_a_hang_ends(self):
    error, _ = self.failing("hang", hang_seconds=0.1)
    self.assertIsInstance(error, openai.APIConnectionError)

  def wait_for_record(self):
    end = time.monotonic() + 5
    while not self.server.log and time.monotonic() < end:
      time.sleep(0.01)
    return self.server.log[0]

  def test_a_client_that_goes_away(self):
    self.serve(latency=10)
    with self.assertRaises(openai.APITimeoutError):
      self.client.with_options(timeout=0.5).chat.completions.create(
        **body(user(0, LAST))
      )
    record = self.wait_for_record()
    self.assertEqual(record["failure"], "disconnected")
    self.assertFalse(record["delivered"])
    self.assertGreater(record["cost"], 0)

  def test_a_server_that_ends(self):
    async def call(url):
      async with openai.AsyncOpenAI(
        base_url=url, api_key="k", max_retries=0
      ) as client:
        task = asyncio.create_task(
          client.chat.completions.create(**body(user(0, LAST)))
        )
        await asyncio.sleep(0.6)
        await asyncio.to_thread(self.server.stop)
        with self.assertRaises(openai.APIConnectionError):
          await task

    asyncio.run(call(self.serve(latency=10).url))
    (record,) = self.server.log
    self.assertFalse(record["delivered"])

  def broken(self, fault, text=None, n=12, **more):
    """The choices of answers that fail, as the client gets and the log has."""
    self.serve(noise=0, rates={fault: 1.0})
    reply = self.ask(text or user(1, EVERY), n=n, **more)
    (record,) = self.server.log
    for got, logged in zip(reply.choices, record["choices"], strict=True):
      self.assertEqual(
        (got.message.content, got.finish_reason, got.message.refusal),
        (logged["text"], logged["finish_reason"], logged["refusal"]),
      )
      self.assertEqual((logged["fault"], logged["faithful"]), (fault, False))
    self.assertTrue(record["delivered"])
    self.assertGreaterEqual(reply.usage.completion_tokens, n)
    return reply.choices

  @parameterized.parameters(("cut", "stop"), ("length", "length"))
  def test_cut(self, fault, finish_reason):
    for choice in self.broken(fault):
      self.assertEqual(choice.finish_reason, finish_reason)
      self.assertStartsWith(choice.message.content, "{")
      with self.assertRaises(json.JSONDecodeError):
        json.loads(choice.message.content)

  def test_off_label(self):
    for choice in self.broken("off_label"):
      entries = json.loads(choice.message.content)["utterances"]
      self.assertLen(entries, 4)
      self.assertLen([e for e in entries if e["label"] not in CLASSES], 1)

  def test_shifted(self):
    texts = DIALOGUES[1].texts
    right = {i + 1: " ".join(t.split()[:3]) for i, t in enumerate(texts)}
    ways = set()
    for choice in self.broken("shifted"):
      entries = json.loads(choice.message.content)["utterances"]
      numbers = tuple(e["number"] for e in entries)
      self.assertTrue(
        any(right.get(e["number"]) != e["words"] for e in entries)
      )
      ways.add(numbers)
    self.assertEqual(ways, {(1, 2, 3, 4), (2, 3, 4, 5)})

  def test_shifted_where_all_begin_alike(self):
    for choice in self.broken("shifted", user(3, EVERY)):
      entries = json.loads(choice.message.content)["utterances"]
      self.assertNotEqual([e["number"] for e in entries], [1, 2, 3])
    reply = self.ask(user(3, POSITIVE, before='Is it "tell"?'), n=12)
    for choice in reply.choices:
      entries = json.loads(choice.message.content)["utterances"]
      self.assertGreater(max(e["number"] for e in entries), 3)

  def test_missing(self):
    left = [
      len(json.loads(choice.message.content)["utterances"])
      for choice in self.broken("missing")
    ]
    self.assertLess(max(left), 4)
    self.assertGreater(len(set(left)), 1)

  def test_refusal(self):
    ways = set()
    for choice in self.broken("refusal"):
      self.assertIsNone(choice.message.content)
      ways.add((choice.finish_reason, choice.message.refusal is None))
    self.assertEqual(ways, {("content_filter", True), ("stop", False)})

  def test_empty(self):
    said = {choice.message.content for choice in self.broken("empty", n=30)}
    self.assertEqual(said, {None, "", " \n"})

  @parameterized.parameters(
    ("shifted", LAST), ("missing", LAST), ("missing", POSITIVE)
  )
  def test_what_an_answer_can_not_have(self, fault, form):
    self.serve(noise=0, rates={fault: 1.0})
    self.ask(user(1, form, before=f'{OPTIONS}\n"ask"?'))
    self.assertTrue(self.server.log[0]["choices"][0]["faithful"])

  def test_max_in_flight(self):
    self.serve(latency=0.8, max_in_flight=2)

    async def call():
      async with openai.AsyncOpenAI(
        base_url=self.server.url, api_key="k", max_retries=0
      ) as client:
        calls = (
          client.chat.completions.create(**body(user(0, LAST)))
          for _ in range(5)
        )
        return await asyncio.gather(*calls, return_exceptions=True)

    replies = asyncio.run(call())
    limited = [r for r in replies if isinstance(r, openai.RateLimitError)]
    self.assertLen(limited, 3)
    self.assertEqual(limited[0].response.headers["Retry-After"], "1")
    # Those that were answered are no longer in flight.
    self.change(latency=0)
    self.ask(user(0, LAST))

  def test_rates_and_the_log_under_all_faults(self):
    rates = dict.fromkeys(Fault, 0.04)
    self.serve(rates=rates, hang_seconds=0.05, seed=3)
    bodies = [
      body(user(1, form, before=f"{OPTIONS}\n{'#' * i}"))
      for form in (EVERY, LAST)
      for i in range(120)
    ]

    async def one(client, gate, request):
      async with gate:
        try:
          reply = await client.chat.completions.create(**request)
        except openai.OpenAIError:
          return None
      digest = simulated_log.request_sha256(request)
      return digest, reply.choices[0].message.content, reply.id

    async def call():
      gate = asyncio.Semaphore(16)
      async with openai.AsyncOpenAI(
        base_url=self.server.url, api_key="k", max_retries=0
      ) as client:
        return await asyncio.gather(*(one(client, gate, b) for b in bodies))

    got = [answer for answer in asyncio.run(call()) if answer is not None]
    log = self.server.log
    self.assertEqual([r["number"] for r in log], list(range(1, 241)))
    self.assertCountEqual(
      got,
      [
        (r["request"], r["choices"][0]["text"], r["id"])
        for r in log
        if r["delivered"] and r["choices"]
      ],
    )
    failures = collections.Counter(r["failure"] for r in log)
    self.assertEqual(
      set(failures), set(Fault) - {"expired", *OF_ANSWER} | {None}
    )
    # Five faults of 4 % each fail a request.
    self.assertBetween(240 - failures[None], 240 * 0.12, 240 * 0.28)
    faithful = [c["faithful"] for r in log for c in r["choices"]]
    self.assertBetween(np.mean(faithful), 0.7, 0.9)
    # The same requests to a like server fail in the same way, in any order.
    before = {r["request"]: (r["failure"], r["choices"]) for r in log}
    self.serve(rates=rates, hang_seconds=0.05, seed=3)
    for request in reversed(bodies[:40]):
      with contextlib.suppress(openai.OpenAIError):
        self.client.chat.completions.create(**request)
    for record in self.server.log:
      self.assertEqual(
        (record["failure"], record["choices"]), before[record["request"]]
      )


if __name__ == "__main__":
  absltest.main()
