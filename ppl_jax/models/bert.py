"""BERT encoder in Flax NNX, numerically that of Hugging Face's `BertModel`.

Shape letters: N segments, T tokens, M tokens of all segments without padding, Q
tokens that ask, H hidden size, A heads, E head size, F feed-forward size.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

# What `from_hf` insists on: key, accepted value, value when the key is absent.
_FIXED = (
  ("model_type", "bert", "bert"),
  ("hidden_act", "gelu", "gelu"),
  ("position_embedding_type", "absolute", "absolute"),
  ("is_decoder", False, False),
  ("add_cross_attention", False, False),
)


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes of the encoder, named as in a Hugging Face `config.json`."""

  vocab_size: int
  hidden_size: int
  num_hidden_layers: int
  num_attention_heads: int
  intermediate_size: int
  max_position_embeddings: int
  type_vocab_size: int = 2
  layer_norm_eps: float = 1e-12
  pad_token_id: int = 0
  initializer_range: float = 0.02

  def __post_init__(self):
    if self.hidden_size % self.num_attention_heads:
      raise ValueError(
        "hidden_size must be a multiple of num_attention_heads, got "
        f"{self.hidden_size} and {self.num_attention_heads}; change either."
      )
    if self.type_vocab_size < 2:
      raise ValueError(
        "type_vocab_size must be at least 2 (context and last utterance), got "
        f"{self.type_vocab_size}; use an encoder with two token types."
      )

  @classmethod
  def from_hf(cls, config: Mapping[str, Any]) -> "BertConfig":
    """Reads the contents of a Hugging Face `config.json`.

    Args:
      config: the parsed JSON object; keys that only concern training or other
        heads are ignored.

    Raises:
      ValueError: a size is missing, or the config asks for something this
        encoder does not compute (another activation, relative positions, a
        decoder, another architecture).
    """
    for key, accepted, default in _FIXED:
      if config.get(key, default) != accepted:
        raise ValueError(
          f"The encoder's config.json must have {key} = {accepted!r}, got "
          f"{config[key]!r}; choose a plain BERT encoder."
        )
    fields = dataclasses.fields(cls)
    missing = [
      field.name
      for field in fields
      if field.default is dataclasses.MISSING and field.name not in config
    ]
    if missing:
      raise ValueError(
        f"The encoder's config.json must give every size, got none for "
        f"{', '.join(missing)}; add them."
      )
    return cls(
      **{
        field.name: config[field.name]
        for field in fields
        if config.get(field.name) is not None
      }
    )

  def to_hf(self) -> dict[str, Any]:
    """Returns the `config.json` object that `from_hf` reads back."""
    return dataclasses.asdict(self) | {
      key: accepted for key, accepted, _ in _FIXED
    }


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


def _dropout_at(x: Array, rate: float, key: Array | None, site: int) -> Array:
  """Dropout with the key of one place in the model; none without a key."""
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


