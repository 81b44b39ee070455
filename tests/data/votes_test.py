import gzip
import hashlib
import json
import pathlib
import random
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues, scores, vote_columns, votes

CLASSES = ("ask", "tell")


def _dialogue(dialogue_id, length):
  return dialogues.Dialogue(
    dialogue_id=dialogue_id,
    speakers=("A",) * length,
    texts=tuple(f"text {i} of {dialogue_id}" for i in range(length)),
    gold=np.zeros((length, len(CLASSES)), np.uint8),
    labelled=np.zeros(length, np.bool_),
  )


SPLIT = [_dialogue("d0", 2), _dialogue("d1", 1), _dialogue("d2", 1)]


def _vote(dialogue_id="d0", utterance=0, annotator="p1", label="ask", **more):
  return {
    "dialogue_id": dialogue_id,
    "utterance": utterance,
    "annotator": annotator,
    "label": label,
    **more,
  }


def _read(*paths, none_label="none", task="single_label"):
  builder = vote_columns.Builder(SPLIT, CLASSES, none_label)
  for path in paths:
    votes.add_votes(path, builder, none_label, task)
  return builder.build()


def _scores(path, none_label="none"):
  read = _read(path, none_label=none_label)
  return votes.to_scores(read, dataset="", split="train")


class VotesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = folder / "votes.jsonl"

  def _count(self, *lines, none_label="none"):
    self.path.write_text("\n".join(map(json.dumps, lines)))
    return _scores(self.path, none_label)

  def test_counts(self):
    counted = self._count(
      _vote("d2", 0, "p1", None),
      _vote("d0", 0, "p1", "ask"),
      _vote("d0", 0, "p2", "tell"),
      _vote("d0", 0, "p3", "none"),
      _vote("d0", 0, "p3", "ask", sample=1),
      _vote("d0", 0, "p4", None),
    )
    self.assertEqual(counted.classes, CLASSES)
    # Without a line there is no row; with unusable ones there is no score.
    self.assertEqual(list(counted.rows), ["d0", "d2"])
    row = counted.rows["d0"]
    np.testing.assert_array_equal(row.votes, [[2, 1], [0, 0]])
    np.testing.assert_array_equal(row.valid, [[4, 4], [0, 0]])
    np.testing.assert_array_equal(row.score, [[0.5, 0.25], [np.nan, np.nan]])
    self.assertEqual(row.text_sha256, SPLIT[0].text_sha256())
    self.assertTrue(np.isnan(counted.rows["d2"].score).all())
    told = counted.metadata["votes"]
    self.assertEqual(told["all"], 6)
    self.assertEqual(told["unusable"], 2)
    self.assertEqual(told["none"], 1)
    self.assertEqual(told["annotators"], {"p1": 2, "p2": 1, "p3": 2, "p4": 1})

  def test_only_votes_for_none_are_a_score_of_zero(self):
    counted = self._count(_vote(label="none"))
    np.testing.assert_array_equal(counted.rows["d0"].score[0], [0, 0])

  def _multi_label(self, *lines):
    self.path.write_text("\n".join(map(json.dumps, lines)))
    return _read(self.path, task="multi_label")

  def test_a_list_is_one_vote_for_each_class(self):
    read = self._multi_label(
      _vote(annotator="p1", label=["tell", "ask"]),
      _vote(annotator="p2", label=["ask"]),
      _vote(annotator="p3", label=[]),
      _vote(annotator="p4", label="ask"),
      _vote(annotator="p5", label=["none"]),
      _vote(annotator="p6", label=None),
    )
    votes_UxC, valid_UxC = read.counts()
    np.testing.assert_array_equal(votes_UxC[0], [3, 1])
    np.testing.assert_array_equal(valid_UxC[0], [5, 5])
    told = votes.to_scores(read, dataset="d", split="train").metadata["votes"]
    self.assertEqual((told["all"], told["unusable"], told["none"]), (6, 1, 2))

  def test_refuses_lists(self):
    with self.assertRaisesRegex(
      ValueError, r"line 1: .*one class or null in a single_label task, got the"
    ):
      self._count(_vote(label=["ask"]))
    with self.assertRaisesRegex(
      ValueError, "line 1: .*'none' must stand alone"
    ):
      self._multi_label(_vote(label=["none", "ask"]))
    with self.assertRaisesRegex(ValueError, r"line 1: .*, got 'shout'"):
      self._multi_label(_vote(label=["ask", "shout"]))
    with self.assertRaisesRegex(ValueError, "line 1: .*valid string"):
      self._multi_label(_vote(label=["ask", 3]))

  def test_says_which_class_no_vote_names(self):
    with self.assertLogs(level="WARNING") as logs:
      self._count(_vote(label="ask"), _vote(annotator="p2", label="none"))
    self.assertIn("no vote names ['tell']", logs.output[0])
    with self.assertNoLogs(level="WARNING"):
      self._count(_vote(label="ask"), _vote(annotator="p2", label="tell"))

  def test_several_files(self):
    other = self.path.with_name("more.jsonl.gz")
    other.write_bytes(gzip.compress(json.dumps(_vote(annotator="p2")).encode()))
    self.path.write_text(json.dumps(_vote()))
    read = _read(self.path, other)
    counted = votes.to_scores(read, dataset="d", split="train")
    self.assertEqual(counted.rows["d0"].votes[0, 0], 2)
    self.assertEqual(
      counted.metadata["votes"]["sources"],
      [
        {
          "file": path.name,
          "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in (self.path, other)
      ],
    )
    other.write_bytes(gzip.compress(b""))
    with self.assertRaisesRegex(ValueError, f"^{other}: .*got none"):
      _read(self.path, other)

  def test_order_of_lines_does_not_matter(self):
    shuffled = random.Random(0)
    lines = [
      _vote(
        d.dialogue_id, u, f"p{a}", shuffled.choice([*CLASSES, "none", None])
      )
      for d in SPLIT
      for u in range(len(d.texts))
      for a in range(9)
    ]
    first = self._count(*lines)
    shuffled.shuffle(lines)
    second = self._count(*lines)
    self.assertEqual(list(first.rows), list(second.rows))
    for name, row in first.rows.items():
      np.testing.assert_array_equal(row.votes, second.rows[name].votes)
      np.testing.assert_array_equal(row.valid, second.rows[name].valid)

  def test_damaged_gzip_is_said_in_words(self):
    packed = self.path.with_name("votes.jsonl.gz")
    whole = gzip.compress(b"".join(f"{i}".encode() for i in range(10_000)))
    for content in (whole[:200], b"\x1f\x8b" + whole[5:], b"plain"):
      packed.write_bytes(content)
      with self.assertRaisesRegex(ValueError, "must be gzip from end to end"):
        _scores(packed, "")

  def test_gzipped_and_blank_lines(self):
    packed = self.path.with_name("votes.jsonl.gz")
    packed.write_bytes(
      gzip.compress(b"\n" + json.dumps(_vote()).encode() + b"\n\n")
    )
    counted = _scores(packed, "")
    self.assertEqual(counted.rows["d0"].votes[0, 0], 1)

  def test_can_be_written(self):
    counted = self._count(_vote())
    scores.write_scores(self.path.with_suffix(".parquet"), counted)
    read = scores.read_scores(self.path.with_suffix(".parquet"))
    self.assertEqual(read.metadata, counted.metadata)
    self.assertLen(
      [m for m in scores.match(read, SPLIT, CLASSES) if m is None], 2
    )

  @parameterized.named_parameters(
    ("broken", '{"dialogue_id"', "Invalid JSON"),
    (
      "no_label",
      {k: v for k, v in _vote().items() if k != "label"},
      "at label",
    ),
    ("unknown_field", _vote(lable="ask"), "not permitted.* at lable"),
    ("negative", _vote(utterance=-1), "at utterance"),
    ("boolean", _vote(utterance=True), "at utterance"),
    ("beyond", _vote(utterance=2), "from 0 to 1 in dialogue 'd0', got 2"),
    ("unknown_dialogue", _vote("d9"), "got 'd9'.*config.votes.split"),
    ("unknown_label", _vote(label="shout"), "'none'. or null, got 'shout'"),
    (
      "duplicate",
      _vote(annotator="first", sample=0),
      r"got \('d0', 0, 'first', 0\), which line 1 has",
    ),
  )
  def test_refuses_a_line_and_names_it(self, line, message):
    line = line if isinstance(line, str) else json.dumps(line)
    self.path.write_text(json.dumps(_vote(annotator="first")) + "\n" + line)
    with self.assertRaisesRegex(
      ValueError, f"^{self.path}, line 2: .*{message}"
    ):
      _scores(self.path)

  def test_the_answer_none_is_not_a_class(self):
    with self.assertRaisesRegex(ValueError, "config.votes.none_label"):
      self._count(_vote(), none_label="tell")
    with self.assertRaisesRegex(ValueError, "got 'none'"):
      self._count(_vote(label="none"), none_label="")

  def test_refuses_files_without_votes(self):
    with self.assertRaisesRegex(ValueError, "must hold votes"):
      self._count()
    with self.assertRaisesRegex(ValueError, "--votes must name a file"):
      _scores(self.path.parent)


if __name__ == "__main__":
  absltest.main()
