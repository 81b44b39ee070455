"""The training loop that every phase goes through.

Evaluates, keeps the best parameters, checkpoints and goes on from checkpoints,
writes scalars, and stops by patience.
"""

import collections
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
import tqdm
from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import checkpoint, evaluate, optim, sharding, train_step, words
from ppl_jax.data import pipeline, plan
from ppl_jax.inputs import Inputs
from ppl_jax.objective import Objective

# Losses wait this many steps to be fetched, so that the device never waits.
_LAG = 8
_LOG = logging.getLogger(__name__)
_PHASES = ("pretrain", "finetune")


class Run:
  """What the phases share: mesh, jitted functions, writers, checkpoints."""

  def __init__(self, inputs: Inputs, workdir: pathlib.Path):
    self.workdir = workdir
    self.config = inputs.config
    self.task = inputs.student.task
    self.mesh = inputs.mesh
    self.use(inputs)
    self.checkpoints = checkpoint.StateCheckpoints(workdir)
    self.is_first = jax.process_index() == 0
    self.writer = None
    if self.is_first:
      self.writer = tensorboardX.SummaryWriter(str(workdir), flush_secs=10)

  def use(self, inputs: Inputs) -> None:
    """Takes inputs whose student may have another structure."""
    self.inputs = inputs
    self.placed = sharding.over_parameters(self.mesh, inputs.params)
    arguments = inputs.graphdef, inputs.params, self.mesh
    self.logits_step = train_step.make_logits_step(*arguments)
    self.poolings_step = train_step.make_poolings_step(*arguments)

  def logits(self, params, split: str, utterances_M, description=""):
    """Returns the student's logits [M, C] for utterances of a split."""
    return self._each(
      self.logits_step, params, split, utterances_M, description
    )

  def pooled(self, params, split: str, utterances_M, description=""):
    """Returns what each pooling gives for utterances: a dict of [M, H]."""
    return self._each(
      self.poolings_step, params, split, utterances_M, description
    )

  def _each(self, step, params, split: str, utterances_M, description):
    return evaluate.outputs(
      step,
      params,
      self.inputs.splits[split],
      utterances_M,
      mesh=self.mesh,
      buckets=self.inputs.student.buckets,
      rows=self.config.batch.eval_segments // self.config.batch.shards,
      shards=self.config.batch.shards,
      description=description,
    )

  def classify(self, split: str, utterances_M, logits_MxC):
    """Returns how logits of a split's utterances compare with their gold."""
    arrays = self.inputs.splits[split].split
    return evaluate.classification(
      logits_MxC,
      arrays.gold_UxC[utterances_M],
      arrays.labelled_U[utterances_M],
      self.task,
    )

  def write(self, prefix: str, scalars: dict[str, float], step: int) -> None:
    """Writes scalars for TensorBoard."""
    if self.writer is not None:
      for name, value in scalars.items():
        self.writer.add_scalar(f"{prefix}/{name}", value, step)


@dataclasses.dataclass(frozen=True)
class Phase:
  """One phase of training; all go through the same loop.

  Attributes:
    name: of the phase, and of its part of the config.
    config: its part of the config.
    objective: what is minimised.
    plan: its batches.
    steps: how many of them.
    first_step: steps that earlier phases were given, so that checkpoints of a
      run count on.
    evaluate: from parameters to scalars; 'metric' is the one to raise. With
      'losses', the parts of what is held out that add up to -metric, a later
      step is as good as the best one unless it is worse by more than the
      standard error of the difference: few and noisy votes would otherwise
      choose a step at random, and the last ones, at low learning rates, are the
      steadiest.
  """

  name: str
  config: ConfigDict
  objective: Objective
  plan: plan.Plan | plan.MixedPlan
  steps: int
  first_step: int
  evaluate: Callable[[nnx.State], dict[str, float]]


