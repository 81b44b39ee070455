r"""Has an LLM label dialogues: prompts and an endpoint in, votes, scores out.

    python -m labeling.main --config=configs/dailydialog.py \
      --config.labeling.endpoint=http://localhost:8000/v1 \
      --config.labeling.model=MODEL --votes=votes.sqlite --scores=scores.parquet

Every answer is kept in --votes before it counts; the same command given again
asks only for what is missing. --dry_run says what it will cost, --max_cost is a
cap that holds. The key comes from the environment variable OPENAI_API_KEY.
"""

import asyncio
import dataclasses
import itertools
import pathlib
import re
import signal
import sys
from collections.abc import Iterator, Sequence

import tqdm
from absl import flags

from labeling import aggregate, ask, batch, corpus, limits
from labeling import bank as bank_lib
from labeling import client as client_lib
from labeling import votes as votes_lib
from labeling.plan import Plan, Request, in_shard
from labeling.settings import Settings
from labeling.store import Store
from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib

_VOTES = flags.DEFINE_string("votes", None, "SQLite file that keeps the votes.")
_SCORES = flags.DEFINE_string(
  "scores", None, "Parquet file to write at the end; none: no scores."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Say what would be asked and what it costs; ask nothing."
)
_MAX_COST = flags.DEFINE_float(
  "max_cost",
  None,
  "Most money to spend, earlier runs into --votes included; calls in flight"
  " and lost answers count in full.",
  lower_bound=0,
)
_BATCH = flags.DEFINE_bool("batch", False, "Ask through the Batch API.")
_SHARD = flags.DEFINE_string(
  "shard", "0/1", "i/n: label the i-th (from 0) of n parts of the dialogues."
)
_DIALOGUES = flags.DEFINE_integer(
  "dialogues", None, "Label the first so many only.", lower_bound=1
)
_DETAILS = 3  # of failed calls, in the summary
# What batches bring is read when the plan is gone through again.
_DONE = (ask.Status.VALID, ask.Status.UNREAD)


@dataclasses.dataclass(frozen=True)
class _Job:
  """What there is to label, and with which requests."""

  dataset: dialogues_lib.Dataset
  dialogues: Sequence[dialogues_lib.Dialogue]
  numbers: Sequence[int]
  plan: Plan

  def __iter__(self) -> Iterator[Request]:
    """Yields all requests, a dialogue at a time."""
    for number in self.numbers:
      yield from self.plan.requests(self.dialogues[number])

  def answers(self) -> int:
    """Returns how many answers there will be."""
    return sum(
      self.plan.answers(d.dialogue_id, len(d.texts))
      for d in map(self.dialogues.__getitem__, self.numbers)
    )


def main(argv: Sequence[str]) -> None:
  """Runs the command; see the module's text."""
  commands.refuse_arguments(argv)
  config = commands.CONFIG.value
  with commands.user_errors():
    settings = Settings.from_config(config)
    job = _job(config, settings)
    if _DRY_RUN.value:
      print("\n".join(_dry_run(job, settings)))
      return
    settings.check_cap(_MAX_COST.value)
    client = client_lib.connect(settings)
    store = Store(pathlib.Path(_VOTES.value).expanduser())
    try:
      done = asyncio.run(_label(client, settings, store, job))
    finally:
      store.close()
    if _SCORES.value:
      votes, about = votes_lib.read(
        [store.path],
        job.dialogues,
        job.dataset.classes,
        config.votes.none_label,
        config.votes.counts_as,
        job.dataset.task,
      )
      lines = aggregate.write(
        pathlib.Path(_SCORES.value).expanduser(),
        votes,
        job.dataset,
        config.votes.split,
        about=about,
      )
      print("\n".join(lines))
  if not done:
    sys.exit(1)


def _job(config, settings: Settings) -> _Job:
  dataset, dialogues = corpus.open_split(config)
  bank = bank_lib.for_dataset(settings.bank, dataset, config.votes.none_label)
  numbers: Sequence[int] = range(len(dialogues))[: _DIALOGUES.value]
  shard = _shard(_SHARD.value)
  if shard != (0, 1):
    numbers = [n for n in numbers if in_shard(dialogues[n].dialogue_id, shard)]
  return _Job(dataset, dialogues, numbers, Plan(settings, bank))


def _shard(text: str) -> tuple[int, int]:
  match = re.fullmatch(r"(\d+)/(\d+)", text)
  index, count = map(int, match.groups()) if match else (0, 0)
  if not index < count:
    raise ValueError(
      f"--shard must be i/n with i from 0 to n - 1, got {text!r}. For three"
      " machines give 0/3, 1/3 and 2/3."
    )
  return index, count


