import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest

from ppl_jax import predictions


class PredictionsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_what_is_saved_is_loaded(self):
    saved = predictions.Predictions(
      split="test",
      task="multi_label",
      classes=("ask", "tell"),
      dialogue_ids=("a", "a", "b"),
      utterance_N=np.array([0, 2, 1], np.int32),
      gold_NxC=np.array([[1, 1], [0, 0], [0, 1]], np.uint8),
      logits_NxC=np.array([[1.5, -2], [0, 0.25], [3, 4]], np.float32),
    )
    path = predictions.path(self.folder, "test")
    predictions.save(path, saved)
    loaded = predictions.load(path)
    for name in ("split", "task", "classes", "dialogue_ids"):
      self.assertEqual(getattr(loaded, name), getattr(saved, name))
    for name in ("utterance_N", "gold_NxC", "logits_NxC"):
      np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    self.assertEqual([p.name for p in path.parent.iterdir()], [path.name])

  def test_another_file_is_refused(self):
    with self.assertRaisesRegex(ValueError, "no file: run python -m"):
      predictions.load(self.folder / "none.parquet")
    path = self.folder / "test.parquet"
    path.write_text("no Parquet")
    with self.assertRaisesRegex(ValueError, "must be Parquet"):
      predictions.load(path)
    pq.write_table(pa.table({"dialogue_id": ["a"]}), path)
    with self.assertRaisesRegex(ValueError, r"got \['dialogue_id'\]"):
      predictions.load(path)


if __name__ == "__main__":
  absltest.main()
