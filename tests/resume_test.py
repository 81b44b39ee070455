"""Kills real runs and starts them again.

RESUME_TEST_KILLS=10 python -m pytest tests/resume_test.py
"""

import os
import pathlib
import random
import signal
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands
import corpus

_KILLS = int(os.environ.get("RESUME_TEST_KILLS", "2"))


def _params(workdir: pathlib.Path, name: str) -> dict[str, np.ndarray]:
  with ocp.StandardCheckpointer() as checkpointer:
    tree = checkpointer.restore((workdir / "checkpoints" / name).absolute())
  return {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


class ResumeTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.flags = (
      *commands.SMALL,
      f"--config.dataset.data_dir={self.folder / 'data'}",
    )

  def assert_same_run(self, one: pathlib.Path, other: pathlib.Path):
    for name in ("pretrained", "student"):
      ours, theirs = _params(one, name), _params(other, name)
      self.assertEqual(ours.keys(), theirs.keys())
      for key, value in ours.items():
        self.assertEqual(value.tobytes(), theirs[key].tobytes(), key)
    self.assertEqual(
      (one / "results.json").read_text(), (other / "results.json").read_text()
    )

  def test_kill_at_random_moments(self):
    whole, broken = self.folder / "whole", self.folder / "broken"
    self.flags += ("--config.pretrain.epochs=40", "--config.pretrain.evals=6")
    status, output = commands.run(commands.command(whole, *self.flags))
    self.assertEqual(status, 0, output)
    seed = random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    print(f"seed {seed}")
    for number in range(_KILLS):
      process = commands.start(commands.command(broken, *self.flags))
      reached = self.newest_checkpoint(broken)
      # Once it has got further than before, a random moment of what follows.
      while process.poll() is None and reached == self.newest_checkpoint(
        broken
      ):
        time.sleep(0.01)
      time.sleep(rng.uniform(0, 0.5))
      finished = process.poll() is not None
      process.send_signal(signal.SIGKILL)
      output, _ = process.communicate()
      self.assertFalse(finished, f"kill {number} came too late: {output}")
      print(f"killed at checkpoint {self.newest_checkpoint(broken)}")
    status, output = commands.run(commands.command(broken, *self.flags))
    self.assertEqual(status, 0, output)
    self.assertIn("goes on from step", output)
    self.assert_same_run(whole, broken)

  def newest_checkpoint(self, workdir: pathlib.Path) -> int:
    states = (workdir / "checkpoints" / "state").glob("*")
    return max((int(p.name) for p in states if p.name.isdigit()), default=-1)

  def test_an_interrupt_is_one_line_and_others_are_kept_out(self):
    workdir = self.folder / "run"
    command = commands.command(
      workdir, *self.flags, "--config.pretrain.epochs=4000"
    )
    process = commands.start(command)
    while self.newest_checkpoint(workdir) < 0:
      self.assertIsNone(process.poll())
      time.sleep(0.05)
    status, output = commands.run(command)
    self.assertEqual(status, 1)
    self.assertIn("error: One run at a time must work in a workdir", output)
    self.assertNotIn("Traceback", output)
    self.assertIsNone(process.poll())
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 130)
    self.assertEndsWith(
      output, "\nInterrupted. Give the same command again to go on.\n"
    )
    self.assertNotIn("Traceback", output)

  def test_a_run_that_cannot_start_claims_nothing(self):
    data = corpus.write(self.folder / "lone")
    for split in ("train", "validation", "test"):
      corpus.write_split(
        data,
        split,
        [
          {**line, "utterances": line["utterances"][:1]}
          for line in corpus.lines(split, 20, 0)
        ],
      )
    workdir = self.folder / "run"
    values = corpus.config(data)
    flags = (
      f"--config.dataset.source={data}",
      f"--config.dataset.classes={corpus.CLASSES}",
      f"--config.scores={values.scores}",
      "--config.finetune.gold_fraction=0.5",
      "--config.model.pretrained=",
      *(f for f in self.flags if "options" not in f),
    )
    pairs = "--config.pretrain.objective=pairwise"
    status, output = commands.run(
      commands.command(workdir, *flags, pairs, config="jsonl")
    )
    self.assertEqual(status, 1, output)
    self.assertIn("error: Training needs at least one usable batch", output)
    self.assertNotIn("Traceback", output)
    status, output = commands.run(
      commands.command(
        workdir, *flags, "--config.pretrain.objective=pointwise", config="jsonl"
      )
    )
    self.assertEqual(status, 0, output)

  def test_a_finished_run_is_not_trained_again(self):
    workdir = self.folder / "run"
    command = commands.command(workdir, *self.flags)
    self.assertEqual(commands.run(command)[0], 0)
    before = (workdir / "results.json").read_text()
    status, output = commands.run(command)
    self.assertEqual(status, 0, output)
    self.assertNotIn("pretrain step", output)
    self.assertEqual(before, (workdir / "results.json").read_text())


if __name__ == "__main__":
  absltest.main()
