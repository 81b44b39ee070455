"""Losses against loops that write the formulas out."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_jax import calibration, losses

_ABOVE_HALF = float(np.nextafter(np.float32(0.5), np.float32(1)))
_SCORES = (math.nan, 0.0, 0.2, 0.5, _ABOVE_HALF, 0.8, 1.0)
_MODES = tuple(itertools.product(("hard", "soft"), (False, True)))
_pairwise = jax.jit(
  losses.pairwise, static_argnames=("targets", "equal_labels")
)
_pairwise_batch = jax.jit(
  losses.pairwise_batch, static_argnames=("targets", "equal_labels")
)
_pointwise = jax.jit(losses.pointwise)
_gold = jax.jit(losses.gold, static_argnames="task")
_ROW_TERMS = (losses.softmax_shares, losses.plurality)


def _kl(t, z):
  """KL(t || sigmoid(z)) by its definition."""
  p, q = 1 / (1 + math.exp(-z)), 1 / (1 + math.exp(z))
  kl = 0.0
  if t > 0:
    kl += t * math.log(t / p)
  if t < 1:
    kl += (1 - t) * math.log((1 - t) / q)
  return kl


def _reference(f, scores, index, group_ids, *, alpha, targets, equal_labels):
  """Sum, count, and the gradient of the sum in f."""
  total, count, gradient = 0.0, 0.0, np.zeros(f.shape)
  for rows in index:
    for a, b in itertools.permutations(range(len(rows)), 2):
      i, j = rows[a], rows[b]
      if i < 0 or j < 0:
        continue
      if group_ids is not None and group_ids[i] == group_ids[j]:
        continue
      for c in range(f.shape[1]):
        s_i, s_j = scores[i, c], scores[j, c]
        if math.isnan(s_i) or math.isnan(s_j):
          continue
        if targets == "hard":
          ranked = 1.0 if s_i > 0.5 and not s_j > 0.5 else 0.0
        else:
          ranked = s_i * (1 - s_j)
        weight, target = (1.0, ranked) if equal_labels else (ranked, 1.0)
        z = f[i, c] - f[j, c] - alpha * (s_i - s_j)
        slope = weight * (1 / (1 + math.exp(-z)) - target)
        total += weight * _kl(target, z)
        count += weight
        gradient[i, c] += slope
        gradient[j, c] -= slope
  return total, count, gradient


@functools.partial(jax.jit, static_argnames=("targets", "equal_labels"))
def _batch_and_gradient(f, scores, index, group_ids, **options):
  def loss(f):
    return losses.pairwise_batch(
      f, scores, index, group_ids_N=group_ids, **options
    )

  (total, count), pullback = jax.vjp(loss, f)
  (gradient,) = pullback((jnp.ones_like(total), jnp.zeros_like(count)))
  return total, count, gradient


def _swapped_reference(f, scores, index, group_ids):
  """Sum, count, and the gradient of the sum in f."""
  total, count, gradient = 0.0, 0.0, np.zeros(f.shape)
  classes = range(f.shape[1])
  for rows in index:
    for i, j in itertools.combinations(rows, 2):
      if i < 0 or j < 0:
        continue
      if group_ids is not None and group_ids[i] == group_ids[j]:
        continue
      if np.isnan(scores[[i, j]]).any():
        continue
      for c, d in itertools.permutations(classes, 2):
        weight = scores[i, c] * scores[j, d]
        z = f[i, c] - f[i, d] - f[j, c] + f[j, d]
        total += weight * math.log1p(math.exp(-z))
        count += weight
        slope = -weight / (1 + math.exp(z))
        gradient[i, c] += slope
        gradient[i, d] -= slope
        gradient[j, c] -= slope
        gradient[j, d] += slope
  return total, count, gradient


def _row_reference(f, scores, mask, function):
  """The same for a term that looks at one row at a time."""
  total, count, gradient = 0.0, 0.0, np.zeros(f.shape)
  for i, s in enumerate(scores):
    if not mask[i] or np.isnan(s).any():
      continue
    if function is losses.plurality:
      if s.max() == 0:
        continue
      first = list(s).index(s.max())
      s = np.array([float(c == first) for c in range(len(s))])
    normaliser = sum(math.exp(z) for z in f[i])
    for c, share in enumerate(s):
      total -= share * math.log(math.exp(f[i, c]) / normaliser)
      count += share
      gradient[i, c] -= share
      gradient[i] += share * np.exp(f[i]) / normaliser
  return total, count, gradient


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(function, f, *args, **kwargs):
  """Returns a loss's sum and count, and the gradient of the sum in f."""

  def loss(f):
    return function(f, *args, **kwargs)

  (total, count), pullback = jax.vjp(loss, f)
  (gradient,) = pullback((jnp.ones_like(total), jnp.zeros_like(count)))
  return total, count, gradient


