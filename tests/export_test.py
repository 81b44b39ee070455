"""Exports against the run's own student, in files and in fresh processes."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
import onnx
import onnxruntime
import safetensors.numpy
import torch
import transformers
from absl.testing import absltest, parameterized
from flax import nnx
from jax import export as jax_export
from jax.experimental.compilation_cache import compilation_cache

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands
import corpus

from ppl_jax import (
  checkpoint,
  exporter,
  importer,
  inputs,
  parity,
  predictor,
)
from ppl_jax.data import segments, tokenization
from ppl_jax.models import (
  bert,
  modeling_pooled_bert,
  onnx_graph,
  pretrained,
)
from ppl_jax.student import Student

_CONFIG = bert.BertConfig(
  vocab_size=50,
  hidden_size=16,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=24,
  max_position_embeddings=20,
  initializer_range=0.5,
)
_DIALOGUE = [
  ("A", "Where is the lamp now?"),
  ("Bob", "I left the violin [SEP] outside, near the garden."),
  ("B", "Thanks, [USR] that helps."),
]


def setUpModule():
  # Many exports of one student: compiled once.
  folder = tempfile.TemporaryDirectory()
  absltest.unittest.addModuleCleanup(folder.cleanup)
  for name, value in (
    ("jax_compilation_cache_dir", folder.name),
    ("jax_persistent_cache_min_compile_time_secs", 0.0),
  ):
    absltest.unittest.addModuleCleanup(
      jax.config.update, name, getattr(jax.config, name)
    )
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  absltest.unittest.addModuleCleanup(compilation_cache.reset_cache)
  # Where transformers keeps the code of folders.
  patch = mock.patch(
    "transformers.dynamic_module_utils.HF_MODULES_CACHE", f"{folder.name}/code"
  )
  patch.start()
  absltest.unittest.addModuleCleanup(patch.stop)


def _model(config=_CONFIG, classes=3, seed=0):
  """A random student in which no bias is 0 and no norm is 1."""
  model = pretrained.new_classifier(
    config, classes, dropout=0.1, dtype="float32", seed=seed
  )
  rng = np.random.default_rng(seed)
  for _, param in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    noise = 0.1 * rng.normal(size=param.shape)
    param[...] = param[...] + np.float32(noise)
  return model


def _write_run(
  folder, *, classes=corpus.CLASSES, task="single_label", pooling="pooler"
):
  """A finished run: the corpus, its config, and a random student."""
  config = corpus.config(
    corpus.write(folder / "data", classes), classes, task=task
  )
  config.segments.speaker_tokens = {"A": "[USR]", "B": "[SYS]"}
  config.segments.window = 3
  config.model.pooling = pooling
  workdir = folder / "run"
  prepared = inputs.prepare(config, workdir)
  model = _model(prepared.student.encoder, len(classes))
  params = nnx.state(model, nnx.Param)
  checkpoint.save_params(workdir, "student", params)
  results = {
    "objective": "pairwise",
    "gold_fraction": 0.3,
    "gold_labels": {"train": 17, "dev": 5},
    "test": {"count": 30, "accuracy": 0.8125, "macro_f1": 0.75, "ece": 0.1},
  }
  (workdir / "results.json").write_text(json.dumps(results))
  return workdir, config


@functools.cache
def _run(pooling="pooler"):
  folder = tempfile.TemporaryDirectory()
  absltest.unittest.addModuleCleanup(folder.cleanup)
  return _write_run(pathlib.Path(folder.name), pooling=pooling)


@functools.cache
def _exported(kind, int8=False, pooling="pooler"):
  """An export of the run, made once."""
  folder = tempfile.TemporaryDirectory()
  absltest.unittest.addModuleCleanup(folder.cleanup)
  output = pathlib.Path(folder.name) / "out"
  return output, exporter.export(
    _run(pooling)[0], output, kind=kind, int8=int8, max_changed=0.2
  )


def _without_ours(program, folder):
  """Runs Python code in a folder, where ppl_jax cannot be imported."""
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  blocked = 'import sys\nsys.modules["ppl_jax"] = None\n'
  return subprocess.run(
    [sys.executable, "-c", blocked + program],
    cwd=folder,
    env=environment | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"},
    capture_output=True,
    text=True,
    check=False,
  )


class OnnxGraphTest(parameterized.TestCase):
  @parameterized.product(
    size=((1, 2), (1, 20), (3, 7), (5, 20)), pooling=bert.POOLINGS
  )
  def test_is_berts_at_any_batch_and_length(self, size, pooling):
    rows, length = size
    config = dataclasses.replace(_CONFIG, pooling=pooling)
    model = _model(config)
    weights = pretrained.hf_weights(model)
    if pooling == "pooler":
      theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(**_CONFIG.to_hf(), num_labels=3)
      ).eval()
    else:
      values = config.to_hf() | {"num_labels": 3}
      del values["model_type"]
      theirs = modeling_pooled_bert.PooledBertForSequenceClassification(
        modeling_pooled_bert.PooledBertConfig(**values)
      ).eval()
    theirs.load_state_dict({k: torch.tensor(v) for k, v in weights.items()})
    rng = np.random.default_rng(rows)
    position = np.arange(length)
    feeds = {
      "input_ids": rng.integers(0, 50, (rows, length)),
      "attention_mask": position < rng.integers(1, length + 1, (rows, 1)),
      "token_type_ids": position >= rng.integers(1, length + 1, (rows, 1)),
    }
    feeds = {k: v.astype(np.int64) for k, v in feeds.items()}
    with torch.no_grad():
      expected = theirs(**{k: torch.tensor(v) for k, v in feeds.items()})
    file = onnx_graph.build(weights, config).SerializeToString()
    session = onnxruntime.InferenceSession(file)
    (logits,) = session.run(["logits"], feeds)
    np.testing.assert_allclose(logits, expected.logits.numpy(), atol=2e-5)

  def test_a_means_other_rows_have_no_effect(self):
    """Nor where in the batch the first last utterance begins."""
    config = dataclasses.replace(_CONFIG, pooling="mean")
    weights = pretrained.hf_weights(_model(config))
    session = onnxruntime.InferenceSession(
      onnx_graph.build(weights, config).SerializeToString()
    )
    tokens = np.random.default_rng(0).integers(0, 50, (3, 12))
    batch = tokens.astype(np.int32), np.int32([12, 7, 9]), np.int32([9, 2, 8])
    feeds = segments.hf_inputs(*batch)
    (whole,) = session.run(None, feeds)
    for n in range(3):
      (alone,) = session.run(None, {k: v[n : n + 1] for k, v in feeds.items()})
      np.testing.assert_allclose(alone[0], whole[n], atol=1e-5)

  @parameterized.parameters(*bert.POOLINGS)
  def test_standard_operators_and_symbolic_shapes(self, pooling):
    config = dataclasses.replace(_CONFIG, pooling=pooling)
    model = onnx_graph.build(pretrained.hf_weights(_model(config)), config)
    self.assertEqual({n.domain for n in model.graph.node}, {""})
    shapes = {
      i.name: [d.dim_param for d in i.type.tensor_type.shape.dim]
      for i in model.graph.input
    }
    names = "input_ids", "attention_mask", "token_type_ids"
    self.assertEqual(shapes, {name: ["batch", "length"] for name in names})

  def test_too_long_a_batch_fails(self):
    file = onnx_graph.build(pretrained.hf_weights(_model()), _CONFIG)
    session = onnxruntime.InferenceSession(file.SerializeToString())
    ones = np.ones((1, 21), np.int64)
    with self.assertRaisesRegex(Exception, "20 by 21|BroadcastIterator|Add"):
      session.run(None, {i.name: ones for i in session.get_inputs()})


class ExportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _assert_nothing_left(self):
    self.assertEmpty(list(self.folder.iterdir()))

  @parameterized.parameters(
    ("pytorch",),
    ("onnx",),
    ("stablehlo",),
    ("pytorch", "cls"),
    ("onnx", "cls"),
    ("pytorch", "mean"),
    ("onnx", "mean"),
    ("stablehlo", "mean"),
  )
  def test_is_the_runs_student(self, kind, pooling="pooler"):
    workdir, _ = _run(pooling)
    output, found = _exported(kind, pooling=pooling)
    self.assertEqual(Student.load(workdir).encoder.pooling, pooling)
    self.assertEqual(found["float32"].changed, 0)
    self.assertLess(found["float32"].largest, 1e-4)
    self.assertGreater(found["float32"].segments, 60)
    self.assertEqual(Student.load(output), Student.load(workdir))
    said = json.loads((output / "parity.json").read_text())
    self.assertEqual(said["float32"]["segments"], found["float32"].segments)
    ours, theirs = (
      tokenization.StudentTokenizer.load(
        f / "tokenizer.json", {"A": "[USR]", "B": "[SYS]"}
      ).key
      for f in (workdir, output)
    )
    self.assertEqual(ours, theirs)
    self.assertEmpty(list(output.parent.glob(".*")))

  @parameterized.parameters("pytorch", "onnx", "stablehlo")
  def test_the_cards_code_predicts_as_ours(self, kind):
    # In a process of its own, without ppl_jax: what a user copies works.
    workdir, _ = _run()
    output, _ = _exported(kind)
    card = (output / "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    program = program[: program.index("print(")]
    # The first utterance, which has no context, and the last, which has two.
    program += f"""
