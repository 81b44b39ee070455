"""Appendix F of arXiv 2503.05620: training on calibrated soft labels.

The student is linear-logistic, f(x) = w x + b; the expectation is over a
small population, written out in full.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_jax import calibration, losses

_COPIES = 4  # of each input, with labels and soft labels of their own


@jax.jit
def _expected_gradient(parameters, x, labels):
  def loss(parameters):
    w, b = parameters
    logits = (w * x + b)[:, None]
    rows = jnp.ones(x.shape, bool)
    return losses.mean(*losses.pointwise(logits, labels[:, None], rows))

  return jnp.stack(jax.grad(loss)(parameters))


class AppendixFTest(absltest.TestCase):
  @settings(max_examples=50, deadline=None, derandomize=True)
  @given(
    inputs=st.lists(
      st.tuples(
        st.floats(-3, 3, width=32),
        st.integers(0, _COPIES),
        st.floats(0, 1, width=32),
      ),
      min_size=3,
      max_size=3,
    ),
    w=st.floats(-3, 3, width=32),
    b=st.floats(-3, 3, width=32),
  )
  def test_labels_calibrated_given_the_input_give_its_gradient(
    self, inputs, w, b
  ):
    x, y, s = [], [], []
    for value, positives, spread in inputs:
      share = positives / _COPIES
      width = spread * min(share, 1 - share)
      x += [value] * _COPIES
      y += [1.0] * positives + [0.0] * (_COPIES - positives)
      s += [share - width, share + width] * (_COPIES // 2)
    x, y, s = (np.array(v, np.float32) for v in (x, y, s))
    parameters = (jnp.float32(w), jnp.float32(b))
    np.testing.assert_allclose(
      _expected_gradient(parameters, x, s),
      _expected_gradient(parameters, x, y),
      atol=1e-5,
    )

  def test_calibration_in_the_margin_is_not_enough(self):
    x = np.array([-1, 1], np.float32)
    y = np.array([0, 1], np.float32)
    s = np.array([0.5, 0.5], np.float32)
    self.assertEqual(calibration.vote_ece(s[:, None], y[:, None]), 0)
    zero = (jnp.float32(0), jnp.float32(0))
    # d/dw: mean of (sigmoid(0) - label) x
    np.testing.assert_allclose(
      _expected_gradient(zero, x, y),
      [((0.5 - 0) * -1 + (0.5 - 1) * 1) / 2, 0],
      atol=1e-7,
    )
    np.testing.assert_allclose(
      _expected_gradient(zero, x, s),
      [((0.5 - 0.5) * -1 + (0.5 - 0.5) * 1) / 2, 0],
      atol=1e-7,
    )


if __name__ == "__main__":
  absltest.main()