def _random_scores(rng, shape):
  """Scores of rows; some have a NaN, some no vote for any class."""
  scores = rng.choice(np.float32(_SCORES[1:]), shape)
  scores[rng.random(shape[0]) < 0.2, rng.integers(shape[1])] = math.nan
  scores[rng.random(shape[0]) < 0.2] = 0
  return scores


class LossesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.enter_context(jax.numpy_dtype_promotion("strict"))
    self.enter_context(jax.numpy_rank_promotion("raise"))


class PairwiseTest(LossesTest):
  @settings(max_examples=60, deadline=None, derandomize=True)
  @given(data=st.data())
  def test_value_and_gradient_equal_the_loops(self, data):
    dialogues, size, classes, rows = data.draw(
      st.sampled_from(((1, 2, 1, 1), (3, 4, 2, 12), (3, 4, 2, 12)))
    )
    rng = np.random.default_rng(data.draw(st.integers(0, 1_000)))
    f = rng.normal(0, 3, (rows, classes)).astype(np.float32)
    scores = rng.choice(np.float32(_SCORES), (rows, classes))
    index = np.full((dialogues, size), -1, np.int32)
    used = data.draw(st.integers(0, min(rows, index.size)))
    slots = rng.permutation(index.size)[:used]
    index.ravel()[slots] = rng.permutation(rows)[:used]
    group_ids = None
    if data.draw(st.booleans()):
      group_ids = rng.integers(0, 3, rows).astype(np.int32)
    targets, equal_labels = data.draw(st.sampled_from(_MODES))
    options = {
      "alpha": data.draw(st.sampled_from((0.0, 0.5))),
      "targets": targets,
      "equal_labels": equal_labels,
    }
    total, count, gradient = _batch_and_gradient(
      f, scores, index, group_ids, **options
    )
    expected = _reference(
      f.astype(float), scores.astype(float), index, group_ids, **options
    )
    np.testing.assert_allclose(total, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(count, expected[1], rtol=1e-5)
    np.testing.assert_allclose(gradient, expected[2], rtol=1e-4, atol=1e-5)

  def test_one_pair_by_hand(self):
    total, count = _pairwise(
      jnp.array([2.0, -1.0]),
      jnp.array([0.9, 0.3]),
      jnp.ones(2, bool),
      alpha=0.5,
    )
    z = (2 - -1) - 0.5 * (0.9 - 0.3)
    np.testing.assert_allclose(total, math.log(1 + math.exp(-z)), rtol=1e-6)
    self.assertEqual(count, 1)

  def test_soft_literal_pair_by_hand(self):
    # Both orders have the target 0.5 * (1 - 0.5), and z = 0.
    total, count = _pairwise(
      jnp.zeros(2),
      jnp.array([0.5, 0.5]),
      jnp.ones(2, bool),
      alpha=1.0,
      targets="soft",
      equal_labels=True,
    )
    kl = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    np.testing.assert_allclose(total, 2 * kl, rtol=1e-6)
    self.assertEqual(count, 2)

  @parameterized.parameters(
    (1e4, False, 0.0),
    (-1e4, False, 2e4 + 1),
    (1e4, True, 0.0),  # the reversed pair has the target 0
    (-1e4, True, 2 * (2e4 + 1)),
  )
  def test_extreme_logits(self, f, equal_labels, expected):
    s = jnp.array([1.0, 0.0])

    def loss(f_K):
      return losses.pairwise(
        f_K, s, jnp.ones(2, bool), alpha=1.0, equal_labels=equal_labels
      )[0]

    total, gradient = jax.jit(jax.value_and_grad(loss))(jnp.array([f, -f]))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    slope = (2 if equal_labels else 1) * (0 if f > 0 else -1)
    np.testing.assert_allclose(gradient, [slope, -slope])

  @parameterized.parameters(*_MODES)
  def test_constants_over_a_dialogue_cancel(self, targets, equal_labels):
    rng = np.random.default_rng(0)
    f = rng.normal(size=(6, 2)).astype(np.float32)
    scores = rng.random((6, 2)).astype(np.float32)
    index = np.array([[0, 2, 4], [1, 3, 5]])
    shift = np.zeros((6, 2), np.float32)
    shift[index[0]] = [3.0, -2.0]
    shift[index[1]] = [-5.0, 7.0]
    loss = functools.partial(
      _pairwise_batch,
      scores_NxC=jnp.array(scores),
      index_DxK=jnp.array(index),
      alpha=0.5,
      targets=targets,
      equal_labels=equal_labels,
    )
    total, _ = loss(jnp.array(f))
    shifted, _ = loss(jnp.array(f + shift))
    self.assertGreater(total, 0.1)
    np.testing.assert_allclose(total, shifted, rtol=1e-5)

  def test_errors_of_scores_that_shift_a_dialogue_cancel(self):
    f = jnp.array([1.0, -1.0, 0.5, 0.0])
    s = jnp.array([0.6, 0.1, 0.75, 0.3])  # no label changes up to + 0.2
    loss = functools.partial(_pairwise, f, valid_K=jnp.ones(4, bool), alpha=1.0)
    total, count = loss(s)
    shifted, shifted_count = loss(s + 0.2)
    np.testing.assert_allclose(total, shifted, rtol=1e-6)
    self.assertEqual([count, shifted_count], [4, 4])
    # An error of one utterance does not.
    self.assertNotAlmostEqual(total, loss(s.at[0].add(0.2))[0], places=3)

  def test_logits_equal_to_scores_have_no_margin_left(self):
    s = jnp.array([0.9, 0.8, 0.3, 0.1, 0.0])
    total, count = _pairwise(s + 4.0, s, jnp.ones(5, bool), alpha=1.0)
    self.assertEqual(count, 2 * 3)
    np.testing.assert_allclose(total, 2 * 3 * math.log(2), rtol=1e-6)

  @parameterized.parameters(
    ([[0.9], [math.nan]], [[0, 1]]),  # one score only
    ([[0.9], [0.1]], [[0, -1], [1, -1]]),  # dialogues of one utterance
    ([[0.9], [0.1]], [[-1, -1]]),
    ([[0.9], [0.8]], [[0, 1]]),  # equal labels
    ([[0.5], [0.1]], [[0, 1]]),
    ([[0.9], [0.1]], [[0], [1]]),  # K = 1
  )
  def test_no_pair_gives_zeros(self, scores, index):
    def loss(f):
      return losses.pairwise_batch(
        f, jnp.array(scores), jnp.array(index), alpha=0.5
      )

    f = jnp.array([[1e4], [-1e4]])
    self.assertEqual([float(v) for v in jax.jit(loss)(f)], [0, 0])
    value, gradient = jax.jit(
      jax.value_and_grad(lambda f: losses.mean(*loss(f)))
    )(f)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, [[0], [0]])

  @parameterized.parameters(*_MODES)
  def test_rows_that_do_not_count_may_hold_nan(self, targets, equal_labels):
    f = jnp.array([[math.nan], [1.0], [0.0], [math.nan]])
    scores = jnp.array([[0.5], [0.9], [0.2], [math.nan]])

    def loss(f):
      index = jnp.array([[1, -1, 2, 3]])
      return losses.pairwise_batch(
        f,
        scores,
        index,
        alpha=0.5,
        targets=targets,
        equal_labels=equal_labels,
      )[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(f)
    self.assertTrue(math.isfinite(value))
    self.assertTrue(np.isfinite(gradient).all())
    np.testing.assert_array_equal(gradient[jnp.array([0, 3])], [[0], [0]])
    self.assertNotEqual(gradient[1, 0], 0)

  def test_vmap_over_shards_is_the_sum_of_shards(self):
    rng = np.random.default_rng(1)
    f, scores = rng.normal(size=(2, 6, 3)), rng.random((2, 6, 3))
    f, scores = jnp.array(f, jnp.float32), jnp.array(scores, jnp.float32)
    index = jnp.array([[[0, 1, 2], [3, 4, -1]], [[5, 4, 3], [2, 1, 0]]])
    loss = functools.partial(_pairwise_batch, alpha=0.5)
    sums, counts = jax.vmap(loss)(f, scores, index)
    for shard in range(2):
      total, count = loss(f[shard], scores[shard], index[shard])
      np.testing.assert_allclose(sums[shard], total, rtol=1e-6)
      self.assertEqual(counts[shard], count)

  @parameterized.parameters("float16", "bfloat16", "float32")
  def test_computes_in_float32(self, dtype):
    f = jnp.array([[8.0], [-4.0]], dtype)
    scores = jnp.array([[1.0], [0.0]], dtype)
    index = jnp.array([[0, 1]])
    total, count = _pairwise_batch(f, scores, index, alpha=0.25)
    self.assertEqual([total.dtype, count.dtype], [jnp.float32] * 2)
    z = 12 - 0.25  # needs more than bfloat16's eight bits
    np.testing.assert_allclose(total, math.log1p(math.exp(-z)), rtol=1e-5)


class SwappedPairsTest(LossesTest):
  @settings(max_examples=60, deadline=None, derandomize=True)
  @given(
    shape=st.sampled_from(
      ((1, 2, 1, 2), (2, 1, 3, 4), (3, 4, 2, 12), (3, 4, 3, 12), (1, 5, 1, 5))
    ),
    groups=st.booleans(),
    seed=st.integers(0, 1_000),
  )
  def test_value_and_gradient_equal_the_loops(self, shape, groups, seed):
    dialogues, size, classes, rows = shape
    rng = np.random.default_rng(seed)
    f = rng.normal(0, 2, (rows, classes)).astype(np.float32)
    scores = _random_scores(rng, f.shape)
    index = np.full((dialogues, size), -1, np.int32)
    used = rng.integers(0, min(rows, index.size) + 1)
    slots = rng.permutation(index.size)[:used]
    index.ravel()[slots] = rng.permutation(rows)[:used]
    group_ids = rng.integers(0, 3, rows).astype(np.int32) if groups else None
    total, count, gradient = _evaluate(
      losses.swapped_pairs_batch, f, scores, index, group_ids_N=group_ids
    )
    expected = _swapped_reference(
      f.astype(float), scores.astype(float), index, group_ids
    )
    np.testing.assert_allclose(total, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(count, expected[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, expected[2], rtol=1e-4, atol=1e-5)

  def test_two_utterances_by_hand(self):
    f = jnp.array([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0]])
    s = jnp.array([[0.75, 0.0, 0.0], [0.0, 0.5, 0.25]])
    total, count, _ = _evaluate(losses.swapped_pairs, f, s, jnp.ones(2, bool))
    first, second = (2 - -1) - (0 - 1), (2 - 0.5) - (0 - 0)
    expected = 0.75 * 0.5 * math.log(1 + math.exp(-first))
    expected += 0.75 * 0.25 * math.log(1 + math.exp(-second))
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(count, 0.75 * (0.5 + 0.25))

  def test_the_order_of_utterances_and_of_classes_does_not_matter(self):
    rng = np.random.default_rng(0)
    f = rng.normal(size=(5, 3)).astype(np.float32)
    s = rng.random((5, 3)).astype(np.float32)
    valid = np.array([True, True, False, True, True])
    total, count, gradient = _evaluate(losses.swapped_pairs, f, s, valid)
    i, c = rng.permutation(5), rng.permutation(3)
    other = _evaluate(
      losses.swapped_pairs, f[i][:, c], s[i][:, c], jnp.array(valid[i])
    )
    np.testing.assert_allclose(other[0], total, rtol=1e-6)
    np.testing.assert_allclose(other[1], count, rtol=1e-6)
    np.testing.assert_allclose(other[2], gradient[i][:, c], atol=1e-6)

  def test_constants_of_an_utterance_and_of_a_class_cancel(self):
    rng = np.random.default_rng(0)
    f, s = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    more = (3 * rng.normal(size=(4, 1)) + 3 * rng.normal(size=3)).astype(
      np.float32
    )
    valid = jnp.ones(4, bool)
    total, _, _ = _evaluate(losses.swapped_pairs, f, abs(s), valid)
    other, _, _ = _evaluate(losses.swapped_pairs, f + more, abs(s), valid)
    np.testing.assert_allclose(total, other, rtol=1e-5)

  def test_two_classes_are_soft_pairs_of_the_difference(self):
    # S_i2 = 1 - S_i1 makes both weights S_i (1 - S_j), and z is f_i - f_j.
    rng = np.random.default_rng(0)
    f = rng.normal(size=5).astype(np.float32)
    s = rng.random(5).astype(np.float32)
    valid = jnp.ones(5, bool)
    swapped = _evaluate(
      losses.swapped_pairs,
      np.stack([f, np.zeros_like(f)], axis=1),
      np.stack([s, 1 - s], axis=1),
      valid,
    )
    pairs = _pairwise(f, s, valid, alpha=0.0, targets="soft")
    np.testing.assert_allclose(swapped[:2], pairs, rtol=1e-5)

  @parameterized.product(
    dtype=("bfloat16", "float32"), logits=(1e4, -1e4), nan=(False, True)
  )
  def test_extreme_logits(self, dtype, logits, nan):
    other = math.nan if nan else 0.0
    f = jnp.array([[logits, -logits], [-logits, logits], [other] * 2], dtype)
    s = jnp.array([[1.0, 0.0], [0.25, 0.75], [other] * 2])
    total, count, gradient = _evaluate(
      losses.swapped_pairs, f, s, jnp.array([True, True, not nan])
    )
    large = abs(float(f[0, 0]))
    self.assertEqual([total.dtype, count.dtype], [jnp.float32] * 2)
    self.assertEqual(gradient.dtype, f.dtype)
    slope = 0.0 if logits > 0 else 0.75
    np.testing.assert_allclose(total, slope * 4 * large, rtol=1e-6)
    self.assertEqual(count, 0.75)
    np.testing.assert_array_equal(
      gradient.astype(jnp.float32),
      [[-slope, slope], [slope, -slope], [0, 0]],
    )

  @parameterized.parameters(
    ([[0.9, 0.1], [math.nan, 0.5]], [[0, 1]], None),  # one score only
    ([[0.9, 0.1], [0.2, 0.8]], [[0, -1], [1, -1]], None),
    ([[0.9, 0.1], [0.2, 0.8]], [[-1, -1]], None),
    ([[0.9, 0.0], [0.8, 0.0]], [[0, 1]], None),  # votes for one class
    ([[0.9, 0.1], [0.0, 0.0]], [[0, 1]], None),  # votes for none
    ([[0.9, 0.1], [0.2, 0.8]], [[0], [1]], None),  # K = 1
    ([[0.9], [0.2]], [[0, 1]], None),  # C = 1
    ([[0.9, 0.1], [0.2, 0.8]], [[0, 1]], [3, 3]),  # the same dialogue
  )
  def test_nothing_to_swap_gives_zeros(self, scores, index, group_ids):
    scores = jnp.array(scores)
    ids = None if group_ids is None else jnp.array(group_ids)

    def loss(f):
      return losses.swapped_pairs_batch(
        f, scores, jnp.array(index), group_ids_N=ids
      )

    f = jnp.array([[1e4, -1e4], [-1e4, 1e4]])[:, : scores.shape[1]]
    self.assertEqual([float(v) for v in jax.jit(loss)(f)], [0, 0])
    value, gradient = jax.jit(
      jax.value_and_grad(lambda f: losses.mean(*loss(f)))
    )(f)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, np.zeros(f.shape))

  def test_no_gradient_flows_into_scores(self):
    s = jnp.array([[0.9, 0.1], [0.2, 0.8]])

    def loss(s):
      return losses.swapped_pairs(s, s, jnp.ones(2, bool))[0]

    def of_logits(f):
      return losses.swapped_pairs(f, s, jnp.ones(2, bool))[0]

    np.testing.assert_array_equal(jax.grad(loss)(s), jax.grad(of_logits)(s))


class RowTermsTest(LossesTest):
  """`softmax_shares` and `plurality`."""

  @settings(max_examples=60, deadline=None, derandomize=True)
  @given(
    function=st.sampled_from(_ROW_TERMS),
    shape=st.sampled_from(((1, 1), (1, 3), (6, 1), (6, 3))),
    seed=st.integers(0, 1_000),
  )
  def test_value_and_gradient_equal_the_loops(self, function, shape, seed):
    rng = np.random.default_rng(seed)
    f = rng.normal(0, 3, shape).astype(np.float32)
    scores = _random_scores(rng, shape)
    mask = rng.random(shape[0]) < 0.8
    total, count, gradient = _evaluate(function, f, scores, mask)
    expected = _row_reference(
      f.astype(float), scores.astype(float), mask, function
    )
    np.testing.assert_allclose(total, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(count, expected[1], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[2], rtol=1e-4, atol=1e-5)

  @parameterized.parameters(
    ([0.25, 0.5, 0.25], 1),
    ([0.25, 0.375, 0.375], 1),  # the first of equal ones
    ([0.5, 0.0, 0.5], 0),
    ([0.0, 0.0, 0.125], 2),  # most votes are for none of the classes
    ([0.0, 0.0, 0.0], None),  # all are
    ([math.nan, 0.0, 1.0], None),
  )
  def test_plurality_by_hand(self, scores, label):
    f = jnp.array([[1.0, 2.0, 4.0]])
    total, count, gradient = _evaluate(
      losses.plurality, f, jnp.array([scores]), jnp.ones(1, bool)
    )
    if label is None:
      self.assertEqual([float(total), float(count)], [0, 0])
      np.testing.assert_array_equal(gradient, np.zeros((1, 3)))
      return
    log_sum = math.log(math.exp(1) + math.exp(2) + math.exp(4))
    np.testing.assert_allclose(total, log_sum - float(f[0, label]), rtol=1e-6)
    self.assertEqual(count, 1)

  def test_shares_weigh_a_row_by_its_votes(self):
    f, s = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 0.25]])
    total, count, _ = _evaluate(losses.softmax_shares, f, s, jnp.ones(1, bool))
    log_sum = math.log(math.exp(1) + math.exp(2))
    expected = 0.5 * (log_sum - 1) + 0.25 * (log_sum - 2)
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    self.assertEqual(count, 0.75)

  def test_shares_are_measured_as_calibration_does(self):
    rng = np.random.default_rng(0)
    f = rng.normal(size=(9, 3)).astype(np.float32)
    s = _random_scores(rng, f.shape)
    loss = losses.mean(*losses.softmax_shares(f, s, jnp.ones(9, bool)))
    expected = calibration.vote_cross_entropy(
      f, s, np.zeros(3), 1.0, "single_label"
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-6)

  @parameterized.product(
    function=_ROW_TERMS, dtype=("bfloat16", "float32"), scored=("f", "s")
  )
  def test_extreme_logits(self, function, dtype, scored):
    f = jnp.array([[1e4, -1e4], [1e4, -1e4], [math.nan, 1e4]], dtype)
    s = jnp.array([[1.0, 0.0], [0.25, 0.75], [math.nan, 0.5]])
    if scored == "s":  # scores of another type, too
      s = s.astype(dtype)
    total, count, gradient = _evaluate(function, f, s, jnp.ones(3, bool))
    share = 1.0 if function is losses.plurality else 0.75
    self.assertEqual([total.dtype, count.dtype], [jnp.float32] * 2)
    self.assertEqual(gradient.dtype, f.dtype)
    np.testing.assert_allclose(total, share * 2 * float(f[0, 0]), rtol=1e-6)
    self.assertEqual(count, 2)
    np.testing.assert_array_equal(
      gradient.astype(jnp.float32), [[0, 0], [share, -share], [0, 0]]
    )

  @parameterized.product(
    function=_ROW_TERMS,
    case=(
      (math.nan, [[0.5, math.nan]], True),
      (math.nan, [[0.5, 0.5]], False),  # padding
      (1e4, [[0.0, 0.0]], True),  # votes for none
    ),
  )
  def test_nothing_that_counts_gives_zeros(self, function, case):
    logit, scores, row = case

    def loss(f):
      return losses.mean(*function(f, jnp.array(scores), jnp.array([row])))

    f = jnp.array([[logit, -logit]])
    value, gradient = jax.jit(jax.value_and_grad(loss))(f)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, [[0, 0]])


