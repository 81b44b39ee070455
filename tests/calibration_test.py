"""Calibration errors and offsets against loops and brute force."""

import math

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special

from ppl_jax import calibration

_SINGLE, _MULTI = "single_label", "multi_label"


def _ece(confidence, correct, bins):
  total, count = 0.0, len(confidence)
  for m in range(bins):
    low, high = m / bins + 1e-6, (m + 1) / bins + 1e-6
    bucket = [
      k
      for k in range(count)
      if low < confidence[k] <= high or (m == 0 and confidence[k] <= low)
    ]
    if bucket:
      accuracy = sum(correct[k] for k in bucket) / len(bucket)
      mean = sum(confidence[k] for k in bucket) / len(bucket)
      total += len(bucket) / count * abs(accuracy - mean)
  return total


def _cross_entropy(logits, scores, offsets, temperature, task):
  total = weight = 0.0
  for f, s in zip(logits, scores, strict=True):
    z = [(a + b) / temperature for a, b in zip(f, offsets, strict=True)]
    if task == _SINGLE and len(f) > 1:
      if any(math.isnan(v) for v in s):
        continue
      log_sum = math.log(sum(math.exp(v) for v in z))
      total -= sum(v * (a - log_sum) for v, a in zip(s, z, strict=True))
      weight += sum(s)
    else:
      for v, a in zip(s, z, strict=True):
        if not math.isnan(v):
          total -= v * math.log(1 / (1 + math.exp(-a)))
          total -= (1 - v) * math.log(1 / (1 + math.exp(a)))
          weight += 1
  return total / weight


class ReliabilityTest(parameterized.TestCase):
  @settings(max_examples=100, deadline=None, derandomize=True)
  @given(
    values=st.lists(
      st.tuples(
        st.one_of(
          st.floats(0, 1), st.sampled_from((0.0, 0.2, 0.4, 0.6, 0.8, 1.0))
        ),
        st.booleans(),
      ),
      min_size=1,
      max_size=20,
    ),
    bins=st.sampled_from((1, 5, 15)),
  )
  def test_error_equals_the_loops(self, values, bins):
    confidence, correct = (np.array(v) for v in zip(*values, strict=True))
    expected = _ece(confidence, correct, bins)
    self.assertAlmostEqual(
      calibration.expected_calibration_error(confidence, correct, bins),
      expected,
    )

  @parameterized.parameters("float16", "float32", "float64")
  def test_edges_belong_to_the_bucket_below(self, dtype):
    edges = np.arange(6, dtype=dtype) / np.array(5, dtype)
    if dtype == "float16":  # 0.2 is 1e-4 off: too coarse for the edges
      edges = edges[[0, -1]]
    buckets = calibration.reliability(edges, edges > 2, 5)
    expected = [1, 0, 0, 0, 1] if dtype == "float16" else [2, 1, 1, 1, 1]
    np.testing.assert_array_equal(buckets.count, expected)

  def test_by_hand(self):
    error = calibration.expected_calibration_error(
      np.array([0.1, 0.15, 0.9]), np.array([0, 1, 1]), bins=5
    )
    self.assertAlmostEqual(
      error, 2 / 3 * abs(1 / 2 - (0.1 + 0.15) / 2) + 1 / 3 * (1 - 0.9)
    )

  def test_nothing_has_no_error(self):
    error = calibration.expected_calibration_error(np.zeros(0), np.zeros(0))
    self.assertTrue(math.isnan(error))

  @parameterized.parameters(
    ([0.5, math.nan], [0, 1], "got nan"),
    ([0.5, 1.5], [0, 1], "got 1.5"),
    ([0.5], [0, 1], r"got \(1,\) and \(2,\)"),
  )
  def test_refuses(self, confidence, correct, message):
    with self.assertRaisesRegex(ValueError, message):
      calibration.reliability(np.array(confidence), np.array(correct))


