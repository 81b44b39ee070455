"""A run's own first phase, a stretch of steps at a time."""

import dataclasses
import pathlib
import time

from ppl_jax import loop, memory, train
from ppl_jax.inputs import Inputs


class FirstPhase:
  """Takes the steps that `ppl_jax.main` would take, without evaluations.

  Args:
    inputs: of `inputs.prepare`.
    workdir: the run's folder.
    steps: most steps to take, beside those that warm up.

  Attributes:
    inputs: as given.
    phase: of `ppl_jax.train`, with so many steps.
  """

  def __init__(self, inputs: Inputs, workdir: pathlib.Path, steps: int):
    memory.keep_freed()  # as main does
    self.inputs = inputs
    run = loop.Run(inputs, workdir)
    phase = train.pretrain_phase(run, train.vote_plan(run))
    self.phase = dataclasses.replace(phase, steps=steps)
    self._steps = loop.Steps(run, self.phase, inputs.params)
    self._batches = self.batches()

  def batches(self):
    """Returns an iterator over the batches, made ahead by the pipeline."""
    return self._steps.batches(0)

  def one_of_each_shape(self) -> list[int]:
    """Returns the first batch of each shape that is to come."""
    first = {}
    for t in range(self.phase.steps):
      batch = self.phase.plan.batch(t)
      first.setdefault((batch.length, batch.room), t)
    return list(first.values())

  def warm_up(self) -> None:
    """Takes a step on a batch of each shape, which compiles them."""
    for t in self.one_of_each_shape():
      self.take_on([self._steps.batch(t)])

  def take(self, steps: int) -> tuple[float, float]:
    """Takes the next steps; returns the last loss, and the seconds of all."""
    start = time.perf_counter()
    loss = self.take_on(next(self._batches) for _ in range(steps))
    return loss, time.perf_counter() - start

  def take_on(self, batches) -> float:
    """Takes a step on each batch; returns the last loss."""
    for batch in batches:
      scalars = self._steps.take(batch)
    return float(scalars["loss"])
