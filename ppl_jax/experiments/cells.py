"""Cells of an experiment: each one run of `python -m ppl_jax.main`.

A cell's folder is FOLDER/cells/NAME, its log NAME.log beside it. A cell that is
finished is never run again; one that was killed goes on from its checkpoint;
one that fails is reported, and the others go on.
"""

import ast
import contextlib
import dataclasses
import functools
import json
import pathlib
import shlex
import shutil
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tqdm
from absl import flags
from ml_collections import ConfigDict, config_flags

from ppl_jax import commands, predictions
from ppl_jax.data import atomic
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.experiments import outputs

_LAST_LINES = 12
_TAIL = 20_000  # bytes of a log that are looked at
_POLL = 1.0  # seconds
_MEASURES = (
  "accuracy",
  "one_versus_rest_accuracy",
  "macro_f1",
  "weighted_f1",
  "ece",
  "nll",
  "count",
)
# Where these differ the student is the same.
_FREE_KEYS = {"baselines", "batch.shards", "init_from"}


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run.

  Attributes:
    name: of its folder.
    overrides: from keys of the config to values.
    about: what results.csv says of it.
    start: the name of the cell whose first phase it starts from, or "".
    serves: whether others may start from its first phase, which is then kept.
  """

  name: str
  overrides: Mapping[str, Any]
  about: Mapping[str, Any]
  start: str = ""
  serves: bool = False


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of a cell.

  Attributes:
    cell: the cell.
    workdir: its folder.
    error: why it has no results, or "".
    facts: seconds that its last run took, its command, commit and versions;
      may be empty.
  """

  cell: Cell
  workdir: pathlib.Path
  error: str = ""
  facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def seconds(self) -> float:
    """Those of `facts`, or NaN."""
    return self.facts.get("seconds", float("nan"))

  @property
  def commit(self) -> str:
    """Of the code that ran it, with a + where files differed; maybe ""."""
    git = self.facts.get("git")
    return git["commit"][:12] + "+" * git["changed"] if git else ""

  def results(self) -> dict[str, Any]:
    """Returns the contents of results.json."""
    return json.loads((self.workdir / "results.json").read_text())

  def test(self) -> predictions.Predictions:
    """Returns what the student said of the test split."""
    return predictions.load(predictions.path(self.workdir, "test"))

  def row(self) -> dict[str, Any]:
    """Returns the cell's row of results.csv."""
    row = {"cell": self.cell.name, **self.cell.about}
    if self.error:
      return row | {"status": "failed"}
    results = self.results()
    test = results.get("test", {})
    votes = results.get("heldout_votes", {})
    return row | {
      "status": "finished",
      **{name: test.get(name, "") for name in _MEASURES},
      "vote_cross_entropy": votes.get("vote_cross_entropy", ""),
      "gold_train": results["gold_labels"]["train"],
      "gold_dev": results["gold_labels"]["dev"],
      "seconds": round(self.seconds, 1),
      "commit": self.commit,
    }


def check(cells: Sequence[Cell], folder: pathlib.Path) -> None:
  """Looks whether cells can run in a folder, or have.

  Raises:
    ValueError: a cell's folder holds a run of another config or other data, or
      an override is none of the config's.
  """
  for cell in cells:
    _check_same(_config(cell), folder / "cells" / cell.name)