class VoteEceTest(parameterized.TestCase):
  _SCORES = np.array([[0.0, 0.2], [0.4, 1.0], [math.nan, 0.0]])
  _GOLD = np.array([[1, 0], [0, 1], [1, 0]])

  def test_zeros_dropped_by_hand(self):
    # One score in each of three buckets; errors 0.2, 0.4 and 0.
    self.assertAlmostEqual(
      calibration.vote_ece(self._SCORES, self._GOLD), (0.2 + 0.4 + 0) / 3
    )
    # Of the second class alone, one score in each of two buckets.
    self.assertAlmostEqual(
      calibration.vote_ece(self._SCORES[:, [1]], self._GOLD[:, [1]]),
      (0.2 + 0) / 2,
    )

  def test_zeros_in_the_first_bucket_by_hand(self):
    # The first bucket holds 0, 0.2 and 0, one of them gold.
    actual = calibration.vote_ece(
      self._SCORES, self._GOLD, zeros="first_bucket"
    )
    self.assertAlmostEqual(
      actual, 3 / 5 * abs(1 / 3 - 0.2 / 3) + 1 / 5 * 0.4 + 1 / 5 * 0
    )

  def test_has_five_buckets(self):
    # 0.2 and 0.25 lie in two of five buckets, in one of four.
    actual = calibration.vote_ece(np.array([[0.2], [0.25]]), [[1], [0]])
    self.assertAlmostEqual(actual, ((1 - 0.2) + 0.25) / 2)

  def test_float32_scores_fall_where_their_shares_do(self):
    shares = np.arange(1, 6)[:, None] / 5
    gold = np.array([[1], [0], [1], [0], [1]])
    self.assertAlmostEqual(
      calibration.vote_ece(shares.astype(np.float32), gold),
      calibration.vote_ece(shares, gold),
      places=6,
    )

  def test_refuses_other_zeros(self):
    with self.assertRaisesRegex(ValueError, "got 'keep'"):
      calibration.vote_ece(self._SCORES, self._GOLD, zeros="keep")


def _problem(rng, rows, classes, task):
  logits = rng.normal(0, 2, (rows, classes))
  if task == _SINGLE and classes > 1:
    scores = rng.multinomial(5, [1 / (classes + 1)] * (classes + 1), rows)
    scores = scores[:, :classes] / 5  # some votes are for no class
  else:
    scores = rng.binomial(5, 0.3, (rows, classes)) / 5
  scores[rng.random(rows) < 0.2] = math.nan
  return logits, scores


