"""Pairs against loops over i and j."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_jax import pairs

_ABOVE_HALF = float(np.nextafter(np.float32(0.5), np.float32(1)))
_SCORES = (math.nan, 0.0, 0.2, 0.5, _ABOVE_HALF, 0.8, 1.0)
_MODES = tuple(itertools.product(("hard", "soft"), (False, True)))


def _reference(scores, valid, targets, equal_labels, group_ids):
  size = len(scores)
  weights = np.zeros((size, size))
  goals = np.full((size, size), math.nan)
  for i in range(size):
    for j in range(size):
      if i == j or not (valid[i] and valid[j]):
        continue
      if math.isnan(scores[i]) or math.isnan(scores[j]):
        continue
      if group_ids is not None and group_ids[i] == group_ids[j]:
        continue
      if targets == "hard":
        ranked = 1.0 if scores[i] > 0.5 and not scores[j] > 0.5 else 0.0
      else:
        ranked = scores[i] * (1 - scores[j])
      weights[i, j] = 1.0 if equal_labels else ranked
      goals[i, j] = ranked if equal_labels else 1.0
  return weights, goals


@functools.partial(jax.jit, static_argnames=("targets", "equal_labels"))
def _pair_weights(scores, valid, group_ids, targets, equal_labels):
  return pairs.pair_weights(
    scores,
    valid,
    targets=targets,
    equal_labels=equal_labels,
    group_ids_K=group_ids,
  )


class PairWeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("strict"))
    self.enter_context(jax.numpy_rank_promotion("raise"))

  @settings(max_examples=80, deadline=None, derandomize=True)
  @given(data=st.data())
  def test_equals_the_loops(self, data):
    size = data.draw(st.sampled_from((1, 2, 3, 6)))
    draw = lambda values: data.draw(  # noqa: E731
      st.lists(st.sampled_from(values), min_size=size, max_size=size)
    )
    scores = np.array(draw(_SCORES), np.float32)
    valid = np.array(draw((True, True, True, False)))
    group_ids = None
    if data.draw(st.booleans()):
      group_ids = np.array(draw((0, 1, 2)), np.int32)
    targets, equal_labels = data.draw(st.sampled_from(_MODES))
    weights, goals = _pair_weights(
      scores, valid, group_ids, targets, equal_labels
    )
    expected, expected_goals = _reference(
      scores.astype(float), valid, targets, equal_labels, group_ids
    )
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    counted = expected > 0
    np.testing.assert_allclose(
      np.asarray(goals)[counted], expected_goals[counted], rtol=1e-6
    )
    self.assertTrue(((goals >= 0) & (goals <= 1)).all())

  def test_one_half_is_negative_and_ties_make_no_pair(self):
    scores = jnp.array([0.5, 0.8, 0.8, 0.5])
    weights, _ = pairs.pair_weights(scores, jnp.ones(4, bool))
    expected = np.zeros((4, 4))
    expected[1, 0] = expected[1, 3] = expected[2, 0] = expected[2, 3] = 1
    np.testing.assert_array_equal(weights, expected)

  def test_soft_weights_by_hand(self):
    scores = jnp.array([0.9, 0.2])
    weights, goals = pairs.pair_weights(
      scores, jnp.ones(2, bool), targets="soft"
    )
    expected = [[0, 0.9 * (1 - 0.2)], [0.2 * (1 - 0.9), 0]]
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    np.testing.assert_array_equal(goals, np.ones((2, 2)))

  def test_literal_form_by_hand(self):
    scores = jnp.array([1.0, 0.0, 0.0])
    weights, goals = pairs.pair_weights(
      scores, jnp.ones(3, bool), equal_labels=True
    )
    np.testing.assert_array_equal(weights, 1 - np.eye(3))
    np.testing.assert_array_equal(goals, [[0, 1, 1], [0, 0, 0], [0, 0, 0]])

  def test_cross_dialogue_pairs_by_hand(self):
    scores = jnp.array([1.0, 0.0, 0.0])
    weights, _ = pairs.pair_weights(
      scores, jnp.ones(3, bool), group_ids_K=jnp.array([7, 7, 8])
    )
    np.testing.assert_array_equal(weights, [[0, 0, 1], [0, 0, 0], [0, 0, 0]])

  @parameterized.parameters("float16", "bfloat16", "float32")
  def test_float32_whatever_comes_in(self, dtype):
    scores = jnp.array([1.0, 0.0], dtype)
    weights, goals = pairs.pair_weights(scores, jnp.ones(2, bool))
    self.assertEqual(weights.dtype, jnp.float32)
    self.assertEqual(goals.dtype, jnp.float32)
    np.testing.assert_array_equal(weights, [[0, 1], [0, 0]])

  def test_refuses_other_targets(self):
    with self.assertRaisesRegex(ValueError, "'hard' or 'soft', got 'mild'"):
      pairs.pair_weights(jnp.zeros(2), jnp.ones(2, bool), targets="mild")


if __name__ == "__main__":
  absltest.main()
