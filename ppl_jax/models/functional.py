"""What the encoder is made of, as functions: dropout, GELU, norm, attention.

Where JAX has one of its own, ours is the same function with a gradient or an
order of its own that takes less time or memory; how much is said there.

Shape letters: N segments, T tokens, Q tokens that ask, S keys, H hidden size, A
heads, E head size.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def dropout(x: Array, rate: float, key: Array) -> Array:
  """Zeroes entries of `x` at random and scales the rest, unbiased.

  Random words are the cost of dropout on a CPU, so each 32-bit word decides
  four neighbouring entries with a byte each. The keep probability is therefore
  a multiple of 1/256: k/256 with k = round(256 (1 - rate)), and kept entries
  are scaled by exactly 256/k. A rate of 0.1 drops 26/256 = 0.1016 of entries.

  The result depends on `key` and the shape of `x` alone: it is the same for
  every sharding, as `jax.random.bits` is. With S keys, that of a row depends
  on its own key alone.

  Args:
    x: [N, ..., H] floating, finite.
    rate: share of entries to drop, in [0, 1).
    key: a JAX PRNG key, or S of them, each for N / S rows.

  Returns:
    An array like `x`.
  """
  kept = round(256 * (1 - rate))
  if kept == 256:
    return x
  *leading, width = x.shape
  keys_S = key.reshape(-1)
  shape = (leading[0] // len(keys_S), *leading[1:], -(-width // 4))
  words = jax.vmap(lambda k: jax.random.bits(k, shape, jnp.uint32))(keys_S)
  draws = jax.lax.bitcast_convert_type(words, jnp.uint8)
  draws = draws.reshape(*leading, -1)[..., :width]
  scale = jnp.asarray(256 / kept, x.dtype)
  # One factor, so that a gradient takes one product and nothing else.
  return x * jnp.where(draws < kept, scale, jnp.zeros((), x.dtype))


def dropout_at(x: Array, rate: float, key: Array | None, site: int) -> Array:
  """`dropout` with the key of one place in the model; none without a key."""
  if key is None:
    return x
  return dropout(x, rate, fold_in(key, site))


def fold_in(key: Array, site: int) -> Array:
  """`jax.random.fold_in` for a key, or for each of S keys."""
  fold = jax.random.fold_in
  return (
    fold(key, site) if key.ndim == 0 else jax.vmap(fold, (0, None))(key, site)
  )


@jax.custom_vjp
def add_bias(x: Array, bias_H: Array) -> Array:
  """Adds a float32 bias to [N, H] of any dtype, whose dtype the sum has.

  The bias's gradient is summed in float32: of bfloat16, one over many tokens
  would lose 3 to 6 % (a model of three layers on a CPU).
  """
  return x + bias_H.astype(x.dtype)[None]


def _add_bias_forward(x, bias_H):
  return add_bias(x, bias_H), None


def _add_bias_backward(_, gradient):
  return gradient, gradient.astype(jnp.float32).sum(0)


add_bias.defvjp(_add_bias_forward, _add_bias_backward)


@jax.custom_vjp
def gelu(x: Array) -> Array:
  """Exact GELU by erf, computed in float32 and returned in the dtype of `x`.

  Half the time of the erfc in jax.nn.gelu on a CPU. Its gradient keeps `x` and
  nothing else.
  """
  x_f32 = x.astype(jnp.float32)
  return (x_f32 * _normal_cdf(x_f32)).astype(x.dtype)


def _normal_cdf(x: Array) -> Array:
  return 0.5 * (1 + jax.lax.erf(x * math.sqrt(0.5)))


def _gelu_forward(x):
  return gelu(x), x


def _gelu_backward(x, gradient):
  x_f32 = x.astype(jnp.float32)
  density = jnp.exp(-0.5 * jnp.square(x_f32)) / math.sqrt(2 * math.pi)
  slope = _normal_cdf(x_f32) + x_f32 * density
  return ((gradient.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
  x: Array, scale_H: Array, bias_H: Array, epsilon: float
) -> Array:
  """Normalises over the last axis in float32, as `torch.nn.LayerNorm` does.

  Its gradient keeps `x`, and two numbers a token. Left to itself, XLA computes
  these anew on a GPU, in one kernel after another.

  Args:
    x: [..., H] floating.
    scale_H: float32.
    bias_H: float32.
    epsilon: added to the variance.

  Returns:
    An array like `x`.
  """
  return _scaled(x, *_moments(x, epsilon), scale_H, bias_H)


def _scaled(x, mean, inverse, scale_H, bias_H) -> Array:
  y = _standard(x, mean, inverse)
  return (y * _along(scale_H, x) + _along(bias_H, x)).astype(x.dtype)


def _standard(x, mean, inverse) -> Array:
  """Returns x of mean 0 and deviation 1, float32."""
  return (x.astype(jnp.float32) - mean) * inverse


def _along(values_H: Array, x: Array) -> Array:
  """Returns [1, ..., H], of the rank of x."""
  return values_H.reshape(*[1] * (x.ndim - 1), -1)


def _moments(x: Array, epsilon: float) -> tuple[Array, Array]:
  """Returns the mean of x and the inverse of its deviation, float32."""
  x = x.astype(jnp.float32)
  mean = x.mean(-1, keepdims=True)
  # Not the mean square less the squared mean: it rounds twice as far.
  variance = jnp.square(x - mean).mean(-1, keepdims=True)
  return mean, jax.lax.rsqrt(variance + epsilon)


def _layer_norm_forward(x, scale_H, bias_H, epsilon):
  moments = jax.lax.optimization_barrier(_moments(x, epsilon))
  return _scaled(x, *moments, scale_H, bias_H), (x, *moments, scale_H)


def _layer_norm_backward(epsilon, kept, gradient):
  del epsilon
  x, mean, inverse, scale_H = kept
  y = _standard(x, mean, inverse)
  gradient = gradient.astype(jnp.float32)
  of_y = gradient * _along(scale_H, x)
  of_x = of_y - of_y.mean(-1, keepdims=True)
  of_x -= y * (of_y * y).mean(-1, keepdims=True)
  tokens = range(x.ndim - 1)
  of_scale_H, of_bias_H = (gradient * y).sum(tokens), gradient.sum(tokens)
  return (inverse * of_x).astype(x.dtype), of_scale_H, of_bias_H


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def attention(
  query_NxQxAxE: Array,
  key_NxQxAxE: Array,
  value_NxTxAxE: Array,
  length_N: Array,
) -> Array:
  """Scaled dot-product attention to the first `length_N` tokens of a row.

  Runs cuDNN's fused kernel for bfloat16 on NVIDIA GPUs. Elsewhere the softmax
  is in float32 and divides after the product with the values, which on a CPU
  takes three quarters of the time of jax.nn.dot_product_attention.

  Args:
    query_NxQxAxE: A heads of size E, as keys and values, in one dtype.
    key_NxQxAxE: see above.
    value_NxTxAxE: see above.
    length_N: int32, at least 1.

  Returns:
    [N, Q, A, E] in the dtype of the arguments.
  """
  E, dtype = query_NxQxAxE.shape[-1], query_NxQxAxE.dtype
  if query_NxQxAxE.shape[1] > 1 and _has_cudnn_attention(dtype, E):
    return jax.nn.dot_product_attention(
      query_NxQxAxE,
      key_NxQxAxE,
      value_NxTxAxE,
      key_value_seq_lengths=length_N,
      implementation="cudnn",
    )
  logits_NxAxQxT = jnp.einsum(
    "ntae,nsae->nats", query_NxQxAxE * (1 / math.sqrt(E)), key_NxQxAxE
  ).astype(jnp.float32)
  position_T = jnp.arange(logits_NxAxQxT.shape[-1])
  mask_NxT = jnp.where(position_T[None, :] < length_N[:, None], 0.0, -1e30)
  logits_NxAxQxT += mask_NxT[:, None, None, :]
  top_NxAxQx1 = logits_NxAxQxT.max(-1, keepdims=True)
  weights_NxAxQxT = jnp.exp(logits_NxAxQxT - jax.lax.stop_gradient(top_NxAxQx1))
  total_NxAxQ = weights_NxAxQxT.sum(-1)
  y_NxAxQxE = jnp.einsum(
    "nats,nsae->nate", weights_NxAxQxT.astype(dtype), value_NxTxAxE
  )
  y_NxAxQxE /= total_NxAxQ[..., None].astype(dtype)
  return y_NxAxQxE.transpose(0, 2, 1, 3)


def _has_cudnn_attention(dtype: DTypeLike, head_size: int) -> bool:
  device = jax.devices()[0]
  return (
    device.platform == "gpu"
    and "cuda" in device.client.platform_version.lower()
    and float(device.compute_capability) >= 8
    and dtype == jnp.bfloat16
    and head_size <= 128
    and head_size % 8 == 0
  )
