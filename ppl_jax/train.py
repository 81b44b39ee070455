"""The order of events: pretrain on scores, fine-tune on gold, evaluate."""

import collections
import dataclasses
import functools
import json
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tensorboardX
import tqdm
from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import (
  calibration,
  checkpoint,
  evaluate,
  optim,
  plots,
  sharding,
  train_step,
)
from ppl_jax.data import pipeline, plan
from ppl_jax.inputs import Inputs

# Losses wait this many steps to be fetched, so that the device never waits.
_LAG = 8
_LOG = logging.getLogger(__name__)
_PHASES = ("pretrain", "finetune")


def train_and_evaluate(
  config: ConfigDict, inputs: Inputs, workdir: pathlib.Path
) -> dict:
  """Trains, or goes on training, and evaluates the result.

  Args:
    config: of `configs/`.
    inputs: of `inputs.prepare`.
    workdir: the run's folder.

  Returns:
    The contents of results.json.

  Raises:
    FloatingPointError: a loss is not finite; says the phase and the step.
  """
  run = _Run(config, inputs, workdir)
  # What a run starts from, the first that there is:
  #   1. checkpoints/student: it is finished, only the report is made again.
  #   2. checkpoints/state: the phase and step that it was killed at.
  #   3. checkpoints/pretrained: its own first phase.
  #   4. config.init_from: another run's first phase.
  #   5. config.model.pretrained, or random weights.
  params = jax.device_put(inputs.params, sharding.replicated(run.mesh))
  votes = None if config.pretrain.objective == "none" else _vote_plan(run)
  if checkpoint.has_params(workdir, "pretrained"):
    params = checkpoint.load_params(workdir, "pretrained", params)
  elif votes is not None and not inputs.pretrained:
    params = _run_phase(run, _pretrain_phase(run, votes), params)
    params = _fold(run, params, *_fit_votes(run, params))
    checkpoint.save_params(workdir, "pretrained", params)
  if checkpoint.has_params(workdir, "student"):
    params = checkpoint.load_params(workdir, "student", params)
  else:
    if config.finetune.gold_fraction:
      params = _run_phase(run, _finetune_phase(run, votes), params)
      params = _fold(run, params, np.zeros(()), _fit_gold(run, params))
    checkpoint.save_params(workdir, "student", params)
  results = _report(run, params)
  run.checkpoints.close()
  return results


