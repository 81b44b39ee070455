"""What a simulated server did, as a record of each request."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any


class Log:
  """A record of each chat request, those in batches included.

  A record has

      number      from 1, in the order in which requests ended
      time        when the request came, in Unix seconds
      request     `request_sha256` of its body; null where that was no JSON
      attempt     how often this body had been asked before
      id          of the response; null without one
      n           answers that it asked for
      choices     of what was answered: "text", "finish_reason", "refusal",
                  "fault" (what is wrong with it, or null) and "faithful":
                  whether it is just what the annotator answered
      status      of HTTP, also where a fault kept it from being sent
      failure     a `Fault`; the code of an error; "disconnected" where the
                  client was gone before all was written; else null
      prompt_tokens, completion_tokens, cost      that were billed
      delivered   whether all of the response was written to a connection that
                  was open; in a batch, whether it is in one of its files
      batch       its id, or null
      custom_id   of the line of the batch, or null

  Args:
    path: JSON lines to go on with, each written at once; None for no file.

  Attributes:
    records: since the start, in order.

  Raises:
    ValueError: the file can not be written.
  """

  def __init__(self, path: str | os.PathLike[str] | None = None):
    self.records = []
    self._path, self._before = None, 0
    if path is not None:
      self._path = pathlib.Path(path)
      try:
        with self._path.open("a+b") as f:
          f.seek(0)
          self._before = sum(1 for _ in f)
      except OSError as e:
        raise ValueError(
          f"--log must name a file that can be written, got {str(path)!r}:"
          f" {e.strerror}. Correct the path."
        ) from e

  def add(self, record: Mapping[str, Any], delivered: bool) -> None:
    """Writes down how a request ended."""
    failure = record["failure"] or (None if delivered else "disconnected")
    number = self._before + len(self.records) + 1
    known = {**record, "failure": failure, "delivered": delivered}
    self.records.append({"number": number, **known})
    if self._path is not None:
      with self._path.open("ab") as f:
        f.write(self.lines(len(self.records) - 1))

  def lines(self, start: int = 0) -> bytes:
    """The records from one on, as JSON lines."""
    lines = [json.dumps(record) + "\n" for record in self.records[start:]]
    return "".join(lines).encode()


def request_sha256(body: Any) -> str:
  """Hex SHA-256 of a request's JSON: keys sorted, no blanks, all ASCII."""
  line = json.dumps(body, sort_keys=True, separators=(",", ":"))
  return hashlib.sha256(line.encode()).hexdigest()
