"""Dropout's promises, and norms, GELU and attention against torch."""

import functools
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl.testing import absltest, parameterized

from ppl_jax.models import functional


class NormAndGeluTest(parameterized.TestCase):
  # Of bfloat16 values only the results are rounded, to 8 bits.
  @parameterized.parameters(("float32", 2e-6), ("bfloat16", 2e-3))
  def test_layer_norm_and_gradients_are_those_of_torch(self, dtype, tolerance):
    rng = np.random.default_rng(0)
    x, gradient = (rng.normal(1, 3, (2, 5, 24)) for _ in range(2))
    x[0, 0] *= 1e-3  # epsilon counts
    x, gradient = (np.asarray(jnp.asarray(v, dtype)) for v in (x, gradient))
    scale, bias = rng.normal(1, 0.5, (2, 24))
    norm = torch.nn.LayerNorm(24, 1e-6, dtype=torch.float64)
    norm.load_state_dict(
      {"weight": torch.tensor(scale), "bias": torch.tensor(bias)}
    )
    theirs = torch.tensor(x.astype(float), requires_grad=True)
    want = norm(theirs)
    want.backward(torch.tensor(gradient.astype(float)))

    @jax.jit
    def run(*arguments):
      call = functools.partial(functional.layer_norm, epsilon=1e-6)
      y, back = jax.vjp(lambda x, s, b: call(x, s, b), *arguments)
      return y, call(*arguments), *back(jnp.asarray(gradient))

    y, plain, *got = run(jnp.asarray(x), jnp.float32(scale), jnp.float32(bias))
    self.assertEqual((y.dtype, got[0].dtype), (dtype, dtype))
    expected = (want, want, theirs.grad, norm.weight.grad, norm.bias.grad)
    for ours, want in zip((y, plain, *got), expected, strict=True):
      want = want.detach().numpy()
      bound = 2e-6 if ours.dtype == jnp.float32 else tolerance
      np.testing.assert_allclose(
        np.asarray(ours, float),
        want,
        rtol=0,
        atol=bound * np.abs(want).max(),
      )

  def test_a_bias_has_a_gradient_summed_in_float32(self):
    gradient = jnp.full((4_000, 3), 1.0, jnp.bfloat16)
    gradient = gradient.at[:, 1].set(jnp.bfloat16(1.0078125))
    x = jnp.zeros((4_000, 3), jnp.bfloat16)

    @jax.jit
    def run(bias):
      y, back = jax.vjp(functional.add_bias, x, bias)
      return y, *back(gradient)

    bias = jnp.float32([1.0, 2.0, 3.0])
    y, of_x, of_bias = run(bias)
    self.assertEqual((y.dtype, of_x.dtype), (jnp.bfloat16, jnp.bfloat16))
    np.testing.assert_array_equal(y, jnp.broadcast_to(bias, y.shape))
    np.testing.assert_array_equal(of_x, gradient)
    np.testing.assert_allclose(of_bias, [4_000, 4_031.25, 4_000], rtol=1e-6)

  @parameterized.parameters(("float32", 1e-6), ("bfloat16", 4e-3))
  def test_gelu_has_the_gradient_of_torch(self, dtype, tolerance):
    x = jnp.linspace(-6, 6, 2001).astype(dtype)
    theirs = torch.tensor(np.asarray(x, float), requires_grad=True)
    torch.nn.functional.gelu(theirs).sum().backward()
    got = jax.jit(jax.grad(lambda x: functional.gelu(x).sum()))(x)
    self.assertEqual(got.dtype, dtype)
    np.testing.assert_allclose(
      np.asarray(got, float), theirs.grad.numpy(), rtol=0, atol=tolerance
    )

  def test_gelu_is_exact(self):
    x = np.linspace(-6, 6, 2001, dtype=np.float32)
    want = [v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()]
    np.testing.assert_allclose(functional.gelu(jnp.asarray(x)), want, atol=1e-6)


class AttentionTest(absltest.TestCase):
  def test_large_logits_stay_finite(self):
    q = jnp.full((1, 3, 1, 8), 1e3)
    v = jnp.arange(24.0).reshape(1, 3, 1, 8)
    y = functional.attention(q, q, v, jnp.array([2], jnp.int32))
    want = np.broadcast_to((v[:, :1] + v[:, 1:2]) / 2, v.shape)
    np.testing.assert_allclose(y, want, rtol=1e-6)


class DropoutTest(parameterized.TestCase):
  @parameterized.parameters(0.1, 0.5, 0.37)
  def test_rate_is_quantised_and_the_mean_kept(self, rate):
    x = jnp.ones((500, 402))
    y = np.asarray(functional.dropout(x, rate, jax.random.key(0)))
    kept = round(256 * (1 - rate)) / 256
    sigma = math.sqrt(kept * (1 - kept) / y.size)
    self.assertLess(abs((y != 0).mean() - kept), 5 * sigma)
    self.assertLess(abs(y.mean() - 1), 5 * sigma / kept)
    np.testing.assert_allclose(y[y != 0], 1 / kept, rtol=1e-6)

  def test_entries_are_independent(self):
    """Also the four that share a random word."""
    y = np.asarray(
      functional.dropout(jnp.ones((4000, 16)), 0.5, jax.random.key(1))
    )
    correlation = np.corrcoef((y != 0).T) - np.eye(16)
    self.assertLess(np.abs(correlation).max(), 5 / math.sqrt(4000))

  def test_depends_on_the_key_alone(self):
    x = jnp.ones((3, 5, 7))
    first, again, other = (
      np.asarray(functional.dropout(x, 0.5, jax.random.key(k)))
      for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertTrue((first != other).any())

  def test_rate_zero_is_off(self):
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(
      functional.dropout(x, 0.0, jax.random.key(0)), x
    )

  def test_same_on_any_number_of_devices(self):
    """Spread over four devices, a batch drops the same entries."""
    code = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from ppl_jax.models import functional
assert jax.device_count() == 4
mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
x = jnp.ones((8, 5, 24))
f = jax.jit(lambda x: functional.dropout(x, 0.5, jax.random.key(3)))
spread = f(jax.device_put(x, NamedSharding(mesh, P("data"))))
assert not spread.sharding.is_fully_replicated
np.testing.assert_array_equal(spread, f(x))
"""
    subprocess.run(
      [sys.executable, "-c", code],
      check=True,
      env=os.environ
      | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
    )


if __name__ == "__main__":
  absltest.main()
