"""The classifier against transformers' BertForSequenceClassification."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl.testing import absltest, parameterized
from flax import nnx

from ppl_jax.models import bert, heads, modeling_pooled_bert, pretrained

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


def _classifier(num_classes, dropout=0.0, dtype="float32", pooling="pooler"):
  config = dataclasses.replace(CONFIG, pooling=pooling)
  return pretrained.new_classifier(
    config, num_classes, dropout=dropout, dtype=dtype, seed=0
  )


def _theirs(pooling, num_classes, **values):
  """transformers' classifier, or ours for it."""
  values |= CONFIG.to_hf() | {"num_labels": num_classes}
  del values["model_type"]
  if pooling == "pooler":
    config = transformers.BertConfig(**values)
    return transformers.BertForSequenceClassification(config).eval()
  config = modeling_pooled_bert.PooledBertConfig(pooling=pooling, **values)
  kind = modeling_pooled_bert.PooledBertForSequenceClassification
  return kind(config).eval()


def _hf_inputs(tokens, length, context):
  position = np.arange(tokens.shape[1])
  return {
    "input_ids": torch.tensor(tokens).long(),
    "attention_mask": torch.tensor(position < length[:, None]).long(),
    "token_type_ids": torch.tensor(position >= context[:, None]).long(),
  }


class ClassifierTest(parameterized.TestCase):
  @parameterized.parameters(
    (1, "pooler"), (5, "pooler"), (5, "cls"), (5, "mean")
  )
  def test_is_transformers_classifier(self, num_classes, pooling):
    model = _classifier(num_classes, pooling=pooling)
    scorer = np.random.default_rng(1).normal(size=model.scorer.kernel.shape)
    model.scorer.kernel[...] = jnp.asarray(scorer, jnp.float32)
    model.scorer.bias[...] = jnp.arange(num_classes, dtype=jnp.float32)
    theirs = _theirs(pooling, num_classes)
    theirs.load_state_dict(
      {k: torch.tensor(v) for k, v in pretrained.hf_weights(model).items()}
    )
    segments = _segments()
    with torch.no_grad():
      want = theirs(**_hf_inputs(*segments)).logits.numpy()
    got = np.asarray(_call(model, *segments))
    self.assertEqual(got.shape, (3, num_classes))
    np.testing.assert_allclose(
      got, want, rtol=0, atol=2e-6 * np.abs(want).max()
    )

  @parameterized.parameters(
    ("single_label_classification", 3),
    ("multi_label_classification", 3),
    ("multi_label_classification", 1),
  )
  def test_pytorch_class_computes_losses_as_transformers(self, problem, count):
    """And takes what a Trainer gives: tuples, no mask, other dtypes."""
    labels = torch.tensor([0, 2, 1])
    if problem.startswith("multi"):
      labels = (labels[:, None] >= torch.arange(count)).float()
    inputs = _hf_inputs(*_segments())
    ours = _theirs("mean", count, problem_type=problem)
    theirs = _theirs("pooler", count, problem_type=problem)
    output = ours(**inputs, labels=labels)
    with torch.no_grad():  # logits become those of ours: the loss remains
      theirs.classifier = _Returns(output.logits)
      want = theirs(**inputs, labels=labels).loss
    torch.testing.assert_close(output.loss, want, rtol=0, atol=0)
    output.loss.backward()
    self.assertGreater(
      ours.bert.embeddings.word_embeddings.weight.grad.std(), 0
    )
    loss, logits = ours(**inputs, labels=labels, return_dict=False)
    torch.testing.assert_close((loss, logits), (output.loss, output.logits))
    del inputs["attention_mask"]
    half = ours.bfloat16()(**inputs).logits
    whole = ours.float()(**inputs).logits
    self.assertEqual(half.dtype, torch.bfloat16)
    torch.testing.assert_close(half.float(), whole, rtol=0, atol=0.02)

  def test_pytorch_class_refuses_what_it_cannot_pool(self):
    tokens = torch.tensor([[2, 9, 3]])
    with self.assertRaisesRegex(ValueError, "token_type_ids must be given"):
      _theirs("mean", 2)(tokens)
    self.assertEqual(_theirs("cls", 2)(tokens).logits.shape, (1, 2))
    with self.assertRaisesRegex(ValueError, "cls or mean, got 'pooler'"):
      config = modeling_pooled_bert.PooledBertConfig(pooling="pooler")
      modeling_pooled_bert.PooledBertForSequenceClassification(config)

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


class _Returns(torch.nn.Module):
  """A scorer that returns the same logits."""

  def __init__(self, logits):
    super().__init__()
    self._logits = logits

  def forward(self, _):
    return self._logits


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
