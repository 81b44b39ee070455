"""The real command on two kinds of noise."""

import csv
import pathlib
import sys
import tempfile

from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import commands


class NoiseMapTest(absltest.TestCase):
  def test_trains_on_every_noise(self):
    home = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    folder = home / "noise_map"
    command = [
      sys.executable,
      "-m",
      "ppl_jax.experiments.noise_map",
      "--config=configs/quickstart.py",
      *(flag for flag in commands.SMALL if ".buckets=" not in flag),
      "--config.segments.buckets=()",  # one length to compile for
      f"--config.dataset.data_dir={home / 'data'}",
      f"--folder={folder}",
      "--shifts=",
      "--methods=default",
      "--noise_late=0.32",
    ]
    status, output = commands.run(command)
    self.assertEqual(status, 0, output)
    with (folder / "results.csv").open() as f:
      rows = {row["variant"]: row for row in csv.DictReader(f)}
    self.assertEqual(list(rows), ["independent, default", "timing, default"])
    lines = (folder / "table.md").read_text().split("\n")
    for row in rows.values():
      noise = row["variant"].split(",")[0]
      (accuracy, macro_f1) = (
        line for line in lines if line.startswith(f"| {noise} |")
      )
      wrong = f"| {noise} | {100 * float(row['answers_wrong']):.1f} | "
      self.assertStartsWith(accuracy, wrong)
      self.assertEndsWith(
        accuracy, f"| **{100 * float(row['accuracy']):.1f}** |"
      )
      self.assertEndsWith(
        macro_f1, f"| **{100 * float(row['macro_f1']):.1f}** |"
      )
    self.assertEqual(*(float(row["answers_wrong"]) for row in rows.values()))
    self.assertGreater((folder / "table.png").stat().st_size, 5_000)
    self.assertEmpty(list(folder.glob("cells/*/checkpoints/pretrained")))


if __name__ == "__main__":
  absltest.main()
