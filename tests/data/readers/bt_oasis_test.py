import pathlib
import tempfile

from absl.testing import absltest

from ppl_jax.data import dialogues

# Our own calls. The lists say that c3 and c4 are validation and c5 and c6 test;
# c3 and c5 were exchanged, and their old copies lie in the other's folder.
_CALLS = {
  "c1": ["b|hello|greet", "b|i'd like to hold erm|informIntent-hold"],
  "c2": ["b|my phone is dead yes it is oh dear|inform", "a|it is|echo"],
  "c3": ["a|which number|reqInfo", "b|two two|answ"],
  "c4": ["b|good morning|greet"],
  "c5": ["b|thanks|thank", "a|bye|bye"],
  "c6": ["a|sorry|expressRegret"],
}
_FILES = {
  "train": ["c1", "c2"],
  "val": ["c3", "c4", "c5"],
  "test": ["c3", "c5", "c6"],
}
_LISTS = {"train": ["c2", "c1"], "val": ["c4", "c3"], "test": ["c6", "c5"]}


class BtOasisTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for folder, names in _FILES.items():
      for name in names:
        self._write(f"{folder}/{name}.txt", *_CALLS[name])
    for split, names in _LISTS.items():
      self._write(f"metadata/{split}_split.txt", *names)
    self._write("train_set.txt", *_CALLS["c1"], *_CALLS["c2"])

  def _write(self, name, *lines):
    file = self.root / "oasis_data" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines))

  def _load(self, **options):
    return dialogues.load(
      "bt_oasis",
      source=self.root,
      data_dir=self.root / "prepared",
      options=options,
    )

  def _ids(self, **options):
    splits = self._load(**options).splits
    return {name: [d.dialogue_id for d in s] for name, s in splits.items()}

  def test_lists_and_not_folders_say_what_is_in_a_split(self):
    self.assertEqual(
      self._ids(),
      {
        "train": ["c1", "c2"],
        "validation": ["c3", "c4"],
        "test": ["c5", "c6"],
      },
    )

  def test_the_silicone_edition_takes_back_what_was_exchanged(self):
    self.assertEqual(
      self._ids(edition="silicone"),
      {
        "train": ["c1", "c2"],
        "validation": ["c4", "c5"],
        "test": ["c3", "c6"],
      },
    )

  def test_reads_speakers_texts_and_labels(self):
    dataset = self._load()
    self.assertLen(dataset.classes, 42)
    first, second = dataset.splits["train"]
    self.assertEqual(second.speakers, ("b", "a"))
    self.assertEqual(second.texts[0], "my phone is dead yes it is oh dear")
    # Three labels are joined by a hyphen.
    self.assertEqual(
      [dataset.classes[c] for c in first.gold.argmax(1)],
      ["greet", "informIntent-hold"],
    )

  def test_refuses_folders_without_the_old_copies(self):
    (self.root / "oasis_data/val/c5.txt").unlink()
    self.assertEqual(self._ids()["test"], ["c5", "c6"])
    with self.assertRaisesRegex(ValueError, r"lie in .*/val too, got none"):
      self._load(edition="silicone")

  def test_refuses_copies_that_differ(self):
    self._write("val/c5.txt", "b|cheers|thank")
    with self.assertRaisesRegex(ValueError, "must be the same, got two texts"):
      self._load(edition="silicone")

  def test_refuses_faulty_files(self):
    self._write("test/c6.txt", "a|sorry|sorrow")
    with self.assertRaisesRegex(ValueError, r"c6\.txt, line 1: .*'sorrow'"):
      self._load()
    (self.root / "oasis_data/test/c6.txt").unlink()
    with self.assertRaisesRegex(ValueError, r"lacks 'oasis_data/test/c6\.txt'"):
      self._load()


if __name__ == "__main__":
  absltest.main()
