import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues

_HEADER = (
  "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,"
  "Episode,StartTime,EndTime"
)
_TIMES = '1,2,"00:00:01,059","00:00:02,731"'
# Our own scenes. Numbers of rows and utterances have gaps and do not start at
# 0, dialogues start again at 0 in every split and one number is left out.
_ROWS = {
  "train": [
    f"4,Who took the ladder?,Nora,neutral,neutral,0,3,{_TIMES}",
    f'5,"Not me, I’m afraid of it.",The Gardener,fear,negative,0,4,{_TIMES}',
    f'9,"He said ""ladder"" again!",Nora,surprise,positive,0,7,{_TIMES}',
    f"10,It is gone.,Otto,surprise,negative,2,0,{_TIMES}",
    f"12,It is gone.,Nora,sadness,negative,2,1,{_TIMES}",
  ],
  "dev": [f"1,Lovely!,Otto,joy,positive,0,1,{_TIMES}"],
  "test": [f"1,You thief.,Nora,anger,negative,0,0,{_TIMES}"],
}


class MeldTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for split, rows in _ROWS.items():
      self._write(split, "\r\n".join([_HEADER, *rows, ""]))

  def _write(self, split, content):
    file = self.root / f"{split}_sent_emo.csv"
    file.write_bytes(content.encode())

  def _load(self, **options):
    return dialogues.load(
      "meld",
      source=self.root,
      data_dir=self.root / "prepared",
      options=options,
    )

  def test_reads_scenes_by_split_and_row_order(self):
    dataset = self._load()
    self.assertEqual(dataset.classes, ("neutral", "positive", "negative"))
    ids = {s: [d.dialogue_id for d in p] for s, p in dataset.splits.items()}
    self.assertEqual(
      ids,
      {
        "train": ["train-0", "train-2"],
        "validation": ["validation-0"],
        "test": ["test-0"],
      },
    )
    first, second = dataset.splits["train"]
    self.assertEqual(first.speakers, ("Nora", "The Gardener", "Nora"))
    self.assertEqual(
      first.texts,
      (
        "Who took the ladder?",
        "Not me, I’m afraid of it.",
        'He said "ladder" again!',
      ),
    )
    np.testing.assert_array_equal(first.gold, [[1, 0, 0], [0, 0, 1], [0, 1, 0]])
    # The same text twice in a row, of two speakers, is two utterances.
    self.assertEqual(second.texts, ("It is gone.", "It is gone."))
    self.assertTrue(second.labelled.all())

  def test_emotions_are_an_option(self):
    dataset = self._load(labels="emotion")
    self.assertLen(dataset.classes, 7)
    named = [
      [dataset.classes[c] for c in d.gold.argmax(1)]
      for d in dataset.splits["train"]
    ]
    self.assertEqual(
      named, [["neutral", "fear", "surprise"], ["surprise", "sadness"]]
    )
    self.assertNotEqual(dataset.key, self._load().key)

  def test_old_copies_give_the_same_text(self):
    new = self._load().splits["train"][0]
    rows = [row.replace("’", "\x92") for row in _ROWS["train"]]
    self._write("train", "\n".join([_HEADER, *rows, ""]))
    self.assertEqual(self._load().splits["train"][0].texts, new.texts)

  @parameterized.parameters(
    ("Sentiment,", "Feeling,", r"must have the columns .* without Sentiment"),
    (
      "surprise,positive",
      "surprise,glad",
      r"train_sent_emo\.csv, line 4: a label must be of neutral, positive,"
      r" negative; got 'glad'",
    ),
    (
      "It is gone.,Otto",
      " ,Otto",
      r"line 5: .* must have a speaker and a text",
    ),
    (",2,1,1,2", ",0,1,1,2", r"line 6: .* got Dialogue_ID '0', which ended"),
    ("10,It is", "10,It, is", r"line 5: a row must have 11 fields"),
    ('"Not me, ', '"Not me" , ', r"must be CSV in UTF-8, got .* after line 2"),
  )
  def test_refuses_faulty_files(self, old, new, message):
    content = "\n".join([_HEADER, *_ROWS["train"], ""])
    self.assertEqual(content.count(old), 1)
    self._write("train", content.replace(old, new))
    with self.assertRaisesRegex(ValueError, message):
      self._load()

  def test_refuses_options_and_missing_files(self):
    with self.assertRaisesRegex(ValueError, "one of sentiment, emotion; got"):
      self._load(labels="topic")
    (self.root / "dev_sent_emo.csv").unlink()
    with self.assertRaisesRegex(ValueError, r"lacks 'dev_sent_emo\.csv'"):
      self._load()


if __name__ == "__main__":
  absltest.main()