def run(
  cells: Sequence[Cell],
  folder: pathlib.Path,
  write: Callable[[Mapping[str, Outcome]], None],
) -> dict[str, Outcome]:
  """Runs the cells that are not finished, one after another.

  Args:
    cells: as `check` found them good; each after the one that it starts from.
      Their config is that of the command line, and their overrides.
    folder: of the experiment.
    write: takes all outcomes so far, by name; called after every cell.

  Returns:
    The outcomes, by name.

  Raises:
    ValueError: another command is at work in the folder.
  """
  place = folder / "cells"
  place.mkdir(parents=True, exist_ok=True)
  outcomes = {}
  bar = tqdm.tqdm(
    total=len(cells),
    unit="cell",
    bar_format="{desc}{n_fmt}/{total_fmt} cells |{bar}| {elapsed}{postfix}",
  )
  with _alone(folder) as lock, bar:
    for number, cell in enumerate(cells):
      workdir = place / cell.name
      left = _time_left(cells[number:], outcomes.values())
      bar.set_postfix_str(f"{left}{cell.name}")
      before = outcomes.get(cell.start)
      if (workdir / "results.json").exists():
        outcome = Outcome(cell, workdir, facts=_facts(workdir))
      elif before is not None and before.error:
        outcome = Outcome(
          cell, workdir, f"not run, as {cell.start} has no results"
        )
      else:
        outcome = _train(cell, workdir, lock, bar, left)
      if outcome.error:
        tqdm.tqdm.write(f"{cell.name} failed: {outcome.error}", sys.stderr)
      else:
        _delete_checkpoints(cell, workdir)
      outcomes[cell.name] = outcome
      bar.update()
      write(outcomes)
  return outcomes


def exit_on_failures(outcomes: Mapping[str, Outcome]) -> None:
  """Exits with status 1, naming the cells that failed, if any did."""
  failed = [name for name, outcome in outcomes.items() if outcome.error]
  if failed:
    sys.exit(
      f"error: {len(failed)} of {len(outcomes)} cells failed:"
      f" {', '.join(failed)}. Their logs lie in the folder's cells/; give the"
      " command again to run them again."
    )


def parse_overrides(given: Sequence[str], flag: str) -> dict[str, Any]:
  """Reads KEY=VALUE, values as Python writes them or else as texts.

  Raises:
    ValueError: one has no "="; names the flag.
  """
  overrides = {}
  for text in given:
    key, equals, value = text.partition("=")
    if not equals:
      raise ValueError(
        f"--{flag} must be KEY=VALUE, such as finetune.epochs=10, got {text!r}."
        " Correct it."
      )
    try:
      overrides[key] = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      overrides[key] = value
  return overrides


def _config_flags(overrides: Mapping[str, Any]) -> list[str]:
  """This command's --config and --config.KEY=VALUE, and others in place."""
  flag = flags.FLAGS["config"]
  values = config_flags.get_override_values(flag) | overrides
  return [
    f"--config={config_flags.get_config_filename(flag)}",
    *(f"--config.{key}={value}" for key, value in values.items()),
  ]


def start_command(
  module: str,
  arguments: Sequence[str],
  log: pathlib.Path,
  *,
  overrides: Mapping[str, Any] = types.MappingProxyType({}),
  **more: Any,
) -> subprocess.Popen:
  """Starts a command of ours on this command's config, output to a log.

  Args:
    module: of the command.
    arguments: all but the config's.
    log: is added to.
    overrides: from keys of the config to other values.
    **more: of subprocess.Popen.
  """
  with log.open("ab") as output:
    return subprocess.Popen(
      [sys.executable, "-m", module, *_config_flags(overrides), *arguments],
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
      **more,
    )


def last_lines(log: pathlib.Path, count: int = _LAST_LINES) -> list[str]:
  """Returns the last lines of a log that are not blank."""
  with log.open("rb") as file:
    file.seek(max(0, log.stat().st_size - _TAIL))
    text = file.read().decode("utf-8", "replace")
  lines = [line.rstrip() for line in text.replace("\r", "\n").split("\n")]
  return [line for line in lines if line.strip()][-count:]


def _config(cell: Cell) -> ConfigDict:
  """The config of a cell."""
  config = commands.CONFIG.value.copy_and_resolve_references()
  try:
    config.update_from_flattened_dict(cell.overrides)
  except (KeyError, TypeError, AttributeError) as e:
    raise ValueError(
      f"Cell {cell.name} must set values that the config has, got"
      f" {dict(cell.overrides)}: {e}. Correct the flag that sets it."
    ) from e
  return config


