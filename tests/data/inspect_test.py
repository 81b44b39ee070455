import json
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest

import ppl_jax
from configs import jsonl
from ppl_jax.data import inspect

ROOT = pathlib.Path(ppl_jax.__file__).parents[1]


def _line(dialogue_id, *utterances):
  names = ("speaker", "text", "label")
  return json.dumps(
    {
      "dialogue_id": dialogue_id,
      "utterances": [dict(zip(names, u, strict=True)) for u in utterances],
    }
  )


_SPLITS = {
  "train": [
    _line("d0", ("A", "is it late", "ask"), ("B", "yes", "tell")),
    # The same text with other labels.
    _line("d1", ("A", "is it late", "ask"), ("B", "yes", "ask")),
    _line("d2", ("A", "bye", None), ("B", "bye", []), ("C", "yes", "tell")),
    _line("d3", ("A", " ".join(["word"] * 20), "tell")),
  ],
  "validation": [_line("v0", ("X", "is it late", "ask"), ("Y", "yes", "tell"))],
  "test": [
    _line("t0", ("A", "bye", "tell")),
    _line("t1", ("A", "how", "ask"), ("A", "so", "tell")),
  ],
}


class InspectTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    for split, lines in _SPLITS.items():
      (self.root / f"{split}.jsonl").write_text("\n".join(lines))
    self.config = jsonl.get_config()
    self.config.dataset.source = str(self.root)
    self.config.dataset.data_dir = str(self.root / "prepared")
    self.config.dataset.classes = ("ask", "tell")
    self.config.dataset.task = "multi_label"
    self.config.segments.window = 2
    self.config.segments.max_length = 8

  def _report(self, examples=3):
    """The parts of the report, by their first word; blanks made one."""
    lines = inspect.report(self.config, examples)
    parts = {}
    for part in "\n".join(lines).split("\n\n"):
      head, *rows = [" ".join(line.split()) for line in part.split("\n")]
      parts[head.split(":")[0]] = [head, *rows]
    return parts

  def test_splits(self):
    _, _, train, validation, test = self._report()["Splits"]
    # Words 3, 1, 3, 1, 1, 1, 1 and 20: the 95th percentile lies between.
    self.assertStartsWith(train, "train 4 8 7 1-3 2.00 / 1 / 3 3.88 / 1 / 14")
    self.assertEndsWith(train, " / 20")
    self.assertStartsWith(validation, "validation 1 2 2 2-2 2.00 / 2 / 2 2.00")
    self.assertStartsWith(test, "test 2 3 3 1-1 1.50 / 1 / 2 1.00")

  def test_classes(self):
    _, *rows = self._report()["Classes"]
    self.assertEqual(
      rows,
      [
        "class train validation test",
        "ask 3 42.9 % 1 50.0 % 1 33.3 %",
        "tell 3 42.9 % 1 50.0 % 2 66.7 %",
        "(none of them) 1 14.3 % 0 0.0 % 0 0.0 %",
        "(not labelled) 1 0 0",
      ],
    )

  def test_segments_in_words(self):
    head, note, _, train, _, test = self._report()["Segments"]
    self.assertIn("of 2 utterances, at most 8 words", head)
    self.assertIn("config.model.pretrained", note)
    # With the speaker 4, 2, 4, 2, 2, 2, 2 and 21 words in room for five: both
    # answers to the question lose of it, the long one its own end.
    self.assertEndsWith(train, "25.0 % 12.5 %")
    self.assertEndsWith(test, "0.0 % 0.0 %")

  def test_segments_in_tokens_of_a_student_from_scratch(self):
    self.config.model.pretrained = ""
    self.config.model.vocab_size = 200
    part = self._report()["Segments"]
    self.assertIn("at most 8 tokens", part[0])
    self.assertLen(part, 2 + 3)  # without the note

  def test_repeats_and_their_labels(self):
    _, _, whole, utterances = self._report()["Repeats"]
    # Of seven dialogues d0, d1 and v0 say the same, and d1 has other labels.
    self.assertEqual(whole, "dialogues 7 5 1 1 1 0 0")
    # Late 3 times, yes 4 (tell, ask, tell, tell), bye 3 ([] and tell, besides
    # null, which is no label): 13 utterances, 6 texts.
    self.assertEqual(utterances, "utterances 13 6 3 2 4 0 0")

  def test_a_missing_label_is_no_conflict(self):
    lines = (
      _line("d0", ("A", "is it late", None), ("B", "yes", "tell")),
      _line("d1", ("A", "is it late", "ask"), ("B", "yes", None)),
    )
    (self.root / "train.jsonl").write_text("\n".join(lines))
    for split in ("validation", "test"):
      (self.root / f"{split}.jsonl").unlink()
    _, _, whole, utterances = self._report()["Repeats"]
    self.assertEqual(whole, "dialogues 2 1 1 0 1")
    self.assertEqual(utterances, "utterances 4 2 2 0 2")

  def test_leaks(self):
    _, _, *rows = self._report()["Leaks"]
    self.assertEqual(
      rows,
      [
        "validation in train 1 of 1 100.0 % 2 of 2 100.0 %",
        "test in train 0 of 2 0.0 % 1 of 3 33.3 %",
        "test in validation 0 of 2 0.0 % 0 of 3 0.0 %",
      ],
    )

  def test_shows_segments(self):
    head = "Segments of train, as the student sees them"
    shown = self._report(examples=100)[head]
    self.assertLen(shown, 1 + 2 * 8)
    at = dict(zip(shown[1::2], shown[2::2], strict=True))
    self.assertEqual(
      at["d1, utterance 1: ask"], "[CLS] is it late [SEP] B: yes [SEP]"
    )
    self.assertEqual(
      at["d2, utterance 1: (none of them)"],
      "[CLS] A: bye [SEP] B: bye [SEP]",
    )
    self.assertIn("d2, utterance 0: (not labelled)", at)
    self.assertLen(self._report(examples=0), 6)

  def test_the_command(self):
    command = [
      *(sys.executable, "-m", "ppl_jax.data.inspect"),
      "--config=configs/jsonl.py",
      f"--config.dataset.data_dir={self.root / 'prepared'}",
      "--config.dataset.classes=('ask', 'tell')",
      "--examples=1",
    ]
    options = {"cwd": ROOT, "capture_output": True, "text": True}
    run = subprocess.run(
      [
        *command,
        f"--config.dataset.source={self.root}",
        "--config.dataset.task=multi_label",
      ],
      check=False,
      **options,
    )
    self.assertEqual(run.returncode, 0, run.stderr)
    self.assertStartsWith(run.stdout, "jsonl: 2 classes, multi_label")
    run = subprocess.run(command, check=False, **options)
    self.assertEqual(run.returncode, 1)
    self.assertStartsWith(
      run.stderr, "error: dataset 'jsonl' reads train.jsonl"
    )


if __name__ == "__main__":
  absltest.main()
