import os
import pathlib
import random
import re
import signal
import sqlite3
import sys
import tempfile
import time

from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import asking
import commands

KILLS = int(os.environ.get("LABELING_TEST_KILLS", "2"))
DIALOGUES = 6


class MainTest(absltest.TestCase):
  """The real command against a real server."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.votes = self.folder / "votes.sqlite"

  def command(self, url, *flags, dialogues=DIALOGUES):
    return [
      sys.executable,
      "-m",
      "labeling.main",
      "--config=configs/quickstart.py",
      f"--config.dataset.options.train={dialogues}",
      "--config.dataset.options.validation=1",
      "--config.dataset.options.test=1",
      f"--config.labeling.endpoint={url}",
      "--config.labeling.model=simulated",
      "--config.labeling.votes=4",
      f"--votes={self.votes}",
      *flags,
    ]

  def run_command(self, url, *flags):
    return commands.run(self.command(url, *flags))

  def test_labels_and_writes_scores(self):
    scores = self.folder / "scores.parquet"
    prices = (
      "--config.labeling.price_input=1",
      "--config.labeling.price_output=4",
    )
    with asking.server(DIALOGUES) as server:
      status, output = self.run_command(server.url, "--dry_run", *prices)
      self.assertEqual(status, 0, output)
      self.assertEmpty(server.log)
      self.assertFalse(self.votes.exists())
      answers = int(re.search(r"answers: (\d+) to ask for", output)[1])
      about, most = map(
        float, re.search(r"about ([\d.]+), at most ([\d.]+)", output).groups()
      )
      status, output = self.run_command(
        server.url, f"--scores={scores}", *prices
      )
      self.assertEqual(status, 0, output)
      self.assertIn(f"answers: {answers} valid", output)
      self.assertIn("largest score (the first of equals) is gold", output)
      self.assertTrue(scores.exists())
      paid = sum(record["cost"] for record in server.log)
      self.assertBetween(paid, 0.4 * about, 2.5 * about)
      self.assertLess(paid, most)
      status, output = self.run_command(server.url, "--dry_run", *prices)
      self.assertIn(f"answers: 0 to ask for, {answers} in", output)

  def test_killed_at_random_it_goes_on(self):
    rng = random.Random(0)
    dialogues = DIALOGUES * -(-KILLS // 5)  # so that no run is done before
    with asking.server(dialogues, latency=0.1) as server:
      command = self.command(
        server.url, "--config.labeling.concurrency=4", dialogues=dialogues
      )
      killed = 0
      while True:
        process = commands.start(command)
        before = len(server.log)
        while process.poll() is None and len(server.log) < before + 3:
          time.sleep(0.01)
        if killed < KILLS and process.poll() is None:
          time.sleep(rng.uniform(0, 0.5))
          process.send_signal(signal.SIGKILL)
          process.communicate()
          killed += 1
          continue
        output, _ = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 0, output)
        break
      self.assertEqual(killed, KILLS)
      settings = asking.settings(server.url)
      wanted = {
        (r.key, s)
        for r in asking.requests(settings, dialogues)
        for s in r.samples
      }
      self.assertEqual(set(asking.stored(self.votes)), wanted)
      db = sqlite3.connect(self.votes)
      (lost,) = db.execute(
        "SELECT COUNT(*) FROM calls WHERE status IS NULL"
      ).fetchone()
      db.close()
      self.assertLessEqual(lost, 4 * KILLS)
      answered = sum(len(record["choices"] or ()) for record in server.log)
      print(
        f"{killed} kills, {lost} calls in flight then, {len(wanted)} answers"
      )
      print(f"answered twice: {answered - len(wanted)}")
      # Twice is only what was in flight at a kill; a call asks for 4 at most.
      self.assertLessEqual(answered - len(wanted), 4 * lost)

  def test_interrupt_finishes_what_is_in_flight(self):
    with asking.server(DIALOGUES, latency=0.3) as server:
      process = commands.start(
        self.command(server.url, "--config.labeling.concurrency=4")
      )
      while process.poll() is None and len(server.log) < 8:
        time.sleep(0.01)
      process.send_signal(signal.SIGINT)
      output, _ = process.communicate(timeout=60)
      self.assertEqual(process.returncode, 1, output)
      self.assertIn("Give the same command again to go on", output)
      db = sqlite3.connect(self.votes)
      (lost,) = db.execute(
        "SELECT COUNT(*) FROM calls WHERE status IS NULL"
      ).fetchone()
      db.close()
      self.assertEqual(lost, 0, output)
      status, output = self.run_command(server.url)
      self.assertEqual(status, 0, output)
      answered = sum(len(record["choices"] or ()) for record in server.log)
      self.assertLen(asking.stored(self.votes), answered)

  def test_says_why_requests_were_rejected(self):
    # The server knows a dialogue less, and takes no requests about it.
    with asking.server(DIALOGUES - 1) as server:
      for flags in ((), ("--batch", "--config.labeling.batch_poll=0.05")):
        self.votes = self.folder / f"{len(flags)}.sqlite"
        status, output = self.run_command(server.url, *flags)
        self.assertEqual(status, 1)
        (missing,) = re.findall(
          r"missing because the server rejects the request: (\d+)\.", output
        )
        self.assertGreater(int(missing), 0)
        said = re.findall(r"^  (\d+) rejected: (.+)$", output, re.MULTILINE)
        self.assertGreaterEqual(sum(int(count) for count, _ in said), 1)
        for _, line in said:
          self.assertRegex(line, "dialogue")
          self.assertLess(len(line), 200)
        self.assertNotIn("same command", output)

  def test_two_shards_make_one_score_file(self):
    scores = self.folder / "scores.parquet"
    stores = []
    with asking.server(DIALOGUES) as server:
      for i in range(2):
        self.votes = self.folder / f"{i}.sqlite"
        stores.append(f"--votes={self.votes}")
        status, output = self.run_command(server.url, f"--shard={i}/2")
        self.assertEqual(status, 0, output)
    status, output = commands.run(
      [
        sys.executable,
        "-m",
        "labeling.scores",
        "--config=configs/quickstart.py",
        f"--config.dataset.options.train={DIALOGUES}",
        "--config.dataset.options.validation=1",
        "--config.dataset.options.test=1",
        f"--scores={scores}",
        *stores,
      ]
    )
    self.assertEqual(status, 0, output)
    self.assertIn(f"in {DIALOGUES} of {DIALOGUES} dialogues", output)

  def test_errors_are_one_line(self):
    for flags, message in (
      (("--config.labeling.model=",), "config.labeling.model must be given"),
      (("--shard=3/3",), "--shard must be i/n"),
      (("--max_cost=1",), "--max_cost needs prices"),
      (("--config.labeling.bank=none",), "must be a YAML file or one of"),
    ):
      status, output = self.run_command("http://127.0.0.1:9/v1", *flags)
      self.assertEqual(status, 1)
      self.assertIn("error: ", output)
      self.assertIn(message, output)
      self.assertNotIn("Traceback", output)

  def test_openai_needs_a_key(self):
    command = self.command("https://api.openai.com/v1")
    process = commands.start(command, OPENAI_API_KEY="")
    output, _ = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 1)
    self.assertIn("needs a key, got none", output)


if __name__ == "__main__":
  absltest.main()
