"""An OpenAI-compatible server on loopback, to try labelling on without a key.

    python -m labeling.simulated_server --config=configs/quickstart.py

Its annotator answers from the gold of the config's dataset, with errors as
those of an LLM, and it can be told to fail: `--fail_rate_limit=0.05` refuses
every twentieth request, for one. It serves chat completions (without streams),
models, files and batches; GET /v1/_log gives a record of each chat request as
JSON lines, see `labeling.simulated_log.Log`. It prints its URL when it is
ready, and ends on Ctrl-C.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from aiohttp import web

from labeling import simulated_annotator as annotator_lib
from labeling import simulated_batches as batches_lib
from labeling import simulated_log as log_lib
from labeling import simulated_service as service_lib
from labeling.simulated_faults import Fault
from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib

_HOST = "127.0.0.1"
_CHAT_PATH, _LOG_PATH = "/v1/chat/completions", "/v1/_log"
_MOST_BYTES = 256 << 20  # of a request; files for batches are large


class SimulatedServer:
  """A server in a thread of its own, from `with` to the end of its block.

  Args:
    dialogues: that may be asked about.
    classes: the classes of their gold, in order.
    none_label: the answer that means none of the classes; "" for no such.
    task: one of `dialogues.TASKS`.
    port: to listen on; 0 for a free one.
    log_path: JSON lines of what was done, or None; see `simulated_log.Log`.
    **settings: of `simulated_service.Settings`.

  Attributes:
    url: the base URL, ending in /v1.
    service: its `settings` may be replaced while it runs.

  Raises:
    ValueError: a setting, the port or the file is not usable.
  """

  def __init__(
    self,
    dialogues: Iterable[dialogues_lib.Dialogue],
    classes: Sequence[str],
    *,
    none_label: str = "none",
    task: str = "single_label",
    port: int = 0,
    log_path: str | os.PathLike[str] | None = None,
    **settings: Any,
  ):
    self.url = ""
    self.service = service_lib.Service(
      annotator_lib.Annotator(dialogues, classes, none_label, task),
      service_lib.Settings(**settings),
    )
    self._port, self._log_path = port, log_path
    self._log, self._thread = log_lib.Log(), None
    self._in_flight = self._calls = 0

  def __enter__(self) -> "SimulatedServer":
    self._log = log_lib.Log(self._log_path)
    started = concurrent.futures.Future()
    self._thread = threading.Thread(
      target=asyncio.run, args=(self._serve(started),), daemon=True
    )
    self._thread.start()
    self.url, self._loop, self._stop = started.result()
    return self

  def __exit__(self, *_) -> None:
    self.stop()

  def stop(self) -> None:
    """Ends the server, if it runs, and what is in flight."""
    if self._thread.is_alive():
      self._loop.call_soon_threadsafe(self._stop.set)
      self._thread.join()

  @property
  def log(self) -> list[dict[str, Any]]:
    """The records of the requests that have ended."""
    if self._thread is not None and self._thread.is_alive():
      # In its turn: after the record of an answer that the caller has.
      with contextlib.suppress(RuntimeError):
        copy = asyncio.run_coroutine_threadsafe(self._records(), self._loop)
        return copy.result()
    return list(self._log.records)

  async def _records(self) -> list[dict[str, Any]]:
    return list(self._log.records)

  async def _serve(self, started: concurrent.futures.Future) -> None:
    batches = batches_lib.Batches(self.service, self._log)
    app = web.Application(
      middlewares=[self._guard], client_max_size=_MOST_BYTES
    )
    app.add_routes(
      [
        web.post(_CHAT_PATH, self._chat),
        web.get("/v1/models", self._models),
        web.get("/v1/models/{id:.+}", self._model),
        web.get(_LOG_PATH, self._get_log),
        *batches.routes(),
      ]
    )
    runner = web.AppRunner(
      app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
    )
    stop = asyncio.Event()
    try:
      await runner.setup()
      site = web.TCPSite(runner, _HOST, self._port, backlog=1024)
      await site.start()
    except OSError as e:
      await runner.cleanup()
      started.set_exception(
        ValueError(
          f"--port must be free, got {self._port}: {e.strerror}. Choose"
          " another, or 0 for any."
        )
      )
      return
    port = runner.addresses[0][1]
    started.set_result(
      (f"http://{_HOST}:{port}/v1", asyncio.get_running_loop(), stop)
    )
    await stop.wait()
    await batches.close()
    await runner.cleanup()

  @web.middleware
  async def _guard(self, request: web.Request, handler) -> web.StreamResponse:
    """Errors in the API's words; the key and faults of all but the chat."""
    try:
      if request.path in (_CHAT_PATH, _LOG_PATH):
        return await handler(request)
      self.service.check_key(request.headers.get("Authorization", ""))
      fault = None
      if request.path.startswith(("/v1/files", "/v1/batches")):
        self._calls += 1
        fault = self.service.draw_fault("call", self._calls)
      error = service_lib.error_of(fault)
      if error is not None:
        raise error
      if fault == Fault.DROP_BEFORE:
        response = web.Response()
      else:
        response = await handler(request)
      await self._send(request, response, fault)
      return response
    except service_lib.ApiError as e:
      return self._response(e.status, e.body)
    except web.HTTPException as e:
      error = service_lib.ApiError(
        e.status, f"{e.reason}: {request.method} {request.path}"
      )
      return self._response(error.status, error.body)

  async def _chat(self, request: web.Request) -> web.StreamResponse:
    body, settings = None, self.service.settings
    try:
      body = await batches_lib.read_json(request)
      self.service.check_key(request.headers.get("Authorization", ""))
      if 0 < settings.max_in_flight <= self._in_flight:
        raise service_lib.ApiError(
          429,
          f"Rate limit reached: {settings.max_in_flight} requests at once.",
          kind="requests",
          code="too_many_in_flight",
        )
      reply = self.service.answer(body)
    except service_lib.ApiError as e:
      reply = self.service.refuse(body, e)
    delivered = False
    self._in_flight += 1
    try:
      if reply.status == 200:
        await asyncio.sleep(settings.latency)
      response = self._response(reply.status, reply.body)
      delivered = await self._send(request, response, reply.fault)
      return response
    finally:
      # Also where the client has gone away, which cancels this task.
      self._in_flight -= 1
      self._log.add(reply.record, delivered)

  def _response(self, status: int, body: dict[str, Any]) -> web.Response:
    headers = {}
    if status == 429:
      headers["Retry-After"] = f"{self.service.settings.retry_after:g}"
    return web.Response(
      status=status,
      body=json.dumps(body).encode(),
      content_type="application/json",
      headers=headers,
    )

  async def _send(
    self, request: web.Request, response: web.Response, fault: Fault | None
  ) -> bool:
    """Sends a response, or fails to; returns whether all of it was written."""
    if fault == Fault.HANG:
      await asyncio.sleep(self.service.settings.hang_seconds)
    transport = request.transport
    if transport is None:
      return False
    if fault in (Fault.HANG, Fault.DROP_BEFORE):
      transport.abort()
      return False
    try:
      if fault == Fault.DROP_AFTER:
        half = web.StreamResponse(headers=response.headers)
        half.content_length = len(response.body)
        await half.prepare(request)
        await half.write(response.body[: len(response.body) // 2])
        transport.close()
        return False
      await response.prepare(request)
      await response.write_eof()
    except ConnectionError:
      return False
    return not transport.is_closing()

  async def _models(self, _: web.Request) -> web.Response:
    model = self._about(self.service.settings.model)
    return web.json_response({"object": "list", "data": [model]})

  async def _model(self, request: web.Request) -> web.Response:
    name = request.match_info["id"]
    self.service.check_model(name)
    return web.json_response(self._about(name))

  def _about(self, model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": 0, "owned_by": "nobody"}

  async def _get_log(self, _: web.Request) -> web.Response:
    return web.Response(
      body=self._log.lines(), content_type="application/x-ndjson"
    )


def define_flags() -> None:
  """Defines the command's flags."""
  settings = service_lib.Settings()
  flags.DEFINE_integer("port", 0, "Port on loopback; 0 for a free one.")
  flags.DEFINE_string("log", None, "JSON lines to go on with, one a request.")
  flags.DEFINE_integer("seed", settings.seed, "Of answers and failures.")
  flags.DEFINE_float("noise", settings.noise, "Scales errors; 0 answers gold.")
  flags.DEFINE_string("model", settings.model, "The one model served.")
  flags.DEFINE_string("key", settings.key, "Key to demand; empty for none.")
  flags.DEFINE_float("latency", settings.latency, "Seconds an answer takes.")
  flags.DEFINE_integer("max_n", settings.max_n, "Most answers to a request.")
  flags.DEFINE_bool(
    "refuses_n", settings.refuses_n, "Refuse to give several answers with 400."
  )
  flags.DEFINE_bool("no_json_schema", False, "Refuse JSON schemas with 400.")
  flags.DEFINE_integer(
    "max_in_flight", settings.max_in_flight, "Requests at once above it: 429."
  )
  flags.DEFINE_float(
    "retry_after", settings.retry_after, "Seconds, sent with each 429."
  )
  flags.DEFINE_float(
    "hang_seconds", settings.hang_seconds, "Until a hanging call is closed."
  )
  flags.DEFINE_float(
    "price_input", settings.price_input, "Of a million tokens of questions."
  )
  flags.DEFINE_float(
    "price_output", settings.price_output, "Of a million tokens of answers."
  )
  flags.DEFINE_float(
    "price_batch", settings.price_batch, "Share of both that batches take."
  )
  flags.DEFINE_float(
    "batch_seconds", settings.batch_seconds, "Seconds a batch takes."
  )
  flags.DEFINE_integer(
    "batch_tokens", settings.batch_tokens, "Most tokens in batches at work."
  )
  for fault in Fault:
    flags.DEFINE_float(f"fail_{fault}", 0.0, f"Share that fails by {fault}.")


def main(argv: Sequence[str]) -> None:
  """Runs the command; see the module's text."""
  commands.refuse_arguments(argv)
  given, config = flags.FLAGS, commands.CONFIG.value
  names = [field.name for field in dataclasses.fields(service_lib.Settings)]
  settings = {name: given[name].value for name in names if name in given}
  with commands.user_errors():
    dataset = dialogues_lib.load_config(config.dataset)
    server = SimulatedServer(
      itertools.chain(*dataset.splits.values()),
      dataset.classes,
      none_label=config.votes.none_label,
      task=dataset.task,
      port=given.port,
      log_path=given.log,
      json_schema=not given.no_json_schema,
      rates={fault: given[f"fail_{fault}"].value for fault in Fault},
      **settings,
    )
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with server:
      print(server.url, flush=True)
      signal.sigwait(ends)


if __name__ == "__main__":
  # Not at import: other commands have flags of the same names.
  define_flags()
  commands.run(main, required=["config"])
