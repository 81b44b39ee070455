"""The order of events: pretrain on scores, fine-tune on gold, evaluate."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import (
  calibration,
  checkpoint,
  claim,
  loop,
  plots,
  predictions,
  train_step,
)
from ppl_jax.data import atomic, mapped, pipeline, plan
from ppl_jax.inputs import Inputs


def train_and_evaluate(inputs: Inputs, workdir: pathlib.Path) -> dict:
  """Trains, or goes on training, and evaluates the result.

  Args:
    inputs: of `inputs.prepare`.
    workdir: the run's folder.

  Returns:
    The contents of results.json.

  Raises:
    ValueError: no batch can be made of the data; the workdir is free again.
    FloatingPointError: a loss is not finite; says the phase and the step.
  """
  run = loop.Run(inputs, workdir)
  results = _report(run, _train(run))
  run.checkpoints.close()
  return results


def _train(run: loop.Run) -> nnx.State:
  """Returns the finished student's parameters."""
  inputs, config, workdir = run.inputs, run.config, run.workdir
  # What a run starts from, the first that there is:
  #   1. checkpoints/student: it is finished, only the report is made again.
  #   2. checkpoints/state: the phase and step that it was killed at.
  #   3. checkpoints/pretrained: its own first phase.
  #   4. config.init_from: another run's first phase.
  #   5. config.model.pretrained, or random weights.
  params = jax.device_put(inputs.params, run.placed)
  try:
    votes = None if config.pretrain.objective == "none" else vote_plan(run)
    finetune = None
    if config.finetune.gold_fraction:
      finetune = _finetune_phase(run, votes)
  except ValueError:  # of the data; nothing was trained
    claim.withdraw(workdir)
    raise
  if checkpoint.has_params(workdir, "pretrained"):
    params = checkpoint.load_params(workdir, "pretrained", params)
  elif votes is not None and not inputs.pretrained:
    params = loop.run_phase(run, pretrain_phase(run, votes), params)
    params = _fold(run, params, *_fit_votes(run, params))
    checkpoint.save_params(workdir, "pretrained", params)
  if checkpoint.has_params(workdir, "student"):
    params = checkpoint.load_params(workdir, "student", params)
  else:
    if finetune is not None:
      params = loop.run_phase(run, finetune, params)
      params = _fold(run, params, np.zeros(()), _fit_gold(run, params))
    checkpoint.save_params(workdir, "student", params)
  return params


def vote_plan(run: loop.Run, segments: int | None = None) -> plan.Plan:
  """Plans batches of scored segments, in groups whose pairs count.

  Args:
    run: of the plan.
    segments: rows of a batch; None: config.batch.segments.
  """
  config = run.config
  split = run.inputs.splits["train"].split
  utterances = np.flatnonzero(split.scored_U & ~run.inputs.heldout_U)
  utterances = utterances.astype(np.int32)
  pairwise = config.pretrain.objective in ("pairwise", "joint")
  keep_groups = None
  if config.pretrain.objective == "pairwise":

    def keep_groups(members, starts):
      scores = split.scores_UxC[utterances[members]]
      mapped.release(split.scores_UxC)  # an epoch looks at all of them
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


def pretrain_phase(run: loop.Run, votes: plan.Plan) -> loop.Phase:
  """Returns the first phase: the objective on votes."""
  config = run.config.pretrain

  def evaluate_votes(params):
    arrays, heldout = _heldout(run)
    logits = run.logits(params, "train", heldout, "held-out votes")
    return _vote_scalars(run, logits, arrays.scores_UxC[heldout])

  return loop.Phase(
    name="pretrain",
    config=config,
    objective=_objective(run.config, run.task, votes=1.0, gold=0.0),
    plan=votes,
    steps=_pretrain_steps(run, votes),
    first_step=0,
    evaluate=evaluate_votes,
  )


def _pretrain_steps(run: loop.Run, votes: plan.Plan) -> int:
  config = run.config.pretrain
  return max(votes.steps(config.epochs), config.min_steps)


