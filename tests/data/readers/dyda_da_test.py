import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from ppl_jax.data import dialogues

_HEADER = "Utterance,Dialogue_Act,Emotion,Dialogue_ID\n"
# Our own dialogues: numbers start at 1 in every split, and the second of train
# is the one of test.
_TRAIN = """\
"is it raining , or is that you ?",question,no emotion,1
that is me .,inform,happiness,1
then close the door .,directive,no emotion,1
"one stamp , please .",directive,no emotion,2
here you are .,commissive,no emotion,2
"""
_TEST = """\
"one stamp , please .",directive,no emotion,1
here you are .,inform,no emotion,1
"""
_DEV = "good night .,inform,no emotion,1\n"


class DydaDaTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for split, rows in (("train", _TRAIN), ("dev", _DEV), ("test", _TEST)):
      (self.root / f"{split}.csv").write_text(_HEADER + rows)

  def _load(self, **changes):
    return dialogues.load(
      "dyda_da", source=self.root, data_dir=self.root / "prepared", **changes
    )

  def test_reads_acts_and_speakers_in_turn(self):
    dataset = self._load()
    first, second = dataset.splits["train"]
    self.assertEqual(first.dialogue_id, "train-1")
    self.assertEqual(first.speakers, ("A", "B", "A"))
    self.assertEqual(second.speakers, ("A", "B"))
    self.assertEqual(first.texts[0], "is it raining , or is that you ?")
    np.testing.assert_array_equal(first.gold.argmax(1), [1, 0, 2])
    np.testing.assert_array_equal(second.gold.argmax(1), [2, 3])
    self.assertEqual(dataset.splits["test"][0].dialogue_id, "test-1")
    self.assertEqual(dataset.splits["validation"][0].texts, ("good night .",))

  def test_leaks_are_kept_unless_dropped(self):
    dropped = self._load(drop_leaks=True).splits
    self.assertEqual([d.dialogue_id for d in dropped["train"]], ["train-1"])
    self.assertLen(dropped["test"], 1)

  def test_refuses_faulty_files(self):
    with self.assertRaisesRegex(ValueError, "has no options"):
      self._load(options={"labels": "act"})
    (self.root / "dev.csv").write_text(_HEADER + "a,greeting,no emotion,1\n")
    with self.assertRaisesRegex(ValueError, r"dev\.csv, line 2: .*'greeting'"):
      self._load()


if __name__ == "__main__":
  absltest.main()
