r"""Looks at, tries and improves the prompts of a bank.

    python -m labeling.prompts list --bank=support
    python -m labeling.prompts show --bank=support --prompt=ID --config=C
    python -m labeling.prompts score --config=C --votes=V.sqlite
    python -m labeling.prompts improve --config=C --votes=V.sqlite \
      --output=bank.yaml --keep=5

`score` asks with every prompt about --gold_dialogues dialogues that have gold
and prints how good each one is. `improve` has the LLM write new wordings from
the mistakes, tries them on dialogues it did not see, and writes the best
prompts to a bank of your own, each with where it came from. Both stay within
--max_cost, and neither pays twice for what --votes holds.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
import yaml
from absl import app, flags

from labeling import ask, chat, corpus, limits, render
from labeling import bank as bank_lib
from labeling import client as client_lib
from labeling import plan as plan_lib
from labeling.plan import Plan
from labeling.prompts import improve, trial
from labeling.settings import Settings
from labeling.store import Answer, Store
from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib

_BANK = flags.DEFINE_string(
  "bank", None, "Bank to use instead of the config's."
)
_PROMPT = flags.DEFINE_string("prompt", None, "Prompt to show; none: all.")
_VOTES = flags.DEFINE_string("votes", None, "SQLite file that keeps the votes.")
_GOLD = flags.DEFINE_integer(
  "gold_dialogues", 20, "Dialogues with gold to try on.", lower_bound=2
)
_MAX_COST = flags.DEFINE_float(
  "max_cost", None, "Most money to spend, earlier runs into --votes included."
)
_OUTPUT = flags.DEFINE_string(
  "output",
  None,
  "improve: bank to write (YAML); score: figures to write (JSON lines), with\n"
  " the agreement on each class.",
)
_KEEP = flags.DEFINE_integer("keep", 5, "Prompts to keep.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 1, "Rounds of new wordings.")


def main(argv: Sequence[str]) -> None:
  """Runs the command; see the module's text."""
  jobs = {"list": _list, "show": _show, "score": _score, "improve": _improve}
  if len(argv) != 2 or argv[1] not in jobs:
    raise app.UsageError(f"Give one of {', '.join(jobs)}, got {argv[1:]}.")
  with commands.user_errors():
    try:
      jobs[argv[1]]()
    except KeyboardInterrupt:
      sys.exit("Stopped. Give the same command again to go on.")


def _list() -> None:
  for name in [_BANK.value] if _BANK.value else bank_lib.names():
    bank = bank_lib.load(name)
    print(f"{name}: {bank.about}")
    print(f"  classes: {', '.join(bank.classes) or 'those of the config'}")
    for prompt in bank.prompts:
      examples = f", {len(prompt.examples)} examples" * bool(prompt.examples)
      print(
        f"  {prompt.id}: asks {prompt.asks}, options {prompt.option_order}"
        f"{examples}; {prompt.origin}"
      )


@dataclasses.dataclass(frozen=True)
class _Setting:
  """A config, read for trying prompts."""

  settings: Settings
  bank: bank_lib.Bank
  dataset: dialogues_lib.Dataset
  gold: tuple[dialogues_lib.Dialogue, ...]

  def plan(self, prompt_id: str) -> Plan:
    """Returns the requests of one prompt."""
    settings = dataclasses.replace(self.settings, prompts=(prompt_id,))
    return Plan(settings, self.bank)


def _setting(show: bool = False) -> _Setting:
  config = commands.CONFIG.value
  if config is None:
    raise ValueError(
      "This needs --config, got none. Name the dataset's config."
    )
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if _BANK.value:
      config.labeling.bank = _BANK.value
    if show:
      config.labeling.model = config.labeling.model or "none"
  settings = Settings.from_config(config)
  dataset, split = corpus.open_split(config)
  bank = bank_lib.for_dataset(settings.bank, dataset, config.votes.none_label)
  order = np.random.default_rng((config.seed, 5)).permutation(len(split))
  gold = []
  for number in order:
    if len(gold) == _GOLD.value:
      break
    dialogue = split[int(number)]
    if dialogue.labelled.any():
      gold.append(dialogue)
  if not gold and not show:
    raise ValueError(
      "Prompts are judged by dialogues with gold labels, got none in the split"
      f" {config.votes.split}. Label a few, in the dataset's file or by"
      " --config.dataset.gold."
    )
  return _Setting(settings, bank, dataset, tuple(gold))


