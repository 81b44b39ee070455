"""A workdir belongs to one run: to its config, and to the data it was given."""

import contextlib
import json
import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from ppl_jax import commands
from ppl_jax.data import atomic
from ppl_jax.data import dialogues as dialogues_lib

_CONFIG = "config.json"
_DATA = "data.json"


def with_shards(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
  """Returns the config with the number of shards that the run started with."""
  config = config.copy_and_resolve_references()
  if not config.batch.shards:
    started = workdir / _CONFIG
    if started.exists():
      config.batch.shards = json.loads(started.read_text())["batch"]["shards"]
    else:
      config.batch.shards = jax.device_count() * config.batch.accumulation
  return config


def check_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Raises ValueError where the workdir holds a run of another config."""
  path = workdir / _CONFIG
  if not path.exists():
    return
  ours = commands.flat(json.loads(config.to_json()))
  theirs = commands.flat(json.loads(path.read_text()))
  differ = commands.differences(ours, theirs)
  if differ:
    raise ValueError(
      f"A workdir belongs to one config, got {workdir} with a run of"
      f" another: {differ}. Name another --workdir, or delete"
      " this one."
    )


def check_data(data: dict[str, str], workdir: pathlib.Path) -> None:
  """Raises ValueError where the workdir's run read other files' contents."""
  path = workdir / _DATA
  if not path.exists():
    return
  before = json.loads(path.read_text())
  changed = dialogues_lib.changed(before, data)
  if changed:
    raise ValueError(
      f"A workdir belongs to the data that it was trained on, got {workdir}"
      f" with a run from before the files of {', '.join(changed)} changed. Name"
      " another --workdir to train on what they hold now, or delete this one."
    )


@contextlib.contextmanager
def alone(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps other commands out of a workdir while this one is at work there.

  Raises:
    ValueError: another is.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with atomic.hold(
    workdir / ".lock",
    f"One run at a time must work in a workdir, got {workdir} with another"
    " at work. Wait for it, end it, or name another --workdir.",
  ):
    yield


def withdraw(workdir: pathlib.Path) -> None:
  """Frees the workdir of a run that found that it cannot start."""
  checkpoints = workdir / "checkpoints"
  if jax.process_index() == 0 and not any(checkpoints.glob("*/*")):
    for name in (_CONFIG, _DATA):
      (workdir / name).unlink(missing_ok=True)


def write(
  config: ConfigDict, data: dict[str, str], workdir: pathlib.Path
) -> None:
  """Writes the config and the data that the workdir belongs to from now on."""
  workdir.mkdir(parents=True, exist_ok=True)
  for name, values in (
    (_DATA, data),
    (_CONFIG, json.loads(config.to_json())),
  ):
    with atomic.replacing(workdir / name) as temporary:
      temporary.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
