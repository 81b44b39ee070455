import json
import time

import openai
from absl.testing import absltest, parameterized

from labeling import simulated_log
from tests.labeling.served import (
  EVERY,
  LAST,
  OPTIONS,
  ServerTestCase,
  body,
  user,
)

CHAT = "/v1/chat/completions"
# Requests that differ, by what stands before the dialogue.
BODIES = [body(user(0, EVERY, before=f"{OPTIONS}\n{i}")) for i in range(40)]


def line(name, request, **more):
  return {
    "custom_id": name,
    "method": "POST",
    "url": CHAT,
    "body": request,
    **more,
  }


def lines(requests):
  return [line(f"r{i}", request) for i, request in enumerate(requests)]


class BatchesTest(ServerTestCase):
  def start(self, input_lines, metadata=None):
    """Uploads lines, or the bytes of a file, and starts a batch."""
    if not isinstance(input_lines, bytes):
      input_lines = "\n".join(map(json.dumps, input_lines)).encode()
    file = self.client.files.create(
      file=("in.jsonl", input_lines), purpose="batch"
    )
    return self.client.batches.create(
      input_file_id=file.id,
      endpoint=CHAT,
      completion_window="24h",
      metadata=metadata,
    )

  def wait(self, batch):
    end = time.monotonic() + 10
    working = ("validating", "in_progress", "finalizing", "cancelling")
    while batch.status in working and time.monotonic() < end:
      time.sleep(0.01)
      batch = self.client.batches.retrieve(batch.id)
    return batch

  def read(self, file):
    """The lines of an output file by their custom_id."""
    if file is None:
      return {}
    text = self.client.files.content(file).text
    found = [json.loads(output) for output in text.splitlines()]
    by_name = {output["custom_id"]: output for output in found}
    self.assertLen(by_name, len(found))
    return by_name

  def test_completed(self):
    self.serve(noise=0, batch_seconds=0.1, price_input=2, price_batch=0.25)
    batch = self.start(lines(BODIES), {"name": "first"})
    self.assertEqual(batch.status, "validating")
    self.assertEqual(batch.expires_at - batch.created_at, 24 * 3600)
    batch = self.wait(batch)
    self.assertEqual((batch.status, batch.error_file_id), ("completed", None))
    self.assertGreaterEqual(batch.completed_at, batch.in_progress_at)
    counts = batch.request_counts
    self.assertEqual((counts.total, counts.completed), (40, 40))
    self.assertEqual(counts.failed, 0)
    output = self.read(batch.output_file_id)
    self.assertNotEqual(list(output), sorted(output, key=lambda n: int(n[1:])))
    records = {r["custom_id"]: r for r in self.server.log}
    self.assertLen(self.server.log, 40)
    for i, request in enumerate(BODIES):
      got, record = output[f"r{i}"], records[f"r{i}"]
      self.assertIsNone(got["error"])
      self.assertEqual(got["response"]["status_code"], 200)
      reply = got["response"]["body"]
      self.assertEqual(record["request"], simulated_log.request_sha256(request))
      self.assertEqual(record["id"], reply["id"])
      self.assertEqual(record["batch"], batch.id)
      self.assertTrue(record["delivered"])
      prompt, answer = record["prompt_tokens"], record["completion_tokens"]
      self.assertAlmostEqual(
        record["cost"], (2 * prompt + 4 * answer) / 1e6 * 0.25
      )
      text = reply["choices"][0]["message"]["content"]
      self.assertEqual(record["choices"][0]["text"], text)
      self.assertLen(json.loads(text)["utterances"], 2)

  def test_answers_are_those_of_the_chat(self):
    self.serve(noise=3, batch_seconds=0)
    output = self.read(self.wait(self.start(lines(BODIES))).output_file_id)
    self.serve(noise=3)
    for i, request in enumerate(BODIES[:10]):
      reply = self.client.chat.completions.create(**request)
      (batched,) = output[f"r{i}"]["response"]["body"]["choices"]
      text = reply.choices[0].message.content
      self.assertEqual(batched["message"]["content"], text)

  def test_errors_of_requests(self):
    self.serve(noise=0, batch_seconds=0)
    bad = [body("Hello?"), body(user(0, LAST), n=0)]
    batch = self.wait(self.start(lines([*bad, BODIES[0]])))
    self.assertEqual(batch.status, "completed")
    self.assertEqual(batch.request_counts.failed, 2)
    self.assertEqual(list(self.read(batch.output_file_id)), ["r2"])
    errors = self.read(batch.error_file_id)
    self.assertCountEqual(errors, ["r0", "r1"])
    for error in errors.values():
      self.assertEqual(error["response"]["status_code"], 400)
      self.assertIn("message", error["response"]["body"]["error"])

  def test_expired_and_failed_requests(self):
    # There is no connection to lose in a batch.
    rates = {"expired": 0.3, "server_error": 0.2, "drop_before": 0.2}
    self.serve(batch_seconds=1)
    batch = self.start(lines(BODIES))
    self.change(rates=rates)  # not for the calls about it
    end = time.monotonic() + 10
    while not self.server.log and time.monotonic() < end:
      time.sleep(0.01)
    self.change(rates={})
    batch = self.client.batches.retrieve(batch.id)
    self.assertEqual(batch.status, "expired")
    self.assertIsNotNone(batch.expired_at)
    output, errors = map(self.read, (batch.output_file_id, batch.error_file_id))
    self.assertLen({**output, **errors}, 40)
    expired = [e["custom_id"] for e in errors.values() if e["response"] is None]
    self.assertBetween(len(expired), 4, 20)
    self.assertEqual(errors[expired[0]]["error"]["code"], "batch_expired")
    for record in self.server.log:
      name = record["custom_id"]
      self.assertEqual(record["cost"] > 0, name in output)
      self.assertEqual(record["failure"] == "expired", name in expired)
    failures = {r["failure"] for r in self.server.log}
    self.assertEqual(failures, {None, "expired", "server_error"})
    statuses = [r["status"] for r in self.server.log]
    self.assertBetween(statuses.count(500), 2, 16)

  def test_cancelled(self):
    self.serve(batch_seconds=2)
    batch = self.start(lines(BODIES))
    while not self.client.batches.retrieve(batch.id).request_counts.completed:
      time.sleep(0.02)
    self.assertEqual(self.client.batches.cancel(batch.id).status, "cancelling")
    batch = self.wait(batch)
    self.assertEqual(batch.status, "cancelled")
    output = self.read(batch.output_file_id)
    self.assertBetween(len(output), 1, 39)
    self.assertLen(self.server.log, len(output))
    with self.assertRaises(openai.ConflictError):
      self.client.batches.cancel(batch.id)

  def test_queue_limit(self):
    self.serve(batch_seconds=3, batch_tokens=5_000)
    tokens = self.ask(BODIES[0]["messages"][0]["content"]).usage.prompt_tokens
    fits = 5_000 // tokens
    first = self.start(lines(BODIES[:1] * (fits - 1)))
    second = self.wait(self.start(lines(BODIES[:2])))
    self.assertEqual(second.status, "failed")
    self.assertEqual(second.errors.data[0].code, "token_limit_exceeded")
    self.assertIsNone(second.output_file_id)
    self.client.batches.cancel(first.id)
    self.wait(first)
    self.change(batch_seconds=0)
    third = self.wait(self.start(lines(BODIES[:2])))
    self.assertEqual(third.status, "completed")

  @parameterized.parameters(
    (b"", "empty_file", None),
    (b"{", "invalid_json_line", 1),
    ([line("a", BODIES[0]), line("a", BODIES[1])], "duplicate_custom_id", 2),
    ([line("a", BODIES[0], url="/v1/other")], "invalid_url", 1),
    ([line(None, BODIES[0])], "missing_required_parameter", 1),
    (
      [line("a", BODIES[0]), line("b", {**BODIES[0], "model": "other"})],
      "mismatched_model",
      None,
    ),
  )
  def test_files_that_are_no_batch(self, content, code, number):
    self.serve()
    batch = self.wait(self.start(content))
    self.assertEqual(batch.status, "failed")
    error = batch.errors.data[0]
    self.assertEqual((error.code, error.line), (code, number))
    self.assertEmpty(self.server.log)

  def test_list_with_metadata(self):
    self.serve(batch_seconds=0)
    ids = [
      self.start(lines(BODIES[:1]), {"name": f"n{i}"}).id for i in range(5)
    ]
    page = self.client.batches.list(limit=2)
    self.assertEqual([b.id for b in page.data], ids[:2:-1])
    self.assertTrue(page.has_more)
    names = [b.metadata["name"] for b in self.client.batches.list(limit=2)]
    self.assertEqual(names, ["n4", "n3", "n2", "n1", "n0"])

  def test_a_batch_is_there_though_its_answer_is_lost(self):
    self.serve(batch_seconds=0)
    file = self.client.files.create(
      file=("in.jsonl", json.dumps(line("a", BODIES[0])).encode()),
      purpose="batch",
    )

    def create():
      return self.client.batches.create(
        input_file_id=file.id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"name": "lost"},
      )

    for fault, error, left in (
      ("drop_before", openai.APIConnectionError, 0),
      ("rate_limit", openai.RateLimitError, 0),
      ("server_error", openai.InternalServerError, 0),
      ("drop_after", openai.APIConnectionError, 1),
    ):
      self.change(rates={fault: 1.0})
      with self.assertRaises(error):
        create()
      self.change(rates={})
      found = [b.metadata["name"] for b in self.client.batches.list()]
      self.assertEqual(found, ["lost"] * left)

  @parameterized.parameters(
    ({"endpoint": "/v1/embeddings"}, "endpoint"),
    ({"completion_window": "1h"}, "completion_window"),
    ({"input_file_id": "file-0"}, "input_file_id"),
    ({"metadata": {"a": 1}}, "metadata"),
  )
  def test_refused(self, wrong, param):
    self.serve()
    file = self.client.files.create(file=("in", b"{}"), purpose="batch")
    arguments = {
      "input_file_id": file.id,
      "endpoint": CHAT,
      "completion_window": "24h",
    }
    with self.assertRaises(openai.BadRequestError) as raised:
      self.client.batches.create(**(arguments | wrong))
    self.assertEqual(raised.exception.param, param)

  def test_files(self):
    self.serve()
    file = self.client.files.create(file=("in", b"text"), purpose="batch")
    self.assertEqual((file.bytes, file.filename), (4, "in"))
    self.assertEqual(self.client.files.retrieve(file.id), file)
    self.assertEqual([f.id for f in self.client.files.list()], [file.id])
    self.assertEqual(self.client.files.content(file.id).content, b"text")
    self.assertTrue(self.client.files.delete(file.id).deleted)
    for call in (self.client.files.content, self.client.files.retrieve):
      with self.assertRaises(openai.NotFoundError):
        call(file.id)
    with self.assertRaises(openai.NotFoundError):
      self.client.batches.retrieve("batch_0")

  def test_a_server_that_ends(self):
    self.serve(batch_seconds=5)
    batch = self.start(lines(BODIES))
    while not self.client.batches.retrieve(batch.id).request_counts.completed:
      time.sleep(0.02)
    self.server.stop()
    self.assertNotEmpty(self.server.log)
    self.assertFalse(any(r["delivered"] for r in self.server.log))


if __name__ == "__main__":
  absltest.main()