def _check_same(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises ValueError where a cell's folder holds another run."""
  path = workdir / "config.json"
  if not path.exists():
    return
  ours = commands.flat(json.loads(config.to_json()))
  theirs = commands.flat(json.loads(path.read_text()))
  both = (ours.keys() & theirs.keys()) - _FREE_KEYS
  if not ours["finetune.gold_fraction"]:  # nor is there such a phase
    both = {key for key in both if not key.startswith("finetune.")}
    both.add("finetune.gold_fraction")
  differ = commands.differences(
    {key: ours[key] for key in both}, {key: theirs[key] for key in both}
  )
  if differ:
    raise ValueError(
      f"A cell belongs to one config, got {workdir} with another:"
      f" {differ}. Name another --folder, or delete that cell."
    )
  before = json.loads((workdir / "data.json").read_text())
  now = dialogues_lib.config_files(config)
  if "config.dataset" in before:
    now["config.dataset"] = _dataset_key(config.dataset.to_json())
  changed = [key for key in now if now[key] != before.get(key)]
  if changed:
    raise ValueError(
      f"A cell belongs to the data that it was trained on, got {workdir} from"
      f" before the files of {', '.join(changed)} changed. Name another"
      " --folder, or delete that cell."
    )


@functools.cache
def _dataset_key(settings: str) -> str:
  """What identifies the contents of a dataset."""
  return dialogues_lib.load_config(ConfigDict(json.loads(settings))).key


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[int]:
  """Holds the folder's lock, which a running cell holds as well."""
  with atomic.hold(
    folder / ".lock",
    f"One command at a time must work in a folder, got {folder} with another,"
    " or a cell that it left running. Wait for it, or end it.",
  ) as file:
    yield file.fileno()


def _train(cell, workdir, lock: int, bar, left: str) -> Outcome:
  log = workdir.with_name(f"{cell.name}.log")
  circumstances, start = outputs.circumstances(), time.monotonic()
  process = start_command(
    "ppl_jax.main",
    [f"--workdir={workdir}"],
    log,
    overrides=cell.overrides,
    pass_fds=(lock,),
  )
  try:
    while True:
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_POLL)
        break
      line = last_lines(log, 1)
      bar.set_postfix_str(f"{left}{cell.name}: {(line or [''])[0][:40]}")
  except KeyboardInterrupt:
    sys.exit("Interrupted. Give the same command again to go on.")
  finally:
    process.kill()
    process.wait()
  seconds = time.monotonic() - start
  if process.returncode or not (workdir / "results.json").exists():
    told = "\n  ".join(last_lines(log))
    error = f"exit status {process.returncode}; the end of {log}:\n  {told}"
    return Outcome(cell, workdir, error)
  facts = {
    "command": shlex.join(process.args),
    "seconds": seconds,
    **circumstances,
  }
  (workdir / "cell.json").write_text(json.dumps(facts, indent=2) + "\n")
  return Outcome(cell, workdir, facts=facts)


def _facts(workdir: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads((workdir / "cell.json").read_text())
  except FileNotFoundError:
    return {}


def _delete_checkpoints(cell: Cell, workdir: pathlib.Path) -> None:
  names = ["state", "student", *([] if cell.serves else ["pretrained"])]
  for name in names:
    shutil.rmtree(workdir / "checkpoints" / name, ignore_errors=True)


def _time_left(cells: Sequence[Cell], done) -> str:
  """Says how long the cells will take, by those of their kind before."""
  seconds = {}
  for outcome in done:
    if not outcome.error and outcome.seconds == outcome.seconds:
      seconds.setdefault(bool(outcome.cell.start), []).append(outcome.seconds)
  if not seconds:
    return ""
  any_kind = [value for values in seconds.values() for value in values]
  total = sum(
    statistics.mean(seconds.get(bool(cell.start), any_kind)) for cell in cells
  )
  if total < 90:
    return f"about {total:.0f} s left, "
  return f"about {total / 60:.0f} min left, "
