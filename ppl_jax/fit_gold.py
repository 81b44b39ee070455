"""A few gold labels laid over what votes taught: the scorer alone is moved.

A few dozen labels cannot train an encoder, and half of them are too few to
choose anything by. So all of them are used: the student that votes trained is
the prior, the scorer moves a little away from it, and further where
cross-validation over dialogues shows that it helps.

NumPy and SciPy only. Shapes: M labels, H hidden size, C classes.
"""

import dataclasses

import numpy as np
from scipy import optimize

from ppl_jax import calibration

# How far offsets may go, as standard deviations of logits, and how much a unit
# of the weights on standardised features costs; None keeps the weights. The
# first is the prior that a few dozen labels get; the others need evidence.
_CAREFUL = (0.2, 300.0)
_BOLDER = [
  (s, r) for s in (0.4, 1.0) for r in (None, 300.0, 100.0, 30.0, 10.0, 3.0)
]
_FOLDS = 5
_STRETCH = 10  # labels of one dialogue that lie in one fold


@dataclasses.dataclass(frozen=True)
class Fit:
  """What becomes of a scorer.

  Attributes:
    weight_CxH: to be added to its weights.
    bias_C: to be added to its bias.
    temperature: what both sums are then divided by.
    gain: nats a label that cross-validation expects of it.
    logits_MxC: what cross-validation gave for the labels: a fit to others.
  """

  weight_CxH: np.ndarray
  bias_C: np.ndarray
  temperature: float
  gain: float
  logits_MxC: np.ndarray


def fit(
  features_MxH: np.ndarray,
  logits_MxC: np.ndarray,
  gold_MxC: np.ndarray,
  dialogue_M: np.ndarray,
  task: str,
  seed: int = 0,
) -> Fit:
  """Fits a change of the scorer to gold.

  After a temperature, minimises the cross-entropy of (W + dW) h + b + db,
  summed over labels, plus |db|^2 / (2 s^2) + r |dW|^2 / 2 on features of unit
  variance: a normal prior around the student. A narrow one holds unless another
  beats it, in five-fold cross-validation over dialogues, by more than two
  standard errors of the difference. The last temperature is fitted to the
  logits that cross-validation gave.

  Args:
    features_MxH: what the scorer reads of each labelled utterance.
    logits_MxC: what it says of them now.
    gold_MxC: multi-hot; under a softmax rows of no class do not count.
    dialogue_M: int, their dialogues; long ones are cut into stretches.
    task: 'single_label' or 'multi_label'.
    seed: of the folds.

  Returns:
    The change.
  """
  features_MxH = np.asarray(features_MxH, np.float64)
  gold_MxC = np.asarray(gold_MxC, np.float64)
  first = calibration.fit_temperature(logits_MxC, gold_MxC, task)
  logits_MxC = np.asarray(logits_MxC, np.float64) / first
  mean_H, scale_H = features_MxH.mean(axis=0), features_MxH.std(axis=0)
  scale_H = np.where(scale_H > 1e-6, scale_H, 1.0) * np.sqrt(len(mean_H))
  x_MxH = (features_MxH - mean_H) / scale_H
  unit_M = _units(dialogue_M)
  fold_M = _folds(unit_M, seed)

  def validated(choice):
    """Logits of each fold by a fit to the others, and the losses."""
    out_MxC = logits_MxC.copy()
    for fold in range(fold_M.max() + 1):
      out = fold_M == fold
      weight, bias = _move(
        x_MxH[~out], logits_MxC[~out], gold_MxC[~out], task, *choice
      )
      out_MxC[out] += x_MxH[out] @ weight.T + bias
    return out_MxC, _losses(out_MxC, gold_MxC, task)

  chosen, (moved_MxC, losses_M) = _CAREFUL, validated(_CAREFUL)
  careful_M = losses_M
  for choice in _BOLDER:
    out_MxC, out_M = validated(choice)
    gain_M = careful_M - out_M
    error = np.sqrt((np.bincount(unit_M, gain_M) ** 2).sum()) / len(gain_M)
    if gain_M.mean() > 2 * error and out_M.mean() < losses_M.mean():
      chosen, moved_MxC, losses_M = choice, out_MxC, out_M
  weight, bias = _move(x_MxH, logits_MxC, gold_MxC, task, *chosen)
  weight = weight / scale_H
  last = calibration.fit_temperature(moved_MxC, gold_MxC, task)
  gain = (_losses(logits_MxC, gold_MxC, task) - losses_M).mean()
  return Fit(
    weight_CxH=weight * first,  # the scorer's own logits are not divided yet
    bias_C=(bias - weight @ mean_H) * first,
    temperature=first * last,
    gain=float(gain),
    logits_MxC=moved_MxC / last,
  )


def _move(x_MxH, logits_MxC, gold_MxC, task, spread, ridge):
  """Returns dW [C, H] and db [C] for one strength of the prior."""
  C, H = gold_MxC.shape[1], x_MxH.shape[1]
  size = 0 if ridge is None else H

  def value(theta):
    bias, weight = theta[:C], theta[C:].reshape(C, size)
    z = logits_MxC + bias
    if size:
      z = z + x_MxH @ weight.T
    loss, gradient_MxC = calibration.cross_entropy_sum(z, gold_MxC, task)
    loss += (bias @ bias) / (2 * spread**2)
    gradient = [gradient_MxC.sum(axis=0) + bias / spread**2]
    if size:
      loss += ridge / 2 * (weight**2).sum()
      gradient.append((gradient_MxC.T @ x_MxH + ridge * weight).ravel())
    return loss, np.concatenate(gradient)

  found = optimize.minimize(
    value, np.zeros(C * (1 + size)), jac=True, method="L-BFGS-B"
  )
  weight = found.x[C:].reshape(C, size) if size else np.zeros((C, H))
  return weight, found.x[:C]


def _losses(logits_MxC, gold_MxC, task) -> np.ndarray:
  """Returns each label's cross-entropy, [M]."""
  return calibration.cross_entropy_each(logits_MxC, gold_MxC, task)


def _units(dialogue_M: np.ndarray) -> np.ndarray:
  """Numbers dialogues, and stretches of long ones; int [M]."""
  dialogue_M = np.asarray(dialogue_M)
  starts = np.flatnonzero(np.diff(dialogue_M, prepend=-1))
  sizes = np.diff(np.append(starts, len(dialogue_M)))
  position_M = np.arange(len(dialogue_M)) - np.repeat(starts, sizes)
  return np.cumsum(position_M % _STRETCH == 0) - 1


def _folds(unit_M: np.ndarray, seed: int) -> np.ndarray:
  """Deals dialogues, or stretches of them, out to folds; int [M]."""
  count = unit_M[-1] + 1
  folds = np.arange(count) % min(_FOLDS, max(2, count))
  return np.random.default_rng([seed, 10]).permutation(folds)[unit_M]