class FitOffsetsTest(parameterized.TestCase):
  @parameterized.parameters((_SINGLE, 2), (_SINGLE, 1), (_MULTI, 1))
  def test_is_the_minimum_of_a_grid(self, task, classes):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (60, classes))
    truth = (logits + [1.0, -1.0][:classes]) / 3
    if classes == 2:
      share = special.softmax(truth, axis=1)[:, 0]
      share = rng.binomial(5, share) / 5
      scores = np.stack([share, 1 - share], axis=1)
    else:
      scores = rng.binomial(5, special.expit(truth)) / 5
    sign = np.array([1, -1])[:classes]

    def objective(x):
      return calibration.vote_cross_entropy(
        logits, scores, x[0] * sign, x[1], task
      )

    grid, lowest, *_ = optimize.brute(
      objective, ((-3, 3), (0.5, 8)), Ns=30, full_output=True
    )
    offsets, temperature = calibration.fit_offsets(logits, scores, task)
    value = calibration.vote_cross_entropy(
      logits, scores, offsets, temperature, task
    )
    self.assertLess(value, lowest + 1e-6)
    np.testing.assert_allclose(offsets, grid[0] * sign, atol=5e-3)
    np.testing.assert_allclose(temperature, grid[1], rtol=5e-3)

  @settings(max_examples=40, deadline=None, derandomize=True)
  @given(
    task_classes=st.sampled_from(((_SINGLE, 3), (_SINGLE, 1), (_MULTI, 2))),
    rows=st.integers(30, 60),
    seed=st.integers(0, 10_000),
  )
  def test_nothing_near_is_better(self, task_classes, rows, seed):
    task, classes = task_classes
    rng = np.random.default_rng(seed)
    logits, scores = _problem(rng, rows, classes, task)
    scores[0] = 0.5 / classes
    # Scores that follow the logits, so that the slope is inside its bounds.
    logits += 2 * np.nan_to_num(scores)
    offsets, temperature = calibration.fit_offsets(logits, scores, task)
    self.assertTrue(np.isfinite(offsets).all())
    self.assertGreater(temperature, 0)
    best = _cross_entropy(logits, scores, offsets, temperature, task)
    self.assertAlmostEqual(
      best,
      calibration.vote_cross_entropy(
        logits, scores, offsets, temperature, task
      ),
    )
    for _ in range(5):
      near = calibration.vote_cross_entropy(
        logits,
        scores,
        offsets + rng.normal(0, 0.3, classes),
        temperature * math.exp(rng.normal(0, 0.3)),
        task,
      )
      self.assertGreater(near, best - 1e-5)

  @parameterized.parameters((_SINGLE, 4), (_SINGLE, 1), (_MULTI, 3))
  def test_recovers_known_offsets_and_temperature(self, task, classes):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (300, classes))
    known = np.array([1.0, -2.0, 0.5, 0.5])[:classes]
    z = (logits + known) / 2.5
    if task == _SINGLE and classes > 1:
      scores, known = special.softmax(z, axis=1), known - known.mean()
    else:
      scores = special.expit(z)
    offsets, temperature = calibration.fit_offsets(logits, scores, task)
    np.testing.assert_allclose(offsets, known, atol=1e-3)
    np.testing.assert_allclose(temperature, 2.5, rtol=1e-3)

  @parameterized.parameters((_SINGLE, 3), (_SINGLE, 1), (_MULTI, 2))
  def test_shifts_and_scales_of_the_logits_are_undone(self, task, classes):
    rng = np.random.default_rng(4)
    logits, scores = _problem(rng, 80, classes, task)
    logits += 2 * np.nan_to_num(scores)
    shift = np.array([50.0, -7.0, 3.0])[:classes]
    offsets, temperature = calibration.fit_offsets(logits, scores, task)
    moved, same = calibration.fit_offsets(logits + shift, scores, task)
    softmax = task == _SINGLE and classes > 1
    expected = offsets - shift + (shift.mean() if softmax else 0)
    np.testing.assert_allclose(moved, expected, atol=1e-4)
    np.testing.assert_allclose(same, temperature, rtol=1e-4)
    wide, scaled = calibration.fit_offsets(1e3 * logits, scores, task)
    np.testing.assert_allclose(wide, 1e3 * offsets, atol=1e3 * 1e-4)
    np.testing.assert_allclose(scaled, 1e3 * temperature, rtol=1e-4)

  def test_softmax_does_not_see_a_constant_of_an_utterance(self):
    rng = np.random.default_rng(5)
    logits, scores = _problem(rng, 80, 3, _SINGLE)
    offsets, temperature = calibration.fit_offsets(logits, scores, _SINGLE)
    self.assertAlmostEqual(offsets.sum(), 0)
    moved, same = calibration.fit_offsets(
      logits + rng.normal(0, 100, (80, 1)), scores, _SINGLE
    )
    np.testing.assert_allclose(moved, offsets, atol=1e-4 * temperature)
    np.testing.assert_allclose(same, temperature, rtol=1e-4)

  @parameterized.product(
    task=(_SINGLE, _MULTI), scale=(1e-3, 1.0, 1e4), classes=(1, 3)
  )
  def test_separable_data_stay_finite(self, task, scale, classes):
    truth = np.arange(12) % (classes + 1)
    scores = np.eye(classes + 1)[truth][:, :classes]
    logits = scale * (2 * scores - 1)
    offsets, temperature = calibration.fit_offsets(logits, scores, task)
    self.assertTrue(np.isfinite(offsets).all())
    self.assertBetween(temperature, scale * 1e-3, scale * 1e3)
    value = calibration.vote_cross_entropy(
      logits, scores, offsets, temperature, task
    )
    self.assertBetween(value, 0, 0.01)

  def test_the_ridge_decides_what_separable_data_leave_open(self):
    scores = np.array([[1.0], [0.0]])
    offsets, temperature = calibration.fit_offsets(
      2 * scores - 1, scores, _MULTI
    )
    # The slope a minimises log(1 + exp(-a)) + 1e-6 / 2 (a - 1)^2.
    slope = optimize.brentq(
      lambda a: 1e-6 * (a - 1) - 1 / (1 + math.exp(a)), 1, 50
    )
    np.testing.assert_allclose(temperature, 1 / slope, rtol=1e-3)
    np.testing.assert_allclose(offsets, [0], atol=1e-3)

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_unsupported_classes_and_flat_logits(self, task):
    scores = np.array([[0.75, 0.25, 0.0]] * 8)
    offsets, temperature = calibration.fit_offsets(
      np.full((8, 3), 7.0), scores, task
    )
    self.assertTrue(np.isfinite(offsets).all())
    self.assertEqual(temperature, 1)
    if task == _SINGLE:
      share = special.softmax(7 + offsets)
    else:
      share = special.expit(7 + offsets)
    np.testing.assert_allclose(share, [0.75, 0.25, 0], atol=1e-3)

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_backward_logits_keep_a_positive_temperature(self, task):
    scores = np.eye(2)[np.arange(10) % 2]
    offsets, temperature = calibration.fit_offsets(-scores, scores, task)
    self.assertTrue(np.isfinite(offsets).all())
    self.assertTrue(0 < temperature < math.inf)

  @parameterized.parameters((_SINGLE, 3), (_MULTI, 3))
  def test_rows_without_scores_do_not_count(self, task, classes):
    rng = np.random.default_rng(6)
    logits, scores = _problem(rng, 40, classes, task)
    keep = ~np.isnan(scores).any(axis=1)
    self.assertFalse(keep.all())
    actual = calibration.fit_offsets(logits, scores, task)
    expected = calibration.fit_offsets(logits[keep], scores[keep], task)
    np.testing.assert_allclose(actual[0], expected[0])
    self.assertAlmostEqual(actual[1], expected[1])
    self.assertAlmostEqual(
      calibration.vote_cross_entropy(logits, scores, *actual, task),
      calibration.vote_cross_entropy(logits[keep], scores[keep], *actual, task),
    )

  def test_a_row_weighs_the_sum_of_its_scores(self):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(30, 3))
    scores = rng.dirichlet(np.ones(3), 30)
    halves = calibration.fit_offsets(
      np.concatenate([logits, logits]),
      np.concatenate([scores * 0.75, scores * 0.25]),
      _SINGLE,
    )
    whole = calibration.fit_offsets(logits, scores, _SINGLE)
    np.testing.assert_allclose(halves[0], whole[0], atol=1e-4)
    self.assertAlmostEqual(halves[1], whole[1], places=3)

  @settings(max_examples=40, deadline=None, derandomize=True)
  @given(
    task_classes=st.sampled_from(((_SINGLE, 3), (_SINGLE, 1), (_MULTI, 2))),
    seed=st.integers(0, 10_000),
  )
  def test_cross_entropy_equals_the_loops(self, task_classes, seed):
    task, classes = task_classes
    rng = np.random.default_rng(seed)
    logits, scores = _problem(rng, 10, classes, task)
    scores[0] = 0.5 / classes
    offsets, temperature = rng.normal(size=classes), rng.uniform(0.5, 2)
    self.assertAlmostEqual(
      calibration.vote_cross_entropy(
        logits, scores, offsets, temperature, task
      ),
      _cross_entropy(logits, scores, offsets, temperature, task),
    )

  @parameterized.parameters(
    ([[math.nan, 0.0]], [[1.0, 0.0]], _SINGLE, "finite logits"),
    ([[1.0, 0.0]], [[math.nan, 0.0]], _SINGLE, "got none"),
    ([[1.0, 0.0]], [[0.0, 0.0]], _SINGLE, "got none"),
    ([[1.0, 0.0]], [[1.0]], _SINGLE, r"got \(1, 2\) and \(1, 1\)"),
    ([[1.0, 0.0]], [[1.0, 0.0]], "ranking", "got 'ranking'"),
  )
  def test_refuses(self, logits, scores, task, message):
    for fit in (calibration.fit_offsets, calibration.fit_temperature):
      with self.assertRaisesRegex(ValueError, message):
        fit(np.array(logits), np.array(scores), task)


