"""Where the first phase starts: how the encoder pools, and a scorer that fits.

A scorer that starts from noise at the encoder's learning rate takes longer to
come near what the frozen encoder already knows than a small corpus has steps,
and its first gradients spoil the encoder. So the scorer starts as a linear
probe on frozen features, a convex fit of seconds (linear probing, then
fine-tuning: Kumar et al. 2022, arXiv 2202.10054), and each pooling has a probe
of its own: the one that is best on held-out votes is the student's.

Shapes: M utterances, H hidden size, C classes.
"""

import dataclasses
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import baselines, calibration
from ppl_jax.data import atomic

_LOG = logging.getLogger(__name__)
_FILE = "probe.npz"
_MOST = 8_192  # utterances that a probe is fitted to; whole dialogues
_MOST_HELDOUT = 4_096


@dataclasses.dataclass(frozen=True)
class Probe:
  """A scorer on frozen features.

  Attributes:
    pooling: one of `bert.POOLINGS`.
    weight_CxH: float32.
    bias_C: float32.
  """

  pooling: str
  weight_CxH: np.ndarray
  bias_C: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
  """Utterances of a split, and what they are to say.

  Attributes:
    split: its name.
    utterances_M: their numbers.
    targets_MxC: shares of votes, or gold; float64, NaN = none.
  """

  split: str
  utterances_M: np.ndarray
  targets_MxC: np.ndarray


def pooling(config: ConfigDict, workdir: pathlib.Path) -> str:
  """Returns the pooling that is set, or that this run chose; "" if neither."""
  if config.model.pooling != "auto":
    return config.model.pooling
  probe = _load(workdir)
  return probe.pooling if probe else ""


def begin(run) -> dict[str, np.ndarray]:
  """Gives a run its pooling and its scorer; a run that goes on has both.

  Args:
    run: a `loop.Run` whose student is untrained. Unless the config sets a
      pooling and leaves the probe out, the training utterances go through the
      frozen encoder, at most 8,192 of them.

  Returns:
    Features [M, H] of `training_rows` and `heldout_rows`, in the pooling that
    was chosen, as "train" and "heldout"; none if they were not needed.
  """
  config, workdir = run.config, run.workdir
  if config.model.pooling != "auto" and not config.model.warm_start:
    return {}
  features = {}
  probe = _load(workdir)
  if probe is None:
    probe, features = _find(run)
    if run.is_first:
      with (
        atomic.replacing(workdir / _FILE) as temporary,
        temporary.open("wb") as f,
      ):
        np.savez(f, **dataclasses.asdict(probe))
  _use(run, probe)
  return features


def training_rows(run) -> Rows:
  """Returns votes of train that may be learnt from, or gold where none are."""
  inputs = run.inputs
  train = inputs.splits["train"]
  if not inputs.objective.weights:
    utterances = np.flatnonzero(inputs.gold_U)
    utterances = _some(train.split, utterances, _MOST, run.config.seed)
    return Rows("train", utterances, gold(train.split, utterances))
  utterances = np.flatnonzero(train.split.scored_U & ~inputs.heldout_U)
  utterances = _some(train.split, utterances, _MOST, run.config.seed)
  return _votes(train, utterances)


def heldout_rows(run) -> Rows:
  """Returns held-out votes, or the gold to choose by where none are."""
  inputs = run.inputs
  if not inputs.objective.weights:
    split = inputs.splits[inputs.dev_split].split
    utterances = np.flatnonzero(inputs.dev_U)
    utterances = _some(split, utterances, _MOST_HELDOUT, run.config.seed)
    return Rows(inputs.dev_split, utterances, gold(split, utterances))
  train = inputs.splits["train"]
  utterances = np.flatnonzero(inputs.heldout_U)
  utterances = _some(train.split, utterances, _MOST_HELDOUT, run.config.seed)
  scores = train.split.scores_UxC[utterances]
  return Rows("train", utterances, scores.astype(np.float64))


def gold(split, utterances_M: np.ndarray) -> np.ndarray:
  """Returns the gold of utterances as float64 [M, C]."""
  return split.gold_UxC[utterances_M].astype(np.float64)


def _votes(train, utterances_M) -> Rows:
  smoothed = train.smooth(
    train.split.scores_UxC[utterances_M], train.split.valid_U[utterances_M]
  )
  return Rows("train", utterances_M, smoothed.astype(np.float64))


def _some(split, utterances_M, most: int, seed: int) -> np.ndarray:
  """Draws whole dialogues until there are about `most` utterances."""
  if len(utterances_M) <= most:
    return utterances_M
  dialogue_M = split.dialogue_U[utterances_M]
  drawn = np.random.default_rng([seed, 9]).permutation(dialogue_M.max() + 1)
  place_M = drawn[dialogue_M]
  last = np.sort(place_M)[most - 1]
  return utterances_M[place_M <= last]


def _find(run) -> tuple[Probe, dict[str, np.ndarray]]:
  """Fits a probe for each pooling; returns the best one and its features."""
  inputs, config = run.inputs, run.config
  params = jax.device_put(inputs.params, run.placed)
  here, there = training_rows(run), heldout_rows(run)
  features = run.pooled(params, here.split, here.utterances_M, "features")
  heldout = run.pooled(params, there.split, there.utterances_M)
  split = inputs.splits[here.split].split
  best, losses = None, {}
  for name in (
    features if config.model.pooling == "auto" else [config.model.pooling]
  ):
    fit = baselines.fit_linear(
      features[name],
      here.targets_MxC,
      heldout[name],
      there.targets_MxC,
      run.task,
      dialogue_M=split.dialogue_U[here.utterances_M],
    )
    losses[name] = calibration.vote_cross_entropy(
      fit.logits(heldout[name]),
      there.targets_MxC,
      np.zeros(len(fit.bias_C)),
      1.0,
      run.task,
    )
    if best is None or losses[name] < losses[best.pooling]:
      best = Probe(name, np.float32(fit.weight_CxH), np.float32(fit.bias_C))
  _LOG.info(
    "Linear probes of the frozen encoder, cross-entropy on what is held out:"
    " %s. The student pools by %s.",
    ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()),
    best.pooling,
  )
  return best, {
    "train": features[best.pooling],
    "heldout": heldout[best.pooling],
  }


def _use(run, probe: Probe) -> None:
  """Changes the student of a run to a probe's pooling and scorer."""
  inputs = run.inputs
  model = nnx.merge(inputs.graphdef, inputs.params)
  encoder = model.bert.config
  if encoder.pooling != probe.pooling:
    if encoder.pooling == "pooler":
      del model.bert.pooler
    encoder = dataclasses.replace(encoder, pooling=probe.pooling)
    model.bert.config = encoder
  if run.config.model.warm_start:
    model.scorer.kernel[...] = jnp.array(probe.weight_CxH.T)
    model.scorer.bias[...] = jnp.array(probe.bias_C)
  graphdef, params = nnx.split(model, nnx.Param)
  student = dataclasses.replace(inputs.student, encoder=encoder)
  if run.is_first:
    student.save(run.workdir)
  run.use(
    dataclasses.replace(
      inputs, graphdef=graphdef, params=params, student=student
    )
  )


def _load(workdir: pathlib.Path) -> Probe | None:
  path = workdir / _FILE
  if not path.exists():
    return None
  with np.load(path) as values:
    return Probe(str(values["pooling"]), values["weight_CxH"], values["bias_C"])
