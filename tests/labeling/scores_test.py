import json
import pathlib
import subprocess
import sys
import tempfile
import textwrap

import numpy as np
from absl.testing import absltest

import labeling
from ppl_jax.data import dialogues, scores

ROOT = pathlib.Path(labeling.__file__).parents[1]
CONFIG = """
from ml_collections import config_dict

def get_config():
  return config_dict.ConfigDict({
    "seed": 0,
    "dataset": {
      "name": "jsonl",
      "source": "",
      "data_dir": "",
      "classes": ("ask", "tell"),
      "task": "single_label",
      "drop_leaks": False,
      "options": {},
    },
    "votes": {"none_label": "none", "split": "train"},
  })
"""


class ScoresCommandTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (self.folder / "config.py").write_text(textwrap.dedent(CONFIG))
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

  def _run(self, *more):
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "labeling.scores",
        f"--config={self.folder / 'config.py'}",
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

  def test_refuses_settings(self):
    run = self._run("--config.votes.split=test")
    self.assertNotEqual(run.returncode, 0)
    self.assertIn("config.votes.split must be one of train, got", run.stderr)
    run = self._run("--config.dataset.sauce=x")
    self.assertNotEqual(run.returncode, 0)
    self.assertIn("sauce", run.stderr)


if __name__ == "__main__":
  absltest.main()