class PointwiseTest(LossesTest):
  @settings(max_examples=30, deadline=None, derandomize=True)
  @given(shape=st.sampled_from(((1, 1), (4, 3))), seed=st.integers(0, 1_000))
  def test_equals_the_loops(self, shape, seed):
    rng = np.random.default_rng(seed)
    f = rng.normal(0, 3, shape).astype(np.float32)
    scores = rng.choice(np.float32(_SCORES), shape)
    mask = rng.random(shape[0]) < 0.7
    total = count = 0.0
    for i, c in np.ndindex(shape):
      s, z = float(scores[i, c]), float(f[i, c])
      if mask[i] and not math.isnan(s):
        total -= s * math.log(1 / (1 + math.exp(-z)))
        total -= (1 - s) * math.log(1 / (1 + math.exp(z)))
        count += 1
    actual = _pointwise(f, scores, mask)
    np.testing.assert_allclose(actual, [total, count], rtol=1e-5)

  @parameterized.parameters("bfloat16", "float32")
  def test_extreme_logits(self, dtype):
    f = jnp.array([[1e4, -1e4, 1e4, math.nan]], dtype)
    scores = jnp.array([[1.0, 0.25, 0.0, math.nan]])

    def loss(f):
      return losses.pointwise(f, scores, jnp.ones(1, bool))

    total, count = jax.jit(loss)(f)
    large = float(f[0, 0])
    self.assertEqual([total.dtype, count.dtype], [jnp.float32] * 2)
    np.testing.assert_allclose(total, 0.25 * large + large, rtol=1e-6)
    self.assertEqual(count, 3)
    gradient = jax.jit(jax.grad(lambda f: loss(f)[0]))(f)
    np.testing.assert_array_equal(gradient, [[0, -0.25, 1, 0]])

  def test_nothing_scored_gives_zeros(self):
    scores = jnp.full((2, 2), math.nan)

    def loss(f):
      return losses.mean(*losses.pointwise(f, scores, jnp.ones(2, bool)))

    value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.ones((2, 2)))
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, np.zeros((2, 2)))


