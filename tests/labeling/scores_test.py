import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest

import labeling
from ppl_jax.data import dialogues, scores

ROOT = pathlib.Path(labeling.__file__).parents[1]


class ScoresCommandTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self._write_train(["ask", "tell", None], ["tell"])
    self._write_votes(
      ("d0", 0, "p1", "ask"),
      ("d0", 0, "p2", "none"),
      ("d0", 1, "p1", "ask"),
      ("d0", 1, "p2", None),
      ("d1", 0, "p1", None),
    )

  def _write_train(self, *labels):
    with (self.folder / "train.jsonl").open("w") as f:
      for d, labels_L in enumerate(labels):
        utterances = [
          {"speaker": "A", "text": f"text {d} {i}", "label": label}
          for i, label in enumerate(labels_L)
        ]
        line = {"dialogue_id": f"d{d}", "utterances": utterances}
        f.write(json.dumps(line) + "\n")

  def _write_votes(self, *votes):
    names = ("dialogue_id", "utterance", "annotator", "label")
    with (self.folder / "votes.jsonl").open("w") as f:
      for vote in votes:
        f.write(json.dumps(dict(zip(names, vote, strict=True))) + "\n")

  def _run(self, *more, config="jsonl", classes="('ask', 'tell')"):
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "labeling.scores",
        f"--config=configs/{config}.py",
        f"--config.dataset.classes={classes}",
        f"--config.dataset.source={self.folder}",
        f"--config.dataset.data_dir={self.folder / 'prepared'}",
        f"--votes={self.folder / 'votes.jsonl'}",
        f"--scores={self.folder / 'scores.parquet'}",
        *more,
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  def test_writes_scores_and_says_how_good_they_are(self):
    run = self._run()
    self.assertEqual(run.returncode, 0, run.stderr)
    # Two utterances have a valid vote and gold: S = (1/2, 0) where ask is gold,
    # which is right, and S = (1, 0) where tell is, which is not. Without S = 0,
    # |1/2 - 1| and |1 - 0| halve to 0.75. With it, the two zeros, one of them
    # of a gold class, add |0 - 1/2| with weight one half to half of the 0.75.
    self.assertEqual(
      run.stdout.splitlines(),
      [
        "votes: 5, of which 2 unusable and 1 for none of the classes",
        "scored: 2 of 4 utterances in 2 of 2 dialogues",
        "largest score (the first of equals) is gold: 50.0%",
        "ECE, all classes: 0.750 without S = 0, 0.625 with it",
        "ECE, ask: 0.750 without S = 0, 0.750 with it",
        "ECE, tell: nan without S = 0, 0.500 with it",
        f"scores: {self.folder / 'scores.parquet'}",
      ],
    )
    read = scores.read_scores(self.folder / "scores.parquet")
    self.assertEqual(read.metadata["dataset"], "jsonl")
    self.assertEqual(read.metadata["split"], "train")
    dataset = dialogues.load(
      "jsonl",
      source=self.folder,
      data_dir=self.folder / "prepared",
      classes=("ask", "tell"),
    )
    first, second = scores.match(read, dataset.splits["train"], dataset.classes)
    nan = np.nan
    np.testing.assert_array_equal(first, [[0.5, 0], [1, 0], [nan, nan]])
    np.testing.assert_array_equal(second, [[nan, nan]])

  def test_without_gold(self):
    self._write_train([None, None, None], [None])
    run = self._run()
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertIn("gold: none for these utterances\n", run.stdout)

  def test_a_faulty_vote_writes_nothing(self):
    self._write_votes(("d0", 0, "p1", "ask"), ("d0", 7, "p1", "ask"))
    run = self._run()
    self.assertNotEqual(run.returncode, 0)
    votes = self.folder / "votes.jsonl"
    self.assertIn(f"error: {votes}, line 2: ", run.stderr)
    self.assertNotIn("Traceback", run.stderr)
    self.assertFalse((self.folder / "scores.parquet").exists())

  def _simulate(self):
    """30 dialogues; of five annotators two are good, the rest say tell."""
    rng = np.random.default_rng(0)
    labels = rng.choice(["ask", "tell"], (30, 4))
    self._write_train(*labels.tolist())
    self._write_votes(
      *(
        (f"d{d}", i, f"p{a}", labels[d, i] if rng.random() < skill else "tell")
        for a, skill in enumerate((0.95, 0.9, 0.2, 0.2, 0.1))
        for d, i in np.ndindex(labels.shape)
      )
    )

  @staticmethod
  def _share(stdout):
    (line,) = (li for li in stdout.splitlines() if "is gold: " in li)
    return float(line.split()[-1].rstrip("%"))

  def test_aggregations(self):
    self._simulate()
    ids = self.folder / "ids.txt"
    ids.write_text("".join(f"d{d}\n\n" for d in range(10)))
    right = {}
    for method in ("uniform", "dawid_skene", "gold"):
      run = self._run(f"--aggregation={method}", f"--gold_ids={ids}")
      self.assertEqual(run.returncode, 0, run.stderr)
      self.assertIn("scored: 120 of 120 utterances in 30 of 30", run.stdout)
      self.assertIn(
        "gold of 10 dialogues is set aside; of the other 20:", run.stdout
      )
      right[method] = self._share(run.stdout)
      read = scores.read_scores(self.folder / "scores.parquet")
      self.assertEqual(read.metadata["aggregation"]["method"], method)
      self.assertEqual(
        read.metadata["votes"]["sources"][0]["file"], "votes.jsonl"
      )
      score_UxC = np.concatenate([row.score for row in read.rows.values()])
      gold = [
        [u["label"] == name for name in ("ask", "tell")]
        for line in (self.folder / "train.jsonl").read_text().splitlines()
        for u in json.loads(line)["utterances"]
      ]
      # What is printed is of the last 20 dialogues alone.
      agree = score_UxC.argmax(axis=1) == np.argmax(gold, axis=1)
      self.assertAlmostEqual(100 * agree[40:].mean(), right[method], delta=0.05)
      counts = [row.valid for row in read.rows.values()]
      np.testing.assert_array_equal(np.concatenate(counts), 5)
    self.assertGreater(right["dawid_skene"], right["uniform"] + 10)
    self.assertGreater(right["gold"], right["uniform"] + 10)
    told = read.metadata["aggregation"]
    self.assertEqual(told["gold_dialogues"], [f"d{d}" for d in range(10)])
    self.assertIn(f"temperature {told['temperature']:.2f}", run.stdout)

  def test_several_files(self):
    more = self.folder / "more.jsonl"
    vote = {"dialogue_id": "d1", "utterance": 0, "annotator": "p9"}
    more.write_text(json.dumps({**vote, "label": "tell"}))
    run = self._run(f"--votes={more}")
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertIn("votes: 6, of which 2 unusable", run.stdout)

  def test_several_labels(self):
    self._write_train([["ask", "tell"], [], None], [["tell"]])
    self._write_votes(
      ("d0", 0, "p1", ["ask", "tell"]),
      ("d0", 0, "p2", ["tell"]),
      ("d0", 1, "p1", []),
    )
    run = self._run("--config.dataset.task=multi_label")
    self.assertEqual(run.returncode, 0, run.stderr)
    read = scores.read_scores(self.folder / "scores.parquet")
    np.testing.assert_array_equal(
      read.rows["d0"].score, [[0.5, 1], [0, 0], [np.nan, np.nan]]
    )

  def test_refuses_gold(self):
    for flags, message in (
      (["--aggregation=gold"], "needs gold, got neither"),
      (["--gold_ids=ids.txt", "--gold_dialogues=1"], "got both"),
      (["--gold_dialogues=3"], "and gold, 2, got 3"),
    ):
      run = self._run(*flags)
      self.assertNotEqual(run.returncode, 0)
      self.assertRegex(run.stderr, f"error: .*{message}")
      self.assertNotIn("Traceback", run.stderr)
      self.assertFalse((self.folder / "scores.parquet").exists())

  def test_refuses_settings(self):
    run = self._run("--config.votes.split=test")
    self.assertNotEqual(run.returncode, 0)
    self.assertIn("config.votes.split must be one of train, got", run.stderr)
    run = self._run("--config.dataset.sauce=x")
    self.assertNotEqual(run.returncode, 0)
    self.assertIn("sauce", run.stderr)

  def test_votes_on_other_classes_count_as_those_of_the_config(self):
    source = pathlib.Path(self.folder, "dailydialog")
    for split in dialogues.SPLITS:
      (source / split).mkdir(parents=True)
      texts = "Shut it . __eou__ What ? __eou__ Fine . __eou__"
      (source / split / f"dialogues_{split}.txt").write_text(texts)
      (source / split / f"dialogues_act_{split}.txt").write_text("3 2 4")
    labels = (
      ("directive", "question", "inform", "none"),
      ("question", "question", "directive", None),
      ("inform", "commissive", "commissive", "commissive"),
    )
    self._write_votes(
      *(
        ("train-0", i, f"p{p}", label)
        for i, labels_P in enumerate(labels)
        for p, label in enumerate(labels_P)
      )
    )
    run = self._run(
      f"--config.dataset.source={source}",
      config="dailydialog_intent",
      classes="()",
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    read = scores.read_scores(self.folder / "scores.parquet")
    self.assertEqual(read.classes, ("intent",))
    np.testing.assert_allclose(
      read.rows["train-0"].score, [[2 / 4], [3 / 3], [0 / 4]]
    )
    self.assertEqual(read.metadata["counts_as"]["directive"], "intent")


if __name__ == "__main__":
  absltest.main()
