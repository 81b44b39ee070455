"""The classifier against transformers' BertForSequenceClassification."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl.testing import absltest, parameterized
from flax import nnx

from ppl_jax.models import bert, heads, pretrained

CONFIG = bert.BertConfig(
  vocab_size=31,
  hidden_size=16,
  num_hidden_layers=1,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=12,
)
_call = jax.jit(lambda model, *a, **kw: model(*a, **kw))


def _segments():
  rng = np.random.default_rng(0)
  length = np.array([10, 4, 7], np.int32)
  context = np.array([5, 2, 4], np.int32)
  tokens = rng.integers(5, CONFIG.vocab_size, (3, 10)).astype(np.int32)
  return tokens, length, context


def _classifier(num_classes, dropout=0.0, dtype="float32"):
  return pretrained.new_classifier(
    CONFIG, num_classes, dropout=dropout, dtype=dtype, seed=0
  )


class ClassifierTest(parameterized.TestCase):
  @parameterized.parameters(1, 5)
  def test_is_transformers_classifier(self, num_classes):
    model = _classifier(num_classes)
    scorer = np.random.default_rng(1).normal(size=model.scorer.kernel.shape)
    model.scorer.kernel[...] = jnp.asarray(scorer, jnp.float32)
    model.scorer.bias[...] = jnp.arange(num_classes, dtype=jnp.float32)
    theirs = transformers.BertForSequenceClassification(
      transformers.BertConfig(**CONFIG.to_hf(), num_labels=num_classes)
    ).eval()
    theirs.load_state_dict(
      {k: torch.tensor(v) for k, v in pretrained.hf_weights(model).items()}
    )
    tokens, length, context = _segments()
    position = np.arange(tokens.shape[1])
    with torch.no_grad():
      want = theirs(
        input_ids=torch.tensor(tokens).long(),
        attention_mask=torch.tensor(position < length[:, None]).long(),
        token_type_ids=torch.tensor(position >= context[:, None]).long(),
      ).logits.numpy()
    got = np.asarray(_call(model, tokens, length, context))
    self.assertEqual(got.shape, (3, num_classes))
    np.testing.assert_allclose(
      got, want, rtol=0, atol=2e-6 * np.abs(want).max()
    )

  def test_logits_are_float32(self):
    logits = _call(_classifier(3, dtype="bfloat16"), *_segments())
    self.assertEqual(logits.dtype, jnp.float32)

  def test_drops_before_the_scorer_too(self):
    """With a silent encoder, what is left is dropout of the pooled vector."""
    model = _classifier(1, dropout=0.5)
    model.bert = _Constant(model.bert)
    model.scorer.kernel[...] = jnp.ones((CONFIG.hidden_size, 1))
    key = jax.random.key(0)
    logits = model(*_segments(), dropout_key=key)
    self.assertTrue((np.asarray(logits) % 2 == 0).all())  # kept ones count 2
    self.assertLess(float(logits.max()), 2 * CONFIG.hidden_size)
    self.assertGreater(float(jnp.ptp(logits)), 0)
    np.testing.assert_array_equal(model(*_segments()), np.full((3, 1), 16))


class _Constant(nnx.Module):
  """An encoder that returns ones."""

  def __init__(self, encoder: bert.Bert):
    self.config, self.dropout = encoder.config, encoder.dropout

  def __call__(self, tokens, *_, **__):
    return None, jnp.ones((len(tokens), self.config.hidden_size))


class InitialTest(absltest.TestCase):
  def test_constructor_draws_normal_weights(self):
    """What `new_classifier` draws with NumPy, the module draws by itself."""
    model = heads.Classifier(CONFIG, 2, rngs=nnx.Rngs(0))
    weight = np.asarray(model.bert.layers[0].intermediate.weight[...])
    self.assertBetween(weight.std(), 0.018, 0.022)
    np.testing.assert_array_equal(model.scorer.bias[...], np.zeros(2))


if __name__ == "__main__":
  absltest.main()
