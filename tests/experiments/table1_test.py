"""The real command, on the quickstart's dialogues, killed and given again."""

import csv
import json
import os
import pathlib
import signal
import sys
import tempfile
import time

from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import commands

METHOD = "soft pairs + softmax"


class Table1Test(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.home = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.folder = self.home / "table1"
    self.cells = self.folder / "cells"

  def start(self, *flags):
    return commands.start(
      [
        sys.executable,
        "-m",
        "ppl_jax.experiments.table1",
        "--config=configs/quickstart.py",
        *(flag for flag in commands.SMALL if ".buckets=" not in flag),
        "--config.segments.buckets=()",  # one length to compile for
        f"--config.dataset.data_dir={self.home / 'data'}",
        f"--folder={self.folder}",
        f"--methods=fine-tune only,{METHOD}",
        "--gold=0.2",
        *flags,
      ],
      start_new_session=True,
    )

  def run_command(self, *flags):
    process = self.start(*flags)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output

  def rows(self, name="results.csv"):
    with (self.folder / name).open() as f:
      return list(csv.DictReader(f))

  def test_killed_and_given_again(self):
    process = self.start()
    first = self.cells / "fine-tune-only-gold0.2-seed0"
    state = first / "checkpoints" / "state"
    deadline = time.monotonic() + 100
    while not any(p.name.isdigit() for p in state.glob("*")):
      self.assertLess(time.monotonic(), deadline)
      self.assertIsNone(process.poll(), "ended before it was killed")
      time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    self.assertFalse((first / "results.json").exists())

    status, output = self.run_command()
    self.assertEqual(status, 0, output)
    log = (self.cells / f"{first.name}.log").read_text()
    self.assertIn("goes on from step", log)
    rows = {row["cell"]: row for row in self.rows()}
    self.assertLen(rows, 3)
    for name, row in rows.items():
      results = json.loads((self.cells / name / "results.json").read_text())
      for measure in ("accuracy", "macro_f1", "ece"):
        self.assertAlmostEqual(
          float(row[measure]), results["test"][measure], delta=1e-5
        )
      self.assertNotIn("baselines", results)
      if row["variant"] == METHOD:
        self.assertEqual(results["terms"], {"pairs": 1.0, "softmax": 1.0})
        self.assertAlmostEqual(
          float(row["vote_cross_entropy"]),
          results["heldout_votes"]["vote_cross_entropy"],
          delta=1e-5,
        )
    kept = {str(p.relative_to(self.cells)) for p in self.cells.glob("*/*/*")}
    self.assertContainsSubset(
      {"soft-pairs-softmax-gold0-seed0/checkpoints/pretrained"}, kept
    )
    self.assertFalse([name for name in kept if name.endswith("state")])
    self.assertLen([name for name in kept if "checkpoints/" in name], 1)
    (compared,) = self.rows("bootstrap.csv")
    accuracy, without = (
      {
        row["variant"]: float(row["accuracy"])
        for row in rows.values()
        if row["gold"] == share
      }
      for share in ("0.2", "0")
    )
    self.assertAlmostEqual(
      float(compared["difference"]),
      accuracy[METHOD] - accuracy["fine-tune only"],
      delta=1e-5,
    )
    self.assertLessEqual(float(compared["low"]), float(compared["difference"]))
    (first,) = self.rows("first_labels.csv")
    self.assertEqual((first["variant"], first["gold"]), (METHOD, "0.2"))
    self.assertAlmostEqual(
      float(first["difference"]), accuracy[METHOD] - without[METHOD], delta=1e-5
    )
    table = (self.folder / "table.md").read_text()
    self.assertIn("3 of 3 cells finished", table)
    for method, value in accuracy.items():
      self.assertIn(f"| {method} | {100 * value:.1f} |", table)
    self.assertIn(f"| {METHOD} less | gold |", table)
    self.assertIn(f"| {METHOD} | 20 % less 0 % | 1 |", table)
    self.assertIn("| variant | ECE, 0 % | held-out votes, nats |", table)
    self.assertGreater((self.folder / "table.png").stat().st_size, 5_000)
    about = json.loads((self.folder / "command.json").read_text())
    self.assertIn("python -m ppl_jax.experiments.table1", about["command"])
    self.assertIn("jax", about["versions"])
    self.assertEqual(about["seeds"], [0])

    # Nothing is left to do.
    finished = {
      path: path.stat().st_mtime_ns
      for path in self.cells.glob("*/results.json")
    }
    self.assertLen(finished, 3)
    status, output = self.run_command()
    self.assertEqual(status, 0, output)
    for path, when in finished.items():
      self.assertEqual(path.stat().st_mtime_ns, when)


if __name__ == "__main__":
  absltest.main()