class Dense(nnx.Module):
  """Linear map whose weight lies [out, in], as in a Hugging Face checkpoint.

  nnx.Linear's [in, out] makes XLA transpose the weight's gradient, and flat
  rows let it call its fastest product: a training step on a CPU takes an eighth
  less time.
  """

  def __init__(
    self,
    size_in: int,
    size_out: int,
    *,
    dtype: DTypeLike,
    weight_init: nnx.Initializer,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype
    self.weight = nnx.Param(
      weight_init(rngs.params(), (size_out, size_in), jnp.float32)
    )
    self.bias = nnx.Param(jnp.zeros(size_out, jnp.float32))

  def __call__(self, x: Array) -> Array:
    """Maps [..., in] to [..., out] in the compute dtype."""
    weight, bias = (p[...].astype(self.dtype) for p in (self.weight, self.bias))
    flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
    y = jax.lax.dot_general(flat, weight, (((1,), (1,)), ((), ())))
    return (y + bias[None]).reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
  """`layer_norm` with parameters; returns the compute dtype."""

  def __init__(self, size: int, *, epsilon: float, dtype: DTypeLike):
    self.epsilon, self.dtype = epsilon, dtype
    self.scale = nnx.Param(jnp.ones(size, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(size, jnp.float32))

  def __call__(self, x: Array) -> Array:
    """Normalises [..., H]."""
    y = layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
    return y.astype(self.dtype)


class _Factory:
  """Makes submodules with one initialiser, parameter dtype and epsilon."""

  def __init__(self, config: BertConfig, dtype: DTypeLike, rngs: nnx.Rngs):
    self._config, self._dtype, self._rngs = config, dtype, rngs
    self._init = nnx.initializers.normal(config.initializer_range)

  def dense(self, size_in: int, size_out: int) -> Dense:
    return Dense(
      size_in,
      size_out,
      dtype=self._dtype,
      weight_init=self._init,
      rngs=self._rngs,
    )

  def embed(self, entries: int) -> nnx.Embed:
    # In float32 whatever the compute dtype: the gradient of a frequent word
    # adds up thousands of rows.
    return nnx.Embed(
      entries,
      self._config.hidden_size,
      dtype=jnp.float32,
      param_dtype=jnp.float32,
      embedding_init=self._init,
      rngs=self._rngs,
    )

  def norm(self) -> LayerNorm:
    return LayerNorm(
      self._config.hidden_size,
      epsilon=self._config.layer_norm_eps,
      dtype=self._dtype,
    )


class Embeddings(nnx.Module):
  """Sum of word, position and token type embeddings, normalised."""

  def __init__(self, config: BertConfig, make: _Factory):
    self.word = make.embed(config.vocab_size)
    self.position = make.embed(config.max_position_embeddings)
    self.token_type = make.embed(config.type_vocab_size)
    self.norm = make.norm()

  def __call__(
    self, tokens: Array, position: Array, in_context: Array
  ) -> Array:
    """Returns [..., H] of tokens, their places, and whether of type 0."""
    x = self.word(tokens) + self.position(position)
    of_type = (
      jnp.broadcast_to(type_n, x.shape)
      for type_n in self.token_type(jnp.arange(2))
    )
    x += jnp.where(in_context[..., None], *of_type)
    return self.norm(x)


class Layer(nnx.Module):
  """Self-attention and feed-forward, each added and then normalised."""

  def __init__(self, config: BertConfig, make: _Factory):
    hidden = config.hidden_size
    self.heads = config.num_attention_heads
    self.query = make.dense(hidden, hidden)
    self.key = make.dense(hidden, hidden)
    self.value = make.dense(hidden, hidden)
    self.attention_output = make.dense(hidden, hidden)
    self.attention_norm = make.norm()
    self.intermediate = make.dense(hidden, config.intermediate_size)
    self.output = make.dense(config.intermediate_size, hidden)
    self.output_norm = make.norm()

  def attention(self, x: Array, rows: "_Rows", first_only: bool) -> Array:
    """Returns what the tokens of x, or the first of each row, attend to."""

    def heads(y):
      return y.reshape(*y.shape[:-1], self.heads, -1)

    query = self.query(rows.first(x)) if first_only else rows(self.query(x))
    y_NxQxAxE = attention(
      heads(query),
      heads(rows(self.key(x))),
      heads(rows(self.value(x))),
      rows.length_N,
    )
    y_NxQxH = y_NxQxAxE.reshape(query.shape)
    return self.attention_output(y_NxQxH if first_only else rows.undo(y_NxQxH))

  def __call__(
    self, x, rows: "_Rows", drop_attention, drop_output, first_only=False
  ) -> Array:
    """Returns hidden states of all tokens, or [N, 1, H] of the first ones.

    The two functions apply dropout at their place.
    """
    y = drop_attention(self.attention(x, rows, first_only))
    x = self.attention_norm((rows.first(x) if first_only else x) + y)
    y = drop_output(self.output(gelu(self.intermediate(x))))
    return self.output_norm(x + y)


class _Rows:
  """Hidden states [N, T, H]: segments in rows, as attention wants them."""

  def __init__(self, shape_NxT: tuple[int, int], length_N: Array):
    self.shape, self.length_N = shape_NxT, length_N

  @property
  def position(self) -> Array:
    """Places in the row, of a shape to broadcast."""
    return jnp.arange(self.shape[1])[None]

  def tokens(self, of_NxT: Array) -> Array:
    """Returns values of all tokens, laid out as hidden states are."""
    return of_NxT

  def __call__(self, x: Array) -> Array:
    """From hidden states to rows [N, T, H]."""
    return x

  def undo(self, x_NxTxH: Array) -> Array:
    """From rows to hidden states."""
    return x_NxTxH

  def first(self, x: Array) -> Array:
    """From hidden states to the first of each row, [N, 1, H]."""
    return x[:, :1]


class _Packed(_Rows):
  """Hidden states [M, H]: only tokens that have a place.

  Args:
    shape_NxT: of the rows.
    length_N: their tokens.
    place_M: int32, each token's place in the flattened rows, -1 = none.
  """

  def __init__(self, shape_NxT, length_N, place_M):
    super().__init__(shape_NxT, length_N)
    N, T = shape_NxT
    slots = jnp.full(N * T, -1, jnp.int32)
    numbers = jnp.arange(len(place_M), dtype=jnp.int32)
    self._place_M = place_M
    # A place of -1 would be the last one's.
    where = jnp.where(place_M < 0, N * T, place_M)
    self._slot_NT = slots.at[where].set(numbers, mode="drop")

  @property
  def position(self):
    return jnp.maximum(self._place_M, 0) % self.shape[1]

  def tokens(self, of_NxT):
    return jnp.asarray(of_NxT).reshape(-1)[jnp.maximum(self._place_M, 0)]

  def __call__(self, x):
    rows = _move(x, self._slot_NT, self._place_M)
    return rows.reshape(*self.shape, -1)

  def undo(self, x_NxTxH):
    flat = x_NxTxH.reshape(-1, x_NxTxH.shape[-1])
    return _move(flat, self._place_M, self._slot_NT)

  def first(self, x):
    N, T = self.shape
    return x[self._slot_NT.reshape(N, T)[:, :1]]


@jax.custom_vjp
def _move(x: Array, source: Array, back: Array) -> Array:
  """Moves rows: y[i] = x[source[i]], 0 where source[i] is -1.

  Its gradient moves them back, with `back[source[i]] = i`; that of an
  indexing would add rows up, one after another.
  """
  del back
  rows = x.at[source].get(mode="clip", wrap_negative_indices=False)
  return jnp.where(source[:, None] >= 0, rows, 0)


def _move_forward(x, source, back):
  return _move(x, source, back), (source, back)


def _move_backward(sources, gradient):
  source, back = sources
  return _move(gradient, back, source), None, None


_move.defvjp(_move_forward, _move_backward)


class Bert(nnx.Module):
  """The encoder with its pooler.

  Dropout acts on hidden states only (embeddings, attention output, feed-forward
  output); attention probabilities have none. Holds nothing but `nnx.Param`s.

  Args:
    config: sizes.
    dropout: share of hidden entries dropped when a key is given; see `dropout`
      for its quantisation.
    dtype: compute dtype, float32 or bfloat16. Parameters are float32.
    rngs: source of the initial parameters; not kept.

  Attributes:
    remat: compute a layer anew for its gradient instead of keeping what it
      computed: less memory, a third more time. False unless it is set.
  """

  def __init__(
    self,
    config: BertConfig,
    *,
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    if not 0 <= dropout < 1:
      raise ValueError(f"dropout must be in [0, 1), got {dropout}; lower it.")
    make = _Factory(config, dtype, rngs)
    self.config = config
    self.dropout = dropout
    self.remat = False
    self.embeddings = Embeddings(config, make)
    self.layers = nnx.List(
      [Layer(config, make) for _ in range(config.num_hidden_layers)]
    )
    self.pooler = make.dense(config.hidden_size, config.hidden_size)

  def __call__(
    self,
    tokens_NxT: Array,
    length_N: Array,
    context_length_N: Array,
    *,
    place_M: Array | None = None,
    dropout_key: Array | None = None,
    pooled_only: bool = False,
  ) -> tuple[Array, Array]:
    """Encodes segments.

    Args:
      tokens_NxT: int32 token ids; what lies beyond `length_N` is never attended
        to.
      length_N: int32 number of tokens. A row of length 0 (padding) gives finite
        values without meaning.
      context_length_N: int32 number of leading tokens of type 0; the rest have
        type 1.
      place_M: int32, where the tokens of all segments lie in the flattened
        rows, -1 = none. All but attention is then computed for these
        alone, and not for padding. None: for all N x T.
      dropout_key: JAX PRNG key of this call, or S of them, each for N / S rows
        (M / S places); None turns dropout off.
      pooled_only: have the last layer compute the token that is pooled and no
        other, which saves five sixths of its arithmetic.

    Returns:
      Hidden states of the last layer, [N, T, H] (0 for what is not in place_M)
      or with `pooled_only` [N, 1, H], and the pooled [N, H], in the compute
      dtype.

    Raises:
      ValueError: T exceeds the position table.
    """
    T = tokens_NxT.shape[1]
    if self.config.max_position_embeddings < T:
      raise ValueError(
        "Segments must fit the encoder's position table of "
        f"{self.config.max_position_embeddings}, got {T} tokens; lower the "
        "maximum length."
      )

    def drop_at(site):
      return lambda x: _dropout_at(x, self.dropout, dropout_key, site)

    # A row must attend to something, or fused kernels return NaN for it.
    length_N = jnp.maximum(length_N, 1)
    if place_M is None:
      rows = _Rows(tokens_NxT.shape, length_N)
    else:
      rows = _Packed(tokens_NxT.shape, length_N, place_M)
    in_context_NxT = jnp.arange(T)[None] < context_length_N[:, None]
    x = self.embeddings(
      rows.tokens(tokens_NxT), rows.position, rows.tokens(in_context_NxT)
    )
    x = drop_at(0)(x)
    for i, layer in enumerate(self.layers):
      run = functools.partial(
        layer,
        rows=rows,
        drop_attention=drop_at(2 * i + 1),
        drop_output=drop_at(2 * i + 2),
        first_only=pooled_only and i == len(self.layers) - 1,
      )
      x = (jax.checkpoint(run) if self.remat else run)(x)
    hidden_NxTxH = x if pooled_only else rows(x)
    return hidden_NxTxH, jnp.tanh(self.pooler(hidden_NxTxH[:, 0]))
