import json
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues
from ppl_jax.data.readers import jsonl

CLASSES = ("ask", "tell", "thank")


def _line(label="ask", **changes):
  utterance = {"speaker": "USR", "text": "Is it raining?", "label": label}
  return json.dumps({"dialogue_id": "d1", "utterances": [utterance], **changes})


class JsonlTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.source = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.file = self.source / "train.jsonl"

  def _read(self, content, task="single_label"):
    if isinstance(content, str):
      content = content.encode("utf-8")
    self.file.write_bytes(content)
    return list(jsonl.read_file(self.file, CLASSES, task))

  def test_reads_labels(self):
    utterances = [
      {"speaker": "USR", "text": "Is it raining?", "label": "ask"},
      {"speaker": "SYS", "text": "It is.", "label": ["tell"]},
      {"speaker": "USR", "text": "Hm.", "label": None},
      {"speaker": "USR", "text": "Well."},
    ]
    [dialogue] = self._read(
      json.dumps(
        {"dialogue_id": "d1", "utterances": utterances, "channel": "web"}
      )
    )
    self.assertEqual(dialogue.dialogue_id, "d1")
    self.assertEqual(dialogue.speakers, ("USR", "SYS", "USR", "USR"))
    self.assertEqual(dialogue.texts[3], "Well.")
    np.testing.assert_array_equal(dialogue.labelled, [1, 1, 0, 0])
    np.testing.assert_array_equal(
      dialogue.gold, [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    )

  def test_multi_label_takes_any_number(self):
    lines = [
      _line(label=label, dialogue_id=str(i))
      for i, label in enumerate([["thank", "ask"], [], None, "tell"])
    ]
    read = self._read("\n".join(lines), task="multi_label")
    np.testing.assert_array_equal(
      [d.gold[0] for d in read],
      [[1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0]],
    )
    # [] says "none of them", null says nothing.
    self.assertEqual([bool(d.labelled[0]) for d in read], [1, 1, 0, 1])

  def test_one_class_may_be_absent(self):
    self.file.write_text(_line(label=[]))
    [dialogue] = jsonl.read_file(self.file, ("intent",), "single_label")
    np.testing.assert_array_equal(dialogue.gold, [[0]])
    np.testing.assert_array_equal(dialogue.labelled, [True])

  def test_only_a_line_feed_ends_a_line(self):
    text = "one\u2028two\x85three"
    utterance = {"speaker": "A", "text": text}
    line = json.dumps(
      {"dialogue_id": "d", "utterances": [utterance]}, ensure_ascii=False
    )
    [dialogue] = self._read(f"\ufeff{line}\r\n\n  \n")
    self.assertEqual(dialogue.texts, (text,))

  @parameterized.named_parameters(
    ("broken", '{"dialogue_id": ', "Invalid JSON"),
    ("not_an_object", "[]", "object"),
    ("no_id", '{"utterances": []}', "at dialogue_id"),
    ("no_utterances", '{"dialogue_id": "d"}', "at utterances"),
    ("empty", _line(utterances=[]), "at utterances"),
    (
      "no_text",
      _line(utterances=[{"speaker": "A"}]),
      r"at utterances\.0\.text",
    ),
    (
      "no_speaker",
      _line(utterances=[{"text": "a"}]),
      r"at utterances\.0\.speaker",
    ),
    (
      "misspelt_label",
      _line(utterances=[{"speaker": "A", "text": "a", "lable": "ask"}]),
      r"not permitted.* at utterances\.0\.lable",
    ),
    (
      "empty_text",
      _line(utterances=[{"speaker": "A", "text": " \t"}]),
      r"must not be empty.* at utterances\.0\.text",
    ),
    (
      "text_is_a_number",
      _line(utterances=[{"speaker": "A", "text": 3}]),
      r"valid string.* at utterances\.0\.text",
    ),
    ("label_is_a_number", _line(label=3), r"at utterances\.0\.label"),
    ("unknown_label", _line(label="shout"), "got 'shout' for utterance 0"),
    (
      "no_class",
      _line(label=[]),
      "got 0 for utterance 0: leave its label null",
    ),
    ("two_classes", _line(label=["ask", "tell"]), "got 2 for utterance 0"),
    ("duplicate_id", _line(dialogue_id="d0"), "'d0', which line 1 has"),
    ("surrogate", '{"dialogue_id": "\\ud800"', "Invalid JSON"),
  )
  def test_refuses_a_line_and_names_it(self, line, message):
    first = _line(dialogue_id="d0")
    with self.assertRaisesRegex(
      ValueError, rf"^{self.file}, line 3: .*{message}"
    ):
      self._read(f"{first}\n\n{line}\n")

  def test_refuses_other_encodings_and_names_the_line(self):
    line = _line().replace("raining", "r\u00e4ining")
    latin = json.dumps(json.loads(line), ensure_ascii=False).encode("latin-1")
    with self.assertRaisesRegex(ValueError, "line 1: "):
      self._read(latin)

  def test_refuses_a_file_without_dialogues(self):
    with self.assertRaisesRegex(ValueError, "at least one dialogue"):
      self._read("\n")

  def test_optional_splits(self):
    self.file.write_text(_line())
    self.assertEqual(jsonl.source_files(self.source, {}), [self.file])
    (self.source / "test.jsonl").write_text(_line())
    files = jsonl.source_files(self.source, {})
    self.assertEqual(files, [self.file, self.source / "test.jsonl"])
    found = {
      split: len(
        list(jsonl.read(self.source, split, CLASSES, {}, task="single_label"))
      )
      for split in dialogues.SPLITS
    }
    self.assertEqual(found, {"train": 1, "validation": 0, "test": 1})

  def test_train_is_required(self):
    (self.source / "test.jsonl").write_text(_line())
    with self.assertRaisesRegex(ValueError, "has no train.jsonl"):
      jsonl.source_files(self.source, {})


if __name__ == "__main__":
  absltest.main()
