"""The start: a probe's scorer and pooling, chosen once and never lost."""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import corpus

from ppl_jax import checkpoint, comparison, inputs, loop, train, warm_start
from ppl_jax.student import Student


class WarmStartTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data = corpus.write(self.folder / "data", train=60)
    self.config = corpus.config(self.data)
    self.config.model.pooling = "auto"
    self.config.model.warm_start = True
    self.config.finetune.gold_fraction = 0.0

  def run_of(self, name="run"):
    workdir = self.folder / name
    run = loop.Run(inputs.prepare(self.config, workdir), workdir)
    self.addCleanup(run.checkpoints.close)
    return run

  @parameterized.parameters("auto", "pooler", "cls", "mean")
  def test_the_scorer_says_what_the_probe_says(self, pooling):
    self.config.model.pooling = pooling
    run = self.run_of()
    features = warm_start.begin(run)
    chosen = run.inputs.student.encoder.pooling
    if pooling != "auto":
      self.assertEqual(chosen, pooling)
    model = nnx.merge(run.inputs.graphdef, run.inputs.params)
    self.assertEqual(model.bert.config.pooling, chosen)
    self.assertEqual(hasattr(model.bert, "pooler"), chosen == "pooler")
    rows = warm_start.heldout_rows(run)
    params = jax.device_put(run.inputs.params, run.placed)
    logits = run.logits(params, rows.split, rows.utterances_M)
    probe = np.load(run.workdir / "probe.npz")
    np.testing.assert_allclose(
      logits,
      features["heldout"] @ probe["weight_CxH"].T + probe["bias_C"],
      atol=1e-4,
    )
    # And is better than knowing the classes' shares alone.
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    shares = warm_start.training_rows(run).targets_MxC.mean(axis=0)
    shares /= shares.sum()
    loss = -(rows.targets_MxC * np.log(p)).sum()
    self.assertLess(loss, -(rows.targets_MxC * np.log(shares)).sum())

  def test_a_run_that_goes_on_has_the_pooling_that_it_chose(self):
    run = self.run_of()
    warm_start.begin(run)
    chosen = run.inputs.student.encoder.pooling
    other = "cls" if chosen != "cls" else "mean"
    probe = dict(np.load(run.workdir / "probe.npz"))
    np.savez(run.workdir / "probe.npz", **(probe | {"pooling": other}))
    again = self.run_of()
    self.assertEqual(again.inputs.student.encoder.pooling, other)
    self.assertEqual(warm_start.begin(again), {})
    self.assertEqual(Student.load(again.workdir).encoder.pooling, other)

  def test_a_student_that_only_gets_worse_stays_the_probe(self):
    self.config.pretrain.optimizer.learning_rate = 10.0
    self.config.pretrain.optimizer.scorer_learning_rate = 10.0
    workdir = self.folder / "run"
    results = train.train_and_evaluate(
      inputs.prepare(self.config, workdir), workdir
    )
    run = self.run_of()
    warm_start.begin(run)
    like = jax.device_put(run.inputs.params, run.placed)
    params = checkpoint.load_params(workdir, "student", like)
    ours, theirs = (
      dict(nnx.to_flat_state(nnx.state(nnx.merge(run.inputs.graphdef, p))))
      for p in (params, like)
    )
    for path, value in ours.items():
      if "scorer" not in path:  # offsets and temperature are in there
        np.testing.assert_array_equal(value[...], theirs[path][...])
    self.assertEqual(results["pooling"], run.inputs.student.encoder.pooling)

  def test_whole_dialogues_are_drawn_where_there_are_many(self):
    run = self.run_of()
    split = run.inputs.splits["train"].split
    every = np.arange(len(split.dialogue_U))
    some = warm_start._some(split, every, 40, seed=0)
    self.assertBetween(len(some), 40, 45)
    drawn = np.isin(split.dialogue_U, split.dialogue_U[some])
    np.testing.assert_array_equal(np.flatnonzero(drawn), some)


class ComparisonTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data = corpus.write(self.folder / "data", train=60)
    self.config = corpus.config(self.data)
    self.config.baselines = True

  def train(self, name="run", **overrides):
    config = self.config.copy_and_resolve_references()
    config.update_from_flattened_dict(
      {key.replace("__", "."): value for key, value in overrides.items()}
    )
    workdir = self.folder / name
    return train.train_and_evaluate(inputs.prepare(config, workdir), workdir)

  @parameterized.parameters(
    ({},),
    ({"pretrain__objective": "none", "finetune__gold_fraction": 1.0},),
    ({"finetune__gold_fraction": 0.0},),
  )
  def test_baselines_are_in_the_results(self, overrides):
    results = self.train(**overrides)
    self.assertEqual(set(results["baselines"]), set(comparison.NAMES))
    for name in comparison.NAMES:
      test = results["baselines"][name]["test"]
      self.assertEqual(test["count"], results["test"]["count"])
    # Words decide the classes here.
    self.assertGreater(results["baselines"]["tfidf"]["test"]["accuracy"], 0.7)
    kept = json.loads((self.folder / "run" / "baselines.json").read_text())
    self.assertEqual(kept, results["baselines"])

  def test_a_run_from_another_has_the_same_probe(self):
    first = self.train("first", finetune__gold_fraction=0.0)
    second = self.train(
      "second",
      init_from=str(self.folder / "first"),
      finetune__gold_fraction=0.0,
    )
    self.assertEqual(first["baselines"], second["baselines"])

  def test_a_student_that_is_behind_is_told(self):
    results = {
      "test": {"accuracy": 0.5, "macro_f1": 0.6},
      "baselines": {
        "majority": {"test": {"accuracy": 0.4, "macro_f1": 0.1}},
        "tfidf": {"test": {"accuracy": 0.6, "macro_f1": 0.5}},
        "probe": {"test": {"accuracy": 0.3, "macro_f1": 0.7}},
      },
    }
    first, second = comparison._compare(results)
    self.assertIn("student 50.0 / 60.0; majority class 40.0 / 10.0", first)
    self.assertIn(
      "behind TF-IDF + logistic regression in accuracy and linear probe in"
      " macro F1 on test",
      second,
    )
    results["test"] = {"accuracy": 0.9, "macro_f1": 0.9}
    self.assertLen(comparison._compare(results), 1)

  def test_votes_and_student_are_scored_on_the_same_utterances(self):
    results = self.train(finetune__gold_fraction=0.0)
    votes = results["votes"]
    workdir = self.folder / "run"
    prepared = inputs.prepare(
      json_config(self.config, finetune__gold_fraction=0.0), workdir
    )
    split = prepared.splits["train"].split
    heldout = np.flatnonzero(prepared.heldout_U)
    self.assertEqual(votes["count"], len(heldout))
    scores = split.scores_UxC[heldout]
    right = (scores.argmax(1) == split.gold_UxC[heldout].argmax(1)) & (
      scores.max(1) > 0
    )
    self.assertAlmostEqual(votes["votes"], right.mean())
    self.assertBetween(votes["difference"], votes["low"], votes["high"])


def json_config(config, **overrides):
  """Returns a copy of a config with overrides."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(
    {key.replace("__", "."): value for key, value in overrides.items()}
  )
  return config


if __name__ == "__main__":
  absltest.main()