class Steps:
  """Takes the steps of a phase.

  Args:
    run: of the phase.
    phase: what is trained.
    params: to start from.

  Attributes:
    state: what the next step changes; its table of words is that of training.
  """

  def __init__(self, run: Run, phase: Phase, params: nnx.State):
    self._run, self._phase, self._params = run, phase, params
    small = words.take(params, run.inputs.words_W)
    config = phase.config.optimizer
    learning_rate = optim.learning_rate(
      config.learning_rate, run.inputs.student.encoder.hidden_size
    )
    optimizer = optim.adamw(
      optim.schedule(learning_rate, phase.steps, config.warmup_fraction),
      weight_decay=config.weight_decay,
      clip_norm=config.clip_norm,
      scorer_scale=config.scorer_learning_rate / learning_rate,
      trainable=optim.of_scorer if phase.config.freeze_encoder else None,
    )
    self._step = train_step.make_train_step(
      run.inputs.graphdef,
      small,
      optimizer,
      phase.objective,
      run.mesh,
      run.config.batch.accumulation,
    )
    self._key = jax.random.fold_in(
      jax.random.key(run.config.seed), _PHASES.index(phase.name)
    )
    self._shards = sharding.local_shards(run.mesh, run.config.batch.shards)
    vocab_size = run.inputs.student.encoder.vocab_size
    self._materialize = dataclasses.replace(
      run.inputs.splits["train"],
      row_V=words.rows(run.inputs.words_W, vocab_size),
      # Rows of votes are labelled too, and not by what may be used.
      gold_U=run.inputs.gold_U,
    )
    self.state = train_step.init_state(small, optimizer, run.mesh)

  def batch(self, t: int) -> dict[str, np.ndarray]:
    """Returns the arrays of batch t."""
    return self._materialize(self._phase.plan.batch(t), self._shards)

  def batches(self, start: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the arrays of batch `start` and those after it, made ahead."""
    return pipeline.batches(
      self._phase.plan,
      self._materialize,
      start=start,
      stop=self._phase.steps,
      shards=self._shards,
    )

  def take(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Takes a step on the arrays of a batch; returns its scalars."""
    batch = sharding.put_batch(self._run.mesh, batch)
    self.state, scalars = self._step(self.state, batch, self._key)
    return scalars

  def whole(self, params: nnx.State) -> nnx.State:
    """Returns parameters of a state with the words that training lacks."""
    return words.put(self._params, params, self._run.inputs.words_W)


def run_phase(run: Run, phase: Phase, params: nnx.State) -> nnx.State:
  """Trains through a phase, or through what is left of it.

  Returns:
    The parameters of the best evaluation.
  """
  steps = Steps(run, phase, params)
  best = jax.tree.map(jnp.copy, steps.state.params)
  meta = run.checkpoints.meta() or {"phase": "", "history": []}
  if meta["phase"] == phase.name:
    restored = run.checkpoints.restore({"state": steps.state, "best": best})
    steps.state, best = restored["state"], restored["best"]
    _LOG.info("%s goes on from step %d.", phase.name, steps.state.step)
  else:
    meta = {"phase": phase.name, "history": meta["history"]}
    _evaluate(run, phase, meta, 0, params)
  done = int(steps.state.step)
  eval_every = max(1, -(-phase.steps // phase.config.evals))
  losses = _Losses(run, phase, meta)
  bar = tqdm.tqdm(
    desc=phase.name,
    initial=done,
    total=phase.steps,
    unit="step",
    disable=not run.is_first,
  )
  batches = steps.batches(done)
  with bar:
    while done < phase.steps and meta["bad_evals"] < phase.config.patience:
      scalars = steps.take(next(batches))
      done += 1
      losses.add(done, scalars)
      bar.update()
      bar.set_postfix_str(losses.text(), refresh=False)
      evaluated = done % eval_every == 0 or done == phase.steps
      if evaluated:
        losses.fetch_all()
        params = steps.state.params
        if _evaluate(run, phase, meta, done, steps.whole(params)):
          best = jax.tree.map(jnp.copy, params)
      if evaluated or done % run.config.checkpoint_every == 0:
        losses.fetch_all()  # a state with a loss that is not finite is not kept
        run.checkpoints.save(
          phase.first_step + done, {"state": steps.state, "best": best}, meta
        )
  _LOG.info(
    "%s: best at step %d of %d, %s",
    phase.name,
    meta["best_step"],
    done,
    text(meta["best"]),
  )
  return steps.whole(best)


def _evaluate(run, phase, meta, step, params) -> bool:
  """Evaluates, keeps count of the best and of patience; says whether better."""
  scalars = phase.evaluate(params)
  losses = scalars.pop("losses", None)
  run.write(phase.name, scalars, phase.first_step + step)
  meta["history"].append({"phase": phase.name, "step": step, **scalars})
  highest = step == 0 or scalars["metric"] > meta["highest"]["metric"]
  better = highest
  if losses is not None and not highest:
    better = not _is_worse(losses, meta["highest"]["losses"])
  if highest:
    meta["highest"] = {"metric": scalars["metric"], "losses": losses}
  if better:
    meta |= {"best": scalars, "best_step": step, "bad_evals": 0}
  else:
    meta["bad_evals"] += 1
  if run.is_first:
    tqdm.tqdm.write(
      f"{phase.name} step {step}: {text(scalars)}{' *' if better else ''}"
    )
  return better


def _is_worse(losses, others) -> bool:
  """Says whether losses are higher by more than chance would have it.

  Args:
    losses: of the parts of what is held out; they add up to the mean loss.
    others: of the same parts.
  """
  differences = np.subtract(losses, others)
  error = differences.std(ddof=1) * np.sqrt(len(differences))
  return bool(differences.sum() > error)


class _Losses:
  """Fetches scalars some steps late, writes their means, refuses NaN."""

  def __init__(self, run: Run, phase: Phase, meta: dict):
    self._run, self._phase, self._meta = run, phase, meta
    self._waiting: collections.deque = collections.deque()
    self._fetched: list[dict[str, float]] = []
    self._last = None

  def add(self, step: int, scalars: dict[str, jax.Array]) -> None:
    self._waiting.append((step, scalars))
    if len(self._waiting) > _LAG:
      self._fetch()

  def fetch_all(self) -> None:
    while self._waiting:
      self._fetch()

  def text(self) -> str:
    return "" if self._last is None else f"loss {self._last:.4f}"

  def _fetch(self) -> None:
    step, scalars = self._waiting.popleft()
    scalars = {name: float(value) for name, value in scalars.items()}
    if not np.isfinite(list(scalars.values())).all():
      raise FloatingPointError(
        f"The loss must stay finite, got {scalars} at step {step} of"
        f" {self._phase.name}. Lower config.{self._phase.name}.optimizer"
        ".learning_rate, and train in another --workdir."
      )
    self._fetched.append(scalars)
    self._last = scalars["loss"]
    if step % self._run.config.log_every == 0:
      means = {
        name: float(np.mean([s[name] for s in self._fetched]))
        for name in scalars
      }
      self._fetched.clear()
      self._run.write(self._phase.name, means, self._phase.first_step + step)
      self._meta["history"].append(
        {"phase": self._phase.name, "step": step, "loss": means["loss"]}
      )


def text(scalars: dict[str, float]) -> str:
  """Returns scalars as a line for people."""
  return ", ".join(
    f"{name} {value:.4f}" for name, value in scalars.items() if name != "metric"
  )
