"""What is proven of the losses under shifts: see `benchmarks.shifts`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from benchmarks import shifts
from ppl_jax import losses


def _over_sigmas(name, classes, **annotated):
  """Returns a loss's fits at each sigma."""
  return [
    shifts.fit(name, shifts.Annotated(classes, s, **annotated))
    for s in shifts.SIGMAS
  ]


def _scores(rng, shape):
  """Shares that are neither 0 nor 1, so that their logits are finite."""
  z = 2 * rng.normal(size=shape)
  return special.expit(z) if shape[1] == 1 else special.softmax(z, axis=1)


@jax.jit
def _kl_gradient(p, z):
  """Of KL(p || sigmoid(z)) in z, by automatic differentiation."""

  def kl(z):
    q = jax.nn.sigmoid(z)
    return p * jnp.log(p / q) + (1 - p) * jnp.log((1 - p) / (1 - q))

  return jax.grad(kl)(z)


@jax.jit
def _pairs_gradient(f_K, s_K):
  def loss(f_K):
    valid_K = jnp.ones(f_K.shape, bool)
    return losses.pairwise(f_K, s_K, valid_K, alpha=0.0, targets="soft")[0]

  return jax.grad(loss)(f_K)


@jax.jit
def _swapped_gradient(f_KxC, s_KxC):
  def loss(f_KxC):
    valid_K = jnp.ones(len(f_KxC), bool)
    return losses.swapped_pairs(f_KxC, s_KxC, valid_K)[0]

  return jax.grad(loss)(f_KxC)


def _pair_sums(f_K, s_K, p_KxK):
  """The gradient of sum over i < j of w_ij KL(p_ij || sigmoid(f_i - f_j))."""
  gradient = np.zeros(len(f_K))
  for i, j in itertools.combinations(range(len(f_K)), 2):
    w = s_K[i] * (1 - s_K[j]) + s_K[j] * (1 - s_K[i])
    slope = w * float(_kl_gradient(p_KxK[i, j], f_K[i] - f_K[j]))
    gradient[i] += slope
    gradient[j] -= slope
  return gradient


def _swapped_sums(f, s, p, w):
  """The same over i < j and c < c', with given p and w [K, K, C, C]."""
  gradient = np.zeros(f.shape)
  for i, j in itertools.combinations(range(len(f)), 2):
    for c, d in itertools.combinations(range(f.shape[1]), 2):
      z = f[i, c] - f[i, d] - f[j, c] + f[j, d]
      slope = w[i, j, c, d] * float(_kl_gradient(p[i, j, c, d], z))
      gradient[i, c] += slope
      gradient[i, d] -= slope
      gradient[j, c] -= slope
      gradient[j, d] += slope
  return gradient


def _swapped_weights(s):
  """w and p [K, K, C, C]: that i, j have c, c', either way; and this way."""
  one = s[:, None, :, None] * s[None, :, None, :]
  w = one + one.swapaxes(2, 3)
  return w, one / w


