import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from ppl_jax.data import dialogues, segments

_LONGEST = 3_391  # utterances of the corpus's longest meeting
_TAGS = "SBDFQ"


class MrdaTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

  def _write(self, name, *lines):
    file = self.root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines))

  def _write_corpus(self):
    data = "mrda_data"
    # Lists are in no order.
    self._write(f"{data}/metadata/train_split.txt", "Bzz002", "Bzz001")
    self._write(f"{data}/metadata/val_split.txt", "Bzz003")
    self._write(f"{data}/metadata/test_split.txt", "Bzz004")
    self._write(
      f"{data}/train/Bzz001.txt",
      "fe901|so um|F|fh|fh",
      "me902|okay.|B|b|b",
      "fe901|shall we start?|Q|qy|qy",
      "mn903|the disk is|D|%|%--",
      "me902|yes.|S|s|aa",
    )
    long = [
      f"fe{900 + i % 9}|remark {i}.|{_TAGS[i % 5]}|s|s" for i in range(_LONGEST)
    ]
    self._write(f"{data}/train/Bzz002.txt", *long)
    self._write(f"{data}/val/Bzz003.txt", "me902|right.|S|s|aa")
    self._write(f"{data}/test/Bzz004.txt", "me902|hello.|S|s|s")
    # Not listed, so not of the split.
    self._write(f"{data}/test/Bzz001.txt", "me902|hello.|S|s|s")

  def _write_silicone(self):
    header = (
      "Utterance_ID,Dialogue_Act,Channel_ID,Speaker,Dialogue_ID,Utterance"
    )
    ids = "Bzz001-c3_0000216_0005914"
    rows = [
      f"1394,{ids},f,Bzz001-c3,fe901,Bzz001,so ==",
      f'1395,{ids},d,Bzz001-c3,fe901,Bzz001,"the disk , @ | i mean - "',
      f"1396,{ids},s,Bzz002-c1,me902,Bzz002,u_s_b .",
    ]
    self._write("train.csv", f"Unnamed: 0,{header}", *rows)
    self._write("dev.csv", f"Unnamed: 0,{header}", f"0,{ids},b,c,me902,B3,mm")
    # The first column has no name here.
    self._write("test.csv", f",{header}", f"0,{ids},q,c,me902,B4,why ?")

  def _load(self, **options):
    return dialogues.load(
      "mrda",
      source=self.root,
      data_dir=self.root / "prepared",
      options=options,
    )

  def test_reads_listed_meetings_by_name(self):
    self._write_corpus()
    dataset = self._load()
    self.assertEqual(
      {s: [d.dialogue_id for d in p] for s, p in dataset.splits.items()},
      {
        "train": ["Bzz001", "Bzz002"],
        "validation": ["Bzz003"],
        "test": ["Bzz004"],
      },
    )
    first = dataset.splits["train"][0]
    self.assertEqual(
      first.speakers, ("fe901", "me902", "fe901", "mn903", "me902")
    )
    self.assertEqual(first.texts[3], "the disk is")
    self.assertEqual(
      [dataset.classes[c] for c in first.gold.argmax(1)],
      ["floor-grabber", "backchannel", "question", "disruption", "statement"],
    )

  def test_the_longest_meeting_is_one_dialogue(self):
    self._write_corpus()
    meeting = self._load().splits["train"][1]
    self.assertLen(meeting.texts, _LONGEST)
    self.assertLen(set(meeting.speakers), 9)
    np.testing.assert_array_equal(meeting.gold.argmax(1)[:5], [0, 1, 2, 3, 4])
    # Ten tokens an utterance: what a segment holds does not grow with it.
    tokens = segments.UtteranceTokens(
      np.zeros(10 * _LONGEST), np.arange(_LONGEST + 1) * 10, [0, _LONGEST]
    )
    lengths = segments.segment_lengths(tokens, 4, 64)
    self.assertEqual(lengths.max(), 43)

  def test_the_silicone_edition_is_another_reading(self):
    self._write_silicone()
    dataset = self._load(edition="silicone")
    first, second = dataset.splits["train"]
    self.assertEqual(first.dialogue_id, "Bzz001")
    self.assertEqual(first.texts, ("so ==", "the disk , @ | i mean -"))
    self.assertEqual(
      [dataset.classes[c] for c in first.gold.argmax(1)],
      ["floor-grabber", "disruption"],
    )
    self.assertEqual(second.speakers, ("me902",))
    [test] = dataset.splits["test"]
    self.assertEqual(dataset.classes[test.gold[0].argmax()], "question")

  def test_refuses_faulty_files(self):
    with self.assertRaisesRegex(ValueError, r"lacks 'mrda_data/metadata/train"):
      self._load()
    with self.assertRaisesRegex(ValueError, r"lacks 'train\.csv'"):
      self._load(edition="silicone")
    with self.assertRaisesRegex(ValueError, "one of corpus, silicone; got"):
      self._load(edition="2004")
    self._write_corpus()
    self._write("mrda_data/val/Bzz003.txt", "me902|a|b|S|s|aa")
    with self.assertRaisesRegex(
      ValueError, r"Bzz003\.txt, line 1: a line must be speaker\|text\|basic"
    ):
      self._load()
    self._write("mrda_data/val/Bzz003.txt", "me902|a|Z|z|z")
    with self.assertRaisesRegex(
      ValueError, r"must be of S, B, D, F, Q; got 'Z'"
    ):
      self._load()
    self._write("mrda_data/metadata/val_split.txt", "Bzz003", "Bzz003")
    with self.assertRaisesRegex(ValueError, "got 'Bzz003' twice"):
      self._load()
    self._write("mrda_data/metadata/val_split.txt", "Bzz009")
    with self.assertRaisesRegex(
      ValueError, r"lacks 'mrda_data/val/Bzz009\.txt'"
    ):
      self._load()


if __name__ == "__main__":
  absltest.main()