def _show() -> None:
  setting = _setting(show=True)
  dialogue = (
    setting.gold[0]
    if setting.gold
    else next(iter(setting.dataset.splits["train"]))
  )
  shown = (
    [_PROMPT.value]
    if _PROMPT.value
    else [prompt.id for prompt in setting.bank.prompts]
  )
  for name in shown:
    request = list(setting.plan(name).requests(dialogue))[-1]
    print(f"=== {name}")
    for message in request.body["messages"]:
      print(f"--- {message['role']}\n{message['content']}")
    if not dialogue.labelled[list(request.question.asked)].all():
      continue
    gold = {
      i: [
        c
        for c, g in zip(setting.bank.classes, dialogue.gold[i], strict=True)
        if g
      ]
      for i in request.question.asked
    }
    print(f"--- a right answer\n{render.answer(request.question, gold)}")


def _score() -> None:
  setting = _setting()
  store = _store()
  try:
    trials = asyncio.run(_tried(setting, store, setting.gold))
  finally:
    store.close()
  print(trial.table(trials, setting.dataset.classes))
  if _OUTPUT.value:
    path = pathlib.Path(_OUTPUT.value).expanduser()
    lines = [trial.to_json(one, setting.dataset.classes) for one in trials]
    path.write_text("\n".join(lines) + "\n")


def _store() -> Store:
  if not _VOTES.value:
    raise ValueError(
      "This needs --votes, got none. Name the SQLite file that keeps the votes."
    )
  return Store(pathlib.Path(_VOTES.value).expanduser())


async def _tried(
  setting: _Setting,
  store: Store,
  dialogues: Sequence[dialogues_lib.Dialogue],
) -> list[trial.Trial]:
  """Asks with every prompt about every dialogue; returns how good they are."""
  plans = [setting.plan(prompt.id) for prompt in setting.bank.prompts]
  total = sum(
    plan.answers(d.dialogue_id, len(d.texts))
    for plan in plans
    for d in dialogues
  )
  client = client_lib.connect(setting.settings)
  setting.settings.check_cap(_MAX_COST.value)
  budget = limits.Budget(_MAX_COST.value, store.spent())
  with tqdm.tqdm(total=total, unit="answer", desc="trying prompts") as bar:

    def show(progress):
      bar.update(progress.answers[ask.Status.VALID] - bar.n)

    asker = ask.Asker(client, setting.settings, store, budget, show)
    requests = (
      r for d in dialogues for plan in plans for r in plan.requests(d)
    )
    try:
      done = await asker.run(requests)
    finally:
      await client.close()
  if not done:
    raise ValueError(
      "Trying the prompts must fit into --max_cost, got to"
      f" {budget.spent:.4f} before the end. Raise it, or lower"
      " --gold_dialogues."
    )
  classes, task = setting.dataset.classes, setting.dataset.task
  return [trial.judge(plan, store, dialogues, classes, task) for plan in plans]


def _improve() -> None:
  setting = _setting()
  if not _OUTPUT.value:
    raise ValueError("This needs --output, got none. Name the bank to write.")
  store = _store()
  try:
    asyncio.run(_rounds(setting, store))
  finally:
    store.close()


