import json
import pathlib
import tempfile
from unittest import mock

import hypothesis
import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from ppl_jax.data import dialogues, scores

CLASSES = ("ask", "tell")
METADATA = {
  "dataset": "ours",
  "split": "train",
  "models": ["m"],
  "prompts": [],
  "sampling": {"top_p": 0.9},
  "requests": 6,
  "aggregation": "shares",
}


def _dialogue(dialogue_id="d", texts=("Is it far?", "No.")):
  return dialogues.Dialogue(
    dialogue_id=dialogue_id,
    speakers=("A",) * len(texts),
    texts=texts,
    gold=np.zeros((len(texts), len(CLASSES)), np.uint8),
    labelled=np.zeros(len(texts), np.bool_),
  )


def _row(dialogue=None, votes=((2, 1), (0, 0)), valid=((3, 3), (0, 0)), **more):
  return scores.ScoredDialogue(
    votes=np.array(votes, np.uint32),
    valid=np.array(valid, np.uint32),
    text_sha256=(dialogue or _dialogue()).text_sha256(),
    **more,
  )


def _scores(**rows):
  return scores.Scores(CLASSES, METADATA, rows)


@st.composite
def _any_scores(draw):
  num_classes = draw(st.integers(1, 3))
  rows = {}
  for i in range(draw(st.integers(0, 4))):
    shape = (draw(st.integers(1, 4)), num_classes)
    valid = draw(hnp.arrays(np.uint32, shape, elements=st.integers(0, 5)))
    part = draw(hnp.arrays(np.uint32, shape, elements=st.integers(0, 5)))
    share = st.one_of(st.just(np.nan), st.floats(0, 1, width=32))
    weighted = hnp.arrays(np.float32, shape, elements=share)
    rows[f"d{i}"] = scores.ScoredDialogue(
      votes=np.minimum(part, valid),
      valid=valid,
      text_sha256=f"hash {i}",
      weighted=draw(st.one_of(st.none(), weighted)),
    )
  classes = tuple(f"class {c}" for c in range(num_classes))
  return scores.Scores(classes, METADATA, rows)


class ScoresTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = folder / "deeper" / "scores.parquet"

  def test_score_is_the_share_of_valid_votes(self):
    score = _row().score
    self.assertEqual(score.dtype, np.float32)
    np.testing.assert_array_equal(
      score, np.array([[2 / 3, 1 / 3], [np.nan, np.nan]], np.float32)
    )
    # A class that a prompt could not name has fewer valid votes.
    score = _row(votes=((1, 0), (0, 0)), valid=((4, 2), (1, 0))).score
    np.testing.assert_array_equal(score, [[0.25, 0], [0, np.nan]])

  def test_weighted_scores_stand_in_for_shares(self):
    weighted = np.array([[0.7, np.nan], [0.0, 1.0]], np.float32)
    np.testing.assert_array_equal(_row(weighted=weighted).score, weighted)

  @hypothesis.settings(deadline=None, max_examples=40)
  @hypothesis.given(_any_scores())
  def test_what_is_written_is_read(self, written):
    scores.write_scores(self.path, written)
    read = scores.read_scores(self.path)
    self.assertEqual(read.classes, written.classes)
    self.assertEqual(
      read.metadata, {**METADATA, "classes": list(written.classes)}
    )
    self.assertEqual(list(read.rows), list(written.rows))
    for name, row in written.rows.items():
      got = read.rows[name]
      self.assertEqual(got.text_sha256, row.text_sha256)
      np.testing.assert_array_equal(got.votes, row.votes)
      np.testing.assert_array_equal(got.valid, row.valid)
      self.assertEqual(got.votes.dtype, np.uint32)
      self.assertEqual(got.weighted is None, row.weighted is None)
      np.testing.assert_array_equal(got.score, row.score)
      self.assertEqual(got.score.dtype, np.float32)

  def test_schema_is_that_of_the_contract(self):
    scores.write_scores(self.path, _scores(d=_row()))
    schema = pq.read_schema(self.path)
    self.assertEqual(
      schema.names, ["dialogue_id", "votes", "valid", "text_sha256"]
    )
    counts = pa.list_(pa.list_(pa.uint32()))
    self.assertEqual(schema.field("votes").type, counts)
    metadata = pq.read_metadata(self.path).metadata
    self.assertEqual(json.loads(metadata[b"ppl_jax"])["dataset"], "ours")
    self.assertEqual(
      pq.read_table(self.path).to_pylist()[0]["votes"], [[2, 1], [0, 0]]
    )

  def test_other_tools_may_write_it(self):
    weighted = [[[0.5, None], [0.25, 1.0]]]
    table = pa.table(
      {
        "text_sha256": ["h"],
        "votes": pa.array([[[1, 1], [1, 1]]], scores._COUNTS),
        "dialogue_id": ["d"],
        "valid": pa.array([[[2, 2], [2, 2]]], scores._COUNTS),
        "score": pa.array([[[0.5, np.nan], [0.25, 1.0]]], scores._SHARES),
        "note": ["a column that we do not know"],
      }
    ).replace_schema_metadata(
      {"ppl_jax": json.dumps({**METADATA, "classes": CLASSES})}
    )
    self.path.parent.mkdir()
    pq.write_table(table, self.path)
    np.testing.assert_array_equal(
      scores.read_scores(self.path).rows["d"].score,
      [[0.5, np.nan], [0.25, 1.0]],
    )
    # None is NaN, not null.
    column = pa.array(weighted, scores._SHARES)
    table = table.set_column(4, "score", column)
    pq.write_table(table, self.path)
    with self.assertRaisesRegex(
      ValueError, r"'d': score must hold 2 values .* got \[0\.5, None\]"
    ):
      scores.read_scores(self.path)

  def test_writing_replaces_whole_files_only(self):
    scores.write_scores(self.path, _scores(d=_row()))
    before = self.path.read_bytes()
    with self.assertRaisesRegex(ValueError, "3 of 2 for utterance 0, class 1"):
      scores.write_scores(
        self.path,
        _scores(d=_row(), e=_row(votes=((0, 3),), valid=((2, 2),))),
      )
    self.assertEqual(self.path.read_bytes(), before)
    scores.write_scores(self.path, _scores(e=_row()))
    self.assertEqual(list(scores.read_scores(self.path).rows), ["e"])
    self.assertEqual(list(self.path.parent.iterdir()), [self.path])

  def test_a_write_that_breaks_off_leaves_the_old_file(self):
    scores.write_scores(self.path, _scores(d=_row()))
    before = self.path.read_bytes()

    def break_off(*_):
      raise OSError("disk full")

    with (
      mock.patch.object(pq.ParquetWriter, "write_table", break_off),
      self.assertRaises(OSError),
    ):
      scores.write_scores(self.path, _scores(e=_row()))
    self.assertEqual(self.path.read_bytes(), before)
    self.assertEqual(list(self.path.parent.iterdir()), [self.path])

  def test_metadata_is_required(self):
    metadata = {k: v for k, v in METADATA.items() if k != "prompts"}
    with self.assertRaisesRegex(ValueError, "got none for prompts"):
      scores.write_scores(self.path, scores.Scores(CLASSES, metadata, {}))

  @parameterized.parameters(
    ({"votes": ((1, 2, 0),), "valid": ((2, 2, 2),)}, r"\(1, 3\)"),
    ({"valid": ((3, 3),)}, r"got \(2, 2\) and \(1, 2\)"),
    ({"weighted": np.zeros((1, 2), np.float32)}, r"got \(1, 2\)"),
    (
      {"weighted": np.array([[0, 0], [0, 2]])},
      "got 2 for utterance 1, class 1",
    ),
    ({"weighted": np.array([[-1, 0], [0, 2]])}, "got -1 for utterance 0"),
  )
  def test_refuses_impossible_rows(self, changes, message):
    with self.assertRaisesRegex(ValueError, f"dialogue 'd': .*{message}"):
      scores.write_scores(self.path, _scores(d=_row(**changes)))

  def test_refuses_other_files(self):
    with self.assertRaisesRegex(ValueError, "config.scores must name"):
      scores.read_scores(self.path)
    self.path.parent.mkdir()
    self.path.write_text("dialogue_id,votes\n")
    with self.assertRaisesRegex(ValueError, f"{self.path}: .*Parquet"):
      scores.read_scores(self.path)
    pq.write_table(pa.table({"dialogue_id": ["d"]}), self.path)
    with self.assertRaisesRegex(
      ValueError, "which votes, valid, text_sha256 is wrong or missing"
    ):
      scores.read_scores(self.path)

  @parameterized.parameters(
    ("votes", [[[1, 1], [1, 1, 1]]], r"'d': votes must hold 2 .*\[1, 1, 1\]"),
    ("votes", [[[1, 1], None]], "'d': votes must hold 2 .* got None"),
    ("votes", [[[1, 1], [None, 1]]], r"'d': votes must .* got \[None, 1\]"),
    ("votes", [[[1, 1]]], r"'d': votes and valid"),
    ("votes", [[[1, 1], [1, 9]]], "'d': there cannot be .* 9 of 2"),
    ("votes", [None], "column votes must have a value"),
    ("text_sha256", [None], "column text_sha256 must have a value"),
  )
  def test_refuses_faulty_columns(self, name, value, message):
    counts = [[[2, 2], [2, 2]]]
    columns = {
      "dialogue_id": ["d"],
      "votes": counts,
      "valid": counts,
      "text_sha256": ["h"],
      name: value,
    }
    schema = pa.schema(
      list(scores._REQUIRED.items()),
      {"ppl_jax": json.dumps({**METADATA, "classes": CLASSES})},
    )
    self.path.parent.mkdir()
    pq.write_table(pa.table(columns, schema=schema), self.path)
    with self.assertRaisesRegex(ValueError, f"{self.path}.*{message}"):
      scores.read_scores(self.path)

  def test_refuses_a_dialogue_twice_and_missing_metadata(self):
    scores.write_scores(self.path, _scores(d=_row()))
    table = pq.read_table(self.path)
    pq.write_table(pa.concat_tables([table, table]), self.path)
    with self.assertRaisesRegex(ValueError, "'d': .* got several"):
      scores.read_scores(self.path)
    with self.assertRaisesRegex(ValueError, "'d': .* got several"):
      self._lay_out([_dialogue("d")], CLASSES)
    pq.write_table(table.replace_schema_metadata({}), self.path)
    with self.assertRaisesRegex(ValueError, "in its metadata under 'ppl_jax'"):
      scores.read_scores(self.path)

  def test_many_row_groups(self):
    names = [f"d{i}" for i in range(7)]
    rows = {
      name: _row(votes=((i, 0),) * (i + 1), valid=((9, 9),) * (i + 1))
      for i, name in enumerate(names)
    }
    scores.write_scores(self.path, _scores(**rows))
    table = pq.read_table(self.path)
    pq.write_table(table, self.path, row_group_size=2)
    read = scores.read_scores(self.path)
    for name in names:
      np.testing.assert_array_equal(read.rows[name].votes, rows[name].votes)

  def test_match_lays_scores_beside_dialogues(self):
    split = [_dialogue("x"), _dialogue("d"), _dialogue("y")]
    matched = scores.match(_scores(d=_row()), split, CLASSES)
    self.assertIsNone(matched[0])
    self.assertIsNone(matched[2])
    np.testing.assert_array_equal(matched[1], _row().score)

  @parameterized.parameters(
    (CLASSES[::-1], {}, r"\['ask', 'tell'\] in the .*\['tell', 'ask'\] in the"),
    (("ask",), {}, r"\['ask', 'tell'\] in the score file and \['ask'\] in the"),
    (
      CLASSES,
      {"texts": ("Is it far?",)},
      "got 2 in the score file and 1 in the dataset for dialogue 'd'",
    ),
    (
      CLASSES,
      {"texts": ("Is it far?", "No!")},
      "text_sha256 [0-9a-f]{64} in the score file and [0-9a-f]{64} in the"
      " dataset for dialogue 'd'",
    ),
    (CLASSES, {"dialogue_id": "e"}, "'d' .and 0 more. in the score file only"),
  )
  def test_match_refuses_what_was_not_scored(self, classes, changes, message):
    scores.write_scores(self.path, _scores(d=_row()))
    for refuses in (
      lambda split: scores.match(_scores(d=_row()), split, classes),
      lambda split: self._lay_out(split, classes),
    ):
      with self.assertRaisesRegex(ValueError, message):
        refuses([_dialogue(**changes)])

  def _lay_out(self, split, classes):
    first = np.cumsum([0, *(len(d.texts) for d in split)])
    return scores.lay_out(self.path, split, first, classes, self.path.parent)[0]

  def test_layout_is_that_of_match_in_any_order(self):
    names = [f"d{i}" for i in range(40)]
    split = [_dialogue(name) for name in names]
    rng = np.random.default_rng(0)
    rows = {}
    for name in rng.permutation(names)[:30]:
      rows[name] = _row(votes=rng.integers(0, 9, (2, 2)), valid=((9, 9),) * 2)
    with mock.patch.multiple(scores, _ROWS_AT_ONCE=7, _UTTERANCES_AT_ONCE=11):
      scores.write_scores(self.path, _scores(**rows))
      laid_out = self._lay_out(split, CLASSES)
    nothing = np.full((2, 2), np.nan, np.float32)
    matched = scores.match(_scores(**rows), split, CLASSES)
    self.assertEqual(sum(m is None for m in matched), 10)
    np.testing.assert_array_equal(
      laid_out, np.concatenate([nothing if m is None else m for m in matched])
    )

  def test_a_file_that_is_not_finished_is_not_there(self):
    with self.assertRaises(KeyError), scores.Writer(self.path, CLASSES) as w:
      w.add({"d": _row()})
      w.finish(METADATA)
      raise KeyError
    with scores.Writer(self.path, CLASSES) as w:
      w.add({"d": _row()})
    self.assertEmpty(list(self.path.parent.iterdir()))


if __name__ == "__main__":
  absltest.main()