class GradientTest(parameterized.TestCase):
  @settings(max_examples=20, deadline=None, derandomize=True)
  @given(seed=st.integers(0, 10_000), utterances=st.sampled_from((2, 5)))
  def test_soft_pairs_are_a_kl_to_the_difference_of_logits(
    self, seed, utterances
  ):
    rng = np.random.default_rng(seed)
    s_K = _scores(rng, (utterances, 1))[:, 0]
    f_K = 2 * rng.normal(size=utterances)
    one = s_K[:, None] * (1 - s_K)
    p_KxK = one / (one + one.T)
    logits_K = special.logit(s_K)
    np.testing.assert_allclose(
      p_KxK, special.expit(logits_K[:, None] - logits_K), rtol=1e-9
    )
    np.testing.assert_allclose(
      _pairs_gradient(jnp.float32(f_K), jnp.float32(s_K)),
      _pair_sums(f_K, s_K, p_KxK),
      atol=2e-6,
    )

  @settings(max_examples=20, deadline=None, derandomize=True)
  @given(seed=st.integers(0, 10_000), shift=st.floats(-3, 3))
  def test_a_shift_of_a_dialogue_moves_weights_of_soft_pairs_alone(
    self, seed, shift
  ):
    rng = np.random.default_rng(seed)
    s_K = _scores(rng, (5, 1))[:, 0]
    logits_K, f_K = special.logit(s_K), 2 * rng.normal(size=5)
    p_KxK = special.expit(logits_K[:, None] - logits_K)
    shifted_K = special.expit(logits_K + shift)
    ours = _pairs_gradient(jnp.float32(f_K), jnp.float32(shifted_K))
    # The targets p are those of before.
    np.testing.assert_allclose(
      ours, _pair_sums(f_K, shifted_K, p_KxK), atol=2e-6
    )
    # And so the same logits, but for a constant, are best.
    constant = 3 * rng.normal()
    for s in (s_K, shifted_K):
      at_best = _pairs_gradient(
        jnp.float32(logits_K + constant), jnp.float32(s)
      )
      np.testing.assert_allclose(at_best, np.zeros(5), atol=2e-6)
    # One that is not the same for all utterances does not cancel.
    other_K = special.expit(logits_K + shift * (np.arange(5) == 0))
    if abs(shift) > 0.1:
      moved = _pairs_gradient(jnp.float32(logits_K), jnp.float32(other_K))
      self.assertGreater(np.abs(moved).max(), 1e-4)

  @settings(max_examples=15, deadline=None, derandomize=True)
  @given(seed=st.integers(0, 10_000), classes=st.sampled_from((2, 3)))
  def test_swapped_pairs_vanish_at_log_scores_and_any_constants(
    self, seed, classes
  ):
    rng = np.random.default_rng(seed)
    s = _scores(rng, (4, classes))
    utterances, dialogue = rng.normal(size=(4, 1)), rng.normal(size=classes)
    best = np.log(s) + 3 * utterances + 3 * dialogue
    gradient = _swapped_gradient(jnp.float32(best), jnp.float32(s))
    np.testing.assert_allclose(gradient, np.zeros(s.shape), atol=3e-6)

  @settings(max_examples=10, deadline=None, derandomize=True)
  @given(seed=st.integers(0, 10_000), classes=st.sampled_from((2, 3)))
  def test_a_shift_of_a_dialogue_moves_weights_of_swapped_pairs_alone(
    self, seed, classes
  ):
    rng = np.random.default_rng(seed)
    s = _scores(rng, (4, classes))
    f, b = 2 * rng.normal(size=s.shape), 2 * rng.normal(size=classes)
    w, p = _swapped_weights(s)
    log_s = np.log(s)
    odds = log_s[:, None, :, None] - log_s[:, None, None, :]
    np.testing.assert_allclose(
      p, special.expit(odds - odds.swapaxes(0, 1)), rtol=1e-9
    )
    shifted = special.softmax(log_s + b, axis=1)
    shifted_w, shifted_p = _swapped_weights(shifted)
    np.testing.assert_allclose(shifted_p, p, rtol=1e-9)
    # What is left of the shift: a factor e^(b_c + b_c') / (Z_i Z_j).
    z = (s * np.exp(b)).sum(axis=1)
    factor = np.exp(b[:, None] + b) / (z[:, None] * z)[:, :, None, None]
    np.testing.assert_allclose(shifted_w, w * factor, rtol=1e-9)
    for scores, weights in ((s, w), (shifted, shifted_w)):
      np.testing.assert_allclose(
        _swapped_gradient(jnp.float32(f), jnp.float32(scores)),
        _swapped_sums(f, scores, p, weights),
        atol=5e-6,
      )

  def test_a_shift_of_a_dialogue_moves_the_best_of_a_softmax(self):
    s = _scores(np.random.default_rng(0), (5, 3))
    shifted = special.softmax(np.log(s) + np.array([1.0, 0.0, -1.0]), axis=1)

    def loss(f, s):
      return losses.softmax_shares(f, s, jnp.ones(5, bool))[0]

    gradient = jax.jit(jax.grad(loss))
    best = jnp.float32(np.log(s))
    self.assertLess(np.abs(gradient(best, jnp.float32(s))).max(), 1e-6)
    moved = gradient(best, jnp.float32(shifted))
    self.assertGreater(np.abs(moved).max(), 0.1)


