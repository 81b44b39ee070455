"""Dialogues a second of the input pipeline, and of the step that it feeds.

    python -m benchmarks.pipeline

The quickstart's corpus and small encoder, in one process. In turns: the input
pipeline alone (plan, segments, batches) is drawn from as fast as it goes; and
training steps are taken on batches that are there already. A dialogue counts
once in each batch that holds segments of it. The pipeline makes its batches on
a thread of its own beside the step.

Prints medians over the rounds with the smallest and the largest. A minute on 2
cores.
"""

import pathlib
import tempfile
import time

import numpy as np
from absl import flags

from benchmarks import common
from configs import quickstart
from ppl_jax import commands, memory

_STEPS = flags.DEFINE_integer("steps", 30, "Steps a turn.", lower_bound=1)
_BATCHES = flags.DEFINE_integer(
  "batches", 1_000, "Batches of the pipeline a turn.", lower_bound=1
)


def _counts(batch) -> np.ndarray:
  """Returns the dialogues and the segments of a batch."""
  row = batch["row"]
  return np.array([len(np.unique(batch["dialogue"][row])), row.sum()])


class _Answers:
  """Times both in one child process."""

  def __init__(self):
    from benchmarks import first_phase
    from ppl_jax import inputs

    self._folder = tempfile.TemporaryDirectory()
    config = quickstart.get_config()
    config.dataset.data_dir = f"{self._folder.name}/data"
    workdir = pathlib.Path(self._folder.name, "run")
    prepared = inputs.prepare(config, workdir)
    self._run = first_phase.FirstPhase(prepared, workdir, _BATCHES.value)
    self._run.warm_up()
    self._ready = []

  def pipeline(self) -> list[float]:
    """Returns dialogues and segments a second of the pipeline."""
    start = time.perf_counter()
    batches = list(self._run.batches())
    seconds = time.perf_counter() - start
    self._ready = batches[: _STEPS.value]
    return (sum(map(_counts, batches)) / seconds).tolist()

  def steps(self) -> list[float]:
    """Returns dialogues and segments a second of training steps."""
    start = time.perf_counter()
    self._run.take_on(self._ready)
    seconds = time.perf_counter() - start
    return (sum(map(_counts, self._ready)) / seconds).tolist()


def main(argv):
  """Times both in turn and prints."""
  commands.refuse_arguments(argv)
  if common.SIDE.value:
    memory.one_arena()  # as main does
    common.serve(_Answers)
    return
  common.refuse_busy()
  speeds = {"pipeline": [], "steps": []}
  with common.sides(["both"]) as sides:
    for _ in range(common.ROUNDS.value):
      for what, found in speeds.items():
        found.append(sides["both"].ask(what))
  print(
    f"{common.THREADS.value} threads, {common.ROUNDS.value} rounds of"
    f" {_BATCHES.value} batches and {_STEPS.value} steps"
  )
  for unit, name in enumerate(("dialogues", "segments")):
    pipeline, steps = ([x[unit] for x in found] for found in speeds.values())
    print(
      f"{name}/s: pipeline {common.spread(pipeline, 0)}, steps"
      f" {common.spread(steps, 0)}; ratio {common.ratios(pipeline, steps)}"
    )


if __name__ == "__main__":
  commands.run(main, required=[])
