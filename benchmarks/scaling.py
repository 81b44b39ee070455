"""What a run costs as its corpus grows: seconds a step, and peak memory.

    python -m benchmarks.scaling --folder=DIR

Generated corpora of the sizes --dialogues, the quickstart's encoder. For each,
in processes of their own: the preparation of a run in full (dialogues, votes,
scores, vocabulary, tokens), then --steps training steps in five stretches,
after a step on every length of batch. The process that trains opens what was
prepared, as a run that goes on does.

Results lie as JSON lines in DIR/results.jsonl, and what is there is not
measured again: a command that was killed goes on. DIR also keeps what was
prepared; delete it to measure anew. Prints each size's figures, and its largest
ratio to the smallest corpus. 40 minutes on 2 cores at 1,000, 10,000 and 100,000
dialogues, most of it preparation.
"""

import contextlib
import json
import pathlib
import statistics
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
_SIZE = flags.DEFINE_integer("size", None, "Of a child process.")

_STRETCHES = 5


def _config():
  config = quickstart.get_config()
  config.dataset.options.train = _SIZE.value
  config.dataset.data_dir = str(_place() / "data")
  return config


def _place() -> pathlib.Path:
  return pathlib.Path(_FOLDER.value).expanduser() / str(_SIZE.value)


class _Prepare:
  """Everything before the first step, once."""

  def measure(self) -> dict:
    from ppl_jax import inputs

    start = time.perf_counter()
    inputs.prepare(_config(), _place() / "prepared")
    return {
      "seconds": time.perf_counter() - start,
      "peak_mib": common.memory()["peak"],
    }


class _Train:
  """Steps on what was prepared."""

  def measure(self) -> dict:
    from benchmarks import first_phase
    from ppl_jax import inputs as inputs_lib

    config = _config()
    config.scores = str(_place() / "prepared" / "scores.parquet")
    workdir = _place() / "trained"
    start = time.perf_counter()
    inputs = inputs_lib.prepare(config, workdir)
    opened = time.perf_counter() - start, common.memory()
    run = first_phase.FirstPhase(inputs, workdir, _STEPS.value)
    run.warm_up()
    steps = _STEPS.value // _STRETCHES
    milliseconds = []
    for _ in range(_STRETCHES):
      _, seconds = run.take(steps)
      milliseconds.append(1e3 * seconds / steps)
    return {
      "open_seconds": opened[0],
      "open_peak_mib": opened[1]["peak"],
      "milliseconds_a_step": milliseconds,
      "peak_mib": common.memory()["peak"],
    }


_KINDS = {"prepare": _Prepare, "train": _Train}


def main(argv):
  """Measures what is missing and prints all of it."""
  commands.refuse_arguments(argv)
  if common.SIDE.value:
    memory.one_arena()  # as main does
    common.serve(_KINDS[common.SIDE.value])
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
  for size in _SIZES.value:
    for part in _KINDS:
      if (size, part) not in results:
        print(f"{size} dialogues: {part} ...", flush=True)
        with common.sides([part], f"--size={size}") as sides:
          measured = sides[part].ask("measure")
        result = {"dialogues": size, "part": part, **measured}
        results[size, part] = result
        with path.open("a") as f:
          f.write(json.dumps(result) + "\n")
    _print(size, results)
  _print_growth(results)


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
  for name, value in (
    ("preparation, peak", lambda size: results[size, "prepare"]["peak_mib"]),
    ("training, peak", lambda size: results[size, "train"]["peak_mib"]),
    (
      "training, ms a step",
      lambda size: statistics.median(
        results[size, "train"]["milliseconds_a_step"]
      ),
    ),
  ):
    ratios = {size: value(size) / value(smallest) for size in _SIZES.value}
    text = ", ".join(f"{ratio:.2f} at {n}" for n, ratio in ratios.items())
    print(f"{name}, against {smallest} dialogues: {text}")


if __name__ == "__main__":
  commands.run(main, required=["folder"])
