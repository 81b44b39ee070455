"""Labels generated dialogues over HTTP, for tests."""

import asyncio
import collections
import dataclasses
import json
import sqlite3

from configs import quickstart
from labeling import ask, batch, client, limits, simulated_log
from labeling import bank as bank_lib
from labeling.plan import Plan
from labeling.settings import Settings
from labeling.simulated_server import SimulatedServer
from labeling.store import Store
from ppl_jax.data.readers import support

CLASSES = support.CLASSES


def dialogues(count):
  """The first dialogues of the generated corpus."""
  return list(support.read(None, "train", CLASSES, {"train": count}))


def server(count=6, **settings):
  """A simulated server for so many dialogues."""
  return SimulatedServer(dialogues(count), CLASSES, **settings)


def settings(url, **values):
  """The quickstart's settings against a server, impatient."""
  config = quickstart.get_config()
  config.labeling.model = "simulated"
  config.labeling.endpoint = url
  base = dataclasses.replace(
    Settings.from_config(config), votes=4, timeout=2.0, batch_poll=0.05
  )
  return dataclasses.replace(base, **values)


def plan(chosen):
  """The plan of these settings over the support bank."""
  bank = bank_lib.for_classes(
    bank_lib.load("support"), CLASSES, "none", "single_label"
  )
  return Plan(chosen, bank)


def copies(count):
  """Dialogues of one and the same text."""
  (one,) = dialogues(1)
  return [
    dataclasses.replace(one, dialogue_id=f"copy {i}") for i in range(count)
  ]


def requests_of(asked, chosen):
  """All requests for some dialogues."""
  made = plan(chosen)
  return [r for d in asked for r in made.requests(d)]


def requests(chosen, count=6):
  """All requests for the first dialogues."""
  return requests_of(dialogues(count), chosen)


def label(
  path, chosen, count=6, max_cost=None, through_batches=False, asked=None
):
  """Labels; returns whether it came to the end, and the progress."""

  async def run():
    store = Store(path)
    api = client.connect(chosen)
    kind = batch.BatchAsker if through_batches else ask.Asker
    budget = limits.Budget(max_cost, store.spent())
    asker = kind(api, chosen, store, budget)
    try:
      done = await asker.run(asked or requests(chosen, count))
    finally:
      await api.close()
      store.close()
    return done, asker.progress

  return asyncio.run(run())


def stored(path):
  """From (request, sample) to the raw text of each valid answer."""
  if not path.exists():
    return {}
  db = sqlite3.connect(path)
  rows = db.execute(
    "SELECT request, sample, raw FROM answers WHERE status = 'valid'"
  ).fetchall()
  db.close()
  return {(request, sample): raw for request, sample, raw in rows}


def counts(path):
  """How many answers, and calls that brought none, there are by status."""
  db = sqlite3.connect(path)
  rows = db.execute(
    "SELECT status FROM answers UNION ALL SELECT COALESCE(status, 'lost') FROM"
    " calls WHERE status IS NOT 'valid'"
  ).fetchall()
  db.close()
  return collections.Counter(status for (status,) in rows)


def delivered(log):
  """From a request's hash to the texts of answers that came out right."""
  texts = {}
  for record in log:
    if record["delivered"]:
      texts.setdefault(record["request"], []).extend(
        c["text"] for c in record["choices"] or () if c["faithful"]
      )
  return texts


def sent(request, with_schema=True):
  """Hashes that a request can have at the server, by how many it asks for."""
  body = dict(request.body)
  if with_schema:
    body["response_format"] = request.response_format
  hashes = {}
  for n in range(1, len(request.samples) + 1):
    asked = json.loads(json.dumps(body | ({"n": n} if n > 1 else {})))
    hashes[n] = simulated_log.request_sha256(asked)
  return hashes
