"""The order of events: pretrain on scores, fine-tune on gold, evaluate."""

import functools
import json
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ppl_jax import (
  calibration,
  checkpoint,
  claim,
  comparison,
  fit_gold,
  loop,
  metrics,
  plots,
  predictions,
  warm_start,
)
from ppl_jax import logits as logits_lib
from ppl_jax.data import atomic, mapped, pipeline, plan
from ppl_jax.inputs import Inputs

_LOG = logging.getLogger(__name__)
_PARTS = 50  # of the held-out dialogues, whose losses tell noise from gain


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
  workdir = run.workdir
  # What a run starts from, the first that there is:
  #   1. checkpoints/student: it is finished, only the report is made again.
  #   2. checkpoints/state: the phase and step that it was killed at.
  #   3. checkpoints/pretrained: its own first phase.
  #   4. config.init_from: another run's first phase.
  #   5. config.model.pretrained, or random weights; with a linear probe as the
  #      scorer.
  try:
    votes = vote_plan(run) if run.inputs.objective.weights else None
    finetune = _finetune_phase(run, votes) if run.inputs.finetunes else None
  except ValueError:  # of the data; nothing was trained
    claim.withdraw(workdir)
    raise
  features = {} if run.inputs.pretrained else warm_start.begin(run)
  comparison.begin(run, features)
  inputs = run.inputs
  params = jax.device_put(inputs.params, run.placed)
  if checkpoint.has_params(workdir, "pretrained"):
    params = checkpoint.load_params(workdir, "pretrained", params)
  elif votes is not None and not inputs.pretrained:
    params = loop.run_phase(run, pretrain_phase(run, votes), params)
    params = _fold(run, params, *_fit_votes(run, params))
    checkpoint.save_params(workdir, "pretrained", params)
  if checkpoint.has_params(workdir, "student"):
    params = checkpoint.load_params(workdir, "student", params)
  else:
    if inputs.gold_U.any() or inputs.dev_U.any():
      params = _learn_gold(run, params, finetune)
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
  objective = run.inputs.objective
  holds, keep_groups = objective.holds(), None
  if holds is not None:

    def keep_groups(members, starts):
      scores = split.scores_UxC[utterances[members]]
      mapped.release(split.scores_UxC)  # an epoch looks at all of them
      return holds(scores, starts)

  shards = config.batch.shards
  return plan.Plan(
    utterances,
    split.dialogue_U[utterances],
    split.lengths_U[utterances],
    buckets=run.inputs.student.buckets,
    rows=(segments or config.batch.segments) // shards,
    shards=shards,
    group_size=objective.group_size,
    seed=(config.seed, 3),
    keep_groups=keep_groups,
    cross=objective.pairs.cross,
  )


