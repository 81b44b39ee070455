"""Expected calibration error, and offsets and a temperature for logits.

NumPy and SciPy only. Shapes: U utterances, C classes, M buckets.
"""

import dataclasses

import numpy as np
from scipy import optimize, special

# An edge belongs to the bucket below it; float32 0.2 lies on the edge 0.2.
_EDGE_TOLERANCE = 1e-6
# A share of a unit curvature: too small to move a fit that data determine.
_RIDGE = 1e-6
_LOG_SLOPE_RANGE = (-3.0, 3.0)  # powers of ten


@dataclasses.dataclass(frozen=True, eq=False)
class Reliability:
  """Sums over buckets of equal width, (0, 1/M], ..., ((M-1)/M, 1]; 0 is first.

  Attributes:
    count: int64 [M], predictions in each bucket.
    confidence: float64 [M], the sum of their confidences.
    correct: float64 [M], the number of correct ones.
  """

  count: np.ndarray
  confidence: np.ndarray
  correct: np.ndarray

  def error(self) -> float:
    """Expected calibration error; NaN without predictions.

    sum_m |B_m| / N |acc(B_m) - conf(B_m)| (arXiv 2503.05620, section 3.3).
    """
    total = self.count.sum()
    if total == 0:
      return float("nan")
    return float(np.abs(self.correct - self.confidence).sum() / total)


