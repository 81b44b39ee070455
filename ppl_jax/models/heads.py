"""Scorer on top of the encoder, as in `BertForSequenceClassification`."""

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from ppl_jax.models import bert, functional


class Classifier(nnx.Module):
  """Encoder, dropout on what it pools, linear scorer with C outputs.

  Args:
    config: sizes of the encoder.
    num_classes: C.
    dropout: rate in the encoder and before the scorer; see
      `functional.dropout`.
    dtype: compute dtype. The scorer computes in float32 whatever it is.
    rngs: source of the initial parameters; not kept.
  """

  def __init__(
    self,
    config: bert.BertConfig,
    num_classes: int,
    *,
    dropout: float = 0.0,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs,
  ):
    self.bert = bert.Bert(config, dropout=dropout, dtype=dtype, rngs=rngs)
    self.scorer = nnx.Linear(
      config.hidden_size,
      num_classes,
      dtype=jnp.float32,
      param_dtype=jnp.float32,
      kernel_init=nnx.initializers.normal(config.initializer_range),
      rngs=rngs,
    )

  def __call__(
    self,
    tokens_NxT: Array,
    length_N: Array,
    context_length_N: Array,
    *,
    place_M: Array | None = None,
    dropout_key: Array | None = None,
  ) -> Array:
    """Scores segments; arguments as of `bert.Bert`.

    Returns:
      logits [N, C] float32.
    """
    _, pooled_NxH = self.bert(
      tokens_NxT,
      length_N,
      context_length_N,
      place_M=place_M,
      dropout_key=dropout_key,
      pooled_only=True,
    )
    # The encoder folds in 0 ... 2 layers; the next number is ours.
    site = 2 * self.bert.config.num_hidden_layers + 1
    return self.scorer(
      functional.dropout_at(pooled_NxH, self.bert.dropout, dropout_key, site)
    )