import json
for said in {_DIALOGUE[:1]!r}, {_DIALOGUE!r}:
  print(json.dumps(probabilities(said)))
"""
    process = _without_ours(program, output)
    self.assertEqual(process.returncode, 0, process.stderr)
    got = [json.loads(line) for line in process.stdout.splitlines()[-2:]]
    ours = predictor.Predictor.from_workdir(workdir, live=False, batch=False)
    expected = [ours.add("d", *said).probabilities for said in _DIALOGUE]
    for g, e in ((got[0], expected[0]), (got[1], expected[-1])):
      self.assertEqual(list(g), list(e))
      np.testing.assert_allclose(list(g.values()), list(e.values()), atol=1e-5)

  @parameterized.parameters("pooler", "mean")
  def test_predict_takes_the_onnx_folder(self, pooling):
    found = []
    for folder in (_run(pooling)[0], _exported("onnx", pooling=pooling)[0]):
      model = predictor.Predictor.from_workdir(folder, live=False, batch=False)
      found.append(
        [list(model.add("d", *u).probabilities.values()) for u in _DIALOGUE]
      )
    np.testing.assert_allclose(*found, atol=1e-5)

  def test_config_of_the_pytorch_folder(self):
    output, _ = _exported("pytorch")
    config = transformers.AutoConfig.from_pretrained(output)
    self.assertEqual(config.architectures, ["BertForSequenceClassification"])
    self.assertEqual(config.id2label, dict(enumerate(corpus.CLASSES)))
    self.assertEqual(
      config.label2id, {c: i for i, c in enumerate(corpus.CLASSES)}
    )
    self.assertEqual(config.problem_type, "single_label_classification")
    self.assertEqual(config.hidden_dropout_prob, 0.1)
    self.assertEqual(config.classifier_dropout, 0.1)
    self.assertEqual(config.attention_probs_dropout_prob, 0.0)
    mode = (output / "model.safetensors").stat().st_mode
    self.assertEqual(mode, (output / "config.json").stat().st_mode)

  def test_the_cards_code_without_a_pooler(self):
    workdir, _ = _run("mean")
    output, _ = _exported("pytorch", pooling="mean")
    card = (output / "README.md").read_text()
    self.assertIn("on the mean of the last utterance's hidden states", card)
    (program,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    program = program[: program.index("print(")]
    names = {}
    exec(program.replace('FOLDER = "."', f"FOLDER = {str(output)!r}"), names)
    ours = predictor.Predictor.from_workdir(workdir, live=False, batch=False)
    expected = [ours.add("d", *said).probabilities for said in _DIALOGUE]
    for said, e in ((_DIALOGUE[:1], expected[0]), (_DIALOGUE, expected[-1])):
      got = names["probabilities"](said)
      self.assertEqual(list(got), list(e))
      np.testing.assert_allclose(
        list(got.values()), list(e.values()), atol=1e-5
      )

  def test_without_a_pooler_its_code_must_be_trusted(self):
    # Or transformers would load the BERT that it has, with a random pooler.
    output, _ = _exported("pytorch", pooling="mean")
    kind = transformers.AutoModelForSequenceClassification
    with self.assertRaisesRegex(ValueError, "trust_remote_code"):
      kind.from_pretrained(output, trust_remote_code=False)
    model = kind.from_pretrained(output, trust_remote_code=True)
    self.assertEqual(
      model.config.architectures, ["PooledBertForSequenceClassification"]
    )
    self.assertEqual(model.config.id2label, dict(enumerate(corpus.CLASSES)))
    self.assertEqual(model.config.pooling, "mean")
    self.assertEqual(model.dropout.p, 0.1)
    self.assertNotIn(
      "trust", (_exported("pytorch")[0] / "README.md").read_text()
    )

  def test_pairs_of_texts_are_segments_to_its_tokenizer(self):
    output, _ = _exported("pytorch")
    theirs = transformers.AutoTokenizer.from_pretrained(output)
    tokenizer = tokenization.StudentTokenizer.load(
      output / "tokenizer.json", {"A": "[USR]", "B": "[SYS]"}
    )
    ids = [
      tokenizer.encode_utterance(s, "Is the boat open?") for s in ("A", "B")
    ]
    got = theirs("[USR] Is the boat open?", "[SYS] Is the boat open?")
    cls, sep = [tokenizer.cls_id], [tokenizer.sep_id]
    self.assertEqual(got["input_ids"], cls + ids[0] + sep + ids[1] + sep)
    types = [0] * (len(ids[0]) + 2) + [1] * (len(ids[1]) + 1)
    self.assertEqual(got["token_type_ids"], types)
    cut = theirs(
      "[USR] Is the boat open?",
      "[SYS] Is the boat open?",
      truncation="only_first",
      max_length=len(types) - 2,
    )
    # As ours, the context loses its oldest tokens.
    self.assertEqual(cut["input_ids"], cls + ids[0][2:] + sep + ids[1] + sep)

  def test_card_tells_of_the_run(self):
    card = (_exported("pytorch")[0] / "README.md").read_text()
    for part in (
      "- `ask`\n- `tell`\n- `thank`",
      "[CLS] context [SEP] utterance [SEP]",
      "the 2 utterances before it",
      "An utterance of `A` is led by the token `[USR]`.",
      "At most 24 tokens",
      "17 of train, 5 of dev",
      "scores-3.parquet",
      "aggregation: shares",
      "First phase, on votes: swapped pairs + softmax",
      "| test | accuracy | 0.8125 |",
      "0.1 on hidden states, 0 on attention",
      "value: 0.8125",
    ):
      self.assertIn(part, card)
    self.assertNotIn(str(_run()[0].parent), card)

  @parameterized.parameters("pooler", "mean")
  def test_int8_is_smaller_and_counts_changed_labels(self, pooling):
    output, found = _exported("onnx", int8=True, pooling=pooling)
    whole = _exported("onnx", pooling=pooling)[0] / "model.onnx"
    small = output / "model.onnx"
    self.assertLess(small.stat().st_size, whole.stat().st_size)
    kinds = {n.op_type for n in onnx.load(small).graph.node}
    self.assertTrue(kinds & {"MatMulInteger", "DynamicQuantizeMatMul"}, kinds)
    self.assertEqual(found["float32"].changed, 0)
    self.assertGreater(found["int8"].largest, 1e-4)
    self.assertIn("| int8 |", (output / "README.md").read_text())

  def test_stablehlo_takes_any_batch_and_length(self):
    workdir, _ = _run()
    data = (_exported("stablehlo")[0] / "model.stablehlo").read_bytes()
    exported = jax_export.deserialize(bytearray(data))
    self.assertContainsSubset({"cpu", "cuda", "tpu"}, exported.platforms)
    ours = exporter.jax_logits(exporter.load(workdir, Student.load(workdir)))
    for rows, length in ((1, 4), (3, 24)):
      batch = (
        np.full((rows, length), 7, np.int32),
        np.full(rows, length - 1, np.int32),
        np.full(rows, 2, np.int32),
      )
      np.testing.assert_allclose(exported.call(*batch), ours(*batch), atol=1e-5)

  @parameterized.parameters("pytorch", "onnx")
  def test_a_disturbed_weight_is_refused(self, kind):
    whole = pretrained.hf_weights

    def disturbed(model):
      weights = whole(model)
      name = "bert.encoder.layer.0.intermediate.dense.weight"
      weights[name] = weights[name].copy()
      weights[name][3, 2] += 0.5
      return weights

    with (
      mock.patch.object(pretrained, "hf_weights", disturbed),
      self.assertRaisesRegex(
        ValueError,
        r"logits within 0\.0001 and no label changed; got .*logit difference"
        r" [\d.e-]+ \(at class '\w+', utterance \d+ of dialogue 'train-\d+'"
        r" \(\d+ tokens\)\), .*Nothing was written: try another version",
      ),
    ):
      exporter.export(_run()[0], self.folder / "out", kind=kind, limit=32)
    self._assert_nothing_left()

  def test_changed_labels_of_int8_are_refused_beyond_the_share(self):
    def broken(folder):
      file = folder / "model.onnx"
      model = onnx.load(file)
      for tensor in model.graph.initializer:
        if tensor.name == "classifier.bias":
          tensor.raw_data = np.float32([9, 0, 0]).tobytes()
      onnx.save(model, file)

    with (
      mock.patch.object(exporter, "_quantise", broken),
      self.assertRaisesRegex(
        ValueError,
        r"at most 1\.00% of the labels changed; got .* \d+ labels changed"
        r" \(such as .* became ask\)",
      ),
    ):
      exporter.export(
        _run()[0],
        self.folder / "out",
        kind="onnx",
        int8=True,
        max_changed=0.01,
        limit=32,
      )
    self._assert_nothing_left()

  def test_another_tokenizer_is_refused(self):
    write = exporter._FORMATS["pytorch"]

    def wrong(folder, *rest):
      write[0](folder, *rest)
      values = json.loads((folder / "tokenizer.json").read_text())
      values["normalizer"]["lowercase"] = False
      (folder / "tokenizer.json").write_text(json.dumps(values))

    with (
      mock.patch.dict(exporter._FORMATS, {"pytorch": (wrong, write[1])}),
      self.assertRaisesRegex(ValueError, "AutoTokenizer must give the ids"),
    ):
      exporter.export(_run()[0], self.folder / "out", limit=32)
    self._assert_nothing_left()

  @parameterized.parameters(
    (("ask",), "single_label", "float32"),
    (corpus.CLASSES, "multi_label", "bfloat16"),
  )
  def test_sigmoid_tasks(self, classes, task, dtype):
    workdir, _ = _write_run(self.folder, classes=classes, task=task)
    path = workdir / "student.json"
    path.write_text(path.read_text().replace("float32", dtype))
    output = self.folder / "out"
    found = exporter.export(workdir, output, limit=32)["float32"]
    # Of a run in bfloat16, too, float32 is what is exported and compared.
    self.assertLess(found.largest, 1e-4)
    self.assertEqual(found.changed, 0)
    config = json.loads((output / "config.json").read_text())
    self.assertEqual(config["problem_type"], "multi_label_classification")
    self.assertIn("1 / (1 + np.exp(-z))", (output / "README.md").read_text())

  def test_without_the_data_dialogues_must_be_named(self):
    workdir, config = _write_run(self.folder)
    for split in pathlib.Path(config.dataset.source).glob("*.jsonl"):
      split.unlink()
    with self.assertRaisesRegex(ValueError, "--input=dialogues.jsonl"):
      exporter.export(workdir, self.folder / "out")
    self.assertFalse((self.folder / "out").exists())
    lines = corpus.lines("more", 8, 5)
    corpus.write_split(self.folder, "more", lines)
    found = exporter.export(
      workdir, self.folder / "out", source=self.folder / "more.jsonl"
    )["float32"]
    count = sum(len(line["utterances"]) for line in lines)
    self.assertEqual((found.segments, found.source), (count, "more.jsonl"))

  def test_flags_and_folders_are_checked(self):
    with self.assertRaisesRegex(ValueError, "--int8 must come with"):
      exporter.export(_run()[0], self.folder / "out", int8=True)
    (self.folder / "full").mkdir()
    (self.folder / "full" / "mine").write_text("x")
    with self.assertRaisesRegex(ValueError, "which exists"):
      exporter.export(_run()[0], self.folder / "full")
    with self.assertRaisesRegex(ValueError, "must lie in a folder, got"):
      exporter.export(_run()[0], self.folder / "full" / "mine" / "a" / "out")
    with self.assertRaisesRegex(ValueError, "must hold student.json|No such"):
      exporter.export(self.folder / "full", self.folder / "no" / "out")
    with (
      mock.patch.dict(sys.modules, {"onnxruntime": None}),
      self.assertRaisesRegex(ValueError, r"got no onnxruntime: pip install"),
    ):
      exporter.export(_run()[0], self.folder / "out", kind="onnx")
    self.assertEqual([p.name for p in self.folder.iterdir()], ["full"])

  def test_as_a_command(self):
    arguments = [sys.executable, "-m", "ppl_jax.export", "--format=onnx"]
    output = self.folder / "new" / "deep" / "out"
    arguments += [f"--workdir={_run()[0]}", f"--output={output}"]
    status, text = commands.run([*arguments, "--segments=32"])
    self.assertEqual(status, 0, text)
    self.assertTrue((output / "model.onnx").exists())
    self.assertEqual([p.name for p in self.folder.iterdir()], ["new"])
    self.assertRegex(text, r"32 segments of the \w+ split: largest logit")
    self.assertIn("0 labels changed", text)


class ParityTest(absltest.TestCase):
  def _sample(self, limit):
    workdir, _ = _run()
    student = Student.load(workdir)
    tokenizer = tokenization.StudentTokenizer.load(
      workdir / "tokenizer.json", student.speaker_tokens
    )
    return parity.sample_of_run(workdir, student, tokenizer, limit)

  def test_takes_the_largest_split_where_all_are_small_and_all_lengths(self):
    whole, few = self._sample(0), self._sample(9)
    self.assertEqual(whole.source, "the train split")
    self.assertCountEqual(
      whole.utterances_M, range(whole.tokens.num_utterances)
    )
    self.assertLen(few, 9)
    self.assertLen(set(few.utterances_M), 9)
    for take in (min, max):
      self.assertEqual(take(few.lengths_M), take(whole.lengths_M))

  def test_the_test_split_where_it_is_large_enough(self):
    with mock.patch.object(parity, "_ENOUGH", 5):
      self.assertEqual(self._sample(0).source, "the test split")

  def test_compares_logits_and_labels(self):
    sample = self._sample(3)
    ours = np.float32([[3, 0, 0], [0, 2, 0], [0, 0, 1]])
    theirs = ours.copy()
    theirs[1] = [2.5, 2, 0]
    theirs[2, 0] = -0.25
    found = parity.compare(sample, ours, theirs)
    self.assertEqual((found.largest, found.changed), (2.5, 1))
    self.assertEqual(found.where, f"class 'ask', {sample.place(1)}")
    self.assertEqual(found.first_changed, f"{sample.place(1)}: tell became ask")
    found.check(3.0, 0.34, "It", "Do.")
    for bound, share in ((2.0, 1.0), (3.0, 0.3)):
      with self.assertRaises(ValueError):
        found.check(bound, share, "It", "Do.")

  def test_nan_is_no_equal(self):
    sample = self._sample(2)
    ours = np.float32([[3, 0, 0], [0, 2, 0]])
    theirs = np.where(ours == 2, np.nan, ours)
    found = parity.compare(sample, ours, theirs)
    with self.assertRaisesRegex(ValueError, "difference inf.*Do."):
      found.check(1e9, 1.0, "It", "Do.")


class ImportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _foreign(self, **changes):
    """A classifier that transformers wrote, with a tokenizer but no student."""
    tokenizer = json.loads((_run()[0] / "tokenizer.json").read_text())
    rows = len(tokenizer["model"]["vocab"])
    values = (
      _CONFIG.to_hf()
      | {"vocab_size": rows, "num_labels": 3, "max_position_embeddings": 40}
      | changes
    )
    folder = self.folder / "foreign"
    transformers.BertForSequenceClassification(
      transformers.BertConfig(**values)
    ).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder

  @parameterized.parameters(*bert.POOLINGS)
  def test_round_trip_is_exact(self, pooling):
    workdir, _ = _run(pooling)
    back = self.folder / "back"
    importer.import_pytorch(_exported("pytorch", pooling=pooling)[0], back)
    student = Student.load(workdir)
    self.assertEqual(Student.load(back), student)
    ours, theirs = (
      nnx.to_pure_dict(nnx.state(exporter.load(f, student), nnx.Param))
      for f in (workdir, back)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    batch = np.full((2, 9), 5, np.int32), np.int32([9, 4]), np.int32([3, 2])
    ours, theirs = (
      np.asarray(exporter.jax_logits(exporter.load(f, student))(*batch))
      for f in (workdir, back)
    )
    np.testing.assert_array_equal(ours, theirs)

  def test_is_trained_on_and_predicted_from(self):
    _, config = _run()
    back = self.folder / "back"
    importer.import_pytorch(_exported("pytorch")[0], back)
    with config.copy_and_resolve_references().unlocked() as config:
      config.init_from = str(back)
      prepared = inputs.prepare(config, self.folder / "next")
    self.assertTrue(prepared.pretrained)
    weights = safetensors.numpy.load_file(
      _exported("pytorch")[0] / "model.safetensors"
    )
    model = nnx.merge(prepared.graphdef, prepared.params)
    for name, value in pretrained.hf_weights(model).items():
      np.testing.assert_array_equal(value, weights[name], err_msg=name)
    found = predictor.Predictor.from_workdir(back, live=False, batch=False)
    self.assertIn(
      found.add("d", "A", "Is the boat open?").label, corpus.CLASSES
    )

  def test_a_folder_of_transformers_with_a_config(self):
    _, config = _run()
    folder = self._foreign()
    student = importer.import_pytorch(
      folder, self.folder / "new", config=config, classes=corpus.CLASSES
    )
    self.assertEqual(student.classes, corpus.CLASSES)
    self.assertEqual((student.window, student.max_length), (3, 24))
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
      folder
    ).eval()
    ids = torch.tensor([[3, 9, 4, 11]])
    with torch.no_grad():
      expected = theirs(ids, token_type_ids=torch.tensor([[0, 0, 0, 1]]))
    ours = exporter.jax_logits(exporter.load(self.folder / "new", student))
    got = ours(np.int32(ids.numpy()), np.int32([4]), np.int32([3]))
    np.testing.assert_allclose(got, expected.logits.numpy(), atol=1e-5)

  def test_as_a_command(self):
    new = self.folder / "new"
    arguments = [sys.executable, "-m", "ppl_jax.import_pytorch"]
    arguments += [f"--folder={_exported('pytorch')[0]}", f"--workdir={new}"]
    status, text = commands.run(arguments)
    self.assertEqual(status, 0, text)
    self.assertIn("--config.init_from=", text)
    for name in ("pretrained", "student"):
      self.assertTrue(checkpoint.has_params(new, name))

  @parameterized.parameters(
    ({}, {"classes": ["a"]}, "must name all logits, got 1 names for 3"),
    ({}, {}, "config.dataset.classes must be the classifier's"),
    (
      {"problem_type": "multi_label_classification"},
      {"classes": corpus.CLASSES},
      "config.dataset.task must be the classifier's, multi_label",
    ),
    ({"problem_type": "regression"}, {}, "problem_type must be"),
    (
      {"max_position_embeddings": 12},
      {"classes": corpus.CLASSES},
      "max_length",
    ),
  )
  def test_what_does_not_fit_is_refused(self, changes, arguments, message):
    folder = self._foreign(**changes)
    with self.assertRaisesRegex(ValueError, message):
      importer.import_pytorch(
        folder, self.folder / "new", config=_run()[1], **arguments
      )
    self.assertFalse((self.folder / "new").exists())

  def test_needs_segments_and_a_scorer(self):
    folder = self._foreign()
    with self.assertRaisesRegex(ValueError, "got no --config, and no"):
      importer.import_pytorch(folder, self.folder / "new")
    path = folder / "model.safetensors"
    weights = safetensors.numpy.load_file(path)
    del weights["classifier.weight"]
    safetensors.numpy.save_file(weights, path)
    with self.assertRaisesRegex(ValueError, "classifier.weight: missing"):
      importer.import_pytorch(
        folder, self.folder / "new", config=_run()[1], classes=corpus.CLASSES
      )


if __name__ == "__main__":
  absltest.main()
