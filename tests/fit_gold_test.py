"""A few labels move the scorer as far as they show, and no further."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize

from ppl_jax import calibration, fit_gold


def _labels(M, *, shift, C=3, H=8, seed=0):
  """Features, a student's logits, gold that differs by a shift, dialogues."""
  student_HxC = np.random.default_rng(1).normal(size=(H, C)) / 2
  rng = np.random.default_rng([seed, M])
  x_MxH = rng.normal(size=(M, H)) * np.linspace(0.1, 3, H)
  z_MxC = x_MxH @ student_HxC
  noisy_MxC = z_MxC + shift + rng.gumbel(size=(M, C))
  gold_MxC = np.eye(C)[noisy_MxC.argmax(axis=1)]
  return x_MxH, z_MxC, gold_MxC, np.repeat(np.arange(M), 4)[:M]


def _changed(fit, x_MxH, z_MxC):
  return (z_MxC + x_MxH @ fit.weight_CxH.T + fit.bias_C) / fit.temperature


def _loss(z_MxC, gold_MxC, task="single_label"):
  return calibration.cross_entropy_each(z_MxC, gold_MxC, task).mean()


class FitGoldTest(parameterized.TestCase):
  @parameterized.parameters(30, 100, 400)
  def test_labels_that_agree_change_little(self, count):
    """The student is right already: on new labels nothing is lost."""
    for seed in range(3):
      fit = fit_gold.fit(
        *_labels(count, shift=0.0, seed=seed), "single_label", seed
      )
      x, z, gold, _ = _labels(5_000, shift=0.0, seed=seed)
      lost = _loss(_changed(fit, x, z), gold) - _loss(z, gold)
      self.assertLess(lost, 0.02)

  def test_a_shift_is_found(self):
    shift = np.array([2.0, 0.0, -2.0])
    fit = fit_gold.fit(*_labels(300, shift=shift), "single_label")
    x, z, gold, _ = _labels(5_000, shift=shift)
    best = _loss(z + shift, gold)
    self.assertLess(_loss(_changed(fit, x, z), gold), best + 0.02)
    self.assertGreater(_loss(z, gold), best + 0.2)
    self.assertGreater(fit.gain, 0.2)

  def test_more_labels_move_it_further(self):
    shift = np.array([1.0, 0.0, -1.0])
    far = [
      np.ptp(fit_gold.fit(*_labels(count, shift=shift), "single_label").bias_C)
      for count in (20, 2_000)
    ]
    self.assertLess(far[0], 1.0)
    self.assertAlmostEqual(far[1], 2.0, delta=0.4)

  def test_what_cross_validation_gave_is_of_other_labels(self):
    """Labels at random cannot be foretold, however many features there are."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 40))
    gold = np.eye(2)[rng.integers(0, 2, 60)]
    fit = fit_gold.fit(
      x, np.zeros((60, 2)), gold, np.arange(60), "single_label"
    )
    right = (fit.logits_MxC.argmax(axis=1) == gold.argmax(axis=1)).mean()
    self.assertLess(right, 0.7)

  @parameterized.parameters("multi_label", "single_label")
  def test_sigmoids(self, task):
    C = 3 if task == "multi_label" else 1
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4))
    z = x @ rng.normal(size=(4, C))
    gold = (z + 1.5 + rng.logistic(size=z.shape) > 0).astype(float)
    fit = fit_gold.fit(x, z, gold, np.arange(400) // 5, task)
    np.testing.assert_allclose(fit.bias_C / fit.temperature, 1.5, atol=0.5)

  def test_one_dialogue_alone(self):
    x, z, gold, _ = _labels(7, shift=0.0)
    fit = fit_gold.fit(x, z, gold, np.zeros(7, int), "single_label")
    self.assertTrue(np.isfinite(fit.weight_CxH).all())
    self.assertTrue(np.isfinite(fit.bias_C).all())
    self.assertGreater(fit.temperature, 0)

  def test_the_move_is_the_optimum_that_is_written_down(self):
    x, z, gold, _ = _labels(50, shift=1.0, H=3)
    spread, ridge = 0.4, 30.0
    weight, bias = fit_gold._move(x, z, gold, "single_label", spread, ridge)

    def value(theta):
      b, w = theta[:3], theta[3:].reshape(3, 3)
      logits = z + x @ w.T + b
      loss = -np.log(
        (np.exp(logits) * gold).sum(axis=1) / np.exp(logits).sum(axis=1)
      ).sum()
      return loss + (b @ b) / (2 * spread**2) + ridge / 2 * (w**2).sum()

    found = optimize.minimize(value, np.zeros(12), options={"gtol": 1e-6})
    np.testing.assert_allclose(bias, found.x[:3], atol=1e-3)
    np.testing.assert_allclose(weight, found.x[3:].reshape(3, 3), atol=1e-3)

  def test_folds_keep_dialogues_together_and_cut_long_ones(self):
    dialogue = np.repeat([3, 4, 9], [5, 25, 2])
    unit = fit_gold._units(dialogue)
    self.assertEqual(
      unit.tolist(), [0] * 5 + [1] * 10 + [2] * 10 + [3] * 5 + [4] * 2
    )
    fold = fit_gold._folds(unit, 0)
    for u in range(5):
      self.assertLen(set(fold[unit == u]), 1)
    self.assertLen(set(fold), 5)


if __name__ == "__main__":
  absltest.main()
