import numpy as np
from absl.testing import absltest

from ppl_jax import calibration
from ppl_jax.data import ensembles


def _counts(rows):
  """Votes for each class and valid ones, of (votes for 0, for 1, for none)."""
  rows = np.array(rows, np.uint32)
  valid = np.repeat(rows.sum(axis=1, keepdims=True), 2, axis=1)
  return rows[:, :2], valid


def _gold(classes):
  return np.eye(2, dtype=np.uint8)[list(classes)]


class DrawTest(absltest.TestCase):
  def test_whole_votes_are_drawn_where_each_names_one_class(self):
    votes, valid = _counts([(2, 1, 1), (0, 0, 3), (5, 0, 0), (0, 0, 0)])
    rng = np.random.default_rng(0)
    drawn, could = ensembles.draw(votes, valid, (1, 2, 3, 9), rng)
    np.testing.assert_array_equal(
      could[:, :, 0].T, [[1, 2, 3, 4], [1, 2, 3, 3], [1, 2, 3, 5], [0] * 4]
    )
    np.testing.assert_array_equal(could[..., 0], could[..., 1])
    self.assertTrue((drawn.sum(axis=2) <= could[..., 0]).all())
    np.testing.assert_array_equal(drawn[3], votes)
    # A smaller one lies in every larger one.
    self.assertTrue((np.diff(drawn.astype(int), axis=0) >= 0).all())

  def test_is_hypergeometric(self):
    votes, valid = _counts([(3, 1, 2)] * 20_000)
    rng = np.random.default_rng(0)
    (drawn,), _ = ensembles.draw(votes, valid, (2,), rng)
    # Of 6 choose 2 pairs, 3 hold class 0 twice and 9 once.
    share = np.bincount(drawn[:, 0]) / 20_000
    np.testing.assert_allclose(share, [3 / 15, 9 / 15, 3 / 15], atol=0.015)

  def test_votes_on_classes_for_themselves(self):
    votes = np.array([[2, 3], [1, 0]], np.uint32)
    valid = np.array([[3, 4], [1, 0]], np.uint32)
    rng = np.random.default_rng(0)
    drawn, could = ensembles.draw(votes, valid, (1, 4), rng)
    np.testing.assert_array_equal(could[0], [[1, 1], [1, 0]])
    np.testing.assert_array_equal(could[1], valid)
    np.testing.assert_array_equal(drawn[1], votes)


class EnsembleEceTest(absltest.TestCase):
  def test_all_votes_are_the_scores(self):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (40, 3))
    rows[7] = 0
    votes, valid = _counts(rows)
    gold = _gold(rng.integers(0, 2, 40))
    sizes, errors = ensembles.ensemble_ece(votes, valid, gold, 0)
    np.testing.assert_array_equal(sizes, np.arange(1, valid.max() + 1))
    share = np.where(valid > 0, votes / np.maximum(valid, 1), np.nan)
    for j, zeros in enumerate(ensembles.TREATMENTS):
      expected = calibration.vote_ece(share, gold, zeros=zeros)
      np.testing.assert_allclose(errors[:, -1, j], expected, rtol=1e-6)

  def test_one_vote_is_drawn_from_those_that_there_are(self):
    # Of one vote, S is 1 for its class: with k of the two utterances right,
    # S = 1 is right k times in 2 and S = 0 wrong in 2 - k of 2.
    _, errors = ensembles.ensemble_ece(
      *_counts([(1, 3, 0), (1, 3, 0)]), _gold((0, 0)), 0
    )
    wrong = 2 * errors[:, 0, 0]
    np.testing.assert_allclose(wrong, wrong.round(), atol=1e-6)
    np.testing.assert_allclose(errors[:, 0, 1], errors[:, 0, 0], atol=1e-6)
    # A quarter of the draws is right.
    _, errors = ensembles.ensemble_ece(
      *_counts([(1, 3, 0)] * 2_000), _gold([0] * 2_000), 0
    )
    self.assertAlmostEqual(errors[:, 0, 0].mean(), 0.75, delta=0.01)
    # Of two votes, (1/2, 1/2) is drawn every second time, else (0, 1): over
    # three scores in four above 0, 1/2 of gold 1, 1/2 of gold 0 and 1 of gold
    # 0 lie in two buckets: (1/2 - 1/2) and 1, of which a third.
    self.assertAlmostEqual(errors[:, 1, 0].mean(), 1 / 3, delta=0.01)

  def test_votes_asked_for_one_class(self):
    sizes, errors = ensembles.ensemble_ece(
      np.array([[1, 0]]), np.array([[2, 0]]), _gold((0,)), 0
    )
    np.testing.assert_array_equal(sizes, [1, 2])
    # S of the second class is not known; that of the first is 0 or 1, and
    # then 1/2.
    np.testing.assert_array_equal(np.unique(errors[:, 0, 1]), [0, 1])
    np.testing.assert_allclose(errors[:, 1, :], 0.5)

  def test_is_drawn_by_the_seed(self):
    counts, gold = _counts([(2, 3, 1)] * 30), _gold([0] * 30)
    first, again, other = (
      ensembles.ensemble_ece(*counts, gold, seed)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))

  def test_many_votes_are_sampled(self):
    sizes, errors = ensembles.ensemble_ece(
      *_counts([(300, 200, 0)]), _gold((0,)), 0, draws=3
    )
    self.assertLessEqual(len(sizes), 30)
    self.assertEqual((sizes[0], sizes[-1]), (1, 500))
    self.assertEqual(errors.shape[:2], (3, len(sizes)))

  def test_needs_votes(self):
    with self.assertRaisesRegex(ValueError, "need valid votes on utterances"):
      ensembles.ensemble_ece(*_counts([(0, 0, 0)]), _gold((0,)), 0)


if __name__ == "__main__":
  absltest.main()
