"""Classification metrics as sums that merge before they are divided.

NumPy only. Shapes: N rows, C classes.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ppl_jax import calibration


@dataclasses.dataclass(frozen=True, eq=False)
class Classification:
  """Counts over the labelled rows of a split, or of a part of it.

  A single-label task of several classes is decided by the largest
  probability, the first of equal ones; one class, or each class of a
  multi-label task, by a probability above 1/2.

  Attributes:
    count: labelled rows.
    right: rows whose predicted set of classes is the gold set.
    true_positives: int64 [C], rows where the class is predicted and gold.
    predicted: int64 [C], rows where it is predicted.
    support: int64 [C], rows where it is gold.
    confusion: int64 [C, C], gold class by predicted class over the rows
      that have both; None where sigmoids decide.
    log_loss: sum of -log P(gold) in nats.
    log_loss_count: rows it is over.
    reliability: of the decisions; see `compute`, ece.
  """

  count: int
  right: int
  true_positives: np.ndarray
  predicted: np.ndarray
  support: np.ndarray
  confusion: np.ndarray | None
  log_loss: float
  log_loss_count: int
  reliability: calibration.Reliability

  @classmethod
  def from_probabilities(
    cls,
    prob_NxC: np.ndarray,
    gold_NxC: np.ndarray,
    mask_N: np.ndarray,
    task: str,
  ) -> "Classification":
    """Counts one batch.

    Args:
      prob_NxC: the student's probabilities, any float type.
      gold_NxC: multi-hot.
      mask_N: bool, False for rows without gold and for padding; those may
        hold anything, NaN included.
      task: 'single_label' or 'multi_label'.

    Returns:
      Its counts.

    Raises:
      ValueError: another task, other shapes, a probability outside [0, 1] or
        NaN, or a single-label row of several gold classes.
    """
    prob_NxC, gold_NxC = np.asarray(prob_NxC), np.asarray(gold_NxC)
    mask_N = np.asarray(mask_N, bool)
    if task not in ("single_label", "multi_label"):
      raise ValueError(
        f"A task must be 'single_label' or 'multi_label', got {task!r}. Set"
        " dataset.task to one of them."
      )
    if prob_NxC.shape != gold_NxC.shape or mask_N.shape != prob_NxC.shape[:1]:
      raise ValueError(
        "Probabilities and gold must be [N, C] and the mask [N], got"
        f" {prob_NxC.shape}, {gold_NxC.shape} and {mask_N.shape}. Give one"
        " row for each utterance."
      )
    prob_NxC = prob_NxC[mask_N].astype(np.float64)
    gold_NxC = gold_NxC[mask_N].astype(bool)
    if not ((prob_NxC >= 0) & (prob_NxC <= 1 + 1e-6)).all():
      raise ValueError(
        "Probabilities must lie in [0, 1], got others or NaN. Mask the rows"
        " that have none, or check the student's checkpoint."
      )
    num_classes = prob_NxC.shape[1]
    tiny = np.finfo(np.float64).tiny
    predicted_NxC = decided(prob_NxC, task)
    if task == "single_label" and num_classes > 1:
      if (gold_NxC.sum(axis=1) > 1).any():
        raise ValueError(
          "A single-label row must have at most one gold class, got"
          f" {gold_NxC.sum(axis=1).max()}. Set dataset.task to 'multi_label'."
        )
      choice_N = predicted_NxC.argmax(axis=1)
      has_class_N = gold_NxC.any(axis=1)
      both_N = has_class_N & predicted_NxC.any(axis=1)
      confusion = np.zeros((num_classes, num_classes), np.int64)
      np.add.at(
        confusion, (gold_NxC[both_N].argmax(axis=1), choice_N[both_N]), 1
      )
      log_loss = -np.log(np.maximum(prob_NxC[gold_NxC], tiny)).sum()
      log_loss_count = has_class_N.sum()
      confidence = prob_NxC.max(axis=1)
      correct = (predicted_NxC & gold_NxC).any(axis=1)
    else:
      confusion = None
      chance_NxC = np.where(gold_NxC, prob_NxC, 1 - prob_NxC)
      log_loss = -np.log(np.maximum(chance_NxC, tiny)).sum()
      log_loss_count = len(prob_NxC)
      confidence = np.maximum(prob_NxC, 1 - prob_NxC)
      correct = predicted_NxC == gold_NxC
    return cls(
      count=len(prob_NxC),
      right=int((predicted_NxC == gold_NxC).all(axis=1).sum()),
      true_positives=(predicted_NxC & gold_NxC).sum(axis=0),
      predicted=predicted_NxC.sum(axis=0),
      support=gold_NxC.sum(axis=0),
      confusion=confusion,
      log_loss=float(log_loss),
      log_loss_count=int(log_loss_count),
      reliability=calibration.reliability(confidence, correct),
    )

  def compute(self, classes: Sequence[str]) -> dict:
    """Divides the counts.

    Precision, recall and F1 follow scikit-learn with `zero_division=0` and
    `labels` all classes: a class that is neither gold nor predicted has F1 0
    and lowers the macro mean. The weighted F1 weighs by gold support.

    Args:
      classes: the C names, in order.

    Returns:
      Plain numbers for JSON:
      count: labelled rows.
      accuracy: share of rows whose predicted set of classes is the gold set.
        A single-label row without a class is never right.
      joint_accuracy: the same, only where sigmoids decide.
      one_versus_rest_accuracy: share of the rows times classes where "of this
        class or not" is right: (TP + TN) / rows, mean over classes. A
        single-label row that is wrong is so for two of the C classes.
      macro_f1, weighted_f1.
      per_class: name to precision, recall, f1 and support.
      ece: expected calibration error in 15 buckets of the confidence of the
        decision; where sigmoids decide, max(p, 1 - p) pooled over classes.
      nll: mean -log P(gold) in nats over rows, summed over classes where
        sigmoids decide; single-label rows without a class are left out.
      accuracies, ece and nll are None without a row to count.
    """
    precision_C = _divide(self.true_positives, self.predicted)
    recall_C = _divide(self.true_positives, self.support)
    f1_C = _divide(2 * self.true_positives, self.predicted + self.support)
    accuracy = self.right / self.count if self.count else None
    nll = None
    if self.log_loss_count:
      nll = self.log_loss / self.log_loss_count
    joint = {"joint_accuracy": accuracy} if self.confusion is None else {}
    wrong_C = self.predicted + self.support - 2 * self.true_positives
    one_versus_rest = None
    if self.count:
      one_versus_rest = float(1 - (wrong_C / self.count).mean())
    return {
      "count": self.count,
      "accuracy": accuracy,
      **joint,
      "one_versus_rest_accuracy": one_versus_rest,
      "macro_f1": float(f1_C.mean()),
      "weighted_f1": float(_divide(f1_C @ self.support, self.support.sum())),
      "per_class": {
        name: {
          "precision": float(precision_C[c]),
          "recall": float(recall_C[c]),
          "f1": float(f1_C[c]),
          "support": int(self.support[c]),
        }
        for c, name in enumerate(classes)
      },
      "ece": self.reliability.error() if self.count else None,
      "nll": nll,
    }


def decided(prob_NxC: np.ndarray, task: str) -> np.ndarray:
  """Returns the classes that probabilities decide; see `Classification`.

  Args:
    prob_NxC: probabilities, or shares of votes; what has none is not decided,
      so that votes for "none of these" alone decide no class.
    task: 'single_label' or 'multi_label'.

  Returns:
    bool [N, C].
  """
  return preferred(prob_NxC, task) & (prob_NxC > 0)


def preferred(values_NxC: np.ndarray, task: str) -> np.ndarray:
  """Returns bool [N, C]: the largest of values, or those above 1/2."""
  num_classes = values_NxC.shape[1]
  if task == "single_label" and num_classes > 1:
    return values_NxC.argmax(axis=1)[:, None] == np.arange(num_classes)
  return values_NxC > 0.5


def _divide(numerator, denominator) -> np.ndarray:
  """The quotient, 0 where the denominator is 0."""
  return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