class FitTemperatureTest(parameterized.TestCase):
  @parameterized.parameters((_SINGLE, 4), (_SINGLE, 1), (_MULTI, 3))
  def test_recovers_a_known_temperature(self, task, classes):
    logits = np.random.default_rng(8).normal(0, 3, (200, classes))
    if task == _SINGLE and classes > 1:
      scores = special.softmax(logits / 2.5, axis=1)
    else:
      scores = special.expit(logits / 2.5)
    logits[:5], scores[:5] = 9.0, math.nan
    temperature = calibration.fit_temperature(
      logits, scores, task, prior=math.inf
    )
    np.testing.assert_allclose(temperature, 2.5, rtol=1e-3)

  @parameterized.parameters((_SINGLE, 3), (_MULTI, 2))
  def test_is_the_minimum_of_a_grid(self, task, classes):
    logits, scores = _problem(np.random.default_rng(9), 50, classes, task)
    logits += 2 * np.nan_to_num(scores)
    zeros = np.zeros(classes)
    grid = [
      calibration.vote_cross_entropy(logits, scores, zeros, t, task)
      for t in np.geomspace(1 / 20, 20, 400)
    ]
    temperature = calibration.fit_temperature(
      logits, scores, task, prior=math.inf
    )
    best = calibration.vote_cross_entropy(
      logits, scores, zeros, temperature, task
    )
    self.assertLess(best, min(grid) + 1e-6)

  def test_separable_data_stay_within_the_bounds(self):
    scores = np.eye(3)
    for sign, bound in ((1, 1 / 20), (-1, 20)):
      temperature = calibration.fit_temperature(
        sign * scores, scores, _SINGLE, prior=math.inf
      )
      np.testing.assert_allclose(temperature, bound, rtol=1e-3)

  def test_few_labels_that_are_all_right_do_not_make_it_certain(self):
    few = np.eye(3)[np.arange(60) % 3]
    logits = 4 * few  # P(gold) = 0.96: 60 right ones are no surprise
    temperature = calibration.fit_temperature(logits, few, _SINGLE)
    self.assertBetween(temperature, 0.6, 1.0)
    many = np.tile(few, (200, 1))
    self.assertLess(calibration.fit_temperature(4 * many, many, _SINGLE), 0.5)

  def test_many_labels_outweigh_the_prior(self):
    logits = np.random.default_rng(8).normal(0, 3, (20_000, 4))
    scores = special.softmax(logits / 2.5, axis=1)
    temperature = calibration.fit_temperature(logits, scores, _SINGLE)
    np.testing.assert_allclose(temperature, 2.5, rtol=0.01)


if __name__ == "__main__":
  absltest.main()
