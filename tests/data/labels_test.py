import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues, labels

CLASSES = ("ask", "tell")


def _dialogue(name, length):
  return dialogues.Dialogue(
    dialogue_id=name,
    speakers=("A",) * length,
    texts=tuple(f"text {i}" for i in range(length)),
    gold=np.tile(np.array([1, 0], np.uint8), (length, 1)),
    labelled=np.arange(length) == 0,
  )


SPLIT = [_dialogue("a", 3), _dialogue("b", 2)]


class LabelsTest(parameterized.TestCase):
  def _read(self, *given, task="single_label", classes=CLASSES):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = pathlib.Path(folder, "labels.jsonl")
    path.write_text("".join(json.dumps(line) + "\n" for line in given))
    return labels.read(path, classes, task)

  def test_laid_over(self):
    read = self._read(
      {"dialogue_id": "b", "utterance": 0, "label": "tell"},
      {"dialogue_id": "b", "utterance": 1, "text": "text 1", "label": "ask"},
      {"dialogue_id": "a", "utterance": 1, "label": None},
      {"dialogue_id": "unknown", "utterance": 1},  # null: nobody's label
    )
    a, b = labels.Overlaid(SPLIT, read)
    self.assertIs(a, SPLIT[0])
    np.testing.assert_array_equal(b.gold, [[0, 1], [1, 0]])
    np.testing.assert_array_equal(b.labelled, [True, True])
    np.testing.assert_array_equal(SPLIT[1].labelled, [True, False])
    overlaid = labels.Overlaid(SPLIT, read)
    self.assertLen(overlaid, 2)
    self.assertEqual(overlaid[-1].gold.tolist(), b.gold.tolist())
    self.assertEqual(overlaid[1:][0].gold.tolist(), b.gold.tolist())

  def test_several_classes(self):
    line = {"dialogue_id": "a", "utterance": 2}
    both = self._read(line | {"label": ["tell", "ask"]}, task="multi_label")
    self.assertEqual(both["a"][2].gold_C.tolist(), [1, 1])
    none = self._read(line | {"label": []}, classes=("ask",))
    self.assertEqual(none["a"][2].gold_C.tolist(), [0])

  @parameterized.parameters(
    ({"utterance": -1}, "line 1: at utterance"),
    ({"label": "other"}, 'line 1: label must be of .*got "other"'),
    ({"label": []}, "line 1: label must be one class"),
    ({"label": ["ask", "tell"]}, "line 1: label must be one class"),
    ({"speaker": "A"}, "line 1: at speaker"),
    ({"dialogue_id": "c"}, "line 1: dialogue_id must be one of the train"),
    ({"utterance": 3}, "line 1: utterance must be below 3"),
    ({"text": "text 2"}, "line 1: text must be that of utterance 1"),
  )
  def test_refuses(self, change, said):
    line = {"dialogue_id": "a", "utterance": 1, "label": "ask"} | change
    with self.assertRaisesRegex(ValueError, said):
      labels.Overlaid(SPLIT, self._read(line))

  def test_refuses_two_labels_of_one_utterance_and_no_file(self):
    line = {"dialogue_id": "a", "utterance": 1, "label": "ask"}
    with self.assertRaisesRegex(ValueError, "line 2: an utterance must have"):
      self._read(line, line)
    with self.assertRaisesRegex(ValueError, "config.dataset.gold must name"):
      labels.read("/no/such/file", CLASSES, "single_label")


if __name__ == "__main__":
  absltest.main()
