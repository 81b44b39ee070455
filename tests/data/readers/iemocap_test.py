import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues

_HEADER = (
  "Dialogue_ID,Utterance_Id,Utterance,Emotion,Valence,Activation,Dominance"
)


def _row(dialogue_id, speaker, text, emotion):
  return f'{dialogue_id},{dialogue_id}_{speaker},"{text}",{emotion},3.5,2.5,3.0'


# Our own scene. F in the dialogue's name is who wears the markers; M begins.
_SCENE = [
  _row("Ses09F_impro01", "M000", "The boiler broke.  Again.", "fru"),
  _row("Ses09F_impro01", "F000", "[LAUGHTER]", "xxx"),
  _row("Ses09F_impro01", "F001", "Sorry, I can't help it.", "hap"),
  _row("Ses09F_impro01", "M001", "Is that a spider?", "fea"),
  _row("Ses09F_impro01", "M002", "Oh!", "oth"),
]
_OTHER = [_row("Ses09M_script01_1b", "F000", "I see.", "neu")]


class IemocapTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self._write("train", [*_SCENE, *_OTHER])
    self._write("dev", _OTHER)
    self._write("test", _OTHER)

  def _write(self, split, rows):
    (self.root / f"{split}.csv").write_text("\n".join([_HEADER, *rows, ""]))

  def _load(self, **options):
    return dialogues.load(
      "iemocap",
      source=self.root,
      data_dir=self.root / "prepared",
      options=options,
    )

  def test_other_codes_are_unlabelled_context(self):
    dataset = self._load()
    self.assertLen(dataset.classes, 6)
    scene = dataset.splits["train"][0]
    self.assertEqual(scene.dialogue_id, "Ses09F_impro01")
    self.assertEqual(scene.speakers, ("M", "F", "F", "M", "M"))
    self.assertEqual(
      scene.texts[:2], ("The boiler broke.  Again.", "[LAUGHTER]")
    )
    np.testing.assert_array_equal(
      scene.labelled, [True, False, True, False, False]
    )
    np.testing.assert_array_equal(scene.gold.sum(1), [1, 0, 1, 0, 0])
    self.assertEqual(dataset.classes[scene.gold[0].argmax()], "frustration")
    self.assertEqual(dataset.classes[scene.gold[2].argmax()], "happiness")
    self.assertLen(dataset.splits["validation"], 1)

  @parameterized.parameters("ang", "exc", "fru", "hap", "neu", "sad")
  def test_six_codes_are_classes(self, code):
    self._write("train", [_row("Ses09M_impro02", "M000", "Well.", code)])
    dataset = self._load()
    gold = dataset.splits["train"][0].gold[0]
    self.assertStartsWith(dataset.classes[gold.argmax()], code)

  @parameterized.parameters("sur", "fea", "dis", "oth", "xxx")
  def test_five_codes_are_not(self, code):
    self._write("train", [_row("Ses09M_impro02", "M000", "Well.", code)])
    self.assertFalse(self._load().splits["train"][0].labelled.any())

  def test_refuses_faulty_files(self):
    self._write("train", [_row("Ses09M_impro02", "M000", "Well.", "joy")])
    with self.assertRaisesRegex(ValueError, r"train\.csv, line 2: .*'joy'"):
      self._load()
    self._write("train", [_row("Ses09M_impro02", "X000", "Well.", "neu")])
    with self.assertRaisesRegex(ValueError, "must begin with F or M"):
      self._load()
    with self.assertRaisesRegex(ValueError, "has no options"):
      self._load(labels="emotion")


if __name__ == "__main__":
  absltest.main()
