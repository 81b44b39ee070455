"""The vote store: every question, every call, every answer, in SQLite.

`questions`: what a request asks, of which dialogue, and which samples of its
answers are that dialogue's; dialogues of equal text share a request. `prompts`:
the classes that each prompt lists, since an answer among fewer of them is
another answer; files of before lack it, and asking again adds it. `calls`: one
row a call over the network, with the money that was reserved for it before
it went out and what it cost in the end; while that is unknown, because it is in
flight, was lost or was killed, the reservation counts as spent. `answers`: one
row a sampled answer, valid or not, with its raw text and its votes. `batches`:
what was handed to the Batch API, kept before it is.

All that a call brought is committed in one transaction before it counts.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence

from labeling import parse
from labeling.plan import Request
from ppl_jax.data import atomic

FORMAT = 3
_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (
  name TEXT PRIMARY KEY, value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS questions (
  request TEXT NOT NULL, dialogue_id TEXT NOT NULL, text_sha256 TEXT NOT NULL,
  endpoint TEXT NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL,
  prompt_sha256 TEXT NOT NULL, class TEXT NOT NULL, first INTEGER NOT NULL,
  last INTEGER NOT NULL, sampling TEXT NOT NULL, samples TEXT NOT NULL,
  PRIMARY KEY (request, dialogue_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS prompts (
  prompt_sha256 TEXT PRIMARY KEY, classes TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS calls (
  call INTEGER PRIMARY KEY, request TEXT NOT NULL, samples TEXT NOT NULL,
  batch TEXT, started REAL NOT NULL, reserved REAL NOT NULL, cost REAL,
  status TEXT, detail TEXT, latency REAL, prompt_tokens INTEGER,
  completion_tokens INTEGER
);
CREATE INDEX IF NOT EXISTS calls_batch ON calls (batch);
CREATE INDEX IF NOT EXISTS calls_request ON calls (request);
CREATE TABLE IF NOT EXISTS batches (
  batch TEXT PRIMARY KEY, endpoint TEXT NOT NULL, remote TEXT,
  tokens INTEGER NOT NULL,
  collected INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS answers (
  request TEXT NOT NULL, sample INTEGER NOT NULL, call INTEGER NOT NULL,
  status TEXT NOT NULL, raw TEXT, finish_reason TEXT, votes TEXT,
  PRIMARY KEY (request, sample, call)
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS one_valid ON answers (request, sample)
  WHERE status = 'valid';
"""


