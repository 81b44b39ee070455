"""Every mistake a user can make is refused before training, in plain words."""

import dataclasses
import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import safetensors.numpy
from absl.testing import absltest, parameterized

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands
import corpus

from configs import quickstart
from labeling import votes as voted
from ppl_jax import inputs
from ppl_jax.data import dialogues, scores, votes
from ppl_jax.models import bert, pretrained


class InputsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data = corpus.write(self.folder / "data")
    self.config = corpus.config(self.data)
    self.workdir = self.folder / "run"

  def prepare(self):
    return inputs.prepare(self.config, self.workdir)

  def assert_refused(self, pattern):
    with self.assertRaisesRegex(ValueError, pattern):
      self.prepare()
    # Nothing is claimed: the mended command may use the same workdir.
    self.assertFalse((self.workdir / "config.json").exists())

  def test_good_inputs(self):
    prepared = self.prepare()
    train = prepared.splits["train"].split
    self.assertEqual(prepared.student.classes, corpus.CLASSES)
    self.assertTrue(train.scored_U.all())
    self.assertGreater(prepared.heldout_U.sum(), 0)
    self.assertAlmostEqual(
      prepared.gold_U.sum() / train.labelled_U.sum(), 0.3, delta=0.05
    )
    self.assertTrue((self.workdir / "student.json").exists())
    self.assertTrue((self.workdir / "tokenizer.json").exists())

  def test_votes_about_some_classes_count_for_these(self):
    path = pathlib.Path(self.config.scores)
    given = scores.read_scores(path)
    for name, row in given.rows.items():
      given.rows[name] = dataclasses.replace(
        row, valid=row.valid * [0, 1, 1], votes=row.votes * [0, 1, 1]
      )
    scores.write_scores(path, given)
    self.config.dataset.task = "multi_label"
    prepared = self.prepare()
    train = prepared.splits["train"].split
    self.assertTrue(np.isnan(train.scores_UxC[:, 0]).all())
    self.assertTrue(train.scored_U.all())
    # Classes that exclude each other are told apart by scores of all.
    self.config.dataset.task = "single_label"
    self.workdir = self.folder / "single"
    self.assert_refused("none that is given to some class and has a score for")

  def test_simulated_scores_are_those_of_the_votes(self):
    config = quickstart.get_config()
    config.dataset.data_dir = str(self.folder / "prepared")
    config.dataset.options.train = 30
    config.dataset.options.validation = 10
    config.dataset.options.test = 0
    config.finetune.gold_fraction = 0.5
    self.config = config
    with mock.patch.object(inputs, "_DIALOGUES_AT_ONCE", 7):
      prepared = self.prepare()
    dataset = dialogues.load_config(config.dataset)
    read, _ = voted.read(
      [self.workdir / "votes.jsonl"],
      dataset.splits["train"],
      dataset.classes,
      config.votes.none_label,
    )
    counted = votes.to_scores(read, dataset="support", split="train")
    file = scores.ScoreFile(self.workdir / "scores.parquet")
    self.assertEqual(file.metadata, counted.metadata)
    self.assertEqual([name for name, _ in file.rows()], list(counted.rows))
    np.testing.assert_array_equal(
      prepared.splits["train"].split.scores_UxC,
      np.concatenate([row.score for row in counted.rows.values()]),
    )

  @parameterized.parameters(
    ("pretrain.objective", "pairs", "must be one of auto, pairwise"),
    ("pairs.targets", "medium", "must be one of hard, soft"),
    ("pairs.scope", "all", "must be one of intra, cross"),
    ("pairs.alpha", 1.5, r"config.pairs.alpha must lie in \[0, 1\], got 1.5"),
    ("finetune.gold_fraction", -0.1, r"must lie in \[0, 1\], got -0.1"),
    ("finetune.gold_fraction", 1e-5, "must leave at least one label"),
    ("batch.shards", 3, "must be a positive multiple of config.batch.shards"),
    ("finetune.vote_segments", 0, "must be a positive multiple"),
    ("finetune.vote_segments", 3, "group_size must be from 1 to the rows"),
    ("pairs.group_size", 99, "group_size must be from 1 to the rows"),
    ("segments.window", 0, "window"),
    ("segments.max_length", 3, "max_length"),
    ("dataset.source", "no/such/folder", "no/such/folder"),
    ("dataset.name", "nothing", "nothing"),
    ("scores", "no/such.parquet", "no/such.parquet"),
    ("scores", "", "python -m labeling.scores"),
    ("model.pretrained", "./no/weights", "must be an existing folder"),
    ("init_from", "no/such/run", "no/such/run"),
  )
  def test_wrong_value(self, key, value, pattern):
    *place, name = key.split(".")
    values = self.config
    for part in place:
      values = values[part]
    values[name] = value
    self.assert_refused(pattern)

  def test_nothing_to_train_on(self):
    self.config.pretrain.objective = "none"
    self.config.finetune.gold_fraction = 0.0
    self.assert_refused("must train on something")

  def test_broken_data_is_named_by_line(self):
    good = corpus.lines("train", 3, 0)
    missing = json.loads(json.dumps(good[1]))
    del missing["utterances"][0]["text"]
    for bad, pattern in (
      (missing, r"train.jsonl.*2.*text"),
      ({**good[1], "dialogue_id": good[0]["dialogue_id"]}, r"train-0"),
    ):
      corpus.write_split(self.data, "train", [good[0], bad])
      self.assert_refused(pattern)
    (self.data / "train.jsonl").write_text(
      json.dumps(good[0]) + "\n" + '{"dialogue_id": "x", \n'
    )
    self.assert_refused(r"train.jsonl.*2")

  def test_a_score_file_of_other_data(self):
    lines = corpus.lines("train", 30, 0)
    lines[4]["utterances"][0]["text"] += " Really."
    corpus.write_split(self.data, "train", lines)
    self.assert_refused("train-4")

  def test_a_score_file_without_a_score(self):
    scored = scores.read_scores(self.config.scores)
    scores.write_scores(
      self.config.scores, scores.Scores(scored.classes, scored.metadata, {})
    )
    self.assert_refused("must have a score for some utterance")

  def test_a_score_file_of_other_classes(self):
    scored = scores.read_scores(self.config.scores)
    other = scores.Scores(("ask", "tell", "bye"), scored.metadata, scored.rows)
    scores.write_scores(self.config.scores, other)
    self.assert_refused("bye")

  def test_weights_that_lack_a_tensor(self):
    folder = self.folder / "weights"
    folder.mkdir()
    config = bert.BertConfig(
      vocab_size=60,
      hidden_size=16,
      num_hidden_layers=1,
      num_attention_heads=2,
      intermediate_size=32,
      max_position_embeddings=20,
    )
    model = pretrained.new_classifier(
      config, 3, dropout=0.0, dtype="float32", seed=0
    )
    weights = pretrained.hf_weights(model)
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [chr(ord("a") + i) for i in range(26)]
    words += [f"##{chr(ord('a') + i)}" for i in range(26)] + [".", "?", ","]
    (folder / "vocab.txt").write_text("\n".join(words))
    self.config.model.pretrained = str(folder)
    name = "bert.encoder.layer.0.output.dense.weight"
    for bad, pattern in (
      ({k: v for k, v in weights.items() if k != name}, f"{name}: missing"),
      ({**weights, name: np.zeros((3, 4), np.float32)}, rf"{name}: has \[3, 4"),
    ):
      safetensors.numpy.save_file(bad, folder / "model.safetensors")
      self.assert_refused(pattern)
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    self.assert_refused("20")  # the position table is shorter than max_length

  def test_a_workdir_of_another_config(self):
    self.prepare()
    self.prepare()  # the same run may start again
    self.config.pretrain.epochs = 9
    with self.assertRaisesRegex(ValueError, "pretrain.epochs: 2 there, 9 here"):
      self.prepare()

  def test_a_workdir_of_other_data_under_the_same_names(self):
    gold = self.folder / "labels.jsonl"
    gold.write_text("")
    self.config.dataset.gold = str(gold)
    self.prepare()
    path = pathlib.Path(self.config.scores)
    before = path.read_bytes()
    scored = scores.read_scores(path)
    few = dict(list(scored.rows.items())[:-1])
    scores.write_scores(
      path, scores.Scores(scored.classes, scored.metadata, few)
    )
    with self.assertRaisesRegex(ValueError, "config.scores changed"):
      self.prepare()
    path.write_bytes(before)
    self.prepare()
    line = {"dialogue_id": "train-0", "utterance": 0, "label": "ask"}
    gold.write_text(json.dumps(line))
    with self.assertRaisesRegex(ValueError, "config.dataset.gold changed"):
      self.prepare()
    gold.write_text("")
    corpus.write_split(self.data, "test", corpus.lines("test", 3, 0))
    with self.assertRaisesRegex(ValueError, "config.dataset changed"):
      self.prepare()

  def test_labels_given_afterwards_are_gold(self):
    lines = corpus.lines("train", 30, 0)
    label = lines[3]["utterances"][0]["label"]
    for utterance in lines[3]["utterances"]:
      utterance["label"] = None
    corpus.write_split(self.data, "train", lines)
    before = self.prepare().splits["train"].split
    self.workdir = self.folder / "more"
    gold = self.folder / "labels.jsonl"
    gold.write_text(
      json.dumps({"dialogue_id": "train-3", "utterance": 0, "label": label})
    )
    self.config.dataset.gold = str(gold)
    after = self.prepare().splits["train"].split
    [changed] = np.flatnonzero(before.labelled_U != after.labelled_U)
    self.assertEqual(changed, before.tokens.first[3])
    self.assertEqual(
      after.gold_UxC[changed].tolist(), [c == label for c in corpus.CLASSES]
    )

  def test_only_scored_limits_the_gold(self):
    scored = scores.read_scores(self.config.scores)
    few = dict(list(scored.rows.items())[:10])
    scores.write_scores(
      self.config.scores, scores.Scores(scored.classes, scored.metadata, few)
    )
    self.config.finetune.gold_fraction = 1.0
    self.config.dataset.only_scored = True
    prepared = self.prepare()
    train = prepared.splits["train"].split
    self.assertEqual(set(train.dialogue_U[prepared.gold_U]), set(range(10)))
    np.testing.assert_array_equal(
      train.scored_U, np.isin(train.dialogue_U, range(10))
    )

  def test_a_class_without_a_held_out_vote_is_named(self):
    path = pathlib.Path(self.config.scores)
    given = scores.read_scores(path)
    for name, row in given.rows.items():
      given.rows[name] = dataclasses.replace(
        row, votes=row.votes * np.array([1, 0, 1], np.uint32)
      )
    scores.write_scores(path, given)
    with self.assertLogs("ppl_jax.inputs", "WARNING") as logged:
      self.prepare()
    self.assertIn("No held-out vote is for tell", logged.output[0])

  def test_gold_that_is_all_alike(self):
    lines = corpus.lines("train", 30, 0)
    for line in lines:
      for utterance in line["utterances"]:
        utterance["label"] = corpus.CLASSES[1]
    corpus.write_split(self.data, "train", lines)
    with self.assertLogs("ppl_jax.inputs", "WARNING") as logged:
      self.prepare()
    self.assertRegex("".join(logged.output), r"in use, all labelled \['tell'\]")
    self.config.pretrain.objective = "none"
    self.workdir = self.folder / "gold"
    self.assert_refused("Gold must tell utterances apart")

  def _without_labels(self, lines):
    for line in lines:
      for utterance in line["utterances"]:
        utterance["label"] = None
    return lines

  @parameterized.parameters("no file", "no labels")
  def test_without_dev_labels_part_of_train_chooses(self, how):
    if how == "no file":
      (self.data / "validation.jsonl").unlink()
    else:
      lines = self._without_labels(corpus.lines("validation", 12, 1))
      corpus.write_split(self.data, "validation", lines)
    self.config.finetune.gold_fraction = 1.0
    prepared = self.prepare()
    train = prepared.splits["train"].split
    self.assertEqual(prepared.dev_split, "train")
    np.testing.assert_array_equal(
      prepared.gold_U ^ prepared.dev_U, train.labelled_U
    )
    to_train, to_choose = (
      set(train.dialogue_U[which].tolist())
      for which in (prepared.gold_U, prepared.dev_U)
    )
    self.assertEmpty(to_train & to_choose)
    self.assertLen(to_choose, 6)  # of 30

  def test_labels_of_one_dialogue_are_too_few_to_choose(self):
    (self.data / "validation.jsonl").unlink()
    lines = corpus.lines("train", 30, 0)
    self._without_labels(lines[1:])
    corpus.write_split(self.data, "train", lines)
    self.config.scores = ""
    self.config.pretrain.objective = "none"
    self.config.finetune.gold_fraction = 1.0
    self.assert_refused("Label another dialogue")

  def test_the_command_says_it_in_one_line(self):
    status, output = commands.run(
      commands.command(
        self.workdir,
        "--config.dataset.source=/no/such/folder",
        "--config.dataset.classes=('a', 'b')",
        config="jsonl",
      )
    )
    self.assertEqual(status, 1)
    self.assertIn("error: ", output)
    self.assertIn("/no/such/folder", output)
    self.assertNotIn("Traceback", output)
    status, output = commands.run(
      commands.command(self.workdir, "--config.pretrain.epoch=3")
    )
    self.assertEqual(status, 1)
    self.assertIn("Did you mean 'epochs'?", output)
    self.assertNotIn("Traceback", output)


if __name__ == "__main__":
  absltest.main()