class _Run:
  """What the phases share: mesh, jitted functions, writers, checkpoints."""

  def __init__(self, config: ConfigDict, inputs: Inputs, workdir: pathlib.Path):
    self.config, self.inputs, self.workdir = config, inputs, workdir
    self.task = inputs.student.task
    self.mesh = sharding.make_mesh(config.batch.shards)
    self.logits_step = train_step.make_logits_step(inputs.graphdef, self.mesh)
    self.checkpoints = checkpoint.StateCheckpoints(workdir)
    self.is_first = jax.process_index() == 0
    self.writer = None
    if self.is_first:
      self.writer = tensorboardX.SummaryWriter(str(workdir), flush_secs=10)

  def logits(self, params, split: str, utterances_M, description=""):
    """Returns the student's logits [M, C] for utterances of a split."""
    return evaluate.logits(
      self.logits_step,
      params,
      self.inputs.splits[split],
      utterances_M,
      mesh=self.mesh,
      buckets=self.inputs.student.buckets,
      rows=self.config.batch.eval_segments // self.config.batch.shards,
      shards=self.config.batch.shards,
      description=description,
    )

  def classify(self, params, split: str, utterances_M, description=""):
    """Returns how utterances of a split compare with their gold."""
    arrays = self.inputs.splits[split].split
    return evaluate.classification(
      self.logits(params, split, utterances_M, description),
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
class _Phase:
  """One phase of training; all go through the same loop.

  Attributes:
    name: of the phase, and of its part of the config.
    config: its part of the config.
    objective: what is minimised.
    plan: its batches.
    steps: how many of them.
    first_step: steps that earlier phases were given, so that checkpoints of a
      run count on.
    evaluate: from parameters to scalars; 'metric' is the one to raise.
  """

  name: str
  config: ConfigDict
  objective: train_step.Objective
  plan: plan.Plan | plan.MixedPlan
  steps: int
  first_step: int
  evaluate: Callable[[nnx.State], dict[str, float]]


def _vote_plan(run: _Run, segments: int | None = None) -> plan.Plan:
  """Plans batches of scored segments, in groups whose pairs count."""
  config = run.config
  split = run.inputs.splits["train"].split
  utterances = np.flatnonzero(split.scored_U & ~run.inputs.heldout_U)
  pairwise = config.pretrain.objective in ("pairwise", "joint")
  keep_groups = None
  if config.pretrain.objective == "pairwise":

    def keep_groups(members, starts):
      scores = split.scores_UxC[utterances[members]]
      return plan.has_pair(
        scores,
        starts,
        targets=config.pairs.targets,
        equal_labels=config.pairs.equal_labels,
      )

  shards = config.batch.shards
  return plan.Plan(
    utterances,
    split.dialogue_U[utterances],
    split.lengths_U[utterances],
    buckets=run.inputs.student.buckets,
    rows=(segments or config.batch.segments) // shards,
    shards=shards,
    group_size=config.pairs.group_size if pairwise else 1,
    seed=(config.seed, 3),
    keep_groups=keep_groups,
    cross=config.pairs.scope == "cross",
  )


def _pretrain_phase(run: _Run, votes: plan.Plan) -> _Phase:
  config = run.config.pretrain

  def evaluate_votes(params):
    arrays, heldout = _heldout(run)
    logits = run.logits(params, "train", heldout, "held-out votes")
    return _vote_scalars(run, logits, arrays.scores_UxC[heldout])

  return _Phase(
    name="pretrain",
    config=config,
    objective=_objective(run.config, run.task, votes=1.0, gold=0.0),
    plan=votes,
    steps=_pretrain_steps(run, votes),
    first_step=0,
    evaluate=evaluate_votes,
  )


def _pretrain_steps(run: _Run, votes: plan.Plan) -> int:
  config = run.config.pretrain
  return max(votes.steps(config.epochs), config.min_steps)


def _finetune_phase(run: _Run, votes: plan.Plan | None) -> _Phase:
  config = run.config.finetune
  split = run.inputs.splits["train"].split
  utterances = np.flatnonzero(run.inputs.gold_U)
  shards = run.config.batch.shards
  batches = plan.Plan(
    utterances,
    split.dialogue_U[utterances],
    split.lengths_U[utterances],
    buckets=run.inputs.student.buckets,
    rows=config.batch_segments // shards,
    shards=shards,
    group_size=1,
    seed=(run.config.seed, 4),
  )
  steps = max(batches.steps(config.epochs), config.min_steps)
  mix = votes is not None and config.vote_weight > 0
  if mix:
    batches = plan.MixedPlan(batches, _vote_plan(run, config.vote_segments))
  dev = np.flatnonzero(run.inputs.dev_U)

  def evaluate_gold(params):
    scalars = _named(run, run.classify(params, "validation", dev, "dev"))
    names = ("accuracy", "macro_f1", "nll")
    return {"metric": -scalars["nll"], **{n: scalars[n] for n in names}}

  return _Phase(
    name="finetune",
    config=config,
    objective=_objective(
      run.config, run.task, votes=config.vote_weight if mix else 0.0, gold=1.0
    ),
    plan=batches,
    steps=steps,
    first_step=0 if votes is None else _pretrain_steps(run, votes),
    evaluate=evaluate_gold,
  )


def _objective(
  config: ConfigDict, task: str, *, votes: float, gold: float
) -> train_step.Objective:
  """The loss of a phase: the objective on votes, and the loss on gold."""
  kind = config.pretrain.objective
  return train_step.Objective(
    pairwise=votes * (kind in ("pairwise", "joint")),
    pointwise=votes
    * {"pointwise": 1.0, "joint": config.pretrain.pointwise_weight}.get(
      kind, 0
    ),
    gold=gold,
    task=task,
    alpha=config.pairs.alpha,
    targets=config.pairs.targets,
    equal_labels=config.pairs.equal_labels,
    cross=config.pairs.scope == "cross",
  )


def _run_phase(run: _Run, phase: _Phase, params: nnx.State) -> nnx.State:
  """Trains through a phase, or through what is left of it.

  Returns:
    The parameters of the best evaluation.
  """
  learning_rate = optim.schedule(
    phase.config.optimizer.learning_rate,
    phase.steps,
    phase.config.optimizer.warmup_fraction,
  )
  optimizer = optim.adamw(
    learning_rate,
    weight_decay=phase.config.optimizer.weight_decay,
    clip_norm=phase.config.optimizer.clip_norm,
    trainable=_scorer_only if phase.config.freeze_encoder else None,
  )
  take_step = train_step.make_train_step(
    run.inputs.graphdef, optimizer, phase.objective, run.mesh
  )
  key = jax.random.fold_in(
    jax.random.key(run.config.seed), _PHASES.index(phase.name)
  )
  state = train_step.init_state(params, optimizer, run.mesh)
  best = params
  meta = run.checkpoints.meta() or {"phase": "", "history": []}
  if meta["phase"] == phase.name:
    restored = run.checkpoints.restore({"state": state, "best": best})
    state, best = restored["state"], restored["best"]
    _LOG.info("%s goes on from step %d.", phase.name, state.step)
  else:
    meta = {"phase": phase.name, "history": meta["history"]}
    _evaluate(run, phase, meta, 0, params)
  done = int(state.step)
  eval_every = max(1, -(-phase.steps // phase.config.evals))
  losses = _Losses(run, phase, meta)
  bar = tqdm.tqdm(
    desc=phase.name,
    initial=done,
    total=phase.steps,
    unit="step",
    disable=not run.is_first,
  )
  batches = pipeline.batches(
    phase.plan,
    run.inputs.splits["train"],
    start=done,
    stop=phase.steps,
    shards=sharding.local_shards(run.config.batch.shards),
  )
  with bar:
    while done < phase.steps and meta["bad_evals"] < phase.config.patience:
      batch = sharding.put_batch(run.mesh, next(batches))
      state, scalars = take_step(state, batch, key)
      done += 1
      losses.add(done, scalars)
      bar.update()
      bar.set_postfix_str(losses.text(), refresh=False)
      evaluated = done % eval_every == 0 or done == phase.steps
      if evaluated:
        losses.fetch_all()
        if _evaluate(run, phase, meta, done, state.params):
          best = jax.tree.map(jnp.copy, state.params)
      if evaluated or done % run.config.checkpoint_every == 0:
        losses.fetch_all()  # a state with a loss that is not finite is not kept
        run.checkpoints.save(
          phase.first_step + done, {"state": state, "best": best}, meta
        )
  _LOG.info(
    "%s: best at step %d of %d, %s",
    phase.name,
    meta["best_step"],
    done,
    _text(meta["best"]),
  )
  return best


def _evaluate(run, phase, meta, step, params) -> bool:
  """Evaluates, keeps count of the best and of patience; says whether better."""
  scalars = phase.evaluate(params)
  run.write(phase.name, scalars, phase.first_step + step)
  meta["history"].append({"phase": phase.name, "step": step, **scalars})
  better = step == 0 or scalars["metric"] > meta["best"]["metric"]
  if better:
    meta |= {"best": scalars, "best_step": step, "bad_evals": 0}
  else:
    meta["bad_evals"] += 1
  if run.is_first:
    tqdm.tqdm.write(
      f"{phase.name} step {step}: {_text(scalars)}{' *' if better else ''}"
    )
  return better


class _Losses:
  """Fetches scalars some steps late, writes their means, refuses NaN."""

  def __init__(self, run: _Run, phase: _Phase, meta: dict):
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
        ".learning_rate, and start again in the same workdir to go on from the"
        " last checkpoint."
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


def _scorer_only(params: nnx.State):
  """Marks the scorer's parameters, for training with a frozen encoder."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "scorer" in jax.tree_util.keystr(path), params
  )


def _heldout(run: _Run) -> tuple[pipeline.SplitArrays, np.ndarray]:
  return (
    run.inputs.splits["train"].split,
    np.flatnonzero(run.inputs.heldout_U),
  )


def _vote_scalars(run, logits_MxC, scores_MxC) -> dict[str, float]:
  """Scores logits against votes, with offsets and temperature fitted."""
  offsets, temperature = calibration.fit_offsets(
    logits_MxC, scores_MxC, run.task
  )
  cross_entropy = calibration.vote_cross_entropy(
    logits_MxC, scores_MxC, offsets, temperature, run.task
  )
  scalars = {"metric": -cross_entropy, "vote_cross_entropy": cross_entropy}
  if run.task == "single_label" and logits_MxC.shape[1] > 1:
    voted = scores_MxC.sum(axis=1) > 0
    agree = (logits_MxC + offsets).argmax(1) == scores_MxC.argmax(1)
    scalars["vote_agreement"] = float(agree[voted].mean())
  return scalars


def _fit_votes(run: _Run, params) -> tuple[np.ndarray, float]:
  """Fits the C offsets and the temperature on held-out votes, never gold."""
  arrays, heldout = _heldout(run)
  logits = run.logits(params, "train", heldout)
  return calibration.fit_offsets(logits, arrays.scores_UxC[heldout], run.task)


def _fit_gold(run: _Run, params) -> float:
  """Fits the temperature on the share of dev that choices may use."""
  dev = np.flatnonzero(run.inputs.dev_U)
  gold = run.inputs.splits["validation"].split.gold_UxC[dev]
  logits = run.logits(params, "validation", dev)
  return calibration.fit_temperature(logits, gold.astype(float), run.task)


def _fold(run: _Run, params, offsets_C, temperature) -> nnx.State:
  """Makes (f + offsets) / temperature the student's own logits."""

  @functools.partial(jax.jit, out_shardings=sharding.replicated(run.mesh))
  def fold(params, offsets_C, temperature):
    model = nnx.merge(run.inputs.graphdef, params)
    scorer = model.scorer
    scorer.bias[...] = (scorer.bias[...] + offsets_C) / temperature
    scorer.kernel[...] = scorer.kernel[...] / temperature
    return nnx.state(model, nnx.Param)

  return fold(params, jnp.float32(offsets_C), jnp.float32(temperature))


def _report(run: _Run, params) -> dict:
  """Evaluates the student; writes results.json and the pictures."""
  inputs, config = run.inputs, run.config
  results = {
    "objective": config.pretrain.objective,
    "gold_fraction": config.finetune.gold_fraction,
    "gold_labels": {
      "train": int(inputs.gold_U.sum()),
      "dev": int(inputs.dev_U.sum()),
    },
  }
  if inputs.heldout_U.any():
    arrays, heldout = _heldout(run)
    logits = run.logits(params, "train", heldout)
    results["heldout_votes"] = _vote_scalars(
      run, logits, arrays.scores_UxC[heldout]
    )
  if inputs.dev_U.any():
    dev = np.flatnonzero(inputs.dev_U)
    results["dev"] = _named(run, run.classify(params, "validation", dev))
  for split in config.report:
    if split not in inputs.splits:
      continue
    name = "dev_full" if split == "validation" else split
    labelled = np.flatnonzero(inputs.splits[split].split.labelled_U)
    if len(labelled):
      counts = run.classify(params, split, labelled, name)
      results[name] = _named(run, counts)
      if name == "test" and run.is_first:
        plots.classification(run.workdir, counts, inputs.student.classes)
  if run.is_first:
    history = (run.checkpoints.meta() or {"history": []})["history"]
    plots.curves(run.workdir / "curves.png", history)
    temporary = run.workdir / ".results.json"
    temporary.write_text(json.dumps(results, indent=2) + "\n")
    temporary.replace(run.workdir / "results.json")
    run.writer.close()
    _print(results, run.workdir)
  return results


def _named(run: _Run, counts) -> dict:
  """Returns a split's metrics with class names."""
  return counts.compute(run.inputs.student.classes)


def _text(scalars: dict[str, float]) -> str:
  return ", ".join(
    f"{name} {value:.4f}" for name, value in scalars.items() if name != "metric"
  )


def _print(results: dict, workdir: pathlib.Path) -> None:
  """Prints what a user wants to see first."""
  for split in ("heldout_votes", "dev", "dev_full", "test"):
    if split in results:
      numbers = {
        name: value
        for name, value in results[split].items()
        if isinstance(value, float)
      }
      print(f"{split}: {_text(numbers)}")
  pictures = ", ".join(sorted(p.name for p in workdir.glob("*.png")))
  print(f"Results and pictures in {workdir}: results.json, {pictures}")
