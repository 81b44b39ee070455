"""What a run costs as its corpus grows: seconds a step, and peak memory.

    python -m benchmarks.scaling --folder=DIR

Generated corpora of the sizes --dialogues, the quickstart's encoder. For each,
in a process of its own, the preparation of a run in full: dialogues, votes,
scores, vocabulary, tokens. Then a process for each opens what was prepared, as
a run that goes on does, takes a step on every length of batch, and --steps
training steps in five stretches, in turn with the others.

Results lie as JSON lines in DIR/results.jsonl, and what is there is not
measured again: a command that was killed goes on. DIR also keeps what was
prepared; delete it to measure anew. Prints each size's figures, and their
ratios to the smallest corpus. 8 minutes on 2 cores at 1,000, 10,000 and 100,000
dialogues, most of it preparation.
"""

import contextlib
import json
import pathlib
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

    self.config.scores = str(self.folder / "prepared" / "scores.parquet")
    workdir = self.folder / "trained"
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
  folder = pathlib.Path(_FOLDER.value).expanduser()
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / "results.jsonl"
  results = {}
  with contextlib.suppress(FileNotFoundError):
    for line in path.read_text().splitlines():
      result = json.loads(line)
      results[result["dialogues"], result["part"]] = result

  def keep(size, part, measured):
    results[size, part] = {"dialogues": size, "part": part, **measured}
    with path.open("a") as f:
      f.write(json.dumps(results[size, part]) + "\n")

  for size in _SIZES.value:
    if (size, "prepare") not in results:
      print(f"{size} dialogues: preparation ...", flush=True)
      name = f"prepare-{size}"
      with common.sides([name]) as sides:
        keep(size, "prepare", sides[name].ask("measure"))
  # Together or not at all: a machine is not the same a minute later.
  if any((size, "train") not in results for size in _SIZES.value):
    print("Training ...", flush=True)
    for size, measured in _train(_SIZES.value).items():
      keep(size, "train", measured)
  for size in _SIZES.value:
    _print(size, results)
  _print_growth(results)


def _train(sizes: list[int]) -> dict[int, dict]:
  """Trains on each size, a stretch of steps in turn."""
  names = {size: f"train-{size}" for size in sizes}
  with common.sides(list(names.values())) as sides:
    runs = {size: sides[name] for size, name in names.items()}
    measured = {
      size: run.ask("open") | {"milliseconds_a_step": []}
      for size, run in runs.items()
    }
    for _ in range(_STRETCHES):
      for size, run in runs.items():
        measured[size]["milliseconds_a_step"].append(run.ask("step"))
    for size, run in runs.items():
      measured[size]["peak_mib"] = run.ask("peak_mib")
  return measured


def _print(size: int, results: dict) -> None:
  prepared, trained = (results[size, part] for part in _KINDS)
  print(
    f"{size} dialogues: preparation {prepared['seconds']:.0f} s, peak"
    f" {prepared['peak_mib']:.0f} MiB; training"
    f" {common.spread(trained['milliseconds_a_step'], 1)} ms a step, peak"
    f" {trained['peak_mib']:.0f} MiB, of which opening took"
    f" {trained['open_seconds']:.0f} s and {trained['open_peak_mib']:.0f} MiB",
    flush=True,
  )


def _print_growth(results: dict) -> None:
  smallest = min(_SIZES.value)
  for part, name, text in (
    ("prepare", "peak_mib", "preparation, peak"),
    ("train", "peak_mib", "training, peak"),
    ("train", "milliseconds_a_step", "training, ms a step"),
  ):
    value = {size: results[size, part][name] for size in _SIZES.value}
    if name == "milliseconds_a_step":  # round by round
      ratio = {n: common.ratios(v, value[smallest]) for n, v in value.items()}
    else:
      ratio = {n: f"{v / value[smallest]:.2f}" for n, v in value.items()}
    growth = ", ".join(f"{r} at {n}" for n, r in ratio.items())
    print(f"{text}, against {smallest} dialogues: {growth}")


if __name__ == "__main__":
  commands.run(main, required=["folder"])
