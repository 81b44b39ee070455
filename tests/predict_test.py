"""Predictions against the evaluation's, in batches, live and by command."""

import contextlib
import csv
import gzip
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from unittest import mock

import hypothesis
import jax
import numpy as np
import onnx
from absl.testing import absltest, parameterized
from flax import nnx
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands
import corpus

from ppl_jax import (
  checkpoint,
  evaluate,
  files,
  jax_backend,
  live,
  predictor,
  sharding,
  train_step,
)
from ppl_jax import logits as logits_lib
from ppl_jax.data import pipeline, plan, segments, tokenization
from ppl_jax.models import bert, pretrained
from ppl_jax.student import Student

_MAX_LENGTH = 22
_ROLES = {"A": "[USR]"}
_CLASSES = corpus.CLASSES
_LINE = '{"dialogue_id": "a", "utterances": [{"speaker": "A", "text": "Hm"}]}'


def _transcripts(count, seed=0):
  return [
    files.Transcript(
      line["dialogue_id"],
      tuple(u["speaker"] for u in line["utterances"]),
      tuple(u["text"] for u in line["utterances"]),
    )
    for line in corpus.lines("test", count, seed)
  ]


def _write_jsonl(path, dialogues):
  with path.open("w") as f:
    for d in dialogues:
      pairs = zip(d.speakers, d.texts, strict=True)
      utterances = [{"speaker": s, "text": t} for s, t in pairs]
      line = {"dialogue_id": d.dialogue_id, "utterances": utterances}
      f.write(json.dumps(line) + "\n")
  return path


def _write_csv(path, dialogues):
  with path.open("w", newline="") as f:
    writer = csv.writer(f)
    writer.writerow(["text", "dialogue_id", "speaker"])
    for d in dialogues:
      for speaker, text in zip(d.speakers, d.texts, strict=True):
        writer.writerow([text, d.dialogue_id, speaker])
  return path


class _Run:
  """A run's folder with a random student, and the evaluation's logits."""

  def __init__(
    self, workdir, *, classes=_CLASSES, task="single_label", window=3
  ):
    self.workdir, self.window = workdir, window
    workdir.mkdir(parents=True)
    texts = [t for d in _transcripts(40) for t in d.texts]
    self.tokenizer = tokenization.train_wordpiece(texts, 200, _ROLES)
    self.tokenizer.save(workdir / "tokenizer.json")
    encoder = bert.BertConfig(
      vocab_size=self.tokenizer.vocab_size,
      hidden_size=16,
      num_hidden_layers=2,
      num_attention_heads=2,
      intermediate_size=32,
      max_position_embeddings=32,
      initializer_range=0.5,  # so that classes differ
    )
    self.student = Student(
      classes=classes,
      task=task,
      window=window,
      max_length=_MAX_LENGTH,
      buckets=(_MAX_LENGTH,),
      speaker_tokens=_ROLES,
      encoder=encoder,
      dropout=0.1,
      dtype="float32",
    )
    self.student.save(workdir)
    model = pretrained.new_classifier(
      encoder, len(classes), dropout=0.1, dtype="float32", seed=1
    )
    self.graphdef, self.params = nnx.split(model, nnx.Param)
    checkpoint.save_params(workdir, "student", self.params)

  def split(self, dialogues) -> pipeline.Materializer:
    with tempfile.TemporaryDirectory() as folder:
      tokens = tokenization.tokenize_split(
        dialogues, self.tokenizer, f"{folder}/tokens"
      )
    U, C = tokens.num_utterances, len(self.student.classes)
    settings = tokens, self.window, _MAX_LENGTH
    arrays = pipeline.SplitArrays(
      tokens=tokens,
      dialogue_U=np.repeat(np.arange(len(dialogues)), np.diff(tokens.first)),
      lengths_U=segments.segment_lengths(*settings),
      context_lengths_U=segments.context_lengths(*settings),
      scores_UxC=np.zeros((U, C), np.float32),
      valid_U=np.zeros(U, np.float32),
      gold_UxC=np.zeros((U, C), np.uint8),
      labelled_U=np.zeros(U, bool),
    )
    tokenizer = self.tokenizer
    ids = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    return pipeline.Materializer(arrays, self.window, _MAX_LENGTH, *ids)

  def probabilities(self, dialogues) -> np.ndarray:
    split = self.split(dialogues)
    mesh = sharding.make_mesh(1)
    step = train_step.make_logits_step(self.graphdef, self.params, mesh)
    logits = evaluate.outputs(
      step,
      self.params,
      split,
      np.arange(split.split.tokens.num_utterances),
      mesh=mesh,
      buckets=self.student.buckets,
      rows=16,
      shards=1,
    )
    return logits_lib.probabilities(logits, self.student.task)

  def predictor(self, **kwargs) -> predictor.Predictor:
    return predictor.Predictor.from_workdir(self.workdir, **kwargs)