def _finetune_phase(run: loop.Run, votes: plan.Plan | None) -> loop.Phase:
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
    batches = plan.MixedPlan(batches, vote_plan(run, config.vote_segments))
  dev = np.flatnonzero(run.inputs.dev_U)

  def evaluate_gold(params):
    # With the temperature it would be given: a student that is sure of itself
    # must not lose to one that has learnt nothing.
    logits = run.logits(params, run.inputs.dev_split, dev, "dev")
    logits /= _dev_temperature(run, logits)
    scalars = _named(run, run.classify(run.inputs.dev_split, dev, logits))
    names = ("accuracy", "macro_f1", "nll")
    return {"metric": -scalars["nll"], **{n: scalars[n] for n in names}}

  return loop.Phase(
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


def _heldout(run: loop.Run) -> tuple[pipeline.SplitArrays, np.ndarray]:
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
    voted = scores_MxC.sum(axis=1) > 0  # NaN, where a class has none, is not
    agree = (logits_MxC + offsets).argmax(1) == scores_MxC.argmax(1)
    scalars["vote_agreement"] = float(agree[voted].mean())
  return scalars


def _fit_votes(run: loop.Run, params) -> tuple[np.ndarray, float]:
  """Fits the C offsets and the temperature on held-out votes, never gold."""
  arrays, heldout = _heldout(run)
  logits = run.logits(params, "train", heldout)
  return calibration.fit_offsets(logits, arrays.scores_UxC[heldout], run.task)


def _dev_temperature(run: loop.Run, logits_MxC: np.ndarray) -> float:
  """Fits the temperature on the share of dev that choices may use."""
  dev = np.flatnonzero(run.inputs.dev_U)
  gold = run.inputs.splits[run.inputs.dev_split].split.gold_UxC[dev]
  return calibration.fit_temperature(logits_MxC, gold.astype(float), run.task)


def _fit_gold(run: loop.Run, params) -> float:
  """Returns the temperature of the student that was chosen."""
  dev = np.flatnonzero(run.inputs.dev_U)
  logits = run.logits(params, run.inputs.dev_split, dev)
  return _dev_temperature(run, logits)


def _fold(run: loop.Run, params, offsets_C, temperature) -> nnx.State:
  """Makes (f + offsets) / temperature the student's own logits."""

  @functools.partial(jax.jit, out_shardings=run.placed)
  def fold(params, offsets_C, temperature):
    model = nnx.merge(run.inputs.graphdef, params)
    scorer = model.scorer
    scorer.bias[...] = (scorer.bias[...] + offsets_C) / temperature
    scorer.kernel[...] = scorer.kernel[...] / temperature
    return nnx.state(model, nnx.Param)

  return fold(params, jnp.float32(offsets_C), jnp.float32(temperature))


def _report(run: loop.Run, params) -> dict:
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
    logits = run.logits(params, inputs.dev_split, dev)
    results["dev"] = _named(run, run.classify(inputs.dev_split, dev, logits))
  for split in config.report:
    if split not in inputs.splits:
      continue
    name = "dev_full" if split == "validation" else split
    labelled = np.flatnonzero(inputs.splits[split].split.labelled_U)
    if len(labelled):
      logits = run.logits(params, split, labelled, name)
      counts = run.classify(split, labelled, logits)
      results[name] = _named(run, counts)
      if run.is_first:
        _keep(run, split, name, labelled, logits)
      if name == "test" and run.is_first:
        plots.classification(run.workdir, counts, inputs.student.classes)
  history = (run.checkpoints.meta() or {"history": []})["history"]
  if run.is_first:
    plots.curves(run.workdir / "curves.png", history)
    with atomic.replacing(run.workdir / "results.json") as temporary:
      temporary.write_text(json.dumps(results, indent=2) + "\n")
    run.writer.close()
    _print(results, run.workdir)
  return results


def _keep(run: loop.Run, split: str, name: str, utterances_M, logits) -> None:
  """Writes what the student said of a split's utterances."""
  arrays = run.inputs.splits[split].split
  student = run.inputs.student
  ids = np.array([d.dialogue_id for d in run.inputs.dialogues[split]], object)
  dialogue_M = arrays.dialogue_U[utterances_M]
  predictions.save(
    predictions.path(run.workdir, name),
    predictions.Predictions(
      split=name,
      task=student.task,
      classes=student.classes,
      dialogue_ids=tuple(ids[dialogue_M]),
      utterance_N=utterances_M - np.asarray(arrays.tokens.first)[dialogue_M],
      gold_NxC=arrays.gold_UxC[utterances_M],
      logits_NxC=logits,
    ),
  )


def _named(run: loop.Run, counts) -> dict:
  """Returns a split's metrics with class names."""
  return counts.compute(run.inputs.student.classes)


def _print(results: dict, workdir: pathlib.Path) -> None:
  """Prints what a user wants to see first."""
  for split in ("heldout_votes", "dev", "dev_full", "test"):
    if split in results:
      numbers = {
        name: value
        for name, value in results[split].items()
        if isinstance(value, float)
      }
      print(f"{split}: {loop.text(numbers)}")
  pictures = ", ".join(sorted(p.name for p in workdir.glob("*.png")))
  print(f"Results and pictures in {workdir}: results.json, {pictures}")