async def _rounds(setting: _Setting, store: Store) -> None:
  half = len(setting.gold) // 2
  seen, unseen = setting.gold[:half], setting.gold[half:]
  classes = setting.dataset.classes
  proposed: set[str] = set()  # in this run, and what became of them
  for number in range(1, _ROUNDS.value + 1):
    trials = await _tried(setting, store, seen)
    prompts = {prompt.id: prompt for prompt in setting.bank.prompts}
    new: list[bank_lib.Prompt] = []
    for one in tqdm.tqdm(trials, desc=f"round {number}", unit="wording"):
      prompt = prompts[one.prompt_id]
      try:
        taken = {*prompts, *(prompt.id for prompt in new)}
        numbers = (f"{prompt.id}.{i}" for i in itertools.count(1))
        name = next(name for name in numbers if name not in taken)
        made = await _proposal(
          setting, store, prompt, one, number, name, proposed
        )
        new.append(made)
      except chat.FatalError:
        raise
      except ValueError as error:
        tqdm.tqdm.write(f"No new wording of {prompt.id}: {error}")
    bank = setting.bank.model_copy(
      update={"prompts": (*setting.bank.prompts, *new)}
    )
    setting = dataclasses.replace(setting, bank=bank)
    trials = await _tried(setting, store, unseen)
    print(trial.table(trials, classes))
    best = sorted(trials, key=lambda t: -np.nan_to_num(t.accuracy))
    keep = [t.prompt_id for t in best[: _KEEP.value]]
    by_id = {prompt.id: prompt for prompt in bank.prompts}
    bank = bank.model_copy(update={"prompts": tuple(by_id[n] for n in keep)})
    setting = dataclasses.replace(setting, bank=bank)
    _write(bank, pathlib.Path(_OUTPUT.value).expanduser())


async def _proposal(
  setting: _Setting,
  store: Store,
  prompt: bank_lib.Prompt,
  tried: trial.Trial,
  number: int,
  name: str,
  proposed: set[str],
) -> bank_lib.Prompt:
  """Has the LLM reword a prompt; paid for like any call, and once."""
  if not tried.mistakes:
    raise ValueError("it made no mistake")
  settings = setting.settings
  body = {
    "model": settings.model,
    "messages": improve.messages(setting.bank, prompt, tried),
    "temperature": settings.temperature,
    settings.max_tokens_name: settings.max_tokens,
  }
  key = plan_lib.request_key(settings.endpoint, body)

  def read(text: str) -> bank_lib.Prompt:
    made = improve.read(
      setting.bank,
      prompt,
      text,
      prompt_id=name,
      origin=f"reworded from {prompt.id} by {settings.model}, round {number}",
    )
    wording = bank_lib.prompt_sha256(setting.bank, made)
    if wording in proposed:
      raise ValueError("it was proposed before")
    proposed.add(wording)
    return made

  for text in store.texts(key):
    with contextlib.suppress(ValueError):
      return read(text)
  return read(await _reworded(settings, store, key, body))


async def _reworded(
  settings: Settings, store: Store, key: str, body: dict[str, Any]
) -> str:
  """Makes the call for a proposal, in the simplest form that is taken."""
  size = sum(len(m["content"].encode()) for m in body["messages"])
  reserved = settings.cost(size + 1_000, settings.max_tokens)
  forms = [body]
  if ask.may_take_schema(store, settings):
    forms.insert(0, {**body, "response_format": improve.response_format()})
  client = client_lib.connect(settings)
  try:
    for form in forms:
      budget = limits.Budget(_MAX_COST.value, store.spent())
      if not budget.try_reserve(reserved):
        raise ValueError("it does not fit into --max_cost")
      call = store.begin(key, [0], reserved)
      reply = await chat.call(client, form, settings.timeout)
      answers = [
        Answer(0, ask.Status.VALID, text, finish_reason)
        for text, finish_reason, _ in reply.choices
        if text is not None
      ]
      cost = chat.cost_of(settings, reply)
      ask.keep(store, ask.Progress(), call, key, reply, cost, answers[:1])
      if reply.fatal:
        raise chat.FatalError(reply.fatal)
      if answers:
        return answers[0].raw
      if reply.status != ask.Status.REJECTED:
        break
  finally:
    await client.close()
  raise ValueError(reply.detail or "the answer is empty")


def _write(bank: bank_lib.Bank, path: pathlib.Path) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  values = bank.model_dump(mode="json")
  path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
  print(f"{path}: {', '.join(prompt.id for prompt in bank.prompts)}")


if __name__ == "__main__":
  commands.run(main, required=[])
