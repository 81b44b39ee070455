import json
import pathlib
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands
import corpus

from ppl_jax import checkpoint, evaluate, inputs, loop, predictions, train


class TrainTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.data = corpus.write(self.folder / "data")
    self.config = corpus.config(self.data)

  def train(self, name="run", **overrides):
    config = self.config.copy_and_resolve_references()
    config.update_from_flattened_dict(
      {key.replace("__", "."): value for key, value in overrides.items()}
    )
    workdir = self.folder / name
    prepared = inputs.prepare(config, workdir)
    results = train.train_and_evaluate(prepared, workdir)
    self.assertEqual(
      results, json.loads((workdir / "results.json").read_text())
    )
    return workdir, prepared, results

  @parameterized.parameters(
    ({"pretrain__objective": "pointwise", "model__dtype": "bfloat16"},),
    ({"pretrain__objective": "joint", "pairs__targets": "soft"},),
    ({"pairs__scope": "cross", "pairs__equal_labels": True},),
    ({"pretrain__objective": "none"},),
  )
  def test_every_objective_trains_and_reports(self, overrides):
    workdir, _, results = self.train(**overrides)
    self.assertBetween(results["test"]["accuracy"], 0, 1)
    self.assertEqual(
      results["test"]["count"],
      sum(len(line["utterances"]) for line in corpus.lines("test", 10, 2)),
    )
    kept = predictions.load(predictions.path(workdir, "test"))
    again = evaluate.classification(
      kept.logits_NxC,
      kept.gold_NxC,
      np.ones(len(kept.gold_NxC), bool),
      kept.task,
    )
    self.assertEqual(again.compute(kept.classes), results["test"])
    places = zip(kept.dialogue_ids, kept.utterance_N, strict=True)
    self.assertSequenceEqual(
      list(places),
      [
        (line["dialogue_id"], i)
        for line in corpus.lines("test", 10, 2)
        for i in range(len(line["utterances"]))
      ],
    )
    for picture in ("confusion.png", "curves.png", "reliability.png"):
      self.assertGreater((workdir / picture).stat().st_size, 5_000)
    self.assertEqual(
      "heldout_votes" in results,
      overrides.get("pretrain__objective") != "none",
    )

  def test_votes_teach(self):
    """Words decide the classes here, so votes alone must teach them."""
    data = corpus.write(self.folder / "larger", train=200)
    self.config = corpus.config(data)
    _, _, results = self.train(
      pretrain__epochs=12,
      pretrain__optimizer__learning_rate=3e-3,
      finetune__gold_fraction=0.0,
      model__dropout=0.0,
    )
    self.assertGreater(results["test"]["accuracy"], 0.9)
    self.assertNotIn("dev", results)  # no gold was looked at

  @parameterized.parameters("pairwise", "pointwise", "joint")
  def test_gold_beyond_its_share_changes_nothing(self, objective):
    """Rows of votes have gold too, which fine-tuning must not see."""
    more = {
      "pretrain__objective": objective,
      "finetune__gold_fraction": 0.2,
      "finetune__min_steps": 10,
    }
    _, prepared, results = self.train("first", **more)
    may = iter(prepared.gold_U.tolist())
    changed = 0
    lines = corpus.lines("train", 30, 0)
    for utterance in (u for line in lines for u in line["utterances"]):
      if not next(may):
        label = corpus.CLASSES.index(utterance["label"])
        utterance["label"] = corpus.CLASSES[label - 1]
        changed += 1
    self.assertGreater(changed, 50)
    corpus.write_split(self.data, "train", lines)
    _, again, others = self.train("second", **more)
    np.testing.assert_array_equal(again.gold_U, prepared.gold_U)
    self.assertGreater(
      (
        again.splits["train"].split.gold_UxC
        != prepared.splits["train"].split.gold_UxC
      ).sum(),
      50,
    )
    # Which tells of gold that was not in use, as that of test does.
    self.assertNotEqual(others.pop("votes"), results.pop("votes"))
    self.assertEqual(others, results)

  def test_votes_of_gold_rows_and_held_out_votes_are_in_no_batch(self):
    _, prepared, _ = self.train(
      pretrain__objective="pointwise",
      pretrain__heldout_fraction=0.5,
      finetune__gold_fraction=0.5,
    )
    self.assertTrue((prepared.heldout_U & prepared.gold_U).any())
    run = loop.Run(prepared, self.folder / "other")
    plan = train._finetune_phase(run, train.vote_plan(run))
    steps = loop.Steps(run, plan, prepared.params)
    for t in range(plan.steps):
      batch = plan.plan.batch(t)
      gold, votes = np.split(batch.rows_SxN, [batch.gold_rows], axis=1)
      self.assertTrue(prepared.gold_U[gold[gold >= 0]].all())
      self.assertFalse(prepared.heldout_U[votes[votes >= 0]].any())
      of_gold, of_votes = np.split(
        steps.batch(t)["scores"], [batch.gold_rows], axis=1
      )
      np.testing.assert_array_equal(np.isnan(of_gold), True)
      np.testing.assert_array_equal(np.isnan(of_votes[votes >= 0]), False)
    run.checkpoints.close()

  def test_gold_of_train_alone(self):
    (self.data / "validation.jsonl").unlink()
    _, prepared, results = self.train(finetune__gold_fraction=1.0)
    self.assertEqual(prepared.dev_split, "train")
    self.assertEqual(results["dev"]["count"], int(prepared.dev_U.sum()))
    self.assertEqual(results["gold_labels"]["dev"], results["dev"]["count"])

  def test_offsets_and_temperature_are_folded(self):
    """The saved student is at the optimum of the fit: it changes nothing."""
    workdir, prepared, _ = self.train(finetune__gold_fraction=0.0)
    run = loop.Run(prepared, self.folder / "other")
    params = checkpoint.load_params(
      workdir,
      "student",
      jax.device_put(prepared.params, jax.devices()[0]),
    )
    offsets, temperature = train._fit_votes(run, params)
    np.testing.assert_allclose(offsets, 0, atol=0.02)
    self.assertAlmostEqual(temperature, 1, delta=0.02)
    run.checkpoints.close()

  def test_a_student_too_sure_of_itself_beats_one_that_knows_nothing(self):
    data = corpus.write(self.folder / "larger", train=100)
    self.config = corpus.config(data)
    workdir, prepared, _ = self.train(
      pretrain__epochs=8,
      pretrain__optimizer__learning_rate=3e-3,
      finetune__gold_fraction=0.5,
    )
    run = loop.Run(prepared, self.folder / "other")
    params = checkpoint.load_params(
      workdir, "student", jax.device_put(prepared.params, jax.devices()[0])
    )
    evaluate = train._finetune_phase(run, None).evaluate
    sure, knows_nothing = (
      evaluate(train._fold(run, params, np.zeros(()), temperature))
      for temperature in (0.02, 1e6)
    )
    self.assertGreater(sure["accuracy"], 0.5)
    self.assertGreater(sure["metric"], knows_nothing["metric"])
    run.checkpoints.close()

  def test_one_class_and_several_labels(self):
    one, several = ("ask",), corpus.CLASSES
    for classes, task in ((one, "single_label"), (several, "multi_label")):
      with self.subTest(task):
        data = corpus.write(self.folder / f"data-{task}", classes)
        self.config = corpus.config(data, classes, task=task)
        _, _, results = self.train(f"run-{task}")
        self.assertIn("joint_accuracy", results["test"])

  def test_init_from_is_the_other_runs_first_phase(self):
    first, _, zero = self.train("first", finetune__gold_fraction=0.0)
    _, prepared, again = self.train(
      "second", init_from=str(first), finetune__gold_fraction=0.0
    )
    self.assertTrue(prepared.pretrained)
    self.assertEqual(zero["test"], again["test"])
    with self.assertRaisesRegex(ValueError, "window: None there, 1 here"):
      self.train("third", init_from=str(first), segments__window=1)
    # Its results tell of votes that the other run may have trained on.
    with self.assertLogs("ppl_jax.inputs", "WARNING") as logs:
      self.train(
        "fourth", init_from=str(first), seed=7, finetune__gold_fraction=0.0
      )
    self.assertIn("as its config.seed differs", "".join(logs.output))

  def test_a_frozen_encoder_stays(self):
    first, prepared, _ = self.train("first", finetune__gold_fraction=0.0)
    second, _, _ = self.train(
      "second",
      init_from=str(first),
      finetune__freeze_encoder=True,
      finetune__optimizer__learning_rate=0.1,
      finetune__patience=99,
      finetune__gold_fraction=1.0,
    )
    like = jax.device_put(prepared.params, jax.devices()[0])
    before = checkpoint.load_params(first, "student", like)
    after = checkpoint.load_params(second, "student", like)
    flat = jax.tree_util.tree_leaves_with_path(
      jax.tree.map(lambda a, b: bool((a == b).all()), before, after)
    )
    changed = {jax.tree_util.keystr(path) for path, same in flat if not same}
    self.assertNotEmpty(changed)
    for path in changed:
      self.assertIn("scorer", path)

  def test_a_loss_that_is_not_finite_names_the_step(self):
    with self.assertRaisesRegex(
      FloatingPointError, r"at step \d+ of pretrain.*learning_rate"
    ):
      self.train(
        pretrain__optimizer__learning_rate=1e30,
        pretrain__optimizer__clip_norm=1e30,
        pretrain__epochs=20,
      )

  def test_shards_must_spread_over_devices(self):
    process = commands.start(
      [
        sys.executable,
        "-c",
        "from ppl_jax import sharding; sharding.make_mesh(3)",
      ],
      XLA_FLAGS="--xla_force_host_platform_device_count=2",
    )
    output, _ = process.communicate(timeout=120)
    self.assertIn("must be a multiple of the number of devices times", output)


if __name__ == "__main__":
  absltest.main()
