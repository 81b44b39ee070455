"""Metrics against loops and against scikit-learn."""

import json
import math

import numpy as np
import sklearn.metrics
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_jax import metrics


def _random(rng, rows, classes, task):
  """Probabilities with ties, gold, mask; classes may lack gold."""
  prob = rng.choice([0.0, 0.2, 0.5, 0.7, 1.0], (rows, classes))
  if task == "single_label" and classes > 1:
    prob = (prob + 0.1) / (prob + 0.1).sum(axis=1, keepdims=True)
    gold = np.eye(classes, dtype=np.uint8)[rng.integers(0, classes, rows)]
    gold[rng.random(rows) < 0.2] = 0
  else:
    gold = (rng.random((rows, classes)) < 0.4).astype(np.uint8)
  if rng.random() < 0.3:
    gold[:, 0] = 0
  return prob, gold, rng.random(rows) < 0.7


def _ece(decisions):
  """15 buckets ((m - 1) / 15, m / 15] over (confidence, right)."""
  total = 0.0
  for m in range(1, 16):
    bucket = [
      (confidence, right)
      for confidence, right in decisions
      if (m - 1) / 15 + 1e-6 < confidence <= m / 15 + 1e-6
    ]
    if bucket:
      accuracy = sum(right for _, right in bucket) / len(bucket)
      confidence = sum(confidence for confidence, _ in bucket) / len(bucket)
      total += len(bucket) / len(decisions) * abs(accuracy - confidence)
  return total


def _reference(prob, gold, mask, task):
  """Accuracy, F1 a class, support, ECE and nll, with loops."""
  classes = prob.shape[1]
  softmax = task == "single_label" and classes > 1
  rows = [i for i in range(len(prob)) if mask[i]]
  right, one_by_one, decisions, losses = 0, 0, [], []
  hits, predicted, support = np.zeros((3, classes))
  for i in rows:
    if softmax:
      best = max(range(classes), key=lambda c: (prob[i, c], -c))
      guess = [c == best for c in range(classes)]
      decisions.append((prob[i, best], gold[i, best]))
      losses += [-math.log(prob[i, c]) for c in range(classes) if gold[i, c]]
    else:
      guess = [prob[i, c] > 0.5 for c in range(classes)]
      loss = 0.0
      for c in range(classes):
        decisions.append(
          (max(prob[i, c], 1 - prob[i, c]), guess[c] == gold[i, c])
        )
        chance = prob[i, c] if gold[i, c] else 1 - prob[i, c]
        loss -= math.log(max(chance, np.finfo(float).tiny))
      losses.append(loss)
    right += all(guess[c] == gold[i, c] for c in range(classes))
    for c in range(classes):
      one_by_one += guess[c] == gold[i, c]
      hits[c] += guess[c] and gold[i, c]
      predicted[c] += guess[c]
      support[c] += gold[i, c]
  f1 = []
  for c in range(classes):
    precision = hits[c] / predicted[c] if predicted[c] else 0.0
    recall = hits[c] / support[c] if support[c] else 0.0
    either = precision + recall
    f1.append(2 * precision * recall / either if either else 0.0)
  weighted = sum(f * n for f, n in zip(f1, support, strict=True))
  return {
    "count": len(rows),
    "accuracy": right / len(rows) if rows else None,
    "one_versus_rest_accuracy": (
      one_by_one / len(rows) / classes if rows else None
    ),
    "macro_f1": sum(f1) / classes,
    "weighted_f1": weighted / sum(support) if sum(support) else 0.0,
    "ece": _ece(decisions) if rows else None,
    "nll": sum(losses) / len(losses) if losses else None,
  }


_TASKS = st.sampled_from(
  (("single_label", 4), ("single_label", 1), ("multi_label", 3))
)


