"""The encoder against transformers' BertModel, and where it drops."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from absl.testing import absltest, parameterized
from flax import nnx

from ppl_jax.models import bert, functional, pretrained

CONFIG = bert.BertConfig(
  vocab_size=53,
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=40,
  max_position_embeddings=20,
  layer_norm_eps=1e-5,
)

# The parameters of ours that torch holds under another name, by suffix.
_NAMES = {
  "embeddings.word.embedding": "embeddings.word_embeddings.weight",
  "embeddings.position.embedding": "embeddings.position_embeddings.weight",
  "embeddings.token_type.embedding": "embeddings.token_type_embeddings.weight",
  "embeddings.norm.scale": "embeddings.LayerNorm.weight",
  "embeddings.norm.bias": "embeddings.LayerNorm.bias",
  "pooler.weight": "pooler.dense.weight",
  "pooler.bias": "pooler.dense.bias",
}
for _i in range(CONFIG.num_hidden_layers):
  _ours, _theirs = f"layers.{_i}", f"encoder.layer.{_i}"
  for _a, _b in {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
  }.items():
    _NAMES[f"{_ours}.{_a}.weight"] = f"{_theirs}.{_b}.weight"
    _NAMES[f"{_ours}.{_a}.bias"] = f"{_theirs}.{_b}.bias"
  for _a, _b in {
    "attention_norm": "attention.output.LayerNorm",
    "output_norm": "output.LayerNorm",
  }.items():
    _NAMES[f"{_ours}.{_a}.scale"] = f"{_theirs}.{_b}.weight"
    _NAMES[f"{_ours}.{_a}.bias"] = f"{_theirs}.{_b}.bias"


def _torch_model() -> transformers.BertModel:
  torch.manual_seed(0)
  model = transformers.BertModel(transformers.BertConfig(**CONFIG.to_hf()))
  with torch.no_grad():
    for parameter in model.parameters():  # away from zeros and ones
      parameter.add_(0.3 * torch.randn_like(parameter))
  return model.eval()


def _names(pooling) -> dict[str, str]:
  """The names of an encoder that pools so."""
  return {
    ours: theirs
    for ours, theirs in _NAMES.items()
    if pooling == "pooler" or not ours.startswith("pooler.")
  }


def _copy(torch_model, dtype, pooling="pooler") -> bert.Bert:
  config = dataclasses.replace(CONFIG, pooling=pooling)
  model = nnx.eval_shape(
    lambda: bert.Bert(config, dtype=dtype, rngs=nnx.Rngs(0))
  )
  weights = torch_model.state_dict()
  state = nnx.state(model, nnx.Param)
  flat = nnx.to_flat_state(state)
  assert {".".join(map(str, p)) for p, _ in flat} == set(_names(pooling))
  nnx.update(
    model,
    nnx.from_flat_state(
      [
        (
          path,
          param.replace(
            jnp.asarray(weights[_NAMES[".".join(map(str, path))]].numpy())
          ),
        )
        for path, param in flat
      ]
    ),
  )
  return model


def _classifier(dropout=0.0, dtype="float32", pooling="pooler"):
  config = dataclasses.replace(CONFIG, pooling=pooling)
  return pretrained.new_classifier(
    config, 2, dropout=dropout, dtype=dtype, seed=0
  )


_call = jax.jit(lambda model, *a, **kw: model(*a, **kw))


def _segments(T, seed=0):
  """Rows of many lengths, full and shortest ones among them."""
  rng = np.random.default_rng(seed)
  N = 6
  length = rng.integers(4, T + 1, N).astype(np.int32)
  length[:2] = T, 4
  context = np.array([rng.integers(2, n) for n in length], np.int32)
  tokens = rng.integers(5, CONFIG.vocab_size, (N, T)).astype(np.int32)
  tokens[np.arange(T) >= length[:, None]] = 0
  return tokens, length, context


def _places(length, T):
  """Places of all tokens, and a few of none."""
  found = np.flatnonzero(np.arange(T) < length[:, None])
  return np.append(found, [-1] * 5).astype(np.int32)


def _run_torch(model, tokens, length, context):
  position = np.arange(tokens.shape[1])
  return model(
    input_ids=torch.tensor(tokens).long(),
    attention_mask=torch.tensor(position < length[:, None]).long(),
    token_type_ids=torch.tensor(position >= context[:, None]).long(),
  )


class BertTest(parameterized.TestCase):
  @parameterized.parameters(
    (6, "float32", 2e-6),
    (20, "float32", 2e-6),
    (20, "float32", 2e-6, True),
    (13, "bfloat16", 0.1),  # torch's own bfloat16 differs by 0.05
    (13, "bfloat16", 0.1, True),
  )
  def test_is_transformers_bert(self, T, dtype, tolerance, packed=False):
    theirs = _torch_model()
    segments = _segments(T)
    with torch.no_grad():
      expected = _run_torch(theirs, *segments)
    model = _copy(theirs, dtype)
    place = _places(segments[1], T) if packed else None
    hidden, pooled = _call(model, *segments, place_M=place)
    self.assertEqual(hidden.dtype, dtype)
    self.assertEqual(pooled.dtype, dtype)
    valid = np.arange(T) < segments[1][:, None]
    for ours, want in (
      (np.asarray(hidden, np.float32)[valid], expected[0].numpy()[valid]),
      (np.asarray(pooled, np.float32), expected[1].numpy()),
    ):
      np.testing.assert_allclose(
        ours, want, rtol=0, atol=tolerance * np.abs(want).max()
      )

  @parameterized.parameters(False, True)
  def test_poolings(self, packed):
    """Each by itself and all at once, against torch's hidden states."""
    theirs = _torch_model()
    segments = _segments(11)
    _, length, context = segments
    length[3], context[3] = 9, 8  # its [SEP] alone
    with torch.no_grad():
      hidden, pooler = _run_torch(theirs, *segments)[:2]
    means = [
      rows[c:n].mean(axis=0)
      for rows, c, n in zip(hidden.numpy(), context, length, strict=True)
    ]
    expected = {
      "pooler": pooler.numpy(),
      "cls": hidden[:, 0].numpy(),
      "mean": np.stack(means),
    }
    place = _places(length, 11) if packed else None
    call = jax.jit(lambda model, *a: model(*a, pooled_only=True, place_M=place))
    poolings = jax.jit(lambda model, *a: model.poolings(*a))
    found = []
    for pooling, tokens in (("cls", 1), ("mean", 11)):
      states, pooled = call(_copy(theirs, "float32", pooling), *segments)
      self.assertEqual(states.shape[1], tokens)
      found.append((pooling, pooled))
    if not packed:
      at_once = poolings(_copy(theirs, "float32"), *segments)
      self.assertEqual(set(at_once), set(bert.POOLINGS))
      found += at_once.items()
    for pooling, got in found:
      want = expected[pooling]
      np.testing.assert_allclose(
        got, want, rtol=0, atol=2e-6 * np.abs(want).max(), err_msg=pooling
      )
    model = _copy(theirs, "bfloat16", "mean")
    of_mean = jax.eval_shape(poolings, model, *segments)
    dtypes = {pooling: x.dtype for pooling, x in of_mean.items()}
    self.assertEqual(dtypes, {"cls": jnp.float32, "mean": jnp.float32})
    _, pooled = jax.eval_shape(call, model, *segments)
    self.assertEqual(pooled.dtype, jnp.bfloat16)

  @parameterized.parameters(
    (False, False),
    (True, False),
    (False, True),
    (True, True, True),
    (True, True, False, "mean"),
  )
  def test_gradients_are_those_of_torch(
    self, pooled_only, packed, remat=False, pooling="pooler"
  ):
    theirs = _torch_model()
    segments = _segments(11)
    place = _places(segments[1], 11) if packed else None

    def loss(model):
      _, pooled = model(*segments, place_M=place, pooled_only=pooled_only)
      return (pooled**2).sum()

    output = _run_torch(theirs, *segments)
    pooled = output.pooler_output
    if pooling == "mean":
      rows = zip(output.last_hidden_state, *segments[1:], strict=True)
      pooled = torch.stack([x[c:n].mean(dim=0) for x, n, c in rows])
    pooled.square().sum().backward()
    model = _copy(theirs, "float32", pooling)
    model.remat = remat
    gradients = jax.jit(jax.grad(loss))(model)
    gradients = {
      ".".join(map(str, path)): np.asarray(param[...])
      for path, param in nnx.to_flat_state(nnx.state(gradients))
    }
    parameters = dict(theirs.named_parameters())
    for ours, name in _names(pooling).items():
      want = parameters[name].grad.numpy()
      # Keys' biases have no gradient but rounding, hence the 1e-5 in absolute.
      np.testing.assert_allclose(
        gradients[ours],
        want,
        rtol=0,
        atol=1e-5 * max(1, np.abs(want).max()),
        err_msg=name,
      )

  def test_padding_has_no_effect(self):
    model = _classifier()
    tokens, length, context = _segments(9)
    garbage = np.where(np.arange(9) < length[:, None], tokens, 7)
    longer = np.pad(garbage, ((0, 0), (0, 5)), constant_values=11)
    want = _call(model, tokens, length, context)
    got = _call(model, longer, length, context)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

  @parameterized.parameters(("float32", "mean"), ("bfloat16", "pooler"))
  def test_empty_rows_are_finite(self, dtype, pooling):
    tokens, length, context = _segments(9)
    tokens[2:4], length[2:4], context[2:4] = 0, 0, 0

    def loss(model):
      logits = model(tokens, length, context)
      return (logits**2).sum(), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
      _classifier(dtype=dtype, pooling=pooling)
    )
    for value in (logits, *jax.tree.leaves(gradients)):
      self.assertTrue(np.isfinite(value).all())
      self.assertEqual(value.dtype, jnp.float32)

  def test_promotes_nothing_silently(self):
    def call(model):
      return model(*_segments(9), dropout_key=jax.random.key(0))

    with jax.numpy_rank_promotion("raise"):
      jax.eval_shape(call, _classifier(0.5, "bfloat16"))
      with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(call, _classifier(0.5))

  def test_holds_parameters_only(self):
    _, params, rest = nnx.split(_classifier(dropout=0.1), nnx.Param, ...)
    self.assertEmpty(jax.tree.leaves(rest))
    for leaf in jax.tree.leaves(params):
      self.assertEqual(leaf.dtype, jnp.float32)

  def test_refuses_segments_beyond_the_position_table(self):
    model = _classifier()
    ones = np.ones(2, np.int32)
    with self.assertRaisesRegex(ValueError, "table of 20, got 21 tokens"):
      model(np.zeros((2, 21), np.int32), ones, ones)

  @parameterized.parameters(-0.1, 1.0)
  def test_refuses_a_dropout_rate(self, rate):
    with self.assertRaisesRegex(ValueError, f"in \\[0, 1\\), got {rate}"):
      bert.Bert(CONFIG, dropout=rate, rngs=nnx.Rngs(0))

  def test_frequent_words_lose_no_gradient_in_bfloat16(self):
    # 4,000 times the same word: bfloat16 sums would stop growing at 256.
    model = bert.Bert(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    tokens = np.full((400, 10), 7, np.int32)

    def total(embeddings):
      y = embeddings.word(tokens)
      return y.astype(jnp.float32).sum()

    gradient = jax.jit(jax.grad(total))(model.embeddings)
    np.testing.assert_allclose(gradient.word.embedding[...][7], 4000)


class DropoutTest(absltest.TestCase):
  def test_sites_and_keys_differ(self):
    """Drops everywhere a BERT drops, each place with its own draw."""
    model = _classifier(dropout=0.5)
    draws = []

    def record(x, rate, key):
      draws.append(np.asarray(jax.random.key_data(key)).tobytes())
      return x

    original = functional.dropout
    functional.dropout = record
    try:
      for seed in (0, 1):
        with jax.ensure_compile_time_eval():
          call = functools.partial(model, dropout_key=jax.random.key(seed))
          jax.eval_shape(call, *_segments(9))
    finally:
      functional.dropout = original
    sites = 1 + 2 * CONFIG.num_hidden_layers + 1
    self.assertLen(set(draws), 2 * sites)
    self.assertLen(draws, 2 * sites)

  def test_no_key_is_deterministic(self):
    model, segments = _classifier(dropout=0.5), _segments(9)
    plain = np.asarray(_call(_classifier(), *segments))
    np.testing.assert_array_equal(_call(model, *segments), plain)
    first, again, other = (
      np.asarray(_call(model, *segments, dropout_key=jax.random.key(k)))
      for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertTrue((first != plain).all())
    self.assertTrue((first != other).all())


class BertConfigTest(parameterized.TestCase):
  @parameterized.parameters(*bert.POOLINGS)
  def test_round_trip(self, pooling):
    config = dataclasses.replace(CONFIG, pooling=pooling)
    values = config.to_hf()
    self.assertEqual(values.get("pooling", "pooler"), pooling)
    self.assertEqual("pooling" in values, pooling != "pooler")
    self.assertEqual(bert.BertConfig.from_hf(values), config)

  @parameterized.parameters(
    ("hidden_act", "relu"),
    ("position_embedding_type", "relative_key"),
    ("is_decoder", True),
    ("add_cross_attention", True),
    ("model_type", "roberta"),
  )
  def test_refuses_what_it_does_not_compute(self, key, value):
    with self.assertRaisesRegex(ValueError, f"{key} = .* got {value!r}"):
      bert.BertConfig.from_hf(CONFIG.to_hf() | {key: value})

  def test_names_missing_sizes(self):
    config = CONFIG.to_hf()
    del config["hidden_size"], config["vocab_size"]
    with self.assertRaisesRegex(ValueError, "vocab_size, hidden_size"):
      bert.BertConfig.from_hf(config)

  def test_refuses_sizes_that_do_not_fit(self):
    with self.assertRaisesRegex(ValueError, "got 24 and 5"):
      dataclasses.replace(CONFIG, num_attention_heads=5)
    with self.assertRaisesRegex(ValueError, "at least 2 .* got 1"):
      dataclasses.replace(CONFIG, type_vocab_size=1)
    with self.assertRaisesRegex(ValueError, "pooler, cls, mean, got 'max'"):
      dataclasses.replace(CONFIG, pooling="max")


if __name__ == "__main__":
  absltest.main()
