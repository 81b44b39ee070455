"""BERT encoder in Flax NNX, numerically that of Hugging Face's `BertModel`.

Shape letters: N segments, T tokens, M tokens of all segments without padding, Q
tokens that ask, H hidden size, A heads, E head size, F feed-forward size.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ppl_jax.models import functional

# How the hidden states of a segment become one vector: BERT's own pooler (tanh
# of a map of [CLS]), [CLS] as it is, or the mean over the last utterance.
POOLINGS = ("pooler", "cls", "mean")

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
  """Sizes of the encoder, named as in a Hugging Face `config.json`.

  `pooling`, one of `POOLINGS`, is ours; a config without it means 'pooler'.
  """

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
  pooling: str = "pooler"

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
    if self.pooling not in POOLINGS:
      raise ValueError(
        f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}."
        " Choose one of them."
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
    values = dataclasses.asdict(self)
    if self.pooling == "pooler":  # as every BERT does
      del values["pooling"]
    return values | {key: accepted for key, accepted, _ in _FIXED}


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
    weight = self.weight[...].astype(self.dtype)
    flat = x.astype(self.dtype).reshape(-1, x.shape[-1])
    y = jax.lax.dot_general(flat, weight, (((1,), (1,)), ((), ())))
    y = functional.add_bias(y, self.bias[...])
    return y.reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
  """`functional.layer_norm` with parameters; returns the compute dtype."""

  def __init__(self, size: int, *, epsilon: float, dtype: DTypeLike):
    self.epsilon, self.dtype = epsilon, dtype
    self.scale = nnx.Param(jnp.ones(size, jnp.float32))
    self.bias = nnx.Param(jnp.zeros(size, jnp.float32))

  def __call__(self, x: Array) -> Array:
    """Normalises [..., H]."""
    y = functional.layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
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
    y_NxQxAxE = functional.attention(
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
    y = drop_output(self.output(functional.gelu(self.intermediate(x))))
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
  """The encoder, and how it pools; it has a pooler only if it pools by one.

  Dropout acts on hidden states only (embeddings, attention output, feed-forward
  output); attention probabilities have none. Holds nothing but `nnx.Param`s.

  Args:
    config: sizes.
    dropout: share of hidden entries dropped when a key is given; see
      `functional.dropout` for its quantisation.
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
    if config.pooling == "pooler":
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
      pooled_only: where [CLS] alone is pooled, have the last layer compute no
        other token, which saves five sixths of its arithmetic.

    Returns:
      Hidden states of the last layer, [N, T, H] (0 for what is not in place_M)
      or, where `pooled_only` saves the others, [N, 1, H]; and the pooled
      [N, H], in the compute dtype.

    Raises:
      ValueError: T exceeds the position table.
    """
    first_only = pooled_only and self.config.pooling != "mean"
    hidden = self._hidden(
      tokens_NxT, length_N, context_length_N, place_M, dropout_key, first_only
    )
    pooled_NxH = self._pool(
      self.config.pooling, hidden, length_N, context_length_N
    )
    return hidden, pooled_NxH

  def poolings(
    self, tokens_NxT: Array, length_N: Array, context_length_N: Array
  ) -> dict[str, Array]:
    """Returns what each pooling that can be had gives, [N, H] float32.

    The arguments are those of a call. An encoder without a pooler gives none of
    that name.
    """
    hidden = self._hidden(
      tokens_NxT, length_N, context_length_N, None, None, False
    )
    return {
      pooling: self._pool(pooling, hidden, length_N, context_length_N).astype(
        jnp.float32
      )
      for pooling in POOLINGS
      if pooling != "pooler" or self.config.pooling == "pooler"
    }

  def _pool(
    self, pooling: str, hidden_NxTxH, length_N, context_length_N
  ) -> Array:
    """Returns the pooled [N, H] in the compute dtype."""
    if pooling == "mean":
      position_T = jnp.arange(hidden_NxTxH.shape[1])
      counts_NxT = (position_T >= context_length_N[:, None]) & (
        position_T < length_N[:, None]
      )
      counts_NxT = counts_NxT.astype(jnp.float32)
      share_NxT = counts_NxT / jnp.maximum(
        counts_NxT.sum(axis=1, keepdims=True), 1.0
      )
      mean_NxH = jnp.einsum(
        "nt,nth->nh", share_NxT, hidden_NxTxH.astype(jnp.float32)
      )
      return mean_NxH.astype(hidden_NxTxH.dtype)
    first_NxH = hidden_NxTxH[:, 0]
    return first_NxH if pooling == "cls" else jnp.tanh(self.pooler(first_NxH))

  def _hidden(
    self,
    tokens_NxT,
    length_N,
    context_length_N,
    place_M,
    dropout_key,
    first_only,
  ) -> Array:
    """Returns hidden states [N, T, H], or [N, 1, H] of the first tokens."""
    T = tokens_NxT.shape[1]
    if self.config.max_position_embeddings < T:
      raise ValueError(
        "Segments must fit the encoder's position table of "
        f"{self.config.max_position_embeddings}, got {T} tokens; lower the "
        "maximum length."
      )

    def drop_at(site):
      return lambda x: functional.dropout_at(x, self.dropout, dropout_key, site)

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
        first_only=first_only and i == len(self.layers) - 1,
      )
      x = (jax.checkpoint(run) if self.remat else run)(x)
    return x if first_only else rows(x)
