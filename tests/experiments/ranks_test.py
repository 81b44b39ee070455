"""Folders of table 1, made up, and their ranks."""

import csv
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import commands

from ppl_jax import predictions
from ppl_jax.experiments import bootstrap, outputs, ranking


class RanksTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.home = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.right = {}  # of (task, row, share, seed)

  def write(self, task, p, *, seeds=(0, 1), waiting=(), dialogues=40):
    """A folder whose rows are right with some chance; returns the task.

    Args:
      task: its name.
      p: from (row, share) to the chance.
      seeds: of the cells.
      waiting: (row, share, seed) that are not finished.
      dialogues: of the test split.
    """
    rng = np.random.default_rng(len(self.right))
    sizes = np.random.default_rng(dialogues).integers(1, 9, dialogues)
    dialogue_N = np.repeat(np.arange(dialogues), sizes)
    gold = np.eye(2, dtype=np.uint8)[rng.integers(0, 2, len(dialogue_N))]
    lines = []
    for (row, share), chance in p.items():
      for seed in seeds:
        name = f"{row}-{share}-{seed}"
        line = {"cell": name, "variant": row, "gold": share, "seed": seed}
        if (row, share, seed) in waiting:
          lines.append({**line, "status": "waiting"})
          continue
        right = rng.random(len(gold)) < chance
        self.right[task, row, share, seed] = right
        folder = self.home / task / "cells" / name
        said = np.where(right[:, None], gold, 1 - gold)
        predictions.save(
          predictions.path(folder, "test"),
          predictions.Predictions(
            split="test",
            task="single_label",
            classes=("a", "b"),
            dialogue_ids=tuple(f"d{d}" for d in dialogue_N),
            utterance_N=np.arange(len(gold), dtype=np.int32),
            gold_NxC=gold,
            logits_NxC=said.astype(np.float32),
          ),
        )
        done = {"status": "finished", "accuracy": right.mean()}
        lines.append(line | done)
    outputs.write_csv(self.home / task / "results.csv", lines)
    self.dialogue_N = dialogue_N
    return ranking.read(self.home / task)

  def two_tasks(self, **more):
    base = {
      ("fine-tune only", 0.1): 0.5,
      ("paper", 0.0): 0.6,
      ("paper", 0.1): 0.7,
      ("default", 0.0): 0.8,
      ("default", 0.1): 0.85,
    }
    other = {key: 1 - p for key, p in base.items()}
    return [self.write("acts", base), self.write("intents", other, **more)]

  def test_ranks_and_means(self):
    table = ranking.Ranking(self.two_tasks())
    self.assertEqual(table.shares, [0.0, 0.1])
    # Without gold there is no fine-tuning, which is missing nowhere.
    self.assertEqual(table.rows_at(0.0), ["paper", "default"])
    self.assertEqual(table.missing(), {"acts": [], "intents": []})
    self.assertEqual(table.total(), 2 * 2 * 5)
    ranks = table.ranks()
    self.assertEqual(ranks["acts", 0.0], {"paper": 2, "default": 1})
    self.assertEqual(
      ranks["intents", 0.1], {"fine-tune only": 1, "paper": 2, "default": 3}
    )
    self.assertEqual(
      table.mean_ranks(),
      {"fine-tune only": 2.0, "paper": (2 + 1 + 2 + 2) / 4, "default": 7 / 4},
    )
    expected = np.mean(
      [
        self.right[task, "paper", 0.1, seed].mean()
        for task in ("acts", "intents")
        for seed in (0, 1)
      ]
    )
    self.assertAlmostEqual(table.means(0.1)["paper"], expected, places=5)

  def test_equal_rows_share_their_ranks(self):
    task = self.write("acts", {("paper", 0.0): 1, ("default", 0.0): 1})
    ranks = ranking.Ranking([task]).ranks()
    self.assertEqual(ranks["acts", 0.0], {"paper": 1.5, "default": 1.5})

  def test_only_whole_places_are_ranked(self):
    waiting = [("paper", 0.1, 1)]
    table = ranking.Ranking(self.two_tasks(waiting=waiting))
    self.assertEqual(
      table.missing(), {"acts": [], "intents": ["paper, 10 %, seed 1"]}
    )
    self.assertNotIn(("intents", 0.1), table.ranks())
    self.assertIn(("intents", 0.0), table.ranks())
    self.assertEqual(table.whole_tasks(0.1), ["acts"])
    alone = self.right["acts", "default", 0.1, 0]
    both = [alone.mean(), self.right["acts", "default", 0.1, 1].mean()]
    self.assertAlmostEqual(table.means(0.1)["default"], np.mean(both), places=5)
    tasks = {(d.row, d.share): d.tasks for d in table.differences("default")}
    self.assertEqual(tasks["paper", 0.0], ("acts", "intents"))
    self.assertEqual(tasks["paper", 0.1], ("acts",))
    # Of some rows only, more places are whole.
    some = ranking.Ranking(
      list(table.tasks.values()), ["fine-tune only", "default"]
    )
    self.assertIn(("intents", 0.1), some.ranks())

  def test_differences_are_a_bootstrap_of_each_task(self):
    table = ranking.Ranking([*self.two_tasks(dialogues=20)])
    found = {(d.row, d.share): d.result for d in table.differences("default")}
    self.assertLen(found, 3)
    # By hand: dialogues of each task drawn apart.
    rng = np.random.default_rng(1)
    drawn, mean = [], []
    for task, dialogues in (("acts", 40), ("intents", 20)):
      sizes = np.random.default_rng(dialogues).integers(1, 9, dialogues)
      dialogue_N = np.repeat(np.arange(dialogues), sizes)
      gain_N = np.mean(
        [
          self.right[task, "default", 0.0, seed].astype(float)
          - self.right[task, "paper", 0.0, seed]
          for seed in (0, 1)
        ],
        axis=0,
      )
      mean.append(gain_N.mean())
      rows = [np.flatnonzero(dialogue_N == d) for d in range(dialogues)]
      of_task = []
      for _ in range(3_000):
        chosen = [rows[d] for d in rng.integers(0, dialogues, dialogues)]
        of_task.append(gain_N[np.concatenate(chosen)].mean())
      drawn.append(of_task)
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    result = found["paper", 0.0]
    self.assertAlmostEqual(result.mean, np.mean(mean))
    self.assertAlmostEqual(result.low, low, delta=0.01)
    self.assertAlmostEqual(result.high, high, delta=0.01)

  def test_tasks_of_the_same_dialogues_are_resampled_together(self):
    task = self.write("acts", {("paper", 0.0): 0.5, ("default", 0.0): 0.8})
    twice = ranking.Ranking([task, dataclasses.replace(task, name="again")])
    (both,) = twice.differences("default")
    (one,) = ranking.Ranking([task]).differences("default")
    self.assertEqual(both.result, one.result)
    right = [
      np.mean([self.right["acts", row, 0.0, seed] for seed in (0, 1)], axis=0)
      for row in ("default", "paper")
    ]
    of_one = bootstrap.difference(*right, self.dialogue_N)
    self.assertAlmostEqual(one.result.low, of_one.low, delta=0.01)

  def test_what_is_no_table_is_refused(self):
    with self.assertRaisesRegex(ValueError, "which has no results.csv"):
      ranking.read(self.home)
    (self.home / "results.csv").write_text("dataset,gold\nmeld,0.1\n")
    with self.assertRaisesRegex(ValueError, "lacks some of the columns"):
      ranking.read(self.home)
    task = self.write("acts", {("paper", 0.0): 0.5})
    with self.assertRaisesRegex(ValueError, "must have different names"):
      ranking.Ranking([task, task])
    with self.assertRaisesRegex(ValueError, "--rows must be some of paper"):
      ranking.Ranking([task], ["paper", "other"])
    with self.assertRaisesRegex(ValueError, "--reference must be one of"):
      ranking.Ranking([task]).differences("default")

  def run_command(self):
    folders = ",".join(str(self.home / name) for name in ("acts", "intents"))
    run = subprocess.run(
      [
        sys.executable,
        "-m",
        "ppl_jax.experiments.ranks",
        f"--folders={folders}",
        f"--output={self.home / 'ranks'}",
      ],
      cwd=commands.ROOT,
      env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
    return run

  def test_command(self):
    self.two_tasks(waiting=[("paper", 0.1, 1), ("default", 0.1, 0)])
    run = self.run_command()
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertIn("18 of 20 cells are there", run.stdout)
    self.assertIn("intents lacks 2: paper, 10 %, seed 1; default", run.stdout)
    text = (self.home / "ranks" / "ranks.md").read_text()
    self.assertIn("| default less | gold | tasks |", text)
    with (self.home / "ranks" / "ranks.csv").open() as f:
      rows = {
        (r["row"], r["task"], float(r["gold"])): r for r in csv.DictReader(f)
      }
    self.assertEqual(rows["default", "acts", 0.1]["rank"], "1")
    self.assertEqual(rows["default", "intents", 0.1]["rank"], "")
    self.assertEqual(rows["default", "intents", 0.1]["seeds"], "1")
    self.assertEqual(rows["paper", "mean", 0.0]["tasks"], "2")
    self.assertEqual(rows["default", "mean", 0.0]["reference_less"], "")
    less = rows["paper", "mean", 0.0]
    self.assertLess(float(less["low"]), float(less["reference_less"]))
    self.assertGreater((self.home / "ranks/ranks.png").stat().st_size, 5_000)

    # Nothing is whole yet.
    p = {("paper", 0.0): 0.5, ("default", 0.0): 0.5}
    waiting = [("paper", 0.0, 0), ("default", 0.0, 0)]
    for task in ("acts", "intents"):
      self.write(task, p, seeds=(0,), waiting=waiting)
    run = self.run_command()
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertIn("0 of 4 cells are there", run.stdout)
    self.assertIn("nothing is ranked", run.stdout)


if __name__ == "__main__":
  absltest.main()
