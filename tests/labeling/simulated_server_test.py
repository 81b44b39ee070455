import asyncio
import json
import pathlib
import re
import signal
import sys
import tempfile
import time

import aiohttp
import openai
from absl.testing import absltest, parameterized

from labeling import simulated_log
from labeling.simulated_server import SimulatedServer
from ppl_jax.data import dialogues
from ppl_jax.data.readers import support
from tests import commands
from tests.labeling.served import (
  CLASSES,
  DIALOGUES,
  EVERY,
  LAST,
  ServerTestCase,
  body,
  schema,
  user,
)


class ProtocolTest(ServerTestCase):
  def test_chat_completion(self):
    self.serve(noise=0, price_input=2, price_output=10)
    request = body(user(0, LAST), n=2)
    before = time.time()
    reply = self.client.chat.completions.create(**request)
    self.assertEqual([c.index for c in reply.choices], [0, 1])
    self.assertEqual(reply.choices[0].finish_reason, "stop")
    self.assertIsNone(reply.choices[0].message.refusal)
    text = request["messages"][0]["content"]
    prompt = len(re.findall(r"\w+|[^\w\s]", text)) + 3 + 3
    completion = 2 * len(["{", '"', "label", '"', ":", '"', "tell", '"', "}"])
    self.assertEqual(reply.usage.prompt_tokens, prompt)
    self.assertEqual(reply.usage.completion_tokens, completion)
    self.assertEqual(reply.usage.total_tokens, prompt + completion)
    choice = {
      "text": '{"label": "tell"}',
      "finish_reason": "stop",
      "refusal": None,
      "fault": None,
      "faithful": True,
    }
    (record,) = self.server.log
    self.assertBetween(record.pop("time"), before, time.time())
    self.assertEqual(
      record,
      {
        "number": 1,
        "request": simulated_log.request_sha256(request),
        "attempt": 0,
        "id": reply.id,
        "n": 2,
        "choices": [choice, choice],
        "status": 200,
        "failure": None,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost": (2 * prompt + 10 * completion) / 1e6,
        "delivered": True,
        "batch": None,
        "custom_id": None,
      },
    )

  def test_request_sha256(self):
    sha256 = simulated_log.request_sha256
    self.assertEqual(
      sha256({"a": 1, "b": "\u00e9"}), sha256({"b": "é", "a": 1})
    )
    self.assertNotEqual(sha256({"a": 1}), sha256({"a": "1"}))

  def test_models(self):
    self.serve(model="org/small")
    self.assertEqual([m.id for m in self.client.models.list()], ["org/small"])
    self.assertEqual(self.client.models.retrieve("org/small").id, "org/small")
    with self.assertRaises(openai.NotFoundError) as raised:
      self.ask(user(0, LAST))
    self.assertEqual(
      raised.exception.body,
      {
        "message": "The model `simulated` does not exist or you do not have"
        " access to it.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
      },
    )
    with self.assertRaises(openai.NotFoundError):
      self.client.models.retrieve("other")
    self.assertEqual(self.server.log[0]["failure"], "model_not_found")

  def test_key(self):
    self.serve(key="secret")
    for call in (
      lambda: self.ask(user(0, LAST)),
      self.client.models.list,
      self.client.batches.list,
    ):
      with self.assertRaises(openai.AuthenticationError) as raised:
        call()
      self.assertEqual(raised.exception.code, "invalid_api_key")
    self.client.api_key = "secret"
    self.ask(user(0, LAST))
    statuses = [(r["status"], r["cost"] > 0) for r in self.server.log]
    self.assertEqual(statuses, [(401, False), (200, True)])

  def test_max_n(self):
    self.serve(max_n=1)
    self.assertLen(self.ask(user(0, LAST), n=5).choices, 1)
    self.assertEqual(self.server.log[0]["n"], 5)

  def test_json_schema(self):
    self.serve(noise=5, rates={"off_label": 1.0})
    reply = self.ask(
      user(1, LAST), n=30, response_format=schema("ask", "tell", "other")
    )
    said = {c.message.content for c in reply.choices}
    self.assertEqual(said, {'{"label": "ask"}', '{"label": "tell"}'})
    self.assertTrue(all(c["faithful"] for c in self.server.log[0]["choices"]))
    with self.assertRaisesRegex(openai.BadRequestError, "its schema allows"):
      self.ask(user(1, LAST), response_format=schema("other"))

  def test_no_json_schema(self):
    self.serve(json_schema=False)
    with self.assertRaises(openai.BadRequestError) as raised:
      self.ask(user(0, LAST), response_format=schema("ask"))
    self.assertEqual(raised.exception.param, "response_format")
    self.ask(user(0, LAST), response_format={"type": "json_object"})

  def test_max_tokens(self):
    self.serve(noise=0)
    for name in ("max_tokens", "max_completion_tokens"):
      reply = self.ask(user(0, EVERY), n=2, **{name: 4})
      self.assertEqual(reply.choices[1].message.content, '{"utterances"')
      self.assertEqual(reply.choices[1].finish_reason, "length")
      self.assertEqual(reply.usage.completion_tokens, 8)
      record = self.server.log[-1]
      self.assertFalse(any(c["faithful"] for c in record["choices"]))
    whole = self.ask(user(0, LAST), max_tokens=9).choices[0]
    self.assertEqual(whole.finish_reason, "stop")

  @parameterized.parameters(
    ({"n": 0}, "n"),
    ({"temperature": 3}, "temperature"),
    ({"max_tokens": "9"}, "max_tokens"),
    ({"stream": True}, "stream"),
    ({"messages": []}, "messages"),
  )
  def test_bad_requests(self, wrong, param):
    self.serve()
    with self.assertRaises(openai.BadRequestError) as raised:
      self.client.chat.completions.create(**(body(user(0, LAST)) | wrong))
    self.assertEqual(raised.exception.param, param)

  def test_what_is_no_request(self):
    self.serve()

    async def call():
      async with aiohttp.ClientSession() as session:
        for path, data in (
          ("chat/completions", b"{"),
          ("chat/completions", b"[1]"),
          ("nothing", b"{}"),
          ("batches", b"["),
          ("files", b"{}"),
        ):
          url = f"{self.server.url}/{path}"
          async with session.post(url, data=data) as reply:
            error = (await reply.json())["error"]
            self.assertEqual(set(error), {"message", "type", "param", "code"})
            self.assertIn(reply.status, (400, 404))

    asyncio.run(call())
    digests = [r["request"] for r in self.server.log]
    self.assertEqual(digests, [None, simulated_log.request_sha256([1])])

  def test_settings(self):
    for wrong, message in (
      ({"latency": -1}, "latency must be at least 0, got -1"),
      ({"rates": {"nap": 0.1}}, r"got \['nap'\]"),
      ({"rates": {"cut": 0.6, "empty": 0.6}}, "at most 1 together"),
      ({"rates": {"hang": -0.1}}, "at least 0"),
      ({"none_label": "ask"}, "must not be a class"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        SimulatedServer(DIALOGUES, CLASSES, **wrong)
    taken = self.serve().url.split(":")[2].removesuffix("/v1")
    with (
      self.assertRaisesRegex(ValueError, "--port must be free"),
      SimulatedServer(DIALOGUES, CLASSES, port=int(taken)),
    ):
      pass


class LogTest(ServerTestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = folder / "log.jsonl"

  def _lines(self):
    return [json.loads(line) for line in self.path.read_text().splitlines()]

  def test_file_and_route(self):
    self.serve(log_path=self.path)
    for _ in range(2):
      self.ask(user(0, LAST))
      self.assertEqual(self.server.log, self._lines())  # at once
    self.assertEqual([r["attempt"] for r in self.server.log], [0, 1])
    lines = self.client.get("/_log", cast_to=str).splitlines()
    self.assertEqual(self.server.log, [json.loads(line) for line in lines])
    # Another one goes on with the file.
    self.serve(log_path=self.path)
    self.ask(user(0, LAST))
    self.assertLen(self.server.log, 1)
    self.assertEqual([r["number"] for r in self._lines()], [1, 2, 3])

  def test_no_such_folder(self):
    with (
      self.assertRaisesRegex(ValueError, "--log must name a file"),
      SimulatedServer(DIALOGUES, CLASSES, log_path=self.path / "no" / "log"),
    ):
      pass


class CommandTest(absltest.TestCase):
  def test_serves_and_ends(self):
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    arguments = [
      sys.executable,
      "-m",
      "labeling.simulated_server",
      "--config=configs/quickstart.py",
      f"--config.dataset.data_dir={folder}",
      *(f"--config.dataset.options.{name}=2" for name in dialogues.SPLITS),
      f"--log={folder / 'log.jsonl'}",
      "--model=m",
      "--no_json_schema",
      "--fail_rate_limit=1",
      "--retry_after=7",
    ]
    process = commands.start(arguments)
    try:
      for line in process.stdout:
        found = re.fullmatch(r"http://127\.0\.0\.1:\d+/v1\n", line)
        if found:
          break
      read = list(support.read(None, "test", support.CLASSES, {"test": 2}))
      options = "\n".join(f"- {name}" for name in support.CLASSES)
      with openai.OpenAI(
        base_url=line.strip(), api_key="k", max_retries=0
      ) as client:
        text = user(1, LAST, before=options, of=read)
        with self.assertRaises(openai.RateLimitError) as raised:
          client.chat.completions.create(**body(text) | {"model": "m"})
        headers = raised.exception.response.headers
        self.assertEqual(headers["Retry-After"], "7")
      process.send_signal(signal.SIGTERM)
      output, _ = process.communicate(timeout=20)
    finally:
      process.kill()
      process.stdout.close()
    self.assertEqual((process.returncode, output), (0, ""))
    (record,) = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    self.assertEqual(record["failure"], "rate_limit")


if __name__ == "__main__":
  absltest.main()
