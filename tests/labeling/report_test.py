import csv
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest

import labeling

ROOT = pathlib.Path(labeling.__file__).parents[1]
TABLES = ("annotators", "agreement", "classes", "splits")
WITH_GOLD = ("reliability", "ensembles")
WITHOUT_PICTURE = ("splits",)


class ReportCommandTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self._write(["ask", "tell"], ["tell", "ask"])

  def _write(self, *labels):
    with (self.folder / "train.jsonl").open("w") as f:
      for d, labels_L in enumerate(labels):
        utterances = [
          {"speaker": "A", "text": f"text {d} {i}", "label": label}
          for i, label in enumerate(labels_L)
        ]
        line = {"dialogue_id": f"d{d}", "utterances": utterances}
        f.write(json.dumps(line) + "\n")
    votes = {
      "p1": (("ask", "tell"), ("tell", "ask")),
      "p2": (("ask", "ask"), ("tell", "none")),
      "p3": (("ask", None), ("ask", "tell")),
    }
    with (self.folder / "votes.jsonl").open("w") as f:
      for annotator, rows in votes.items():
        for d, row in enumerate(rows):
          for i, label in enumerate(row):
            vote = {"dialogue_id": f"d{d}", "utterance": i, "label": label}
            f.write(json.dumps({**vote, "annotator": annotator}) + "\n")

  def _run(self, output, *more):
    return subprocess.run(
      [
        sys.executable,
        "-m",
        "labeling.report",
        "--config=configs/jsonl.py",
        "--config.dataset.classes=('ask', 'tell')",
        f"--config.dataset.source={self.folder}",
        f"--config.dataset.data_dir={self.folder / 'prepared'}",
        f"--votes={self.folder / 'votes.jsonl'}",
        f"--output={self.folder / output}",
        *more,
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  def _table(self, name):
    with (self.folder / "out" / f"{name}.csv").open(newline="") as f:
      return list(csv.DictReader(f))

  def _files(self, output):
    files = sorted((self.folder / output).iterdir())
    return {file.name: file.read_bytes() for file in files}

  def test_writes_tables_and_pictures(self):
    run = self._run("out")
    self.assertEqual(run.returncode, 0, run.stderr)
    names = {f"{name}.csv" for name in (*TABLES, *WITH_GOLD)}
    names |= {
      f"{name}.png"
      for name in (*TABLES, *WITH_GOLD)
      if name not in WITHOUT_PICTURE
    }
    self.assertEqual(set(self._files("out")), names)
    for name, content in self._files("out").items():
      if name.endswith(".png"):
        self.assertTrue(content.startswith(b"\x89PNG"), name)
        self.assertGreater(len(content), 5_000, name)

    rows = self._table("annotators")
    self.assertEqual(
      [list(row.values()) for row in rows],
      [
        ["p1", "4", "0", "0", "1", "labels"],
        ["p2", "4", "0", "1", "0.5", "labels"],
        ["p3", "4", "1", "0", f"{1 / 3:.6g}", "labels"],
      ],
    )
    rows = self._table("classes")
    self.assertEqual(
      [(row["class"], row["votes"], row["could_name"]) for row in rows],
      [("ask", "6", "11"), ("tell", "4", "11")],
    )
    # Three votes for three answers, two for two, then two to one.
    rows = self._table("splits")
    self.assertEqual(
      [(row["dialogue_id"], row["utterance"]) for row in rows],
      [("d1", "1"), ("d0", "1"), ("d1", "0")],
    )
    self.assertEqual(
      [float(row["entropy_bits"]) for row in rows],
      [float(f"{np.log2(3):.6g}"), 1.0, float(f"{np.log2(3) - 2 / 3:.6g}")],
    )
    self.assertEqual(list(rows[1].values())[3:], ["1", "1", "2", "1", "tell"])
    # (S, gold) of ask and tell: (1, 1), (0, 0); (1/2, 0), (1/2, 1);
    # (1/3, 0), (2/3, 1); (1/3, 1), (1/3, 0).
    rows = self._table("reliability")
    self.assertEqual(
      [(row["scores"], row["count"], row["gold"]) for row in rows],
      [
        ("0", "1", "0"),
        ("(0.0, 0.2]", "0", ""),
        ("(0.2, 0.4]", "3", f"{1 / 3:.6g}"),
        ("(0.4, 0.6]", "2", "0.5"),
        ("(0.6, 0.8]", "1", "1"),
        ("(0.8, 1.0]", "1", "1"),
      ],
    )
    rows = self._table("ensembles")
    self.assertEqual([row["votes"] for row in rows], list("112233"))
    # Of seven scores above 0 the one of 2/3 and gold 1 is off.
    self.assertAlmostEqual(float(rows[-2]["mean"]), 1 / 3 / 7, places=6)
    self.assertAlmostEqual(float(rows[-1]["mean"]), 1 / 3 / 8, places=6)
    for line in (
      "votes: 12 by 3 annotators, on 4 utterances of 2 dialogues; 1 unusable",
      "p2 50.0% of labels right, 0.0% unusable",
      "split: the votes on 75.0% of the utterances with valid votes",
      "ECE by number of votes, without S = 0: 1: ",
      f"report: {self.folder / 'out'}",
    ):
      self.assertIn(line, run.stdout)

  def test_is_the_same_again(self):
    for output, seed in (("one", 0), ("two", 0), ("three", 1)):
      run = self._run(output, f"--config.seed={seed}")
      self.assertEqual(run.returncode, 0, run.stderr)
    one, two, three = map(self._files, ("one", "two", "three"))
    self.assertEqual(one, two)
    changed = {name for name in one if one[name] != three[name]}
    self.assertEqual(changed, {"ensembles.csv", "ensembles.png"})

  def test_without_gold(self):
    self._write([None, None], [None, None])
    run = self._run("out")
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertIn("gold: none for these utterances\n", run.stdout)
    self.assertNotIn("nan", run.stdout)
    for name in WITH_GOLD:
      self.assertFalse((self.folder / "out" / f"{name}.csv").exists())
    for row in self._table("annotators"):
      self.assertEqual(row["accuracy"], "")

  def test_multi_label(self):
    run = self._run("out", "--config.dataset.task=multi_label")
    self.assertEqual(run.returncode, 0, run.stderr)
    # Yes or no to two classes: p1 is right in all eight.
    self.assertIn("p1 100.0% of yes and no right", run.stdout)

  def test_refuses_in_one_line(self):
    run = self._run("out", "--config.votes.split=dev")
    self.assertNotEqual(run.returncode, 0)
    self.assertIn("error: config.votes.split must be one of", run.stderr)
    self.assertNotIn("Traceback", run.stderr)


if __name__ == "__main__":
  absltest.main()
