"""Commands that train nothing, on dialogues and votes made here."""

import csv
import dataclasses
import fcntl
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import commands
import corpus

from ppl_jax.data import dialogues, scores
from ppl_jax.experiments import preference, teacher


class CommandsTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.home = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    cls.config = corpus.config(corpus.write(cls.home / "data"))
    cls.dataset = dialogues.load_config(cls.config.dataset)

  def folder(self):
    return self.home / self.id().rsplit(".", 1)[-1]

  def run_command(self, name, *flags):
    folder = self.folder()
    run = subprocess.run(
      [
        sys.executable,
        "-m",
        f"ppl_jax.experiments.{name}",
        "--config=configs/jsonl.py",
        f"--config.dataset.source={self.home / 'data'}",
        f"--config.dataset.data_dir={self.config.dataset.data_dir}",
        f"--config.dataset.classes={corpus.CLASSES}",
        f"--folder={folder}",
        *flags,
      ],
      cwd=commands.ROOT,
      env={**os.environ, "PYTHONPATH": str(commands.ROOT)},
      capture_output=True,
      text=True,
      check=False,
    )
    return folder, run

  def rows(self, path):
    with path.open() as f:
      return list(csv.DictReader(f))

  def test_figure3(self):
    folder, run = self.run_command(
      "figure3", f"--config.scores={self.config.scores}", "--draws=4"
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    rows = self.rows(folder / "figure3.csv")
    self.assertEqual([int(row["votes"]) for row in rows[::2]], [1, 2, 3, 4, 5])
    # All votes are drawn in but one way.
    self.assertEqual(
      [float(r["standard_deviation"]) for r in rows[-2:]], [0, 0]
    )
    self.assertGreater((folder / "figure3.png").stat().st_size, 5_000)
    self.assertIn("mean ± standard deviation over 4 draws", run.stdout)
    about = json.loads((folder / "command.json").read_text())
    self.assertIn("--draws=4", about["command"])

  def test_figure4_from_votes(self):
    rng = np.random.default_rng(0)
    votes = self.home / "votes.jsonl"
    with votes.open("w") as f:
      for dialogue in self.dataset.splits["train"]:
        for i, c in enumerate(dialogue.gold.argmax(axis=1)):
          for a in range(3):
            said = c if rng.random() < 0.7 else rng.integers(3)
            vote = {
              "dialogue_id": dialogue.dialogue_id,
              "utterance": i,
              "annotator": f"p{a}",
              "label": corpus.CLASSES[said],
            }
            f.write(json.dumps(vote) + "\n")
    folder, run = self.run_command(
      "figure4", f"--votes={votes}", "--resamples=50"
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    told = teacher.load(self.dataset, folder / "scores.parquet")
    pairs = preference.Pairs(told.S_UxC, told.gold_UxC, told.dialogue_U)
    sums = pairs.sums(np.ones((1, pairs.D)))[0]
    rows = self.rows(folder / "figure4.csv")
    self.assertEqual(
      [int(row["pairs"]) for row in rows], sums[..., 0].ravel().tolist()
    )
    slopes = self.rows(folder / "slopes.csv")
    self.assertLen(slopes, 8)
    np.testing.assert_allclose(
      [float(row["slope"]) for row in slopes[:3]],
      preference.fit(sums).slope,
      rtol=1e-4,
    )
    self.assertGreater((folder / "figure4.png").stat().st_size, 5_000)
    self.assertIn("hypothesis H2", run.stdout)

  def test_figures_without_votes(self):
    _, run = self.run_command("figure4")
    self.assertEqual(run.returncode, 1)
    self.assertIn("error: Scores must come from one place", run.stderr)
    self.assertNotIn("Traceback", run.stderr)

  def test_votes_that_are_not_usable(self):
    votes = self.home / "bad.jsonl"
    votes.write_text('{"dialogue_id": "train-0"}\n')
    _, run = self.run_command("figure3", f"--votes={votes}")
    self.assertEqual(run.returncode, 1)
    self.assertIn("bad.jsonl, line 1", run.stderr)

  def test_ablation_of_votes_makes_their_score_files(self):
    given = self.home / "given.parquet"
    given.write_bytes(pathlib.Path(self.config.scores).read_bytes())
    flags = "--what=votes", "--values=2", f"--config.scores={given}"
    folder, _ = self.run_where_another_works("ablations", *flags)
    (path,) = (folder / "scores").glob("votes-2-*.parquet")
    drawn = scores.read_scores(path)
    for row in drawn.rows.values():
      np.testing.assert_array_equal(row.valid, 2)
    # Other votes under the same name are other scores.
    others = scores.read_scores(given)
    for name, row in others.rows.items():
      others.rows[name] = dataclasses.replace(row, votes=row.valid - row.votes)
    scores.write_scores(given, others)
    self.run_where_another_works("ablations", *flags)
    made = set((folder / "scores").glob("votes-2-*.parquet"))
    self.assertLen(made, 2)
    (other,) = made - {path}
    self.assertNotEqual(other.read_bytes(), path.read_bytes())

  def test_ablation_of_noise_simulates_votes(self):
    folder, run = self.run_where_another_works(
      "ablations", "--what=scope", "--values=cross", "--noise=dialogue"
    )
    self.assertIn("of answers wrong", run.stdout)
    (path,) = (folder / "scores").glob("dialogue-*.parquet")
    made = scores.read_scores(path)
    self.assertLen(made.rows, len(self.dataset.splits["train"]))

  def run_where_another_works(self, name, *flags):
    """Runs a command that is refused before it trains anything."""
    folder = self.folder()
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      _, run = self.run_command(name, *flags)
    self.assertEqual(run.returncode, 1)
    self.assertIn("One command at a time must work in a folder", run.stderr)
    self.assertNotIn("Traceback", run.stderr)
    return folder, run

  def test_noise_map_simulates_all_kinds(self):
    folder, run = self.run_where_another_works("noise_map", "--shifts=0.3,0.6")
    for text in (
      "errors of utterance: ",
      "errors of dialogue: ",
      "20% of the wrong votes moved late, 20% of the wrong votes moved early",
    ):
      self.assertIn(text, run.stdout)
    made = sorted((folder / "scores").glob("*.parquet"))
    self.assertEqual(
      [path.name.rsplit("-", 1)[0] for path in made],
      [
        "dialogue-votes5-shared0.3-own0.2",
        "dialogue-votes5-shared0.6-own0.2",
        "timing-votes5-shared0.5-own0.2-late0.2-early0.2",
        "utterance-votes5-shared0.5-own0.2",
      ],
    )

  def test_noise_map_of_wrong_sizes(self):
    _, run = self.run_command("noise_map", "--shifts=0.3,big")
    self.assertEqual(run.returncode, 1)
    self.assertIn("--shifts must be numbers of at least 0", run.stderr)
    self.assertNotIn("Traceback", run.stderr)

  def test_an_alpha_is_that_of_hard_pairs(self):
    for flags, under in (
      ([], {"pretrain.objective": "pairwise", "pairs.targets": "hard"}),
      (["--config.pretrain.objective=joint"], {"pairs.targets": "hard"}),
    ):
      folder, _ = self.run_where_another_works(
        "ablations", "--what=alpha", *flags
      )
      about = json.loads((folder / "command.json").read_text())
      self.assertEqual(about["under"], under)

  def test_ablation_of_a_value_that_is_none(self):
    _, run = self.run_command("ablations", "--what=scope", "--values=inner")
    self.assertEqual(run.returncode, 1)
    self.assertIn("some of intra, cross, got 'inner'", run.stderr)

  def test_a_cell_that_fails_does_not_keep_others(self):
    # There is no such dtype, and no such score file.
    folder, run = self.run_command(
      "tables23",
      "--gold=0.3",
      f"--teacher={self.config.scores}",
      "--config.scores=absent.parquet",
      "--finetune_only=model.dtype=float16",
    )
    self.assertEqual(run.returncode, 1)
    self.assertIn("config.model.dtype must be one of", run.stderr)
    self.assertIn("config.scores must name a score file", run.stderr)
    self.assertIn(
      "jsonl-ours-gold0.3-seed0 failed: not run, as jsonl-ours-gold0-seed0",
      run.stderr,
    )
    self.assertIn("3 of 3 cells failed", run.stderr)
    (row,) = self.rows(folder / "results.csv")
    majority = teacher.majority(self.dataset)["accuracy"]
    self.assertAlmostEqual(
      float(row["majority_accuracy"]), majority, delta=1e-5
    )
    self.assertEqual(row["teacher_split"], "train")
    self.assertAlmostEqual(
      float(row["majority_one_versus_rest_accuracy"]),
      1 - 2 * (1 - majority) / 3,
      delta=1e-5,
    )
    table = (folder / "table.md").read_text()
    self.assertIn("| jsonl | accuracy | 30 % |", table)
    self.assertIn("| jsonl | one-versus-rest | 30 % |", table)
    self.assertIn("An inference, which the paper does not state", table)

  def test_without_votes_there_is_gold_alone(self):
    folder, run = self.run_command(
      "tables23",
      "--gold=1",
      "--config.scores=",
      "--finetune_only=model.dtype=float16",
    )
    self.assertIn("1 of 1 cells failed: jsonl-fine-tune-only-gold1", run.stderr)
    self.assertIn(
      "| jsonl | accuracy | 100 % |", (folder / "table.md").read_text()
    )
    (row,) = self.rows(folder / "results.csv")
    self.assertEqual(row["teacher_accuracy"], "")


if __name__ == "__main__":
  absltest.main()
