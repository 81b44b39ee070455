"""What a run costs as its corpus grows: seconds a step, and peak memory.

    python -m benchmarks.scaling --folder=DIR

Generated corpora of the sizes --dialogues, the quickstart's encoder. For each,
in a process of its own, the preparation of a run in full: dialogues, votes,
scores, vocabulary, tokens. Then a process for each opens what was prepared,
takes a step on every length of batch, and --steps training steps in five
stretches, in turn with the others: minutes apart the machine is another.

What preparations took lies as JSON lines in DIR/prepared.jsonl, beside what
they prepared, and is not measured again: a command that was killed goes on.
Delete DIR to measure all anew. Prints each size's figures, and their ratios to
the smallest corpus. 8 minutes on 2 cores at 1,000, 10,000 and 100,000
dialogues, most of it preparation.
"""

import contextlib
import json
import pathlib
import shutil
import time

from absl import flags

from benchmarks import common
from configs import quickstart
from ppl_jax import commands, memory

_SIZES = flags.DEFINE_multi_integer(
  "dialogues", [1_000, 10_000, 100_000], "Dialogues to train on."
)
_STEPS = flags.DEFINE_integer("steps", 200, "Steps, in five stretches.")
_FOLDER = flags.DEFINE_string("folder", None, "Of results and of the data.")

_STRETCHES = 5


class _Run:
  """A corpus of some size, and its folder."""

  def __init__(self, size: int):
    self.folder = pathlib.Path(_FOLDER.value).expanduser() / str(size)
    self.config = quickstart.get_config()
    self.config.dataset.options.train = size
    self.config.dataset.data_dir = str(self.folder / "data")


class _Prepare(_Run):
  """Everything before the first step, once."""

  def measure(self) -> dict:
    from ppl_jax import inputs

    shutil.rmtree(self.folder, ignore_errors=True)  # of a killed command
    start = time.perf_counter()
    inputs.prepare(self.config, self.folder / "prepared")
    return {
      "seconds": time.perf_counter() - start,
      "peak_mib": common.memory()["peak"],
    }


class _Train(_Run):
  """Steps on what was prepared."""

  def open(self) -> dict:
    from benchmarks import first_phase
    from ppl_jax import inputs as inputs_lib

    prepared, workdir = self.folder / "prepared", self.folder / "trained"
    self.config.scores = str(prepared / "scores.parquet")
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    shutil.copy(prepared / "tokenizer.json", workdir)
    start = time.perf_counter()
    inputs = inputs_lib.prepare(self.config, workdir)
    opened = {
      "open_seconds": time.perf_counter() - start,
      "open_peak_mib": common.memory()["peak"],
    }
    self._run = first_phase.FirstPhase(inputs, workdir, _STEPS.value)
    self._run.warm_up()
    return opened

  def step(self) -> float:
    """Takes a stretch; returns the milliseconds of a step."""
    steps = _STEPS.value // _STRETCHES
    _, seconds = self._run.take(steps)
    return 1e3 * seconds / steps

  def peak_mib(self) -> float:
    return common.memory()["peak"]


_KINDS = {"prepare": _Prepare, "train": _Train}


def main(argv):
  """Measures what is missing and prints all of it."""
  commands.refuse_arguments(argv)
  if common.SIDE.value:
    memory.one_arena()  # as main does
    part, size = common.SIDE.value.split("-")
    common.serve(lambda: _KINDS[part](int(size)))
    return
  if _STEPS.value < _STRETCHES:
    raise ValueError(
      f"--steps must be at least {_STRETCHES}, got {_STEPS.value}. Raise it."
    )
  common.refuse_busy()
  sizes = sorted(set(_SIZES.value))
  prepared = _prepare(sizes)
  print("Training ...", flush=True)
  trained = _train(sizes)
  for size in sizes:
    _print(size, prepared[size], trained[size])
  for name, results in ("preparation", prepared), ("training", trained):
    first = results[sizes[0]]["peak_mib"]
    ratios = {n: f"{results[n]['peak_mib'] / first:.2f}" for n in sizes}
    _print_ratios(f"{name}, peak", ratios)
  steps = {n: trained[n]["milliseconds_a_step"] for n in sizes}
  ratios = {n: common.ratios(steps[n], steps[sizes[0]]) for n in sizes}
  _print_ratios("training, ms a step", ratios)


def _prepare(sizes: list[int]) -> dict[int, dict]:
  """Prepares what is not there yet; returns what each size took."""
  folder = pathlib.Path(_FOLDER.value).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  path, prepared = folder / "prepared.jsonl", {}
  with contextlib.suppress(FileNotFoundError):
    for line in path.read_text().splitlines():
      result = json.loads(line)
      prepared[result["dialogues"]] = result
  for size in sizes:
    if size in prepared:
      continue
    print(f"{size} dialogues: preparation ...", flush=True)
    name = f"prepare-{size}"
    with common.sides([name]) as sides:
      prepared[size] = {"dialogues": size, **sides[name].ask("measure")}
    with path.open("a") as f:
      f.write(json.dumps(prepared[size]) + "\n")
  return prepared


def _train(sizes: list[int]) -> dict[int, dict]:
  """Trains on each size, a stretch of steps in turn."""
  names = {size: f"train-{size}" for size in sizes}
  with common.sides(list(names.values())) as sides:
    runs = {size: sides[name] for size, name in names.items()}
    trained = {
      size: run.ask("open") | {"milliseconds_a_step": []}
      for size, run in runs.items()
    }
    for _ in range(_STRETCHES):
      for size, run in runs.items():
        trained[size]["milliseconds_a_step"].append(run.ask("step"))
    for size, run in runs.items():
      trained[size]["peak_mib"] = run.ask("peak_mib")
  return trained


def _print(size: int, prepared: dict, trained: dict) -> None:
  print(
    f"{size} dialogues: preparation {prepared['seconds']:.0f} s, peak"
    f" {prepared['peak_mib']:.0f} MiB; training"
    f" {common.spread(trained['milliseconds_a_step'], 1)} ms a step, peak"
    f" {trained['peak_mib']:.0f} MiB, of which opening took"
    f" {trained['open_seconds']:.0f} s and {trained['open_peak_mib']:.0f} MiB",
    flush=True,
  )


def _print_ratios(what: str, ratios: dict[int, str]) -> None:
  text = ", ".join(f"{ratio} at {size}" for size, ratio in ratios.items())
  print(f"{what}, against {min(ratios)} dialogues: {text}")


if __name__ == "__main__":
  commands.run(main, required=["folder"])
