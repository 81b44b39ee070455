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
  a.request, a.sample, MAX(a.votes), q.text_sha256, q.prompt_sha256
FROM questions q, json_each(q.samples) own
  JOIN answers a ON a.request = q.request AND a.sample = own.value
    AND a.status != 'unread'
GROUP BY q.dialogue_id, a.request, a.sample
ORDER BY q.dialogue_id, q.model, q.prompt, q.class, q.first, a.request, a.sample
"""
_TEXTS = "SELECT DISTINCT dialogue_id, text_sha256 FROM questions"
_PROMPTS = "SELECT DISTINCT prompt, prompt_sha256 FROM questions"
# What answers to some prompts named, and the classes that were asked about.
_NAMED = """
WITH q AS (
  SELECT request, class, prompt_sha256 FROM questions
  WHERE prompt_sha256 IN (SELECT value FROM json_each(?))
)
SELECT q.prompt_sha256, label.value
FROM q JOIN answers a ON a.request = q.request AND a.status = 'valid',
  json_each(a.votes) vote, json_each(vote.value, '$[1]') label
UNION
SELECT prompt_sha256, class FROM q WHERE class != ''
"""
_NOT_KEPT = "classes that an earlier version did not keep"


def is_store(path: pathlib.Path) -> bool:
  """Says whether a file is a vote store."""
  with path.open("rb") as f:
    return f.read(len(_MAGIC)) == _MAGIC


def read_into(
  builder: vote_columns.Builder,
  path: pathlib.Path,
  number: int,
  dialogues: Sequence[dialogues_lib.Dialogue],
) -> dict[str, int]:
  """Adds the votes of a store.

  An answer that was never valid is unusable for all that it was asked about.
  One that chose among other classes than the dataset's is left out: among fewer
  it is the answer to another question, and no vote against the rest.

  Args:
    builder: takes the votes.
    path: of the store.
    number: of the store among several, from 0.
    dialogues: the split that was voted on.

  Returns:
    How many answers were left out: "other_texts" and "other_classes".

  Raises:
    ValueError: another dataset was labelled, all answers chose among other
      classes, or the file is no vote store.
  """
  left_out = {"other_texts": 0, "other_classes": 0}
  with _open(path) as db:
    texts = _texts(path, db, dialogues)
    others = _other_classes(path, db, builder)
    classes = set(builder.classes)
    not_counted: collections.Counter[str] = collections.Counter()
    digest = hashlib.sha256()
    builder.source(path, unit="answer")
    group, sample = None, None
    for place, row in enumerate(db.execute(_VOTES), start=1):
      dialogue_id, annotator, only, first, last, _, _, votes, text, prompt = row
      if texts.get(dialogue_id, text) != text:
        left_out["other_texts"] += 1
        continue
      if prompt in others or (only and only not in classes):
        not_counted[others.get(prompt, f"[{only!r}]")] += 1
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
  left_out["other_classes"] = not_counted.total()
  if not_counted:
    _tell(path, builder.classes, not_counted, nothing_left=sample is None)
  return left_out


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


def _other_classes(
  path: pathlib.Path,
  db: sqlite3.Connection,
  builder: vote_columns.Builder,
) -> dict[str, str]:
  """Returns the prompts that list other classes than the dataset's.

  Before `prompts` was kept, what its answers name says what a prompt lists.
  Where that is not all classes, they count if the prompt was always the same.

  Args:
    path: of the store.
    db: the store.
    builder: knows the classes, and what counts as them.

  Returns:
    From the prompt's hash to the classes that it lists, for messages.
  """
  tables = "SELECT 1 FROM sqlite_master WHERE name = 'prompts'"
  kept = {}
  if db.execute(tables).fetchone():
    kept = dict(db.execute("SELECT prompt_sha256, classes FROM prompts"))
  hashes = collections.defaultdict(set)
  for prompt, sha256 in db.execute(_PROMPTS):
    hashes[prompt].add(sha256)
  named = {h: set() for some in hashes.values() for h in some if h not in kept}
  if named:
    for sha256, label in db.execute(_NAMED, (json.dumps(list(named)),)):
      named[sha256].add(label)
  classes = set(builder.classes)
  others, assumed = {}, set()
  for sha256, text in kept.items():
    listed = json.loads(text)
    if listed and builder.count_as(listed) != classes:
      others[sha256] = repr(listed)
  for some in hashes.values():
    for sha256 in some & named.keys():
      missing = classes - builder.count_as(named[sha256])
      if builder.count_as(named[sha256]) - classes or (
        missing and len(some) > 1
      ):
        others[sha256] = _NOT_KEPT
      else:
        assumed |= missing
  if assumed:
    _LOG.warning(
      "%s: an earlier version did not keep which classes were offered; all of"
      " the dataset's are taken to have been, also %s, which some prompts'"
      " answers never name. To be sure, give the command again that labelled"
      " it: it asks for nothing that is there, and keeps them.",
      path,
      sorted(assumed),
    )
  return others


def _tell(
  path: pathlib.Path,
  classes: Sequence[str],
  not_counted: collections.Counter[str],
  *,
  nothing_left: bool,
) -> None:
  """Says which answers are left out; raises ValueError where all are."""
  got = "; ".join(f"{n} answers among {of}" for of, n in not_counted.items())
  advice = (
    "Say in config.votes.counts_as what the other classes count as, or label"
    " anew with these."
  )
  if _NOT_KEPT in not_counted:
    advice += (
      " Classes that were not kept are if the command that labelled is given"
      " again; it asks for nothing that is there."
    )
  if nothing_left:
    raise ValueError(
      f"{path}: votes must be on the dataset's classes as they are now,"
      f" {list(classes)}, got {got}. {advice}"
    )
  _LOG.warning(
    "%s: answers that did not choose among the dataset's classes %s are left"
    " out: %s. %s",
    path,
    list(classes),
    got,
    advice,
  )


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
