import numpy as np
from absl.testing import absltest

from ppl_jax import metrics, predictions
from ppl_jax.experiments import bootstrap


def _said(logits, gold, task):
  N, C = logits.shape
  return predictions.Predictions(
    split="test",
    task=task,
    classes=tuple("abcdef"[:C]),
    dialogue_ids=("d",) * N,
    utterance_N=np.arange(N, dtype=np.int32),
    gold_NxC=gold.astype(np.uint8),
    logits_NxC=logits.astype(np.float32),
  )


class RightTest(absltest.TestCase):
  def test_is_the_accuracy_of_the_metrics(self):
    rng = np.random.default_rng(0)
    for task, C in (
      ("single_label", 4),
      ("single_label", 1),
      ("multi_label", 3),
    ):
      logits = rng.normal(size=(200, C))
      gold = rng.random((200, C)) < 0.5
      if task == "single_label" and C > 1:
        gold = np.eye(C + 1)[rng.integers(0, C + 1, 200)][:, :C] > 0
      prob = 1 / (1 + np.exp(-logits))
      counts = metrics.Classification.from_probabilities(
        prob, gold, np.ones(200, bool), task
      )
      right = bootstrap.right(_said(logits, gold, task))
      self.assertEqual(right.sum(), counts.right)


class DifferenceTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.dialogue = np.repeat(np.arange(40), rng.integers(1, 12, 40))
    self.one = rng.random(len(self.dialogue)) < 0.8
    self.other = np.where(
      rng.random(len(self.one)) < 0.7, self.one, rng.random(len(self.one)) < 0.6
    )

  def test_is_a_bootstrap_over_dialogues(self):
    result = bootstrap.difference(self.one, self.other, self.dialogue)
    self.assertAlmostEqual(result.mean, self.one.mean() - self.other.mean())
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(4_000):
      rows = np.concatenate(
        [np.flatnonzero(self.dialogue == d) for d in rng.integers(0, 40, 40)]
      )
      drawn.append(self.one[rows].mean() - self.other[rows].mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    self.assertAlmostEqual(result.low, low, delta=0.006)
    self.assertAlmostEqual(result.high, high, delta=0.006)
    below = np.mean(np.array(drawn) < 0)
    self.assertAlmostEqual(result.below_zero, below, delta=0.02)

  def test_names_of_dialogues_do_not_matter(self):
    names = np.array([f"d{d}" for d in range(40)])[self.dialogue]
    mixed = np.random.default_rng(2).permutation(len(names))
    self.assertAlmostEqual(
      bootstrap.difference(self.one, self.other, names).mean,
      bootstrap.difference(
        self.one[mixed], self.other[mixed], names[mixed]
      ).mean,
    )

  def test_equal_students(self):
    result = bootstrap.difference(self.one, self.one, self.dialogue)
    self.assertEqual((result.mean, result.low, result.high), (0, 0, 0))
    self.assertEqual(result.below_zero, 0)


if __name__ == "__main__":
  absltest.main()