@dataclasses.dataclass(frozen=True)
class Answer:
  """One sampled answer as it is stored.

  Attributes:
    sample: its number.
    status: what it is.
    raw: its text as it came.
    finish_reason: as it came.
    votes: of a valid answer.
  """

  sample: int
  status: parse.Status
  raw: str | None = None
  finish_reason: str | None = None
  votes: tuple[parse.Vote, ...] = ()


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a call ended.

  Attributes:
    status: VALID where there was an answer at all, else why not.
    cost: money, None where it is not known what the server takes.
    detail: what the server said, in short.
    latency: seconds.
    prompt_tokens: of the request, as the server counts.
    completion_tokens: of all answers, as the server counts.
  """

  status: parse.Status
  cost: float | None
  detail: str = ""
  latency: float | None = None
  prompt_tokens: int | None = None
  completion_tokens: int | None = None


class Store:
  """A votes file, open for writing by this process alone.

  Args:
    path: of the SQLite file; made where there is none.

  Raises:
    ValueError: the file is no vote store, or another process writes to it.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = pathlib.Path(path)
    if self.path.is_dir():
      raise ValueError(
        f"--votes must name a file, got the folder {self.path}. Name a file in"
        " it."
      )
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._lock = atomic.hold(
      self.path.with_name(f"{self.path.name}.lock"),
      f"A votes file is written by one process at a time, got {self.path},"
      " which another one holds. Wait for it, or give each a --shard and a"
      " file of its own.",
    )
    self._db = sqlite3.connect(self.path, isolation_level=None)
    try:
      self._db.execute("PRAGMA journal_mode = WAL")
      # A killed process loses nothing; a power cut may lose the last answers.
      self._db.execute("PRAGMA synchronous = NORMAL")
      self._db.executescript(_SCHEMA)
    except sqlite3.DatabaseError as e:
      self.close()
      raise ValueError(
        f"--votes must name a vote store, got {self.path}: {e}. Name another"
        " file."
      ) from e
    try:
      check_format(self.path, self.fact("format"))
    except ValueError:
      self.close()
      raise
    self.learn("format", str(FORMAT))

  def close(self) -> None:
    """Closes the file and lets others write to it."""
    self._db.close()
    self._lock.close()

  def fact(self, name: str) -> str | None:
    """Returns what was found out once, such as what a server can do."""
    row = self._db.execute(
      "SELECT value FROM facts WHERE name = ?", (name,)
    ).fetchone()
    return row and row[0]

  def learn(self, name: str, value: str) -> None:
    """Keeps what was found out."""
    self._db.execute(
      "INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value)
    )

  def missing(self, request: Request) -> tuple[int, ...]:
    """Returns the samples without a valid answer, in order."""
    done = self._valid(request.key)
    return tuple(s for s in request.samples if s not in done)

  def _valid(self, request: str) -> set[int]:
    rows = self._db.execute(
      "SELECT sample FROM answers WHERE request = ? AND status = 'valid'",
      (request,),
    )
    return {sample for (sample,) in rows}

  def under_way(self, request: Request) -> set[int]:
    """Returns the samples of a request that batches were asked for."""
    rows = self._db.execute(
      "SELECT samples FROM calls WHERE request = ? AND batch IS NOT NULL AND"
      " status IS NULL",
      (request.key,),
    )
    return {sample for (samples,) in rows for sample in json.loads(samples)}

  def tries(self, request: Request, since: float) -> collections.Counter[int]:
    """Returns how often each sample was asked for and brought nothing valid.

    A refusal says something of the request's form, and a batch that was turned
    away was not asked for: neither is a try.

    Args:
      request: that was asked.
      since: the time from which calls count, as time.time().
    """
    rows = self._db.execute(
      "SELECT c.samples, a.sample, a.status FROM calls c LEFT JOIN"
      " answers a ON a.request = c.request AND a.call = c.call WHERE c.request"
      " = ? AND c.started >= ? AND c.status NOT IN ('rejected', 'turned_away')",
      (request.key, since),
    )
    counts: collections.Counter[int] = collections.Counter()
    for samples, sample, answer in rows:
      if sample is None:
        counts.update(json.loads(samples))
      else:
        counts[sample] += answer != parse.Status.VALID
    return counts

  def read_unread(
    self, request: Request, read: Callable[[str | None, str | None], Answer]
  ) -> list[parse.Status]:
    """Reads answers that came when it was not known what was asked.

    Args:
      request: that they answer.
      read: returns an answer from its text and finish_reason.

    Returns:
      What each of them is.
    """
    rows = self._db.execute(
      "SELECT sample, call, raw, finish_reason FROM answers WHERE request = ?"
      " AND status = 'unread'",
      (request.key,),
    ).fetchall()
    found = []
    for sample, call, raw, finish_reason in rows:
      answer = read(raw, finish_reason)
      answer = dataclasses.replace(answer, sample=sample)
      status = _status(answer, self._valid(request.key))
      votes = _votes_json(answer) if status == parse.Status.VALID else None
      self._db.execute(
        "UPDATE answers SET status = ?, votes = ? WHERE request = ? AND"
        " sample = ? AND call = ?",
        (status, votes, request.key, sample, call),
      )
      found.append(status)
    return found

  def ask(self, request: Request, endpoint: str) -> None:
    """Keeps what a request asks, of which dialogue, and its samples of it."""
    question, body = request.question, request.body
    prompt = request.prompt_sha256
    listed = self._db.execute(
      "SELECT 1 FROM prompts WHERE prompt_sha256 = ?", (prompt,)
    ).fetchone()
    if not listed:
      self._db.execute(
        "INSERT INTO prompts VALUES (?, ?)",
        (prompt, json.dumps(request.classes, ensure_ascii=False)),
      )
    known = self._db.execute(
      "SELECT samples, prompt_sha256, text_sha256 FROM questions WHERE"
      " request = ? AND dialogue_id = ?",
      (request.key, question.dialogue_id),
    ).fetchone()
    samples = set(request.samples)
    if known:
      earlier = set(json.loads(known[0]))
      # A prompt that lists no classes makes one request whichever there are,
      # and what a request does not show of a dialogue may have changed.
      now = (prompt, request.text_sha256)
      if not samples <= earlier or now != known[1:]:
        self._db.execute(
          "UPDATE questions SET samples = ?, prompt_sha256 = ?, text_sha256 = ?"
          " WHERE request = ? AND dialogue_id = ?",
          (
            json.dumps(sorted(samples | earlier)),
            *now,
            request.key,
            question.dialogue_id,
          ),
        )
      return
    sampling = {k: v for k, v in body.items() if k not in ("model", "messages")}
    self._db.execute(
      "INSERT INTO questions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
      (
        request.key,
        question.dialogue_id,
        request.text_sha256,
        endpoint,
        body["model"],
        question.prompt_id,
        prompt,
        question.class_name,
        question.asked[0],
        question.asked[-1],
        json.dumps(sampling, sort_keys=True),
        json.dumps(sorted(samples)),
      ),
    )

  def answers(
    self, request: Request
  ) -> list[tuple[int, parse.Status, list[parse.Vote]]]:
    """Returns (sample, status, votes) of all answers to a request so far."""
    rows = self._db.execute(
      "SELECT sample, status, votes FROM answers WHERE request = ?",
      (request.key,),
    )
    return [
      (
        sample,
        parse.Status(status),
        [
          parse.Vote(u, tuple(labels))
          for u, labels in json.loads(votes or "[]")
        ],
      )
      for sample, status, votes in rows
      if sample in request.samples
    ]

  def texts(self, key: str) -> list[str]:
    """Returns the raw valid answers under a key, in the order they came."""
    rows = self._db.execute(
      "SELECT raw FROM answers WHERE request = ? AND status IN ('valid',"
      " 'duplicate') ORDER BY call",
      (key,),
    )
    return [raw for (raw,) in rows]

  def cost(self, request: Request) -> float:
    """Returns the money that went into a request, lost calls in full."""
    (total,) = self._db.execute(
      "SELECT TOTAL(COALESCE(cost, reserved)) FROM calls WHERE request = ?",
      (request.key,),
    ).fetchone()
    return total

  def begin(
    self,
    request: str,
    samples: Sequence[int],
    reserved: float,
    batch: str | None = None,
  ) -> int:
    """Keeps that a call goes out, and the money it may cost; returns its id."""
    cursor = self._db.execute(
      "INSERT INTO calls (request, samples, batch, started, reserved)"
      " VALUES (?, ?, ?, ?, ?)",
      (request, json.dumps(list(samples)), batch, time.time(), reserved),
    )
    return cursor.lastrowid

  def finish(
    self, call: int, request: str, outcome: Outcome, answers: Sequence[Answer]
  ) -> None:
    """Keeps how a call ended and what it brought, in one transaction.

    Of several valid answers for a sample the first stays its answer.
    """
    with self.transaction():
      valid = self._valid(request)
      self._db.execute(
        "UPDATE calls SET cost = ?, status = ?, detail = ?, latency = ?,"
        " prompt_tokens = ?, completion_tokens = ? WHERE call = ?",
        (
          outcome.cost,
          outcome.status,
          outcome.detail[:1000],
          outcome.latency,
          outcome.prompt_tokens,
          outcome.completion_tokens,
          call,
        ),
      )
      self._db.executemany(
        "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
          (
            request,
            a.sample,
            call,
            status,
            a.raw,
            a.finish_reason,
            _votes_json(a) if status == parse.Status.VALID else None,
          )
          for a in answers
          for status in [_status(a, valid)]
        ],
      )

  def open_batches(self, endpoint: str) -> list[tuple[str, str | None, int]]:
    """Returns (batch, its id at the server, tokens) of those to collect."""
    return self._db.execute(
      "SELECT batch, remote, tokens FROM batches WHERE NOT collected AND"
      " endpoint = ?",
      (endpoint,),
    ).fetchall()

  def begin_batch(self, batch: str, endpoint: str, tokens: int) -> None:
    """Keeps that a batch is about to be handed over."""
    self._db.execute(
      "INSERT INTO batches (batch, endpoint, tokens) VALUES (?, ?, ?)",
      (batch, endpoint, tokens),
    )

  def name_batch(self, batch: str, remote: str) -> None:
    """Keeps what the server calls a batch."""
    self._db.execute(
      "UPDATE batches SET remote = ? WHERE batch = ?", (remote, batch)
    )

  def end_batch(self, batch: str) -> None:
    """Keeps that a batch was collected."""
    self._db.execute(
      "UPDATE batches SET collected = 1 WHERE batch = ?", (batch,)
    )

  def batch_calls(
    self, batch: str
  ) -> list[tuple[int, str, tuple[int, ...], float]]:
    """Returns (call, request, samples, reserved) of calls not ended."""
    rows = self._db.execute(
      "SELECT call, request, samples, reserved FROM calls WHERE batch = ? AND"
      " status IS NULL",
      (batch,),
    )
    return [
      (call, request, tuple(json.loads(samples)), reserved)
      for call, request, samples, reserved in rows
    ]

  @contextlib.contextmanager
  def transaction(self) -> Iterator[None]:
    """Keeps all that is written inside of it, or nothing."""
    if self._db.in_transaction:  # part of a larger one
      yield
      return
    self._db.execute("BEGIN IMMEDIATE")
    try:
      yield
    except BaseException:
      self._db.execute("ROLLBACK")
      raise
    self._db.execute("COMMIT")

  def spent(self) -> float:
    """Returns the money that went, unknown costs at their reservation."""
    (total,) = self._db.execute(
      "SELECT TOTAL(COALESCE(cost, reserved)) FROM calls"
    ).fetchone()
    return total


def check_format(path: pathlib.Path, found: str | None) -> None:
  """Raises ValueError for a store of another format; a new one has none."""
  if found not in (None, str(FORMAT)):
    raise ValueError(
      f"{path} must be of format {FORMAT}, got {found}. Name another file, or"
      " use the version of the program that wrote it."
    )


def _status(answer: Answer, valid: set[int]) -> parse.Status:
  """What an answer counts as, beside valid answers that are there."""
  if answer.status == parse.Status.VALID and answer.sample in valid:
    return parse.Status.DUPLICATE
  return answer.status


def _votes_json(answer: Answer) -> str:
  return json.dumps([[v.utterance, list(v.labels)] for v in answer.votes])