def reliability(
  confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> Reliability:
  """Puts predictions into buckets of their confidence.

  Args:
    confidence: in [0, 1], of any shape.
    correct: bool, or 0 and 1, of the same shape.
    bins: number of buckets M.

  Returns:
    The sums over each bucket.

  Raises:
    ValueError: other shapes, or a confidence outside [0, 1] or NaN.
  """
  confidence = np.asarray(confidence, np.float64)
  correct = np.asarray(correct, np.float64)
  if confidence.shape != correct.shape:
    raise ValueError(
      "Confidences and outcomes must have one shape, got"
      f" {confidence.shape} and {correct.shape}. Give one outcome for each."
    )
  confidence, correct = confidence.ravel(), correct.ravel()
  inside = (confidence >= 0) & (confidence <= 1 + _EDGE_TOLERANCE)
  if not inside.all():
    raise ValueError(
      "Confidences must lie in [0, 1], got"
      f" {confidence[~inside][0]}. Mask what has none before the call."
    )
  bucket = np.ceil(confidence * bins - _EDGE_TOLERANCE * bins).astype(int) - 1
  bucket = np.clip(bucket, 0, bins - 1)
  return Reliability(
    np.bincount(bucket, minlength=bins),
    np.bincount(bucket, confidence, minlength=bins),
    np.bincount(bucket, correct, minlength=bins),
  )


def expected_calibration_error(
  confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
  """`Reliability.error` of predictions; arguments as of `reliability`."""
  return reliability(confidence, correct, bins).error()


def vote_ece(
  S_UxC: np.ndarray, gold_UxC: np.ndarray, *, zeros: str = "drop"
) -> float:
  """The paper's calibration error of scores, over utterances and classes.

  Five buckets of S; a bucket's accuracy is its share of gold positives, its
  confidence the mean of S (arXiv 2503.05620, section 3.3). The paper's first
  bucket, (0, 0.2], leaves open what becomes of S = 0. For one class c, give
  the columns `[:, [c]]`.

  Args:
    S_UxC: scores in [0, 1]; NaN where there is none, left out.
    gold_UxC: multi-hot; rows without gold must be left out by the caller.
    zeros: 'drop' leaves S = 0 out and counts what is in buckets;
      'first_bucket' puts S = 0 there and counts all.

  Returns:
    The error in [0, 1]; NaN if no score is left.

  Raises:
    ValueError: another `zeros`, other shapes, or S outside [0, 1].
  """
  if zeros not in ("drop", "first_bucket"):
    raise ValueError(
      f"Scores of zero must be 'drop' or 'first_bucket', got {zeros!r}. Give"
      " one of them."
    )
  S_UxC, gold_UxC = _same_shape(S_UxC, gold_UxC, "gold")
  keep_UxC = ~np.isnan(S_UxC)
  if zeros == "drop":
    keep_UxC &= S_UxC != 0
  return expected_calibration_error(S_UxC[keep_UxC], gold_UxC[keep_UxC], bins=5)


def can_fit(S_UxC: np.ndarray, task: str) -> bool:
  """Says whether `fit_offsets` has a score to fit; arguments as there."""
  return bool(_weights(S_UxC, _is_softmax(task, S_UxC.shape[1])).any())


def fit_offsets(
  logits_UxC: np.ndarray, S_UxC: np.ndarray, task: str
) -> tuple[np.ndarray, float]:
  """Fits an offset a class and one temperature for (f + b) / t.

  Minimises `vote_cross_entropy` by L-BFGS in the slope 1/t and the intercepts
  b/t, in which it is convex. A ridge of 1e-6 and bounds on the slope, both
  relative to the spread of the logits, keep the fit finite on separable
  data, on classes that no score supports and on logits that rank the scores
  backwards (t is positive). Pair losses leave each class without a zero; the
  offsets are that zero.

  Args:
    logits_UxC: finite logits f.
    S_UxC: scores in [0, 1], or gold as a multi-hot; NaN where there is none.
      Under a softmax a row with a NaN does not count, otherwise an entry.
    task: 'single_label' (softmax, for more than one class) or 'multi_label'
      (sigmoid a class).

  Returns:
    offsets b, float64 [C], of sum 0 under a softmax; and t > 0.

  Raises:
    ValueError: other shapes or task, logits not finite, or no score at all.
  """
  logits_UxC, S_UxC, weight_UxC, softmax = _fit_inputs(logits_UxC, S_UxC, task)
  S_UxC = np.where(weight_UxC > 0, S_UxC, 0.0)
  used_U = weight_UxC.any(axis=1)
  f_UxC, S_UxC = logits_UxC[used_U], S_UxC[used_U]
  weight_UxC = weight_UxC[used_U]
  # Centred and scaled, so that the ridge and the bounds have no units.
  if softmax:
    f_UxC = f_UxC - f_UxC.mean(axis=1, keepdims=True)
  total_C = weight_UxC.sum(axis=0)
  center_C = (weight_UxC * f_UxC).sum(axis=0) / np.where(total_C, total_C, 1)
  f_UxC = f_UxC - center_C
  scale = np.sqrt((weight_UxC * f_UxC**2).sum() / weight_UxC.sum())
  scale = float(scale) if scale > 1e-12 else 1.0
  f_UxC = f_UxC / scale

  start = np.concatenate([[1.0], np.zeros(len(center_C))])

  def objective(x):
    slope, intercept_C = x[0], x[1:]
    value, gradient_UxC = _cross_entropy(
      slope * f_UxC + intercept_C, S_UxC, weight_UxC, softmax
    )
    gradient = np.concatenate(
      [[(gradient_UxC * f_UxC).sum()], gradient_UxC.sum(axis=0)]
    )
    shift = x - start
    return (
      value + _RIDGE / 2 * (shift @ shift),
      gradient + _RIDGE * shift,
    )

  bounds = [tuple(10.0**power for power in _LOG_SLOPE_RANGE)]
  bounds += [(None, None)] * len(center_C)
  fit = optimize.minimize(
    objective,
    start,
    jac=True,
    method="L-BFGS-B",
    bounds=bounds,
    options={"maxiter": 1_000, "ftol": 1e-15, "gtol": 1e-9},
  )
  temperature = scale / fit.x[0]
  # Under a softmax both terms sum to 0: rows are centred, and the gradient in
  # the intercepts sums to 0.
  return fit.x[1:] * temperature - center_C, float(temperature)


def fit_temperature(
  logits_UxC: np.ndarray, S_UxC: np.ndarray, task: str, *, prior: float = 0.25
) -> float:
  """Fits the one temperature t of f / t, which changes no decision.

  Minimises `vote_cross_entropy` without offsets, summed over utterances
  (temperature scaling, arXiv 1706.04599), plus (log t / prior)^2 / 2: a few
  dozen labels that are all right must not make a student certain. t lies
  between 1/20 and 20.

  Args:
    logits_UxC: finite logits f.
    S_UxC: as of `fit_offsets`, usually gold.
    task: as of `fit_offsets`.
    prior: standard deviation of log t before any label is seen; infinity
      leaves the fit to the labels alone.

  Returns:
    t > 0.

  Raises:
    ValueError: as of `fit_offsets`.
  """
  logits_UxC, S_UxC, weight_UxC, softmax = _fit_inputs(logits_UxC, S_UxC, task)
  S_UxC = np.where(weight_UxC > 0, S_UxC, 0.0)

  def objective(log_t):
    z_UxC = logits_UxC / np.exp(log_t)
    mean = _cross_entropy(z_UxC, S_UxC, weight_UxC, softmax)[0]
    return utterances * mean + (log_t / prior) ** 2 / 2

  utterances = weight_UxC.any(axis=1).sum()
  largest = np.log(20.0)
  fit = optimize.minimize_scalar(
    objective, bounds=(-largest, largest), method="bounded"
  )
  return float(np.exp(fit.x))


def vote_cross_entropy(
  logits_UxC: np.ndarray,
  S_UxC: np.ndarray,
  offsets_C: np.ndarray,
  temperature: float,
  task: str,
) -> float:
  """Mean cross-entropy of scores under (f + b) / t.

  Under a softmax -S_ic log softmax_c, summed and divided by the sum of S, so
  that an utterance weighs as much as its scores; else the mean of
  -S log sigmoid - (1 - S) log(1 - sigmoid) over utterances and classes.

  Args:
    logits_UxC: logits f.
    S_UxC: scores in [0, 1]; NaN where there is none, see `fit_offsets`.
    offsets_C: b.
    temperature: t > 0.
    task: 'single_label' or 'multi_label'.

  Returns:
    The mean in nats; NaN if nothing has a score.

  Raises:
    ValueError: other shapes or task.
  """
  logits_UxC, S_UxC = _same_shape(logits_UxC, S_UxC, "scores")
  softmax = _is_softmax(task, logits_UxC.shape[1])
  weight_UxC = _weights(S_UxC, softmax)
  if not weight_UxC.any():
    return float("nan")
  S_UxC = np.where(weight_UxC > 0, S_UxC, 0.0)
  z_UxC = (logits_UxC + np.asarray(offsets_C, np.float64)) / temperature
  return _cross_entropy(z_UxC, S_UxC, weight_UxC, softmax)[0]


def _fit_inputs(
  logits_UxC, S_UxC, task: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
  """Logits, scores, weights and whether a softmax decides; all checked."""
  logits_UxC, S_UxC = _same_shape(logits_UxC, S_UxC, "scores")
  softmax = _is_softmax(task, logits_UxC.shape[1])
  weight_UxC = _weights(S_UxC, softmax)
  if not np.isfinite(logits_UxC).all():
    raise ValueError(
      "A fit needs finite logits, got NaN or infinity. Check the student's"
      " checkpoint."
    )
  if not weight_UxC.any():
    raise ValueError(
      "A fit needs at least one utterance with a score, got none. Hold out"
      " dialogues that have votes or gold."
    )
  return logits_UxC, S_UxC, weight_UxC, softmax


def _is_softmax(task: str, num_classes: int) -> bool:
  if task not in ("single_label", "multi_label"):
    raise ValueError(
      f"A task must be 'single_label' or 'multi_label', got {task!r}. Set"
      " dataset.task to one of them."
    )
  return task == "single_label" and num_classes > 1


def _same_shape(first, second, name) -> tuple[np.ndarray, np.ndarray]:
  first, second = np.asarray(first, float), np.asarray(second, float)
  if first.ndim != 2 or first.shape != second.shape:
    raise ValueError(
      f"Arrays must be of one shape [utterances, classes], got {first.shape}"
      f" and {second.shape} ({name}). Give one row for each utterance."
    )
  return first, second


def _weights(S_UxC: np.ndarray, softmax: bool) -> np.ndarray:
  """An entry's weight: 0 or 1; under a softmax the sum of its row's S."""
  if not softmax:
    return (~np.isnan(S_UxC)).astype(np.float64)
  row_U = np.nan_to_num(S_UxC.sum(axis=1), nan=0.0)
  return np.broadcast_to(row_U[:, None], S_UxC.shape)


def _cross_entropy(
  z_UxC: np.ndarray, S_UxC: np.ndarray, weight_UxC: np.ndarray, softmax: bool
) -> tuple[float, np.ndarray]:
  """The mean of `vote_cross_entropy` and its gradient in z."""
  if softmax:
    total = weight_UxC[:, 0].sum()
    log_p_UxC = special.log_softmax(z_UxC, axis=1)
    value = -(S_UxC * log_p_UxC).sum()
    gradient_UxC = weight_UxC * np.exp(log_p_UxC) - S_UxC
  else:
    total = weight_UxC.sum()
    # log(1 + exp(z)) - S z
    value = (weight_UxC * (np.logaddexp(0, z_UxC) - S_UxC * z_UxC)).sum()
    gradient_UxC = weight_UxC * (special.expit(z_UxC) - S_UxC)
  return float(value / total), gradient_UxC / total


def cross_entropy_sum(
  z_UxC: np.ndarray, S_UxC: np.ndarray, task: str
) -> tuple[float, np.ndarray]:
  """Summed cross-entropy of scores under logits, and its gradient in them.

  Args:
    z_UxC: logits.
    S_UxC: scores or gold without NaN; under a softmax a row counts as often as
      its S add up to.
    task: 'single_label' (softmax, for more than one class) or 'multi_label'.
  """
  softmax = _is_softmax(task, S_UxC.shape[1])
  weight_UxC = _weights(S_UxC, softmax)
  total = weight_UxC[:, 0].sum() if softmax else weight_UxC.sum()
  if not total:
    return 0.0, np.zeros_like(z_UxC)
  value, gradient_UxC = _cross_entropy(z_UxC, S_UxC, weight_UxC, softmax)
  return value * total, gradient_UxC * total


def cross_entropy_each(
  z_UxC: np.ndarray, S_UxC: np.ndarray, task: str
) -> np.ndarray:
  """Each utterance's cross-entropy, float64 [U]; arguments as of the sum's.

  Where there is no score, NaN, it is 0: of the row under a softmax, else of the
  entry.
  """
  softmax = _is_softmax(task, S_UxC.shape[1])
  weight_UxC = _weights(S_UxC, softmax)
  S_UxC = np.where(weight_UxC > 0, S_UxC, 0.0)
  if softmax:
    return -(S_UxC * special.log_softmax(z_UxC, axis=1)).sum(axis=1)
  loss_UxC = np.logaddexp(0, z_UxC) - S_UxC * z_UxC
  return (weight_UxC * loss_UxC).sum(axis=1)
