"""How fast labelling asks, and how much memory it takes.

    python -m benchmarks.labeling --what=throughput
    python -m benchmarks.labeling --what=memory

Throughput: 2,000 requests against a server that answers after 200 ms, at
several numbers of requests in flight, by `labeling.ask` and by the plainest
loop over the same client: a semaphore and `asyncio.gather`, which keeps
nothing. The bound is requests in flight / latency. The sides take turns.
Memory: peak resident memory of `labeling.main` over few and over many short
dialogues, one prompt about every utterance, one vote, a server without latency.

The server is a process of its own on the same machine.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags, logging

from configs import quickstart
from labeling import ask, client, limits
from labeling import bank as bank_lib
from labeling.plan import Plan
from labeling.settings import Settings
from labeling.store import Store
from ppl_jax.data import dialogues as dialogues_lib

_WHAT = flags.DEFINE_enum(
  "what", "throughput", ["throughput", "memory"], "What to measure."
)
_REQUESTS = flags.DEFINE_integer("requests", 2_000, "Requests of a turn.")
_LATENCY = flags.DEFINE_float("latency", 0.2, "Seconds the server waits.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each side.")
_IN_FLIGHT = flags.DEFINE_multi_integer("in_flight", [8, 32, 64], "At once.")
_SIZES = flags.DEFINE_multi_integer(
  "dialogues", [1_000, 50_000], "Corpora to measure memory on."
)
_PROMPT = flags.DEFINE_string(
  "prompt", None, "Prompt of the support bank; none: its first about all."
)


@contextlib.contextmanager
def _server(*arguments):
  """Runs the simulated server; gives its endpoint."""
  process = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "labeling.simulated_server",
      "--config=configs/quickstart.py",
      "--port=0",
      *arguments,
    ],
    stdout=subprocess.PIPE,
    text=True,
  )
  try:
    for line in process.stdout:
      found = re.search(r"http://\S+/v1", line)
      if found:
        yield found[0]
        break
    else:
      raise RuntimeError("The server did not start.")
  finally:
    process.terminate()
    process.wait()


def _prompt_id(bank):
  if _PROMPT.value:
    return _PROMPT.value
  return next(p.id for p in bank.prompts if p.asks == "every")


async def _ours(settings, requests, folder):
  """Seconds and CPU seconds for all requests, as `labeling.main` asks."""
  store = Store(folder / f"{time.monotonic_ns()}.sqlite")
  api = client.connect(settings)
  asker = ask.Asker(api, settings, store, limits.Budget(None, 0.0))
  start = time.perf_counter(), time.process_time()
  assert await asker.run(requests)
  took = time.perf_counter() - start[0], time.process_time() - start[1]
  answered = asker.progress.answers[ask.Status.VALID]
  assert answered == len(requests), asker.progress
  await api.close()
  store.close()
  return took


async def _plain(settings, requests, _):
  """The same by a semaphore and gather."""
  api = client.connect(settings)
  gate = asyncio.Semaphore(settings.concurrency)

  async def one(request):
    async with gate:
      body = {**request.body, "response_format": request.response_format}
      reply = await api.chat.completions.create(**body)
      return reply.choices[0].message.content

  start = time.perf_counter(), time.process_time()
  answers = await asyncio.gather(*(one(r) for r in requests))
  took = time.perf_counter() - start[0], time.process_time() - start[1]
  assert all(answers)
  await api.close()
  return took


def _throughput(config, folder):
  dataset = dialogues_lib.load_config(config.dataset)
  bank = bank_lib.for_dataset(
    config.labeling.bank, dataset, config.votes.none_label
  )
  config.labeling.prompts = (_prompt_id(bank),)
  with _server(f"--latency={_LATENCY.value}") as endpoint:
    config.labeling.endpoint = endpoint
    # Each request is for another sample, so that none is there already.
    config.labeling.votes = -(-_REQUESTS.value // len(dataset.splits["train"]))
    settings = Settings.from_config(config)
    plan = Plan(settings, bank)
    singles = (
      dataclasses.replace(r, samples=(s,), key=f"{r.key}{s}")
      for d in dataset.splits["train"]
      for r in plan.requests(d)
      for s in r.samples
    )
    requests = list(itertools.islice(singles, _REQUESTS.value))
    for at_once in _IN_FLIGHT.value:
      now = dataclasses.replace(settings, concurrency=at_once)
      took = {_ours: [], _plain: []}
      for _ in range(_ROUNDS.value):
        for side, times in took.items():
          times.append(asyncio.run(side(now, requests, folder)))
      bound = at_once / _LATENCY.value
      for side, times in took.items():
        rates = [len(requests) / seconds for seconds, _ in times]
        cpu = [1e3 * c / len(requests) for _, c in times]
        rate = statistics.median(rates)
        print(
          f"{at_once} in flight, {side.__name__[1:]}: {rate:.1f} requests/s"
          f" ({min(rates):.1f} to {max(rates):.1f}), {rate / bound:.1%} of"
          f" {bound:.0f}; CPU {statistics.median(cpu):.2f} ms a request"
        )


def _memory(config, folder):
  dataset = dialogues_lib.load_config(config.dataset)
  prompt = _prompt_id(
    bank_lib.for_dataset(config.labeling.bank, dataset, config.votes.none_label)
  )
  peaks = []
  for size in _SIZES.value:
    corpus = f"--config.dataset.options.train={size}"
    with _server(corpus) as endpoint:
      start = time.perf_counter()
      process = subprocess.Popen(
        [
          sys.executable,
          "-m",
          "labeling.main",
          "--config=configs/quickstart.py",
          corpus,
          f"--config.labeling.endpoint={endpoint}",
          "--config.labeling.model=simulated",
          f"--config.labeling.prompts=('{prompt}',)",
          "--config.labeling.votes=1",
          f"--votes={folder / f'{size}.sqlite'}",
        ],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
      )
      _, status, usage = os.wait4(process.pid, 0)
      assert status == 0, status
    peaks.append(usage.ru_maxrss / 1024)
    print(
      f"{size} dialogues: peak {peaks[-1]:.0f} MiB,"
      f" {time.perf_counter() - start:.0f} s"
    )
  print(f"ratio {peaks[-1] / peaks[0]:.2f}")


def main(argv):
  """Runs the command; see the module's text."""
  if len(argv) > 1:
    raise app.UsageError(f"Flags only, got {argv[1:]}.")
  logging.set_verbosity(logging.WARNING)  # httpx would tell of every request
  config = quickstart.get_config()
  config.labeling.model = "simulated"
  with tempfile.TemporaryDirectory() as folder:
    measure = {"throughput": _throughput, "memory": _memory}[_WHAT.value]
    measure(config, pathlib.Path(folder))


if __name__ == "__main__":
  app.run(main)
