"""Votes out of vote stores, in the form that all votes are in."""

import collections
import contextlib
import hashlib
import json
import logging
import pathlib
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from labeling import store
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import vote_columns

_LOG = logging.getLogger(__name__)
_MAGIC = b"SQLite format 3\0"
# Samples of one store, so that those of several have distinct numbers.
_MOST_SAMPLES = 1 << 20
_VOTES = """
SELECT q.dialogue_id, q.model || '/' || q.prompt, q.class, q.first, q.last,
  a.request, a.sample, MAX(a.votes), q.text_sha256
FROM questions q, json_each(q.samples) own
  JOIN answers a ON a.request = q.request AND a.sample = own.value
    AND a.status != 'unread'
GROUP BY q.dialogue_id, a.request, a.sample
ORDER BY q.dialogue_id, q.model, q.prompt, q.class, q.first, a.request, a.sample
"""
_TEXTS = "SELECT DISTINCT dialogue_id, text_sha256 FROM questions"


def is_store(path: pathlib.Path) -> bool:
  """Says whether a file is a vote store."""
  with path.open("rb") as f:
    return f.read(len(_MAGIC)) == _MAGIC


def read_into(
  builder: vote_columns.Builder,
  path: pathlib.Path,
  number: int,
  dialogues: Sequence[dialogues_lib.Dialogue],
) -> None:
  """Adds the votes of a store.

  An answer that was never valid is unusable for all that it was asked about.

  Args:
    builder: takes the votes.
    path: of the store.
    number: of the store among several, from 0.
    dialogues: the split that was voted on.

  Raises:
    ValueError: another dataset was labelled, or the file is no vote store.
  """
  with _open(path) as db:
    texts = _texts(path, db, dialogues)
    digest = hashlib.sha256()
    builder.source(path, unit="answer")
    group, sample = None, 0
    for place, row in enumerate(db.execute(_VOTES), start=1):
      dialogue_id, annotator, only, first, last, _, _, votes, text = row
      if texts.get(dialogue_id, text) != text:
        continue
      digest.update(json.dumps(row).encode())
      # The same question in other words has another request, and one about as
      # many utterances at once as were asked then: count through.
      sample = sample + 1 if row[:3] == group else number * _MOST_SAMPLES
      group = row[:3]
      answers = [(u, None) for u in range(first, last + 1)]
      if votes is not None:
        answers = json.loads(votes)
      for utterance, labels in answers:
        builder.add(
          place,
          dialogue_id=dialogue_id,
          utterance=utterance,
          annotator=annotator,
          sample=sample,
          labels=labels,
          only=only,
        )
    builder.digest(digest.hexdigest())


def about(paths: Sequence[pathlib.Path]) -> dict[str, Any]:
  """Returns the models, prompts and sampling of stores, for score files."""
  models, prompts, sampling, requests = set(), set(), set(), 0
  for path in paths:
    with _open(path) as db:
      for model, prompt, sha256, settings in db.execute(
        "SELECT DISTINCT model, prompt, prompt_sha256, sampling FROM questions"
      ):
        models.add(model)
        prompts.add((prompt, sha256))
        sampling.add(settings)
      requests += db.execute("SELECT COUNT(*) FROM calls").fetchone()[0]
  settings = [json.loads(text) for text in sorted(sampling)]
  return {
    "models": sorted(models),
    "prompts": [{"id": name, "sha256": sha} for name, sha in sorted(prompts)],
    "sampling": settings[0] if len(settings) == 1 else settings,
    "requests": requests,
  }


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[sqlite3.Connection]:
  db = sqlite3.connect(f"file:{path.absolute()}?mode=ro", uri=True)
  try:
    row = db.execute("SELECT value FROM facts WHERE name = 'format'").fetchone()
    store.check_format(path, row and row[0])
    yield db
  except sqlite3.DatabaseError as e:
    raise ValueError(
      f"--votes must name a vote store, got {path}: {e}. Name another file."
    ) from e
  finally:
    db.close()


def _texts(path, db, dialogues) -> dict[str, str]:
  """Returns the hash of each dialogue whose text was another one before.

  Raises:
    ValueError: all that was asked of a dialogue was of another text.
  """
  asked = collections.defaultdict(set)
  for dialogue_id, text in db.execute(_TEXTS):
    asked[dialogue_id].add(text)
  changed = {}
  for dialogue in dialogues:
    texts = asked.get(dialogue.dialogue_id)
    if texts is None:
      continue
    now = dialogue.text_sha256()
    if now not in texts:
      raise ValueError(
        f"{path}: votes must be on the dialogues as they are now, got other"
        f" speakers or texts in dialogue {dialogue.dialogue_id!r}. Use the data"
        " that was labelled, or label it anew."
      )
    if len(texts) > 1:
      changed[dialogue.dialogue_id] = now
  if changed:
    _LOG.warning(
      "%s: %d dialogues were labelled in other words too; those votes are left"
      " out.",
      path,
      len(changed),
    )
  return changed