def _utterances(dialogues):
  for d in dialogues:
    for i, (speaker, text) in enumerate(zip(d.speakers, d.texts, strict=True)):
      yield d.dialogue_id, i, speaker, text


def _matrix(predictions):
  return np.array([list(p.probabilities.values()) for p in predictions])


def _onnx_folder(folder, run, seed=0) -> np.ndarray:
  """Writes a bag-of-words model that knows mask and types; its weights."""
  vocab_size, C = run.tokenizer.vocab_size, len(run.student.classes)
  rng = np.random.default_rng(seed)
  weights_2xVxC = rng.normal(size=(2, vocab_size, C)).astype(np.float32)
  make = onnx.helper
  ints, floats = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
  constants = {
    "table": weights_2xVxC.reshape(-1, C),
    "size": np.array(vocab_size, np.int64),
    "last": np.array([2], np.int64),
    "axis": np.array([1], np.int64),
  }
  graph = make.make_graph(
    [
      make.make_node("Mul", ["token_type_ids", "size"], ["shift"]),
      make.make_node("Add", ["input_ids", "shift"], ["rows"]),
      make.make_node("Gather", ["table", "rows"], ["values"]),
      make.make_node("Cast", ["attention_mask"], ["mask"], to=floats),
      make.make_node("Unsqueeze", ["mask", "last"], ["mask1"]),
      make.make_node("Mul", ["values", "mask1"], ["seen"]),
      make.make_node("ReduceSum", ["seen", "axis"], ["logits"], keepdims=0),
    ],
    "bag",
    [
      make.make_tensor_value_info(name, ints, ["batch", "length"])
      for name in ("input_ids", "attention_mask", "token_type_ids")
    ],
    [make.make_tensor_value_info("logits", floats, ["batch", C])],
    [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()],
  )
  opset = [make.make_opsetid("", 17)]
  model = make.make_model(graph, opset_imports=opset, ir_version=10)
  folder.mkdir()
  onnx.save(model, folder / "model.onnx")
  run.student.save(folder)
  run.tokenizer.save(folder / "tokenizer.json")
  return weights_2xVxC


class PredictTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stack = contextlib.ExitStack()
    cls.addClassCleanup(cls.stack.close)
    cls.home = pathlib.Path(
      cls.stack.enter_context(tempfile.TemporaryDirectory())
    )
    # Runs of one shape, and the commands, need not compile anew.
    for name in (
      "jax_compilation_cache_dir",
      "jax_persistent_cache_min_compile_time_secs",
    ):
      cls.addClassCleanup(jax.config.update, name, getattr(jax.config, name))
    jax_backend.use_cache(cls.home / "xla")
    compilation_cache.reset_cache()
    cls.addClassCleanup(compilation_cache.reset_cache)
    cls.trained = _Run(cls.home / "run")
    cls.predictor = cls.trained.predictor()

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def command(self, *flags, workdir=None):
    return [
      sys.executable,
      "-m",
      "ppl_jax.predict",
      f"--workdir={workdir or self.trained.workdir}",
      f"--cache={self.home / 'xla'}",
      *flags,
    ]

  def run_command(self, *flags, workdir=None):
    return commands.run(self.command(*flags, workdir=workdir))

  # --- What is predicted.

  @parameterized.parameters(None, 1, 3)
  def test_both_modes_equal_the_evaluation(self, window):
    run = self.trained
    if window != run.window:
      run = _Run(self.folder / "run", window=window)
    predict = run.predictor(live=False, batch=False)
    dialogues = _transcripts(40, seed=3)
    expected = run.probabilities(dialogues)
    self.assertGreater(np.ptp(expected), 0.3)
    batch = list(predict.predict(dialogues))
    np.testing.assert_allclose(_matrix(batch), expected, atol=1e-5)
    one_by_one = [
      predict.add(dialogue_id, speaker, text)
      for dialogue_id, _, speaker, text in _utterances(dialogues)
    ]
    np.testing.assert_allclose(_matrix(one_by_one), expected, atol=1e-5)
    for predictions in (batch, one_by_one):
      self.assertEqual(
        [p[:2] for p in predictions], [u[:2] for u in _utterances(dialogues)]
      )
      self.assertEqual(
        [p.label for p in predictions],
        [_CLASSES[c] for c in expected.argmax(axis=1)],
      )

  @hypothesis.given(
    st.lists(st.lists(st.text("ab ", max_size=40), max_size=5), max_size=3),
    st.none() | st.integers(1, 4),
    st.integers(segments.MIN_LENGTH, 20),
  )
  @hypothesis.settings(deadline=None)
  def test_segments_are_those_of_training(self, texts, window, max_length):
    tokenizer = self.trained.tokenizer
    dialogues = [
      files.Transcript(str(i), ("A", "Bo", "x")[: len(d)] * 2, tuple(d))
      for i, d in enumerate(texts)
    ]
    dialogues = [
      d._replace(speakers=tuple("AxA"[i % 3] for i in range(len(d.texts))))
      for d in dialogues
    ]
    encoded = [
      tokenizer.encode_utterances(d.speakers, d.texts) for d in dialogues
    ]
    flat = [ids for d in encoded for ids in d]
    tokens = segments.UtteranceTokens(
      ids=np.concatenate([np.zeros(0, np.int32), *flat]),
      offsets=np.cumsum([0, *map(len, flat)]),
      first=np.cumsum([0, *map(len, encoded)]),
    )
    contexts = segments.context_lengths(tokens, window, max_length)
    u = 0
    for d in dialogues:
      live_window = segments.DialogueWindow(window, max_length)
      for speaker, text in zip(d.speakers, d.texts, strict=True):
        ids = tokenizer.encode_utterance(speaker, text)
        self.assertEqual(ids, flat[u].tolist())
        segment, context_length = live_window.segment(
          ids, tokenizer.cls_id, tokenizer.sep_id
        )
        live_window.add(ids)
        row = np.full(max_length, tokenizer.pad_id, np.int32)
        segments.write_segments(
          tokens,
          [u],
          row[None],
          window,
          max_length,
          tokenizer.cls_id,
          tokenizer.sep_id,
        )
        self.assertEqual(row[: len(segment)].tolist(), segment)
        self.assertTrue((row[len(segment) :] == tokenizer.pad_id).all())
        self.assertEqual(context_length, contexts[u])
        u += 1

  def test_rows_are_those_of_the_pipeline(self):
    dialogues = _transcripts(30, seed=4)
    materialize = self.trained.split(dialogues)
    U = materialize.split.tokens.num_utterances
    index = np.full((1, 1, 1), -1, np.int32)
    batch = materialize(
      plan.BatchPlan(_MAX_LENGTH, U * _MAX_LENGTH, np.arange(U)[None], index)
    )
    seen = []

    class Recorder:
      lengths = (_MAX_LENGTH,)
      parallel = 1

      def start(self, tokens_NxT, length_N, context_length_N):
        seen.append((tokens_NxT[0], length_N[0], context_length_N[0]))
        return np.zeros((1, len(_CLASSES)), np.float32)

    predict = predictor.Predictor(
      Recorder(),
      self.trained.tokenizer,
      classes=_CLASSES,
      task="single_label",
      window=self.trained.window,
      max_length=_MAX_LENGTH,
    )
    for dialogue_id, _, speaker, text in _utterances(dialogues):
      predict.add(dialogue_id, speaker, text)
    for i, name in enumerate(("tokens", "length", "context_length")):
      np.testing.assert_array_equal([s[i] for s in seen], batch[name][0], name)

  def test_interleaved_dialogues_are_as_alone(self):
    dialogues = _transcripts(20, seed=5)
    alone = {p[:2]: p for p in self.predictor.predict(dialogues)}
    queue = list(_utterances(dialogues))
    order = np.random.default_rng(0).permutation(len(queue))
    # A random order of dialogues, but each dialogue in its own.
    turns = [queue[i][0] for i in order]
    left = {d.dialogue_id: iter(list(_utterances([d]))) for d in dialogues}
    for dialogue_id in turns:
      _, i, speaker, text = next(left[dialogue_id])
      got = self.predictor.add(f"mixed {dialogue_id}", speaker, text)
      expected = alone[dialogue_id, i]
      self.assertEqual((got.utterance, got.label), (i, expected.label))
      np.testing.assert_allclose(_matrix([got]), _matrix([expected]), atol=1e-5)

  def test_silent_dialogues_are_forgotten(self):
    now = 0.0
    predict = self.trained.predictor(live=False, batch=False, idle_minutes=2)
    predict._clock = lambda: now

    def add(name):
      return predict.add(name, "A", "Is the lamp open?").utterance

    self.assertEqual([add("a"), add("b"), add("a")], [0, 0, 1])
    now = 100.0
    self.assertEqual(add("a"), 2)
    now = 121.0  # b was silent for 121 s, a for 21 s
    self.assertEqual([add("c"), add("b"), add("a")], [0, 0, 3])
    self.assertCountEqual(predict._live, ["a", "b", "c"])
    now = 300.0
    self.assertEqual(add("d"), 0)
    self.assertCountEqual(predict._live, ["d"])

  def test_a_refused_utterance_changes_nothing(self):
    add = self.predictor.add
    add("refused", "A", "Is the lamp open?")
    for speaker, text in (
      ("A", " "),
      ("", "Yes."),
      (None, "Yes."),
      ("A", 3),
      ("A", "\ud800"),
    ):
      with self.assertRaises(ValueError):
        add("refused", speaker, text)
    with self.assertRaisesRegex(ValueError, "dialogue_id must be a string"):
      add(7, "A", "Yes.")
    self.assertEqual(add("refused", "B", "It is.").utterance, 1)

  def test_an_utterance_longer_than_a_segment(self):
    text = "lamp " * 500
    once = files.Transcript("long", ("A", "B"), (text, text))
    expected = self.trained.probabilities([once])
    got = [self.predictor.add("long", *u[2:]) for u in _utterances([once])]
    np.testing.assert_allclose(_matrix(got), expected, atol=1e-5)

  def test_nothing_is_compiled_after_the_start(self):
    predict = self.trained.predictor()
    events = []

    def listen(event, duration, **kwargs):
      del duration, kwargs
      if event.startswith("/jax/core/compile"):
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    self.addCleanup(jax.monitoring.unregister_event_duration_listener, listen)
    jax.jit(lambda x: x + 2.5)(1.5)
    self.assertNotEmpty(events)  # the listener hears
    events.clear()
    for words in range(1, 40):
      predict.add("one", "A", "lamp " * words)
      predict.add("two", "Somebody", "boat " * words)
    list(predict.predict(_transcripts(60, seed=6)))
    self.assertEmpty(events)

  def test_abstaining(self):
    dialogues = _transcripts(30, seed=7)
    sure = list(self.predictor.predict(dialogues))
    tops = [max(p.probabilities.values()) for p in sure]
    limit = float(np.median(tops))
    predict = self.trained.predictor(
      live=False, batch=False, abstain_below=limit
    )
    for before, p, top in zip(
      sure, predict.predict(dialogues), tops, strict=True
    ):
      self.assertEqual(p.abstained, top < limit)
      self.assertEqual(p.label, None if top < limit else before.label)
      values = json.loads(p.to_json())
      self.assertEqual(values.get("abstained", False), top < limit)
      self.assertEqual(values["label"], p.label)
    with self.assertRaisesRegex(ValueError, r"must lie in \[0, 1\], got 1.5"):
      self.trained.predictor(live=False, batch=False, abstain_below=1.5)

  @parameterized.parameters(
    (("ask",), "single_label"), (_CLASSES, "multi_label")
  )
  def test_sigmoids_give_lists(self, classes, task):
    run = _Run(self.folder / "run", classes=classes, task=task)
    dialogues = _transcripts(30, seed=8)
    expected = run.probabilities(dialogues)
    predict = run.predictor(live=False, batch=False, abstain_below=0.6)
    predictions = list(predict.predict(dialogues))
    np.testing.assert_allclose(_matrix(predictions), expected, atol=1e-5)
    for p, row in zip(predictions, expected, strict=True):
      self.assertEqual(p.abstained, (np.abs(row - 0.5) < 0.1).any())
      if not p.abstained:
        self.assertEqual(
          p.label, [c for c, x in zip(classes, row, strict=True) if x > 0.5]
        )

  # --- Live.

  def test_broken_lines_are_answered_in_their_place(self):
    good = {"dialogue_id": "broken", "speaker": "A", "text": "Is it?"}
    lines = [
      b"\xef\xbb\xbf" + json.dumps(good).encode(),
      b"{",
      b"",
      b"[1, 2]",
      b"[" * 100_000,
      b'{"dialogue_id": "broken", "speaker": "A", "text": "\xff"}',
      json.dumps({**good, "text": "\n "}).encode(),
      json.dumps({**good, "speaker": 3}).encode(),
      json.dumps({"dialogue_id": "broken", "text": "Is it?"}).encode(),
      json.dumps({**good, "text": "\ud800"}).encode(),
      json.dumps({**good, "speaker": "\ud800"}).encode(),
      json.dumps({**good, "dialogue_id": "\ud800"}).encode(),
      json.dumps({**good, "speaker": "Néw", "at": 12.5}).encode(),
    ]
    output = io.BytesIO()
    live.run(self.predictor, [line + b"\n" for line in lines], output)
    answers = [json.loads(line) for line in output.getvalue().splitlines()]
    self.assertLen(answers, 12)
    self.assertEqual(
      [a.get("line") for a in answers], [None, 2, *range(4, 13), None]
    )
    for answer, pattern in zip(
      answers[1:-1],
      (
        "must be JSON",
        "must be a JSON object",
        "must be JSON",
        "must be JSON",
        "text must be a string that is not blank",
        "speaker must be a string that .* UTF-8 can hold, got 3",
        "none for speaker",
        "text must be a string that .* UTF-8 can hold",
        "speaker must be a string that .* UTF-8 can hold",
        "dialogue_id must be a string that .* UTF-8 can hold",
      ),
      strict=True,
    ):
      self.assertRegex(answer["error"], pattern)
    self.assertEqual(
      [(answers[i]["dialogue_id"], answers[i]["utterance"]) for i in (0, -1)],
      [("broken", 0), ("broken", 1)],
    )
    self.assertEqual(list(answers[0]["probabilities"]), list(_CLASSES))

  def test_the_live_command_answers_at_once(self):
    dialogues = _transcripts(4, seed=9)
    expected = iter(list(self.predictor.predict(dialogues)))
    process = subprocess.Popen(
      self.command("--input=-", "--threads=1"),
      cwd=commands.ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      bufsize=1,
    )
    with process:
      for dialogue_id, i, speaker, text in _utterances(dialogues):
        values = {"dialogue_id": dialogue_id, "speaker": speaker, "text": text}
        process.stdin.write(json.dumps(values) + "\n")
        # No more is sent before this line is there.
        answer = json.loads(process.stdout.readline())
        p = next(expected)
        self.assertEqual(answer["dialogue_id"], dialogue_id)
        self.assertEqual((answer["utterance"], answer["label"]), (i, p.label))
        for name, value in p.probabilities.items():
          self.assertAlmostEqual(answer["probabilities"][name], value, places=4)
      process.stdin.write("broken\n")
      self.assertIn("error", json.loads(process.stdout.readline()))
      rest, errors = process.communicate(timeout=60)
    self.assertEqual((process.returncode, rest), (0, ""), errors)

  # --- Files.

  def test_files_of_both_kinds(self):
    dialogues = _transcripts(50, seed=10)
    expected = list(self.predictor.predict(dialogues))
    jsonl = _write_jsonl(self.folder / "in.jsonl", dialogues)
    table = _write_csv(self.folder / "in.csv", dialogues)
    status, output = self.run_command(
      f"--input={table}", f"--output={self.folder / 'out.jsonl'}"
    )
    self.assertEqual(status, 0, output)
    lines = (self.folder / "out.jsonl").read_text().splitlines()
    self.assertLen(lines, len(expected))
    for line, p in zip(lines, expected, strict=True):
      values = json.loads(line)
      self.assertEqual(
        list(values), ["dialogue_id", "utterance", "label", "probabilities"]
      )
      self.assertEqual(
        (values["dialogue_id"], values["utterance"], values["label"]), p[:3]
      )
      self.assertAlmostEqual(sum(values["probabilities"].values()), 1, places=4)
    out = self.folder / "new" / "deep" / "out.csv"
    status, output = self.run_command(f"--input={jsonl}", f"--output={out}")
    self.assertEqual(status, 0, output)
    with out.open(newline="") as f:
      rows = list(csv.DictReader(f))
    for row, line in zip(rows, lines, strict=True):
      values = json.loads(line)
      self.assertEqual(
        (row["dialogue_id"], int(row["utterance"]), row["label"]),
        (values["dialogue_id"], values["utterance"], values["label"]),
      )
      self.assertEqual(row["abstained"], "false")
      for name, value in values["probabilities"].items():
        self.assertAlmostEqual(
          float(row[f"probability_{name}"]), value, places=5
        )
    self.assertCountEqual(
      [p.name for p in self.folder.iterdir()],
      ["in.jsonl", "in.csv", "out.jsonl", "new"],
    )
    self.assertEqual([p.name for p in out.parent.iterdir()], ["out.csv"])

  def test_killed_and_given_again(self):
    dialogues = [
      d._replace(dialogue_id=f"{i}")
      for i, d in enumerate(_transcripts(200, seed=11) * 20)
    ]
    plain = _write_jsonl(self.folder / "in.jsonl", dialogues)
    source = self.folder / "in.jsonl.gz"
    source.write_bytes(gzip.compress(plain.read_bytes()))
    whole, broken = self.folder / "whole.jsonl", self.folder / "broken.jsonl"
    status, output = self.run_command(f"--input={source}", f"--output={whole}")
    self.assertEqual(status, 0, output)
    state = self.folder / "broken.jsonl.partial.json"
    command = self.command(f"--input={source}", f"--output={broken}")
    process = commands.start(command)
    while process.poll() is None and not state.exists():
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    self.assertTrue(state.exists(), output)
    self.assertFalse(broken.exists())
    with (self.folder / "broken.jsonl.partial").open("ab") as f:
      f.write(b'{"dialogue_id": "cut o')
    done = json.loads(state.read_text())["utterances"]
    self.assertBetween(done, predictor.CHUNK, 3 * predictor.CHUNK)
    status, output = commands.run(command)
    self.assertEqual(status, 0, output)
    self.assertIn(f"Goes on after {done} utterances", output)
    self.assertEqual(broken.read_bytes(), whole.read_bytes())
    self.assertFalse(state.exists())

  def test_interrupted(self):
    dialogues = [
      d._replace(dialogue_id=f"{i}")
      for i, d in enumerate(_transcripts(200, seed=11) * 60)
    ]
    source = _write_jsonl(self.folder / "in.jsonl", dialogues)
    output = self.folder / "out.jsonl"
    state = self.folder / "out.jsonl.partial.json"
    command = self.command(f"--input={source}", f"--output={output}")
    process = commands.start(command)
    while process.poll() is None and not state.exists():
      time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 130, told)
    self.assertIn("Give the same command again to go on.", told)
    self.assertNotIn("Traceback", told)
    self.assertTrue(state.exists())
    self.assertFalse(output.exists())

  def test_a_partial_file_of_other_things_is_refused(self):
    output = self.folder / "out.jsonl"
    about = {"input": "a", "student": "b"}

    def chunks():
      yield 1, [predictor.Prediction("d", 0, "ask", {"ask": 1.0}, False)]
      raise KeyboardInterrupt

    with (
      self.assertRaises(KeyboardInterrupt),
      files.Partial(output, about) as partial,
    ):
      partial.write(chunks(), ("ask",))
    with files.Partial(output, about) as again:
      self.assertEqual((again.dialogues, again.utterances), (1, 1))
      with self.assertRaisesRegex(ValueError, "One command at a time"):
        files.Partial(output, about)
    with self.assertRaisesRegex(ValueError, "got another student"):
      files.Partial(output, {**about, "student": "c"})
    (self.folder / "out.jsonl.partial").write_text("")
    with self.assertRaisesRegex(ValueError, "Delete both"):
      files.Partial(output, about)

  def test_an_input_that_cannot_be_read_again_is_refused(self):
    pipe = self.folder / "pipe.jsonl"
    os.mkfifo(pipe)
    for source in (pipe, self.folder):
      with self.assertRaisesRegex(ValueError, "which is a folder or a pipe"):
        files.check(source)

  def test_an_input_that_was_cut_meanwhile_is_no_finished_output(self):
    source = _write_jsonl(self.folder / "in.jsonl", _transcripts(5))
    output = self.folder / "out.jsonl"
    summary = files.check(source)
    _write_jsonl(source, _transcripts(3))
    with (
      self.assertRaisesRegex(ValueError, "got 3 dialogues where"),
      files.Partial(output, {"input": summary.sha256}) as partial,
    ):
      files.predict(self.predictor, source, summary, partial)
    self.assertFalse(output.exists())

  def test_no_file_is_written_over(self):
    source = _write_jsonl(self.folder / "in.jsonl", _transcripts(1))
    link = self.folder / "link.jsonl"
    link.symlink_to(source)
    (self.folder / "hard.jsonl").hardlink_to(source)
    (self.folder / "mine.txt").write_text("x")
    (self.folder / "more").mkdir()
    keep = "must leave --input as it is"
    for output, file, pattern in (
      (source, source, keep),
      (link, source, keep),
      (source, link, keep),
      (self.folder / "hard.jsonl", source, keep),
      (self.folder / "more" / ".." / "in.jsonl", source, keep),
      (self.folder / "mine.txt", source, "be a new file, got .*mine.txt"),
      (self.folder / "more", source, "must be a file, got the folder"),
      (self.folder / "out.jsonl.gz", source, "must not be gzip"),
      (source / "new" / "out.csv", source, "in.jsonl is not a folder that"),
    ):
      with self.assertRaisesRegex(ValueError, pattern):
        files.check_output(output, file)
    output = self.folder / "out.jsonl"
    files.check_output(output, source)
    source = source.rename(self.folder / "out.jsonl.partial")
    with self.assertRaisesRegex(ValueError, keep):
      files.check_output(output, source)

  @parameterized.parameters(
    ("x.jsonl", '{"dialogue_id": "a"}', "line 1: .*no 'utterances'"),
    ("x.jsonl", "\n[]", "line 2: a line must be one JSON dialogue"),
    ("x.jsonl", '{"dialogue_id": "a", "utterances": []}', "no utterances"),
    (
      "x.jsonl",
      '{"dialogue_id": "a", "utterances": [{"speaker": "A", "text": ""}]}',
      "line 1: utterance 0 of dialogue 'a': text must be a string",
    ),
    ("x.jsonl", "", "at least one dialogue"),
    ("x.csv", "dialogue_id,text\na,b\n", "none for speaker"),
    ("x.csv", "dialogue_id,speaker,text\na,A,\n", "line 2: .*text must be"),
    ("x.csv", "dialogue_id,speaker,text\na,A\n", "line 2: .*fields.*got 2"),
    (
      "x.csv",
      'dialogue_id,speaker,text\na,A,"x\ny"\n\na,B,Well, yes.\n',
      "line 5: a row must have the 3 fields.*got 4.*in double quotes",
    ),
    (
      "x.csv",
      'dialogue_id,speaker,text\na,A,x\na,B,"Well\na,A,"Hm"\na,B,x\n',
      "row that begins on line 3 must be CSV.*in double quotes",
    ),
    (
      "x.csv",
      'dialogue_id,speaker,text\na,A,x\na,B,"Well\na,A,Hm\n',
      "row that begins on line 3 must be CSV.*in double quotes",
    ),
    (
      "x.csv",
      "dialogue_id;speaker;text\na;A;x\n",
      "with commas between, got .* in 'dialogue_id;speaker;text'",
    ),
    (
      "x.csv",
      ("dialogue_id,speaker,text\n" + "a,A,x\n" * 9).encode()
      + b"a,A,\xe9t\xe9",
      r"line 11: a file must be UTF-8, got b'a,A,\\xe9t\\xe9'. Save it as",
    ),
    (
      "x.csv",
      "dialogue_id,speaker,text\na,A,x\n".encode("utf-16"),
      "line 1: a file must be UTF-8, .*Save it as UTF-8",
    ),
    (
      "x.jsonl",
      _LINE.encode() + b"\n" + _LINE.replace("Hm", "\xe9").encode("latin-1"),
      "line 2: a file must be UTF-8, .*Save it as UTF-8",
    ),
    (
      "x.jsonl",
      _LINE.encode("utf-16"),
      "line 1: a file must be UTF-8, .*Save it as UTF-8",
    ),
    ("x.jsonl.gz", _LINE, "x.jsonl.gz must be gzip from end to end"),
    (
      "x.jsonl.gz",
      gzip.compress(_LINE.encode())[:-9],
      "x.jsonl.gz must be gzip from end to end",
    ),
    (
      "x.jsonl",
      _LINE.replace("Hm", "\\ud83d"),
      r"line 1: utterance 0 of dialogue 'a': text .* UTF-8 can hold.*ud83d",
    ),
    (
      "x.csv",
      "dialogue_id,speaker,text\na,A,x\nb,A,x\na,B,x\n",
      "got 'a' again after other dialogues",
    ),
  )
  def test_broken_files_are_refused_before_anything(
    self, name, content, pattern
  ):
    path = self.folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with self.assertRaisesRegex(ValueError, pattern):
      files.check(path)

  @parameterized.parameters(
    ("x.jsonl", _write_jsonl), ("x.csv", _write_csv), ("x.CSV", _write_csv)
  )
  def test_what_files_may_hold(self, name, write):
    long = files.Transcript("long", ("A",), ("lamp " * 100_000,))
    lines = files.Transcript(
      "\xe9", ("A", "B"), ('a "b", c\n\n', "\u2028\n\U0001f600")
    )
    dialogues = [*_transcripts(3), long, lines]
    plain = write(self.folder / name, dialogues)
    self.assertEqual(list(files.read(plain)), dialogues)
    packed = self.folder / f"{name}.gz"
    half = plain.stat().st_size // 2  # gzip may come in parts
    data = b"\xef\xbb\xbf" + plain.read_bytes()
    packed.write_bytes(gzip.compress(data[:half]) + gzip.compress(data[half:]))
    self.assertEqual(list(files.read(packed)), dialogues)
    self.assertEqual(files.check(packed).dialogues, 5)

  def test_a_quote_left_open_does_not_fill_the_memory(self):
    self.addCleanup(csv.field_size_limit, csv.field_size_limit())
    self.enterContext(mock.patch.object(files, "_LONGEST_FIELD", 1000))
    path = self.folder / "x.csv"
    path.write_text('dialogue_id,speaker,text\na,A,"x\n' + "b,A,x\n" * 1000)
    with self.assertRaisesRegex(ValueError, r"begins on line 2 .*\(1000\)"):
      files.check(path)

  def test_the_command_says_what_is_wrong_in_one_line(self):
    path = _write_jsonl(self.folder / "in.jsonl", _transcripts(1))
    out = f"--output={self.folder / 'out.jsonl'}"
    for flags, workdir, pattern in (
      ([f"--input={path}"], None, "--output must be given"),
      (["--input=-", out], None, "--output must be given with a file and not"),
      ([f"--input={path}", f"--output={path}"], None, "must leave --input"),
      ([f"--input={self.folder}/no.jsonl", out], None, "no.jsonl"),
      ([f"--input={path}", out], self.folder, "must hold student.json"),
    ):
      status, output = self.run_command(*flags, workdir=workdir)
      self.assertEqual(status, 1, output)
      self.assertRegex(output, f"error: .*{pattern}")
      self.assertNotIn("Traceback", output)

  # --- onnxruntime.

  @parameterized.parameters(1, 3)
  def test_onnxruntime_runs_an_export(self, threads):
    folder = self.folder / "onnx"
    weights_2xVxC = _onnx_folder(folder, self.trained)
    dialogues = _transcripts(40, seed=12)
    materialize = self.trained.split(dialogues)
    split = materialize.split
    U = split.tokens.num_utterances
    index = np.full((1, 1, 1), -1, np.int32)
    batch = materialize(
      plan.BatchPlan(_MAX_LENGTH, U * _MAX_LENGTH, np.arange(U)[None], index)
    )
    logits = np.zeros((U, len(_CLASSES)))
    for u in range(U):
      for t in range(split.lengths_U[u]):
        kind = int(t >= split.context_lengths_U[u])
        logits[u] += weights_2xVxC[kind, batch["tokens"][0, u, t]]
    expected = logits_lib.probabilities(logits, "single_label")
    predict = predictor.Predictor.from_workdir(folder, threads=threads)
    got = list(predict.predict(dialogues))
    np.testing.assert_allclose(_matrix(got), expected, atol=1e-5)
    got = [predict.add(u[0], *u[2:]) for u in _utterances(dialogues)]
    np.testing.assert_allclose(_matrix(got), expected, atol=1e-5)

  def test_a_broken_export_is_refused(self):
    folder = self.folder / "onnx"
    _onnx_folder(folder, self.trained)
    (folder / "model.onnx").write_bytes(b"nothing")
    with self.assertRaisesRegex(ValueError, "model.onnx must be a model"):
      predictor.Predictor.from_workdir(folder)

  def test_only_what_is_needed_is_imported(self):
    folder = self.folder / "onnx"
    _onnx_folder(folder, self.trained)
    heavy = "torch", "tensorflow_datasets", "grain", "transformers", "pandas"
    for workdir, absent in (
      (self.trained.workdir, (*heavy, "onnxruntime")),
      (folder, (*heavy, "jax", "flax", "orbax")),
    ):
      program = f"""
import sys
from ppl_jax import predict, predictor
p = predictor.Predictor.from_workdir({str(workdir)!r}, batch=False)
p.add("a", "A", "Is it?")
loaded = [m for m in {absent} if m in sys.modules]
assert not loaded, loaded
"""
      status, output = commands.run([sys.executable, "-c", program])
      self.assertEqual(status, 0, output)


if __name__ == "__main__":
  absltest.main()