def _dry_run(job: _Job, settings: Settings) -> list[str]:
  """Returns lines on what a run will ask and cost."""
  path = pathlib.Path(_VOTES.value).expanduser()
  store = Store(path) if path.exists() else None
  calls = answers = there = prompt = completion = bound = 0
  bar = tqdm.tqdm(job, "dry run", unit="request", delay=2)
  for request in bar:
    wanted = len(request.samples)
    if store is not None:
      wanted = len(store.missing(request))
      there += len(request.samples) - wanted
    if not wanted:
      continue
    calls += 1
    answers += wanted
    question, answer = request.tokens_estimate
    prompt += question
    completion += wanted * answer
    bound += settings.cost(
      wanted * request.prompt_tokens_bound, wanted * settings.max_tokens
    )
  spent = 0.0
  if store is not None:
    spent = store.spent()
    store.close()
  factor = settings.price_batch if _BATCH.value else 1.0
  lines = [
    f"dialogues: {len(job.numbers)}",
    f"answers: {answers} to ask for, {there} in {path}",
    f"requests: {calls} where the server gives n answers at once, else"
    f" {answers}",
    f"tokens, about: {prompt} in requests, {completion} in answers",
  ]
  if settings.price_input or settings.price_output:
    cost = factor * settings.cost(prompt, completion)
    lines.append(
      f"cost: about {cost:.2f}, at most {factor * bound:.2f} before"
      f" retries; {spent:.2f} spent so far"
    )
  else:
    lines.append(
      "cost: unknown; set --config.labeling.price_input and price_output, in"
      " money for a million tokens"
    )
  return lines


async def _label(client, settings: Settings, store: Store, job: _Job) -> bool:
  """Asks for all that is missing and shows how it goes; says if all came."""
  budget = limits.Budget(_MAX_COST.value, store.spent())
  total = job.answers()
  bar = tqdm.tqdm(total=total, unit="answer", desc="labeling")

  def show(progress: ask.Progress) -> None:
    come = sum(progress.answers[status] for status in _DONE)
    bar.n = min(total, come + progress.there)
    bar.set_postfix_str(_text(progress, budget.spent), refresh=False)
    bar.update(0)

  asker_class = batch.BatchAsker if _BATCH.value else ask.Asker
  asker = asker_class(client, settings, store, budget, show)
  loop = asyncio.get_running_loop()
  task = asyncio.ensure_future(asker.run(job))
  loop.add_signal_handler(signal.SIGINT, _interrupt, asker, task)
  try:
    done = await task
  except asyncio.CancelledError:
    done = False
  finally:
    show(asker.progress)
    bar.close()
    await client.close()
  cap = _MAX_COST.value if asker.out_of_money else None
  print("\n".join(_summary(asker.progress, budget.spent, done, cap)))
  return done and not asker.progress.given_up


def _interrupt(asker, task: asyncio.Future) -> None:
  """First Ctrl-C: what is in flight is waited for. Second: it is dropped."""
  if asker.stop():
    tqdm.tqdm.write(asker.stopping)
  else:
    task.cancel()


def _text(progress: ask.Progress, spent: float) -> str:
  failures = ", ".join(
    f"{count} {status}"
    for status, count in itertools.chain(
      sorted(progress.answers.items()), sorted(progress.calls.items())
    )
    if status not in _DONE and count
  )
  tokens = sum(progress.tokens)
  return f"{tokens / 1e3:.0f}k tokens, {spent:.2f} spent" + (
    f", {failures}" if failures else ""
  )


def _summary(
  progress: ask.Progress, spent: float, done: bool, cap: float | None
) -> list[str]:
  lines = [
    f"calls: {progress.requests}, with {progress.tokens[0]} tokens in requests"
    f" and {progress.tokens[1]} in answers; {spent:.4f} spent in all",
    "answers: "
    + (
      ", ".join(f"{n} {s}" for s, n in sorted(progress.answers.items()) if n)
      or "none"
    ),
  ]
  if progress.calls:
    failed = ", ".join(f"{n} {s}" for s, n in sorted(progress.calls.items()))
    lines.append(f"calls without an answer: {failed}")
    lines += [
      f"  {count} {status}: {said}"
      for (status, said), count in progress.details.most_common(_DETAILS)
      if said
    ]
  if missing := progress.given_up - progress.rejected:
    lines.append(
      f"missing after the last try: {missing}. Give the same command again to"
      " ask for them."
    )
  if progress.rejected:
    lines.append(
      f"missing because the server rejects the request: {progress.rejected}."
      " It will do so again: change what it names above, such as"
      " --config.labeling.context_turns, max_tokens_name or extra_body."
      " Scores are made of the rest."
    )
  if not done:
    why = "" if cap is None else f" --max_cost is {cap:g}."
    lines.append(
      f"Stopped before the end.{why} Give the same command again to go on;"
      " nothing that was answered is asked again."
    )
  return lines


if __name__ == "__main__":
  commands.run(main, required=["config", "votes"])
