"""Files and batches of a simulated server."""

import asyncio
import dataclasses
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from aiohttp import web

from labeling import simulated_log as log_lib
from labeling import simulated_service as service_lib
from labeling.simulated_faults import Fault

_CHAT = "/v1/chat/completions"
_WINDOW = "24h"
_WINDOW_SECONDS = 24 * 3600
_PAGE = 20
_PORTION = 50  # lines between which others get their turn


@dataclasses.dataclass(frozen=True)
class _File:
  about: dict[str, Any]
  content: bytes


class Batches:
  """Handlers of /v1/files and /v1/batches; all is kept in memory.

  Args:
    service: answers the lines of batches.
    log: of what they were answered.
  """

  def __init__(self, service: service_lib.Service, log: log_lib.Log):
    self._service, self._log = service, log
    self._files: dict[str, _File] = {}
    self._batches: dict[str, dict[str, Any]] = {}
    self._queued: dict[str, int] = {}  # tokens of the batches at work
    self._tasks = set()
    self._ids = itertools.count(1)

  def routes(self) -> list[web.RouteDef]:
    """Where the handlers are."""
    return [
      web.post("/v1/files", self._upload),
      web.get("/v1/files", self._list_files),
      web.get("/v1/files/{id}", self._file),
      web.delete("/v1/files/{id}", self._delete_file),
      web.get("/v1/files/{id}/content", self._content),
      web.post("/v1/batches", self._create),
      web.get("/v1/batches", self._list_batches),
      web.get("/v1/batches/{id}", self._batch),
      web.post("/v1/batches/{id}/cancel", self._cancel),
    ]

  async def close(self) -> None:
    """Ends the batches at work."""
    for task in self._tasks:
      task.cancel()
    await asyncio.gather(*self._tasks, return_exceptions=True)

  async def _upload(self, request: web.Request) -> web.Response:
    form = await request.post()
    file, purpose = form.get("file"), form.get("purpose")
    if not isinstance(file, web.FileField) or not isinstance(purpose, str):
      raise service_lib.ApiError(400, "'file' and 'purpose' are required.")
    about = self._keep(file.filename, purpose, file.file.read())
    return web.json_response(about)

  def _keep(self, name: str, purpose: str, content: bytes) -> dict[str, Any]:
    about = {
      "id": f"file-{next(self._ids)}",
      "object": "file",
      "bytes": len(content),
      "created_at": int(time.time()),
      "filename": name,
      "purpose": purpose,
      "status": "processed",
    }
    self._files[about["id"]] = _File(about, content)
    return about

  async def _list_files(self, request: web.Request) -> web.Response:
    return _page(request, [file.about for file in self._files.values()])

  async def _file(self, request: web.Request) -> web.Response:
    return web.json_response(self._find_file(request).about)

  async def _content(self, request: web.Request) -> web.Response:
    return web.Response(
      body=self._find_file(request).content,
      content_type="application/octet-stream",
    )

  async def _delete_file(self, request: web.Request) -> web.Response:
    name = self._find_file(request).about["id"]
    del self._files[name]
    return web.json_response({"id": name, "object": "file", "deleted": True})

  def _find_file(self, request: web.Request) -> _File:
    name = request.match_info["id"]
    if name not in self._files:
      raise service_lib.ApiError(404, f"No such File object: {name}")
    return self._files[name]

  async def _create(self, request: web.Request) -> web.Response:
    told = await read_json(request)
    told = told if isinstance(told, dict) else {}
    file = self._files.get(told.get("input_file_id"))
    metadata = told.get("metadata") or {}
    allowed = {
      "input_file_id": file is not None and file.about["purpose"] == "batch",
      "endpoint": told.get("endpoint") == _CHAT,
      "completion_window": told.get("completion_window") == _WINDOW,
      "metadata": isinstance(metadata, dict)
      and len(metadata) <= 16
      and all(isinstance(value, str) for value in metadata.values()),
    }
    for name, is_allowed in allowed.items():
      if not is_allowed:
        raise service_lib.ApiError(
          400, f"Invalid value for {name!r}: {told.get(name)!r}", param=name
        )
    now = int(time.time())
    batch = {
      "id": f"batch_{next(self._ids)}",
      "object": "batch",
      "endpoint": _CHAT,
      "errors": None,
      "input_file_id": told["input_file_id"],
      "completion_window": _WINDOW,
      "status": "validating",
      "output_file_id": None,
      "error_file_id": None,
      "created_at": now,
      "in_progress_at": None,
      "expires_at": now + _WINDOW_SECONDS,
      "finalizing_at": None,
      "completed_at": None,
      "failed_at": None,
      "expired_at": None,
      "cancelling_at": None,
      "cancelled_at": None,
      "request_counts": {"total": 0, "completed": 0, "failed": 0},
      "metadata": metadata,
    }
    self._batches[batch["id"]] = batch
    task = asyncio.create_task(self._work(batch, file.content))
    self._tasks.add(task)
    task.add_done_callback(self._tasks.discard)
    return web.json_response(batch)

  async def _list_batches(self, request: web.Request) -> web.Response:
    return _page(request, self._batches.values())

  async def _batch(self, request: web.Request) -> web.Response:
    return web.json_response(self._find_batch(request))

  async def _cancel(self, request: web.Request) -> web.Response:
    batch = self._find_batch(request)
    if batch["status"] not in ("validating", "in_progress"):
      raise service_lib.ApiError(
        409, f"Cannot cancel a batch with status '{batch['status']}'."
      )
    _turn(batch, "cancelling")
    return web.json_response(batch)

  def _find_batch(self, request: web.Request) -> dict[str, Any]:
    name = request.match_info["id"]
    if name not in self._batches:
      raise service_lib.ApiError(404, f"No batch found with id '{name}'.")
    return self._batches[name]

  async def _work(self, batch: dict[str, Any], content: bytes) -> None:
    """Takes a batch to its end."""
    lines, errors = _lines(content)
    if not errors:
      errors = self._queue(batch["id"], lines)
    if errors:
      batch["errors"] = {"object": "list", "data": errors}
      _turn(batch, "failed")
      return
    batch["request_counts"]["total"] = len(lines)
    if batch["status"] == "validating":
      _turn(batch, "in_progress")
    replies, kept = [], False
    try:
      await self._answer(batch, lines, replies)
      self._write(batch, replies)
      kept = True
    finally:
      del self._queued[batch["id"]]
      for reply in replies:
        self._log.add(reply.record, delivered=kept)

  def _queue(
    self, name: str, lines: Sequence[dict[str, Any]]
  ) -> list[dict[str, Any]]:
    """Counts a batch in; what is wrong where there are too many tokens."""
    tokens = sum(service_lib.count_tokens(line["body"]) for line in lines)
    most = self._service.settings.batch_tokens
    if most and tokens + sum(self._queued.values()) > most:
      message = (
        f"Enqueued token limit reached. Limit: {most:,} enqueued tokens. Please"
        " try again once some in_progress batches have been completed."
      )
      return [_error("token_limit_exceeded", message)]
    self._queued[name] = tokens
    return []

  async def _answer(
    self,
    batch: dict[str, Any],
    lines: Sequence[dict[str, Any]],
    replies: list[service_lib.Reply],
  ) -> None:
    """Answers line by line, spread over the time that a batch takes."""
    portion = min(_PORTION, -(-len(lines) // 10))
    pause = self._service.settings.batch_seconds * portion / len(lines)
    for i, line in enumerate(lines):
      if i % portion == 0:
        await asyncio.sleep(pause)
      if batch["status"] == "cancelling":
        return
      reply = self._service.answer(line["body"], in_batch=True)
      reply.record["batch"] = batch["id"]
      reply.record["custom_id"] = line["custom_id"]
      replies.append(reply)
      count = "completed" if _went_well(reply) else "failed"
      batch["request_counts"][count] += 1

  def _write(
    self, batch: dict[str, Any], replies: Sequence[service_lib.Reply]
  ) -> None:
    """Puts what was answered into files and ends the batch."""
    output, errors, expired = [], [], False
    # In another order than asked: only the custom_id tells which is which.
    for reply in reversed(replies):
      line = {
        "id": f"batch_req_{next(self._ids)}",
        "custom_id": reply.record["custom_id"],
        "response": {
          "status_code": reply.status,
          "request_id": f"req_{next(self._ids)}",
          "body": reply.body,
        },
        "error": None,
      }
      if reply.fault == Fault.EXPIRED:
        expired = True
        line["response"] = None
        line["error"] = {
          "code": "batch_expired",
          "message": "This request could not be executed before the completion"
          " window expired.",
        }
      (output if _went_well(reply) else errors).append(json.dumps(line) + "\n")
    for key, lines in (("output", output), ("error", errors)):
      if lines:
        name = f"{batch['id']}_{key}.jsonl"
        content = "".join(lines).encode()
        file = self._keep(name, "batch_output", content)
        batch[f"{key}_file_id"] = file["id"]
    if batch["status"] == "cancelling":
      _turn(batch, "cancelled")
    else:
      _turn(batch, "finalizing")
      _turn(batch, "expired" if expired else "completed")


async def read_json(request: web.Request) -> Any:
  """The body of a request; raises ApiError where it is not JSON."""
  try:
    return json.loads(await request.read())
  except (ValueError, RecursionError) as e:
    raise service_lib.ApiError(
      400, "We could not parse the JSON body of your request."
    ) from e


def _went_well(reply: service_lib.Reply) -> bool:
  return reply.status == 200 and reply.fault is None


def _turn(batch: dict[str, Any], status: str) -> None:
  batch["status"] = status
  batch[f"{status}_at"] = int(time.time())


def _page(
  request: web.Request, entries: Iterable[dict[str, Any]]
) -> web.Response:
  """The newest entries, or those before the one that "after" names."""
  entries = list(reversed(list(entries)))
  after = request.query.get("after")
  names = [entry["id"] for entry in entries]
  start = names.index(after) + 1 if after in names else 0
  try:
    limit = int(request.query.get("limit", _PAGE))
  except ValueError as e:
    raise service_lib.ApiError(400, "'limit' must be a number.") from e
  shown = entries[start : start + max(1, limit)]
  return web.json_response(
    {
      "object": "list",
      "data": shown,
      "first_id": shown[0]["id"] if shown else None,
      "last_id": shown[-1]["id"] if shown else None,
      "has_more": start + len(shown) < len(entries),
    }
  )


def _lines(
  content: bytes,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """The lines of an input file, and what is wrong with them."""
  lines, errors, names, models = [], [], set(), set()
  for number, text in enumerate(content.splitlines(), start=1):
    if not text.strip():
      continue
    try:
      line = json.loads(text)
    except (ValueError, RecursionError):
      line = None
    if not isinstance(line, dict) or not isinstance(line.get("body"), dict):
      message = "This line is not parseable as valid JSON."
      errors.append(_error("invalid_json_line", message, number))
      continue
    if (line.get("method"), line.get("url")) != ("POST", _CHAT):
      message = f"The method must be POST and the url {_CHAT}."
      errors.append(_error("invalid_url", message, number))
    name = line.get("custom_id")
    if not isinstance(name, str) or not name:
      message = "The custom_id must be a text."
      errors.append(_error("missing_required_parameter", message, number))
    elif name in names:
      message = f"The custom_id {name!r} is not unique."
      errors.append(_error("duplicate_custom_id", message, number))
    names.add(str(name))
    models.add(str(line["body"].get("model")))
    lines.append(line)
  if len(models) > 1:
    message = "All requests of a batch must be for one model."
    errors.append(_error("mismatched_model", message))
  if not lines and not errors:
    errors.append(_error("empty_file", "The input file has no requests."))
  return lines, errors


def _error(code: str, message: str, line: int | None = None) -> dict[str, Any]:
  return {"code": code, "message": message, "param": None, "line": line}
