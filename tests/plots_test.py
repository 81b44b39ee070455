import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from ppl_jax import metrics, plots


class PlotsTest(absltest.TestCase):
  def test_names_of_classes_are_no_formulas(self):
    classes = ("pays $_$", "$#1$", r"a\b$c^$")
    counts = metrics.Classification.from_probabilities(
      np.eye(3), np.eye(3), np.ones(3, bool), "single_label"
    )
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    plots.classification(folder, counts, classes)
    self.assertTrue((folder / "confusion.png").exists())


if __name__ == "__main__":
  absltest.main()
