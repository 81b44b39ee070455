import numpy as np
from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_jax.data import sampling


def _many(dialogues=1_500, seed=0):
  rng = np.random.default_rng(seed)
  dialogue = np.repeat(np.arange(dialogues), rng.integers(1, 12, dialogues))
  return rng.random(len(dialogue)) < 0.9, dialogue


class DrawGoldTest(absltest.TestCase):
  @settings(max_examples=30, deadline=None)
  @given(
    small=st.floats(0.001, 1), large=st.floats(0.001, 1), seed=st.integers(0, 9)
  )
  def test_smaller_shares_lie_inside_larger_ones(self, small, large, seed):
    small, large = sorted((small, large))
    labelled, dialogue = _many()
    inner = sampling.draw_gold(labelled, dialogue, small, seed)
    outer = sampling.draw_gold(labelled, dialogue, large, seed)
    self.assertFalse((inner & ~outer).any())
    self.assertFalse((outer & ~labelled).any())

  def test_share_is_as_near_as_whole_dialogues_allow(self):
    labelled, dialogue = _many()
    for fraction in (0.01, 0.05, 0.1, 0.25):
      drawn = sampling.draw_gold(labelled, dialogue, fraction, 0).sum()
      self.assertAlmostEqual(drawn, fraction * labelled.sum(), delta=6)
    whole = sampling.draw_gold(labelled, dialogue, 1.0, 0)
    np.testing.assert_array_equal(whole, labelled)

  def test_many_dialogues_are_drawn_whole(self):
    labelled, dialogue = _many()
    drawn = sampling.draw_gold(labelled, dialogue, 0.1, 0)
    chosen = np.unique(dialogue[drawn])
    np.testing.assert_array_equal(drawn, labelled & np.isin(dialogue, chosen))

  def test_few_long_dialogues_give_stretches_of_50(self):
    dialogue = np.repeat(np.arange(4), 1_500)
    drawn = sampling.draw_gold(np.ones(6_000, bool), dialogue, 0.1, 0)
    self.assertEqual(drawn.sum(), 600)
    runs = drawn.reshape(-1, 50)  # 1,500 is thirty stretches of 50
    self.assertTrue((runs.all(axis=1) | ~runs.any(axis=1)).all())
    self.assertGreater(len(np.unique(dialogue[drawn])), 1)

  def test_of_few_labels_a_hundredth_can_be_drawn(self):
    for count, longest in ((2_000, 20), (800, 8), (400, 8)):
      dialogue = np.repeat(np.arange(4), count // 4)
      drawn = sampling.draw_gold(np.ones(count, bool), dialogue, 0.02, 0)
      self.assertAlmostEqual(drawn.sum(), 0.02 * count, delta=longest / 2)
      for part in np.split(drawn, 4):
        runs = np.split(part, range(longest, len(part), longest))
        self.assertTrue(all(run.all() or not run.any() for run in runs))

  def test_bad_fractions(self):
    labelled, dialogue = _many(20)
    self.assertFalse(sampling.draw_gold(labelled, dialogue, 0, 0).any())
    with self.assertRaisesRegex(ValueError, r"must lie in \[0, 1\], got 1.5"):
      sampling.draw_gold(labelled, dialogue, 1.5, 0)
    with self.assertRaisesRegex(ValueError, "must leave at least one label"):
      sampling.draw_gold(labelled, dialogue, 1e-6, 0)
    with self.assertRaisesRegex(ValueError, "must leave at least one label"):
      sampling.draw_gold(np.zeros_like(labelled), dialogue, 0.5, 0)


class HoldOutTest(absltest.TestCase):
  def test_whole_dialogues(self):
    _, dialogue = _many(100)
    held = sampling.hold_out(dialogue, 0.1, 0)
    self.assertLen(np.unique(dialogue[held]), 10)
    self.assertFalse(np.isin(dialogue[~held], dialogue[held]).any())

  def test_something_is_left_on_both_sides(self):
    dialogue = np.array([0, 0, 1])
    self.assertIn(sampling.hold_out(dialogue, 0.01, 0).sum(), (1, 2))
    self.assertIn(sampling.hold_out(dialogue, 0.99, 0).sum(), (1, 2))
    with self.assertRaisesRegex(ValueError, "at least two scored dialogues"):
      sampling.hold_out(np.zeros(3, int), 0.1, 0)


if __name__ == "__main__":
  absltest.main()
