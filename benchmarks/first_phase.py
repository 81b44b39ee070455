"""A run's own first phase, a stretch of steps at a time."""

import pathlib
import time

import jax

from ppl_jax import loop, memory, optim, sharding, train, train_step
from ppl_jax.data import pipeline
from ppl_jax.inputs import Inputs


class FirstPhase:
  """Takes the steps that `ppl_jax.main` would take, without evaluations.

  Args:
    inputs: of `inputs.prepare`.
    workdir: the run's folder.
    steps: most steps to take, beside those that warm up.

  Attributes:
    inputs: as given.
    phase: of `ppl_jax.train`.
  """

  def __init__(self, inputs: Inputs, workdir: pathlib.Path, steps: int):
    memory.keep_freed()  # as main does
    self.inputs = inputs
    run = loop.Run(inputs, workdir)
    self.phase = train.pretrain_phase(run, train.vote_plan(run))
    optimizer_config = self.phase.config.optimizer
    optimizer = optim.adamw(
      optim.schedule(
        optimizer_config.learning_rate,
        max(steps, self.phase.steps),
        optimizer_config.warmup_fraction,
      ),
      weight_decay=optimizer_config.weight_decay,
      clip_norm=optimizer_config.clip_norm,
    )
    self._step = train_step.make_train_step(
      inputs.graphdef,
      inputs.params,
      optimizer,
      self.phase.objective,
      inputs.mesh,
      inputs.config.batch.accumulation,
    )
    self._state = train_step.init_state(inputs.params, optimizer, inputs.mesh)
    self._key = jax.random.key(inputs.config.seed)
    self._materialize = inputs.splits["train"]
    self._steps = steps
    self._shards = sharding.local_shards(
      inputs.mesh, inputs.config.batch.shards
    )
    self._batches = self.batches()

  def batches(self):
    """Returns an iterator over the batches, made ahead by the pipeline."""
    return pipeline.batches(
      self.phase.plan,
      self._materialize,
      start=0,
      stop=self._steps,
      shards=self._shards,
    )

  def one_of_each_shape(self) -> list[int]:
    """Returns the first batch of each shape that is to come."""
    first = {}
    for t in range(self._steps):
      batch = self.phase.plan.batch(t)
      first.setdefault((batch.length, batch.room), t)
    return list(first.values())

  def warm_up(self) -> None:
    """Takes a step on a batch of each shape, which compiles them."""
    for t in self.one_of_each_shape():
      self.take_on([self._materialize(self.phase.plan.batch(t), self._shards)])

  def take(self, steps: int) -> tuple[float, float]:
    """Takes the next steps; returns the last loss, and the seconds of all."""
    start = time.perf_counter()
    loss = self.take_on(next(self._batches) for _ in range(steps))
    return loss, time.perf_counter() - start

  def take_on(self, batches) -> float:
    """Takes a step on each batch; returns the last loss."""
    for batch in batches:
      batch = sharding.put_batch(self.inputs.mesh, batch)
      self._state, scalars = self._step(self._state, batch, self._key)
    return float(scalars["loss"])