class RecoveryTest(parameterized.TestCase):
  """Of W from exact shares, unless a test says how many votes there are."""

  @parameterized.parameters(("pairs", 1), ("swapped pairs", 3))
  def test_pairs_recover_the_truth_whatever_the_shift(self, name, classes):
    for sigma, fit in zip(
      shifts.SIGMAS, _over_sigmas(name, classes), strict=True
    ):
      self.assertLess(fit.error, 2e-3, f"sigma {sigma:g}")

  @parameterized.parameters(("pairs", 1), ("swapped pairs", 3))
  def test_pairs_recover_it_from_votes(self, name, classes):
    fits = _over_sigmas(name, classes, votes=20)
    self.assertLess(fits[0].error, 0.04)
    # What grows is noise: with every vote alike, fewer pairs say something.
    for fit in fits[1:]:
      self.assertLess(fit.error, 3 * fits[0].error)
      self.assertBetween(fit.scale, 0.95, 1.05)

  @parameterized.product(
    term=(("one versus rest", 1), ("softmax", 3)), votes=(0, 20)
  )
  def test_terms_of_one_utterance_shrink_with_the_shift(self, term, votes):
    fits = _over_sigmas(*term, votes=votes, dialogues=1_000)
    self.assertLess(fits[0].error, 0.04 if votes else 2e-3)
    for fit, least in zip(fits[1:], (0.1, 0.3, 0.55), strict=True):
      self.assertGreater(fit.error, least)
      self.assertLess(fit.scale, 1 - least)
      # Nearly all of the error: a shift that has nothing to do with x.
      self.assertLess(fit.direction, 0.15)

  def test_one_versus_rest_shrinks_as_a_marginal_model_does(self):
    # Zeger, Liang and Albert 1988: a logistic regression that does not know
    # of a normal effect of its group has 1 / sqrt(1 + (c sigma)^2) of W.
    c = 16 * np.sqrt(3) / (15 * np.pi)
    fits = _over_sigmas("one versus rest", 1, dialogues=1_000)
    for sigma, fit in zip(shifts.SIGMAS, fits, strict=True):
      expected = 1 / np.sqrt(1 + (c * sigma) ** 2)
      self.assertAlmostEqual(fit.scale, expected, delta=0.06)

  @parameterized.parameters(1, 3)
  def test_hard_pairs_have_no_scale(self, classes):
    for fit in _over_sigmas("hard pairs", classes):
      self.assertGreater(fit.scale, 3)
    # But the order is right, if classes are decided one by one.
    if classes == 1:
      for fit in _over_sigmas("hard pairs", classes):
        self.assertLess(fit.direction, 0.1)

  def test_plurality_has_the_scale_of_the_shift(self):
    # Labels without noise know no scale, and noisy ones that of their noise.
    scales = [fit.scale for fit in _over_sigmas("plurality", 3)]
    self.assertGreater(scales[0], 10)
    self.assertBetween(scales[1], 1.15, 2)
    self.assertBetween(scales[2], 0.4, 0.85)
    self.assertBetween(scales[3], 0.1, 0.5)

  @parameterized.parameters(
    ("pairs", (0.3, 0.6)),  # the same at any shift, and never right
    ("one versus rest", (0.1, 0.7)),
  )
  def test_sigmoids_do_not_recover_a_softmax(self, name, between):
    for fit in _over_sigmas(name, 3):
      self.assertBetween(fit.error, *between)
    self.assertGreater(_over_sigmas(name, 3)[0].error, 0.3)

  @parameterized.parameters(
    ("pairs", "one versus rest", 1), ("swapped pairs", "softmax", 3)
  )
  def test_a_term_of_one_utterance_brings_part_of_the_error_back(
    self, pairs, single, classes
  ):
    fits = _over_sigmas(f"{pairs} + {single}", classes)
    alone = _over_sigmas(single, classes)
    self.assertLess(fits[0].error, 2e-3)
    for fit, other in zip(fits[1:], alone[1:], strict=True):
      self.assertBetween(fit.error / other.error, 0.3, 0.75)

  @parameterized.parameters(
    ("pairs", "one versus rest", 1), ("swapped pairs", "softmax", 3)
  )
  def test_a_shift_that_goes_with_the_topic_turns_the_others(
    self, pairs, single, classes
  ):
    annotated = shifts.Annotated(classes, topic=1.0)
    self.assertLess(shifts.fit(pairs, annotated).error, 2e-3)
    self.assertGreater(shifts.fit(single, annotated).direction, 0.15)


class CounterexampleTest(parameterized.TestCase):
  """Without a shift, pairs throw away what dialogues differ by."""

  @parameterized.product(
    terms=(("pairs", "one versus rest", 1), ("swapped pairs", "softmax", 3)),
    votes=(1, 2),
  )
  def test_few_utterances_and_votes(self, terms, votes):
    pairs, single, classes = terms
    annotated = [
      shifts.Annotated(
        classes, dialogues=150, utterances=2, votes=votes, seed=100 + seed
      )
      for seed in range(16)
    ]
    of_pairs, of_single = (
      np.array([shifts.fit(name, a).error for a in annotated])
      for name in (pairs, single)
    )
    self.assertLess(of_single.mean(), 0.85 * of_pairs.mean())
    more = of_pairs - of_single
    self.assertGreater(more.mean(), 2 * more.std() / np.sqrt(len(more)))


if __name__ == "__main__":
  absltest.main()