class ClassificationTest(parameterized.TestCase):
  @settings(max_examples=100, deadline=None, derandomize=True)
  @given(
    task_classes=_TASKS, rows=st.integers(0, 12), seed=st.integers(0, 10_000)
  )
  def test_equals_the_loops(self, task_classes, rows, seed):
    task, classes = task_classes
    prob, gold, mask = _random(np.random.default_rng(seed), rows, classes, task)
    names = [str(c) for c in range(classes)]
    actual = metrics.Classification.from_probabilities(
      prob, gold, mask, task
    ).compute(names)
    for key, value in _reference(prob, gold, mask, task).items():
      if value is None:
        self.assertIsNone(actual[key], key)
      else:
        self.assertAlmostEqual(actual[key], value, places=9, msg=key)

  @settings(max_examples=60, deadline=None, derandomize=True)
  @given(
    task_classes=_TASKS, rows=st.integers(1, 12), seed=st.integers(0, 10_000)
  )
  def test_equals_scikit_learn(self, task_classes, rows, seed):
    task, classes = task_classes
    prob, gold, _ = _random(np.random.default_rng(seed), rows, classes, task)
    names = [str(c) for c in range(classes)]
    actual = metrics.Classification.from_probabilities(
      prob, gold, np.ones(rows, bool), task
    ).compute(names)
    if task == "single_label" and classes > 1:
      # A row without a class is of a class that is never predicted.
      truth = np.where(gold.any(axis=1), gold.argmax(axis=1), classes)
      guess = prob.argmax(axis=1)
      labels = list(range(classes))
    elif classes == 1:
      truth, guess, labels = gold[:, 0], (prob[:, 0] > 0.5).astype(int), [1]
    else:
      truth, guess, labels = gold, (prob > 0.5).astype(int), None
    self.assertAlmostEqual(
      actual["accuracy"], sklearn.metrics.accuracy_score(truth, guess)
    )
    self.assertEqual("joint_accuracy" in actual, prob.shape[1] != 4)
    arguments = {"labels": labels, "zero_division": 0}
    for average in ("macro", "weighted"):
      self.assertAlmostEqual(
        actual[f"{average}_f1"],
        sklearn.metrics.f1_score(truth, guess, average=average, **arguments),
      )
    expected = sklearn.metrics.precision_recall_fscore_support(
      truth, guess, **arguments
    )
    for c, name in enumerate(names):
      for k, key in enumerate(("precision", "recall", "f1", "support")):
        self.assertAlmostEqual(actual["per_class"][name][key], expected[k][c])

  @settings(max_examples=60, deadline=None, derandomize=True)
  @given(
    task_classes=_TASKS,
    padding=st.integers(0, 5),
    seed=st.integers(0, 10_000),
  )
  def test_padding_changes_nothing(self, task_classes, padding, seed):
    task, classes = task_classes
    prob, gold, mask = _random(np.random.default_rng(seed), 12, classes, task)
    count = metrics.Classification.from_probabilities
    padded = count(
      np.concatenate([prob, np.full((padding, classes), np.nan)]),
      np.concatenate([gold, np.ones((padding, classes), np.uint8)]),
      np.concatenate([mask, np.zeros(padding, bool)]),
      task,
    )
    whole = count(prob, gold, mask, task)
    names = [str(c) for c in range(classes)]
    actual, expected = padded.compute(names), whole.compute(names)
    self.assertEqual(actual["per_class"], expected["per_class"])
    for key in ("accuracy", "macro_f1", "weighted_f1", "count"):
      self.assertEqual(actual[key], expected[key])
    for key in ("ece", "nll"):
      if expected[key] is None:
        self.assertIsNone(actual[key])
      else:
        self.assertAlmostEqual(actual[key], expected[key], places=12)
    if whole.confusion is None:
      self.assertIsNone(padded.confusion)
    else:
      np.testing.assert_array_equal(padded.confusion, whole.confusion)

  def test_confusion_is_gold_by_predicted(self):
    prob = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    gold = np.array([[1, 0], [0, 1], [0, 1], [0, 0]])
    result = metrics.Classification.from_probabilities(
      prob, gold, np.ones(4, bool), "single_label"
    )
    np.testing.assert_array_equal(result.confusion, [[1, 0], [1, 1]])
    self.assertEqual(result.compute(["a", "b"])["accuracy"], 2 / 4)

  def test_a_wrong_row_is_wrong_about_two_classes(self):
    rng = np.random.default_rng(0)
    prob, gold = rng.dirichlet(np.ones(7), 90), np.eye(7)[np.arange(90) % 7]
    result = metrics.Classification.from_probabilities(
      prob, gold, np.ones(90, bool), "single_label"
    ).compute(list("abcdefg"))
    self.assertAlmostEqual(
      result["one_versus_rest_accuracy"], 1 - 2 * (1 - result["accuracy"]) / 7
    )

  def test_result_is_plain_json(self):
    for task in ("single_label", "multi_label"):
      for mask in (np.ones(1, bool), np.zeros(1, bool)):
        result = metrics.Classification.from_probabilities(
          np.array([[0.25, 0.75]], np.float32), np.eye(2)[:1], mask, task
        ).compute(["a", "b"])
        self.assertEqual(json.loads(json.dumps(result)), result)
        self.assertNotIn("NaN", json.dumps(result))

  def test_float32_softmax_a_hair_above_one_is_a_probability(self):
    prob = np.array([[np.nextafter(np.float32(1), np.float32(2)), 0]])
    result = metrics.Classification.from_probabilities(
      prob, np.array([[1, 0]]), np.ones(1, bool), "single_label"
    )
    self.assertAlmostEqual(result.compute(["a", "b"])["ece"], 0, places=6)

  @parameterized.parameters(
    ([[0.5, np.nan]], [[1, 0]], [True], "single_label", "or NaN"),
    ([[-3.0, 2.0]], [[1, 0]], [True], "multi_label", "must lie in"),
    ([[0.5, 0.5]], [[1, 1]], [True], "single_label", "got 2"),
    ([[0.5, 0.5]], [[1]], [True], "single_label", r"got \(1, 2\)"),
    ([[0.5, 0.5]], [[1, 0]], [True, True], "single_label", r"\(2,\)"),
    ([[0.5, 0.5]], [[1, 0]], [True], "ranking", "got 'ranking'"),
  )
  def test_refuses(self, prob, gold, mask, task, message):
    with self.assertRaisesRegex(ValueError, message):
      metrics.Classification.from_probabilities(
        np.array(prob), np.array(gold), np.array(mask), task
      )


if __name__ == "__main__":
  absltest.main()