class GoldTest(LossesTest):
  def test_softmax_by_hand(self):
    f = jnp.array([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
    gold = jnp.array([[0, 1, 0], [1, 0, 0], [1, 0, 0]], jnp.uint8)
    labelled = jnp.array([True, True, False])
    total, count = _gold(f, gold, labelled, task="single_label")
    first = -math.log(math.exp(2) / (math.exp(1) + math.exp(2) + math.exp(4)))
    np.testing.assert_allclose(total, first + math.log(3), rtol=1e-6)
    self.assertEqual(count, 2)

  def test_softmax_leaves_out_rows_without_a_class(self):
    f, gold = jnp.zeros((2, 4)), jnp.array([[0, 0, 0, 0], [0, 0, 1, 0]])
    total, count = _gold(f, gold, jnp.ones(2, bool), task="single_label")
    np.testing.assert_allclose(total, math.log(4), rtol=1e-6)
    self.assertEqual(count, 1)

  def test_softmax_shares_a_row_among_its_classes(self):
    f, gold = jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[1, 1, 0]])
    total, count = _gold(f, gold, jnp.ones(1, bool), task="single_label")
    log_sum = math.log(math.exp(1) + math.exp(2) + 1)
    np.testing.assert_allclose(
      total, -((1 - log_sum) + (2 - log_sum)) / 2, rtol=1e-6
    )
    self.assertEqual(count, 1)

  @parameterized.parameters(("multi_label", 2), ("single_label", 1))
  def test_sigmoid_by_hand(self, task, classes):
    f = jnp.array([[2.0, -1.0], [0.5, 3.0]])[:, :classes]
    gold = jnp.array([[1, 0], [0, 0]], jnp.uint8)[:, :classes]
    labelled = jnp.array([True, True])
    total, count = _gold(f, gold, labelled, task=task)
    terms = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(0.5))]
    if classes == 2:
      terms += [math.log(1 + math.exp(-1)), math.log(1 + math.exp(3))]
    np.testing.assert_allclose(total, sum(terms), rtol=1e-6)
    self.assertEqual(count, len(terms))

  @parameterized.product(task=("single_label", "multi_label"), classes=(1, 3))
  def test_unlabelled_rows_have_no_gradient(self, task, classes):
    f = jnp.full((2, classes), math.nan)
    gold = jnp.zeros((2, classes), jnp.uint8)

    def loss(f):
      return losses.mean(*losses.gold(f, gold, jnp.zeros(2, bool), task=task))

    value, gradient = jax.jit(jax.value_and_grad(loss))(f)
    self.assertEqual(value, 0)
    np.testing.assert_array_equal(gradient, np.zeros((2, classes)))

  def test_extreme_logits_in_bfloat16(self):
    f = jnp.array([[1e4, -1e4], [1e4, -1e4]], jnp.bfloat16)
    gold = jnp.array([[1, 0], [0, 1]], jnp.uint8)

    def loss(f):
      return losses.gold(f, gold, jnp.ones(2, bool), task="single_label")[0]

    total, gradient = jax.jit(jax.value_and_grad(loss))(f)
    self.assertEqual(total.dtype, jnp.float32)
    np.testing.assert_allclose(total, 2 * float(f[0, 0]), rtol=1e-6)
    np.testing.assert_array_equal(gradient, [[0, 0], [1, -1]])

  def test_refuses_another_task(self):
    with self.assertRaisesRegex(ValueError, "got 'ranking'"):
      losses.gold(
        jnp.zeros((1, 2)),
        jnp.zeros((1, 2)),
        jnp.ones(1, bool),
        task="ranking",
      )


class MeanTest(LossesTest):
  def test_divides_small_counts_too(self):
    # Soft pairs may weigh far less than one pair.
    actual = losses.mean(jnp.float32(3e-6), jnp.float32(1e-6))
    np.testing.assert_allclose(actual, 3e-6 / 1e-6, rtol=1e-6)

  def test_gradient_at_zero_count(self):
    gradient = jax.grad(losses.mean, argnums=(0, 1))(0.0, 0.0)
    self.assertEqual([float(g) for g in gradient], [0, 0])


if __name__ == "__main__":
  absltest.main()