def pretrain_phase(run: loop.Run, votes: plan.Plan) -> loop.Phase:
  """Returns the first phase: the objective on votes."""
  config = run.config.pretrain

  def evaluate_votes(params):
    arrays, heldout = _heldout(run)
    logits = run.logits(params, "train", heldout, "held-out votes")
    scores_MxC = arrays.scores_UxC[heldout]
    offsets, temperature = calibration.fit_offsets(logits, scores_MxC, run.task)
    scalars = _vote_scalars(run, logits, scores_MxC, offsets, temperature)
    loss_M = calibration.cross_entropy_each(
      (logits + offsets) / temperature, scores_MxC, run.task
    )
    losses = _by_part(loss_M, arrays.dialogue_U[heldout])
    share = scalars["vote_cross_entropy"] / max(losses.sum(), 1e-12)
    return scalars | {"losses": (losses * share).tolist()}

  return loop.Phase(
    name="pretrain",
    config=config,
    objective=run.inputs.objective,
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
    logits = run.logits(params, run.inputs.dev_split, dev, "dev")
    return _dev_scalars(run, logits)

  return loop.Phase(
    name="finetune",
    config=config,
    objective=run.inputs.objective.of_gold(config.vote_weight if mix else 0.0),
    plan=batches,
    steps=steps,
    first_step=0 if votes is None else _pretrain_steps(run, votes),
    evaluate=evaluate_gold,
  )


def _heldout(run: loop.Run) -> tuple[pipeline.SplitArrays, np.ndarray]:
  return (
    run.inputs.splits["train"].split,
    np.flatnonzero(run.inputs.heldout_U),
  )


def _vote_scalars(
  run, logits_MxC, scores_MxC, offsets, temperature
) -> dict[str, float]:
  """Scores logits against votes, with the offsets and temperature of a fit."""
  cross_entropy = calibration.vote_cross_entropy(
    logits_MxC, scores_MxC, offsets, temperature, run.task
  )
  scalars = {"metric": -cross_entropy, "vote_cross_entropy": cross_entropy}
  if run.task == "single_label" and logits_MxC.shape[1] > 1:
    voted = scores_MxC.sum(axis=1) > 0  # NaN, where a class has none, is not
    agree = (logits_MxC + offsets).argmax(1) == scores_MxC.argmax(1)
    scalars["vote_agreement"] = float(agree[voted].mean())
  return scalars


def _by_part(loss_M: np.ndarray, dialogue_M: np.ndarray) -> np.ndarray:
  """Adds losses up by parts, whole dialogues dealt out to them."""
  _, number_M = np.unique(dialogue_M, return_inverse=True)
  return np.bincount(number_M % _PARTS, loss_M, minlength=_PARTS)


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


def _learn_gold(
  run: loop.Run, params, finetune: loop.Phase | None
) -> nnx.State:
  """Returns the student after the gold.

  What votes taught is the prior: the scorer is fitted to all labels, of train
  and dev, by cross-validation. Where there are labels enough, the whole student
  is trained on those of train too, and what is better on dev stays.
  """
  inputs = run.inputs
  fitted = None
  if inputs.pretrained or inputs.objective.weights:
    fitted, at_dev = _fit_scorer(run, params)
  if finetune is None:
    return fitted
  params = loop.run_phase(run, finetune, params)
  if fitted is not None and at_dev is not None:
    trained, moved = finetune.evaluate(params)["metric"], at_dev["metric"]
    kept = "scorer alone" if moved > trained else "training of all"
    _LOG.info(
      "On dev, nats a label: %.4f with the scorer fitted alone, %.4f with all"
      " of the student trained. The %s stays.",
      -moved,
      -trained,
      kept,
    )
    if moved > trained:
      return fitted
  return _fold(run, params, np.zeros(()), _fit_gold(run, params))


def _fit_scorer(
  run: loop.Run, params
) -> tuple[nnx.State, dict[str, float] | None]:
  """Fits the scorer to the gold of train and dev.

  Returns:
    The student, and what cross-validation gives on dev; None without labels
    there.
  """
  inputs = run.inputs
  chosen = {"train": inputs.gold_U.copy()}
  if inputs.dev_split == "train":
    chosen["train"] |= inputs.dev_U
  else:
    chosen[inputs.dev_split] = inputs.dev_U
  pooling, parts, first = inputs.student.encoder.pooling, [], 0
  for split, chosen_U in chosen.items():
    utterances = np.flatnonzero(chosen_U)
    if not len(utterances):
      continue
    arrays = inputs.splits[split].split
    dialogue_M = arrays.dialogue_U[utterances].astype(np.int64)
    is_dev_M = np.full(len(utterances), split == inputs.dev_split)
    is_dev_M &= inputs.dev_U[utterances] if is_dev_M.any() else False
    parts.append(
      (
        run.pooled(params, split, utterances)[pooling],
        run.logits(params, split, utterances),
        warm_start.gold(arrays, utterances),
        first + dialogue_M,
        is_dev_M,
      )
    )
    first += dialogue_M[-1] + 1
  *arguments, is_dev_M = (
    np.concatenate(arrays) for arrays in zip(*parts, strict=True)
  )
  fit = fit_gold.fit(*arguments, run.task, run.config.seed)
  _LOG.info(
    "The scorer was fitted to %d gold labels: by cross-validation that gains"
    " %.4f nats a label.",
    len(is_dev_M),
    fit.gain,
  )
  at_dev = None
  if is_dev_M.any():
    at_dev = _dev_scalars(run, fit.logits_MxC[is_dev_M].astype(np.float32))
  params = _fold(run, params, fit.bias_C, fit.temperature, fit.weight_CxH)
  return params, at_dev


def _dev_scalars(run: loop.Run, logits_MxC: np.ndarray) -> dict[str, float]:
  """Scores logits of the labels that choose.

  With the temperature they would be given: a student that is sure of itself
  must not lose to one that has learnt nothing.
  """
  dev = np.flatnonzero(run.inputs.dev_U)
  logits_MxC = logits_MxC / _dev_temperature(run, logits_MxC)
  scalars = _named(run, run.classify(run.inputs.dev_split, dev, logits_MxC))
  names = ("accuracy", "macro_f1", "nll")
  return {"metric": -scalars["nll"], **{n: scalars[n] for n in names}}


def _fold(
  run: loop.Run, params, offsets_C, temperature, weight_CxH=None
) -> nnx.State:
  """Makes (f + weight h + offsets) / temperature the student's own logits."""

  @functools.partial(jax.jit, out_shardings=run.placed)
  def fold(params, offsets_C, temperature, kernel_HxC):
    model = nnx.merge(run.inputs.graphdef, params)
    scorer = model.scorer
    scorer.bias[...] = (scorer.bias[...] + offsets_C) / temperature
    scorer.kernel[...] = (scorer.kernel[...] + kernel_HxC) / temperature
    return nnx.state(model, nnx.Param)

  kernel_HxC = np.zeros(()) if weight_CxH is None else weight_CxH.T
  return fold(
    params,
    jnp.float32(offsets_C),
    jnp.float32(temperature),
    jnp.float32(kernel_HxC),
  )


def _report(run: loop.Run, params) -> dict:
  """Evaluates the student; writes results.json and the pictures."""
  inputs, config = run.inputs, run.config
  results = {
    "objective": config.pretrain.objective,
    "terms": dict(inputs.objective.weights),
    "pooling": inputs.student.encoder.pooling,
    "gold_fraction": config.finetune.gold_fraction,
    "gold_labels": {
      "train": int(inputs.gold_U.sum()),
      "dev": int(inputs.dev_U.sum()),
    },
  }
  if inputs.heldout_U.any():
    arrays, heldout = _heldout(run)
    logits = run.logits(params, "train", heldout)
    scores_MxC = arrays.scores_UxC[heldout]
    fit = calibration.fit_offsets(logits, scores_MxC, run.task)
    results["heldout_votes"] = _vote_scalars(run, logits, scores_MxC, *fit)
    _name_unchosen(run, logits, scores_MxC)
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
  told = comparison.finish(run, params, results)
  history = (run.checkpoints.meta() or {"history": []})["history"]
  if run.is_first:
    plots.curves(run.workdir / "curves.png", history)
    with atomic.replacing(run.workdir / "results.json") as temporary:
      temporary.write_text(json.dumps(results, indent=2) + "\n")
    run.writer.close()
    _print(results, told, run.workdir)
  return results


def _name_unchosen(run: loop.Run, logits_MxC, scores_MxC) -> None:
  """Says which classes the student never chooses on held-out votes, and why."""
  classes = run.inputs.student.classes
  prob_MxC = logits_lib.probabilities(logits_MxC, run.task)
  chosen_C = metrics.decided(prob_MxC, run.task).sum(axis=0)
  voted_C = metrics.decided(np.nan_to_num(scores_MxC), run.task).sum(axis=0)
  share_C = np.nan_to_num(np.nanmean(scores_MxC, axis=0))
  for name, chosen, voted, share in zip(
    classes, chosen_C, voted_C, share_C, strict=True
  ):
    if not chosen and share:
      _LOG.warning(
        "The student never chooses %s on the %d held-out utterances: %.1f %% of"
        " the votes there are for it, and it has most votes of %d utterances."
        " More votes on dialogues where it occurs would teach it.",
        name,
        len(scores_MxC),
        100 * share,
        voted,
      )


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


def _print(results: dict, told: list[str], workdir: pathlib.Path) -> None:
  """Prints what a user wants to see first."""
  for split in ("heldout_votes", "dev", "dev_full", "test"):
    if split in results:
      numbers = {
        name: value
        for name, value in results[split].items()
        if isinstance(value, float)
      }
      print(f"{split}: {loop.text(numbers)}")
  for line in told:
    print(line)
  pictures = ", ".join(sorted(p.name for p in workdir.glob("*.png")))
  print(f"Results and pictures in {workdir}: results.json, {pictures}")
