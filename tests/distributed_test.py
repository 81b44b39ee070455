"""Several processes train as one: killed, restarted, and as other numbers.

DISTRIBUTED_TEST_PROCESSES=1,4 python -m pytest tests/distributed_test.py
"""

import json
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time

from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import commands

_DEVICES = 4
# Numbers of processes that go on from a checkpoint of two.
_OTHERS = os.environ.get("DISTRIBUTED_TEST_PROCESSES", "1").split(",")


class ProcessesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.flags = (
      *commands.SMALL,
      f"--config.dataset.data_dir={self.folder / 'data'}",
      "--config.batch.shards=4",
      "--config.mesh.fsdp=2",
      "--config.pairs.group_size=4",
      "--config.pretrain.epochs=8",
      "--config.segments.buckets=()",  # one length: less to compile
      "--config.finetune.gold_fraction=0",  # one phase is enough
    )

  def start(self, workdir, processes):
    """Starts a run of `_DEVICES` devices in so many processes."""
    started = commands.on_fake_devices(
      commands.command(workdir, *self.flags), _DEVICES // processes, processes
    )
    for process in started:
      self.addCleanup(process.kill)
    return started

  def finish(self, workdir, processes):
    """Runs to the end; returns the results and what each process printed."""
    started = self.start(workdir, processes)
    outputs = [process.communicate(timeout=300)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
      self.assertEqual(process.returncode, 0, output)
    return json.loads((workdir / "results.json").read_text()), outputs

  def test_kill_a_worker_and_go_on(self):
    whole, broken = self.folder / "whole", self.folder / "broken"
    expected, outputs = self.finish(whole, 2)
    self.assertIn("test: accuracy", outputs[0])
    self.assertNotIn("test: accuracy", outputs[1])  # once is enough
    workers = self.start(broken, 2)
    states = broken / "checkpoints" / "state"
    while not any(p.name.isdigit() for p in states.glob("*")):
      self.assertIsNone(workers[1].poll())
      time.sleep(0.02)
    workers[1].send_signal(signal.SIGKILL)
    start = time.monotonic()
    for worker in workers:  # the other one does not wait for ever
      worker.communicate(timeout=120)
      self.assertNotEqual(worker.returncode, 0)
    print(f"the other ended {time.monotonic() - start:.0f} s later")
    self.assertFalse((broken / "results.json").exists())
    for processes in map(int, _OTHERS):
      other = self.folder / f"as {processes}"
      shutil.copytree(broken, other)
      results, outputs = self.finish(other, processes)
      self.assertIn("goes on from step", outputs[0])
      self.assert_near(results, expected)
    results, outputs = self.finish(broken, 2)
    self.assertIn("goes on from step", outputs[0])
    self.assertEqual(results, expected)

  def assert_near(self, results, expected):
    """Metrics that change smoothly are equal but for rounding."""
    for split, metric in (
      ("heldout_votes", "vote_cross_entropy"),
      ("test", "nll"),
    ):
      self.assertAlmostEqual(
        results[split][metric], expected[split][metric], places=3
      )


class FlagsTest(absltest.TestCase):
  def test_flags_belong_together(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    status, output = commands.run(
      commands.command(folder, "--num_processes=2", "--process_id=0")
    )
    self.assertEqual(status, 1)
    self.assertIn("error: --coordinator_address, --num_processes and", output)

  def test_several_processes_are_never_taken_for_one(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    status, output = commands.run(
      commands.command(folder), OMPI_COMM_WORLD_SIZE="2"
    )
    self.assertEqual(status, 1)
    self.assertIn("error: Open MPI started 2 processes", output)


if __name__ == "__main__":
  absltest.main()
