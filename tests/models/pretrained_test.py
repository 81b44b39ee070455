"""Weights in and out, against folders that transformers writes and reads."""

import dataclasses
import json
import pathlib
import sys
import tempfile
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import torch
import transformers
from absl.testing import absltest, parameterized
from flax import nnx

from ppl_jax.models import bert, modeling_pooled_bert, pretrained

CONFIG = bert.BertConfig(
  vocab_size=31,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=12,
)
_call = jax.jit(lambda model, *a: model(*a))


def _torch_classifier(num_labels=3):
  torch.manual_seed(0)
  return transformers.BertForSequenceClassification(
    transformers.BertConfig(**CONFIG.to_hf(), num_labels=num_labels)
  ).eval()


def _load(folder, num_classes=3, vocab_size=31, seed=0, **kwargs):
  return pretrained.load_classifier(
    folder,
    num_classes,
    vocab_size,
    dropout=0.0,
    dtype="float32",
    seed=seed,
    **kwargs,
  )


def _edit(folder, change):
  """Rewrites a folder's tensors."""
  path = folder / "model.safetensors"
  weights = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(change(dict(weights)), path)


class PretrainedTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _write(self, config=CONFIG):
    """A folder of ours, as `transformers` lays it out."""
    model = pretrained.new_classifier(
      config, 3, dropout=0.0, dtype="float32", seed=5
    )
    weights = pretrained.hf_weights(model)
    safetensors.numpy.save_file(weights, self.folder / "model.safetensors")
    (self.folder / "config.json").write_text(json.dumps(config.to_hf()))
    return weights

  @parameterized.parameters(
    transformers.BertForSequenceClassification, transformers.BertModel
  )
  def test_reads_what_transformers_writes(self, kind):
    torch.manual_seed(0)
    kind(transformers.BertConfig(**CONFIG.to_hf())).save_pretrained(self.folder)
    theirs = kind.from_pretrained(self.folder).eval()
    tokens = np.arange(5, 13, dtype=np.int32)[None]
    length, context = np.array([8], np.int32), np.array([3], np.int32)
    with torch.no_grad():
      want = theirs(
        input_ids=torch.tensor(tokens).long(),
        token_type_ids=torch.tensor(np.arange(8) >= 3)[None].long(),
      )
    model = _load(self.folder, num_classes=2)
    if kind is transformers.BertModel:
      got, want = _call(model.bert, tokens, length, context)[1], want[1]
    else:
      got, want = _call(model, tokens, length, context), want.logits
    np.testing.assert_allclose(got, want.numpy(), rtol=0, atol=1e-6)

  def test_writes_what_transformers_reads(self):
    weights = self._write()
    theirs = transformers.BertForSequenceClassification.from_pretrained(
      self.folder, num_labels=3
    )
    self.assertEqual(set(weights), set(theirs.state_dict()))
    for name, value in theirs.state_dict().items():
      np.testing.assert_array_equal(value.numpy(), weights[name])

  @parameterized.parameters(*bert.POOLINGS)
  def test_round_trip(self, pooling):
    weights = self._write(dataclasses.replace(CONFIG, pooling=pooling))
    model = _load(self.folder)
    self.assertEqual(model.bert.config.pooling, pooling)
    again = pretrained.hf_weights(model)
    self.assertEqual(set(weights), set(again))
    self.assertEqual("bert.pooler.dense.bias" in weights, pooling == "pooler")
    for name, value in weights.items():
      np.testing.assert_array_equal(again[name], value)

  def test_reads_what_the_pytorch_class_writes(self):
    """As after a Trainer: by transformers' own writing of its config."""
    config = CONFIG.to_hf() | {"pooling": "cls", "num_labels": 3}
    del config["model_type"]
    torch.manual_seed(0)
    theirs = modeling_pooled_bert.PooledBertForSequenceClassification(
      modeling_pooled_bert.PooledBertConfig(**config)
    )
    theirs.save_pretrained(self.folder)
    written = json.loads((self.folder / "config.json").read_text())
    self.assertEqual(written["model_type"], "pooled_bert")
    model = _load(self.folder)
    self.assertEqual(
      model.bert.config, dataclasses.replace(CONFIG, pooling="cls")
    )
    weights = pretrained.hf_weights(model)
    self.assertEqual(set(weights), set(theirs.state_dict()))
    for name, value in theirs.state_dict().items():
      np.testing.assert_array_equal(value.numpy(), weights[name])

  def test_old_names_and_other_dtypes(self):
    weights = self._write()

    def change(tensors):
      names = {".weight": ".gamma", ".bias": ".beta"}
      old = {}
      for name, value in tensors.items():
        for new, gone in names.items():
          name = name.replace(f"LayerNorm{new}", f"LayerNorm{gone}")
        old[name] = value.astype(np.float16)
      return old | {"cls.predictions.bias": np.zeros(3, np.float32)}

    _edit(self.folder, change)
    for name, value in pretrained.hf_weights(_load(self.folder)).items():
      self.assertEqual(value.dtype, np.float32)
      np.testing.assert_array_equal(value, weights[name].astype(np.float16))

  def test_added_tokens_get_rows_after_the_old_ones(self):
    words = self._write()["bert.embeddings.word_embeddings.weight"]
    model = _load(self.folder, vocab_size=33, seed=1)
    grown = np.asarray(model.bert.embeddings.word.embedding[...])
    self.assertEqual(model.bert.config.vocab_size, 33)
    np.testing.assert_array_equal(grown[:31], words)
    self.assertBetween(np.abs(grown[31:]).mean(), 0.005, 0.04)
    same = _load(self.folder, vocab_size=33, seed=1)
    np.testing.assert_array_equal(
      same.bert.embeddings.word.embedding[...], grown
    )
    tokens = np.array([[2, 31, 32]], np.int32)
    three = np.array([3], np.int32)
    self.assertTrue(np.isfinite(_call(model, tokens, three, three)).all())

  def test_keeps_embeddings_beyond_the_tokenizer(self):
    self._write()
    model = _load(self.folder, vocab_size=20)
    self.assertEqual(model.bert.embeddings.word.embedding.shape, (31, 16))

  def test_scorer_is_taken_only_with_as_many_outputs(self):
    weights = self._write()
    taken = _load(self.folder, num_classes=3)
    np.testing.assert_array_equal(
      taken.scorer.kernel[...].T, weights["classifier.weight"]
    )
    fresh = _load(self.folder, num_classes=4)
    self.assertEqual(fresh.scorer.kernel.shape, (16, 4))
    np.testing.assert_array_equal(fresh.scorer.bias[...], np.zeros(4))

  def test_names_missing_and_misshaped_tensors(self):
    self._write()

    def change(tensors):
      del tensors["bert.encoder.layer.1.attention.self.key.bias"]
      name = "bert.encoder.layer.0.intermediate.dense.weight"
      tensors[name] = tensors[name][:-1].copy()
      return tensors

    _edit(self.folder, change)
    with self.assertRaises(ValueError) as caught:
      _load(self.folder)
    message = str(caught.exception)
    self.assertIn(
      "bert.encoder.layer.1.attention.self.key.bias: missing, needs [16]",
      message,
    )
    self.assertIn(
      "bert.encoder.layer.0.intermediate.dense.weight: has [23, 16], needs"
      " [24, 16]",
      message,
    )
    self.assertEqual(message.count("needs"), 2)
    self.assertIn(str(self.folder), message)

  def test_embeddings_must_be_those_of_the_config(self):
    self._write()
    config = CONFIG.to_hf() | {"vocab_size": 30}
    (self.folder / "config.json").write_text(json.dumps(config))
    with self.assertRaisesRegex(
      ValueError, r"has \[31, 16\], needs \[30, 16\]"
    ):
      _load(self.folder)

  def test_missing_pooler(self):
    self._write()
    self.assertTrue(pretrained.has_pooler(self.folder))
    _edit(
      self.folder,
      lambda t: {k: v for k, v in t.items() if "pooler" not in k},
    )
    self.assertFalse(pretrained.has_pooler(self.folder))
    with self.assertRaisesRegex(
      ValueError,
      "pooler.dense.bias: missing.*no pooler: --config.model.pooling=mean",
    ):
      _load(self.folder)
    model = _load(self.folder, pooling="mean")
    self.assertFalse(hasattr(model.bert, "pooler"))

  def test_another_pooling_than_the_folders(self):
    weights = self._write()
    model = _load(self.folder, pooling="mean")
    self.assertEqual(model.bert.config.pooling, "mean")
    ours = pretrained.hf_weights(model)
    self.assertEqual(
      ours.keys(), {name for name in weights if "pooler" not in name}
    )
    for name, value in ours.items():
      np.testing.assert_array_equal(value, weights[name], name)
    with self.assertRaisesRegex(ValueError, "pooling must be one of .*'max'"):
      _load(self.folder, pooling="max")

  def test_bin_needs_torch(self):
    weights = self._write()
    (self.folder / "model.safetensors").unlink()
    torch.save(
      {k: torch.tensor(v) for k, v in weights.items()}
      | {"bert.embeddings.position_ids": torch.arange(12)},
      self.folder / "pytorch_model.bin",
    )
    got = pretrained.hf_weights(_load(self.folder))
    for name, value in weights.items():
      np.testing.assert_array_equal(got[name], value)
    with (
      mock.patch.dict(sys.modules, {"torch": None}),
      self.assertRaisesRegex(ValueError, "needs PyTorch.*pip install torch"),
    ):
      _load(self.folder)

  def test_broken_folders(self):
    with self.assertRaisesRegex(ValueError, "must hold config.json"):
      _load(self.folder)
    (self.folder / "config.json").write_text("{")
    with self.assertRaisesRegex(ValueError, "must be JSON, got .*config.json"):
      _load(self.folder)
    (self.folder / "config.json").write_text("[1]")
    with self.assertRaisesRegex(ValueError, "JSON object, got .* with a list"):
      _load(self.folder)
    (self.folder / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    with self.assertRaisesRegex(ValueError, "must hold model.safetensors or"):
      _load(self.folder)
    (self.folder / "model.safetensors").write_bytes(b"\x08cut")
    with self.assertRaisesRegex(ValueError, "whole safetensors file"):
      _load(self.folder)
    (self.folder / "model.safetensors").unlink()
    (self.folder / "pytorch_model.bin").write_bytes(b"cut")
    with self.assertRaisesRegex(ValueError, "readable by PyTorch"):
      _load(self.folder)

  def test_the_first_layers(self):
    weights = self._write()
    model = _load(self.folder, num_layers=1)
    self.assertEqual(model.bert.config.num_hidden_layers, 1)
    ours = pretrained.hf_weights(model)
    self.assertEqual(
      ours.keys(), {name for name in weights if ".layer.1." not in name}
    )
    for name, value in ours.items():
      np.testing.assert_array_equal(value, weights[name], name)
    self.assertEqual(_load(self.folder).bert.config, CONFIG)
    for count in (3, -1):
      with self.assertRaisesRegex(ValueError, f"to the 2 layers .*got {count}"):
        _load(self.folder, num_layers=count)

  def test_resolve(self):
    self.assertEqual(pretrained.resolve(str(self.folder)), self.folder)
    with self.assertRaisesRegex(ValueError, "existing folder, got .*/absent"):
      pretrained.resolve(str(self.folder / "absent"))

  def test_resolve_offline(self):
    with (
      mock.patch(
        "huggingface_hub.snapshot_download",
        side_effect=ConnectionError("no route"),
      ),
      self.assertRaisesRegex(ValueError, "(?s)a/b.*no route.*network, or give"),
    ):
      pretrained.resolve("a/b")

  def test_resolve_takes_bin_only_without_safetensors(self):
    calls = []

    def download(name, allow_patterns):
      calls.append((name, allow_patterns[-1]))
      return str(self.folder)

    with mock.patch("huggingface_hub.snapshot_download", download):
      pretrained.resolve("a/b")
      (self.folder / "model.safetensors").touch()
      self.assertEqual(pretrained.resolve("a/c"), self.folder)
    self.assertEqual(
      calls,
      [
        ("a/b", "model.safetensors"),
        ("a/b", "pytorch_model.bin"),
        ("a/c", "model.safetensors"),
      ],
    )


class NewClassifierTest(absltest.TestCase):
  def test_depends_on_the_seed_alone(self):
    first, again, other = (
      pretrained.hf_weights(
        pretrained.new_classifier(
          CONFIG, 2, dropout=0.0, dtype="float32", seed=seed
        )
      )
      for seed in (0, 0, 1)
    )
    for name, value in first.items():
      np.testing.assert_array_equal(value, again[name])
      varies = value.ndim > 1
      self.assertEqual(bool((value != other[name]).any()), varies, name)

  def test_has_the_shapes_of_the_module(self):
    model = pretrained.new_classifier(
      CONFIG, 2, dropout=0.1, dtype="bfloat16", seed=0
    )
    self.assertEqual(model.bert.config, CONFIG)
    self.assertEqual(model.bert.dropout, 0.1)
    for leaf in jax.tree.leaves(nnx.state(model)):
      self.assertEqual(leaf.dtype, jnp.float32)


if __name__ == "__main__":
  absltest.main()
