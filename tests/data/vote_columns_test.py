import itertools

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from ppl_jax.data import dialogues, vote_columns

CLASSES = ("ask", "tell", "thank")
LENGTHS = (2, 1, 3)


def _split():
  rng = np.random.default_rng(0)
  return [
    dialogues.Dialogue(
      dialogue_id=f"d{d}",
      speakers=("A",) * length,
      texts=tuple(f"text {d} {i}" for i in range(length)),
      gold=rng.integers(0, 2, (length, len(CLASSES))).astype(np.uint8),
      labelled=rng.integers(0, 2, length).astype(np.bool_),
    )
    for d, length in enumerate(LENGTHS)
  ]


SPLIT = _split()
PLACES = [(d, i) for d, length in enumerate(LENGTHS) for i in range(length)]


def _build(votes):
  """Votes of (dialogue, utterance, annotator, sample, only, labels)."""
  builder = vote_columns.Builder(SPLIT, CLASSES, "none")
  builder.source("votes.jsonl", "abc")
  for number, (d, i, annotator, sample, only, labels) in enumerate(votes, 1):
    builder.add(
      number,
      dialogue_id=f"d{d}",
      utterance=i,
      annotator=annotator,
      sample=sample,
      labels=labels,
      only=only,
    )
  return builder.build()


@st.composite
def _some_votes(draw):
  keys = draw(
    st.lists(
      st.tuples(
        st.sampled_from(PLACES),
        st.sampled_from(("b", "a", "c")),
        st.integers(0, 2),
        st.sampled_from(("", *CLASSES)),
      ),
      min_size=1,
      unique=True,
    )
  )
  votes = []
  for (d, i), annotator, sample, only in keys:
    allowed = (only,) if only else CLASSES
    labels = draw(st.none() | st.lists(st.sampled_from(allowed), unique=True))
    votes.append((d, i, annotator, sample, only, labels))
  return votes


class VoteColumnsTest(parameterized.TestCase):
  @hypothesis.given(_some_votes(), st.randoms(use_true_random=False))
  def test_against_a_count_one_by_one(self, given, random):
    votes = _build(given)
    there = sorted({d for d, *_ in given})
    self.assertEqual(votes.voted.dialogue_ids, tuple(f"d{d}" for d in there))
    places = [(d, i) for d, i in PLACES if d in there]
    expected = np.zeros((len(places), len(CLASSES)))
    valid = np.zeros_like(expected)
    for d, i, _, _, only, labels in given:
      u = places.index((d, i))
      for c, name in enumerate(CLASSES):
        if labels is not None and only in ("", name):
          valid[u, c] += 1
          expected[u, c] += name in labels
    votes_UxC, valid_UxC = votes.counts()
    np.testing.assert_array_equal(votes_UxC, expected)
    np.testing.assert_array_equal(valid_UxC, valid)

    # What each vote says can be had back, whatever the order of the lines.
    index = {place: u for u, place in enumerate(places)}
    found = [
      (
        *places[votes.utterance_V[v]],
        votes.annotators[votes.annotator_V[v]],
        votes.sample_V[v],
        CLASSES[votes.only_V[v]] if votes.only_V[v] >= 0 else "",
        [n for c, n in enumerate(CLASSES) if votes.names(c)[v]]
        if votes.valid_V[v]
        else None,
      )
      for v in range(len(votes))
    ]
    in_order = sorted(
      given,
      key=lambda v: (
        index[v[0], v[1]],
        v[2],
        CLASSES.index(v[4]) if v[4] else -1,
        v[3],
      ),
    )
    self.assertEqual(
      found,
      [
        (
          *rest,
          labels if labels is None else [n for n in CLASSES if n in labels],
        )
        for *rest, labels in in_order
      ],
    )
    for c in range(len(CLASSES)):
      np.testing.assert_array_equal(
        votes.could_name(c),
        [v[5] is not None and v[4] in ("", CLASSES[c]) for v in in_order],
      )
    shuffled = list(given)
    random.shuffle(shuffled)
    again = _build(shuffled)
    for name in (
      "utterance_V",
      "annotator_V",
      "sample_V",
      "only_V",
      "valid_V",
      "label_vote_N",
      "label_class_N",
    ):
      np.testing.assert_array_equal(getattr(votes, name), getattr(again, name))

  def test_what_was_voted_on(self):
    votes = _build([(2, 1, "a", 0, "", ["ask"]), (0, 0, "a", 0, "", [])])
    voted = votes.voted
    self.assertEqual(voted.dialogue_ids, ("d0", "d2"))
    self.assertEqual(
      voted.text_sha256, (SPLIT[0].text_sha256(), SPLIT[2].text_sha256())
    )
    np.testing.assert_array_equal(voted.first, [0, 2, 5])
    np.testing.assert_array_equal(voted.dialogue_U, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(
      voted.gold_UxC, np.concatenate([SPLIT[0].gold, SPLIT[2].gold])
    )
    np.testing.assert_array_equal(
      voted.labelled_U, np.concatenate([SPLIT[0].labelled, SPLIT[2].labelled])
    )
    np.testing.assert_array_equal(votes.utterance_V, [0, 3])
    self.assertEqual(votes.sources, ({"file": "votes.jsonl", "sha256": "abc"},))

  def test_one_answer(self):
    votes = _build([(0, 0, "a", 0, "", []), (0, 1, "a", 0, "", ["tell"])])
    np.testing.assert_array_equal(votes.answers(), [3, 1])
    self.assertTrue(votes.one_answer("single_label"))
    self.assertFalse(votes.one_answer("multi_label"))
    votes = _build([(0, 0, "a", 0, "", []), (0, 1, "a", 0, "tell", None)])
    self.assertFalse(votes.one_answer("single_label"))
    votes = _build([(0, 0, "a", 0, "", ["ask", "tell"])])
    with self.assertRaisesRegex(ValueError, "config.dataset.task"):
      votes.answers()

  @parameterized.parameters(
    ("ask", "ask", True), ("", "", True), ("ask", "", False)
  )
  def test_a_vote_comes_once_for_each_question(self, first, second, refused):
    both = [(2, 1, "a", 4, only, []) for only in (first, second)]
    votes = [(0, 0, "a", 0, "", []), *both]
    if not refused:
      self.assertLen(_build(votes), 3)
      return
    key = ("d2", 1, "a", 4, *((first,) if first else ()))
    with self.assertRaises(ValueError) as caught:
      _build(votes)
    self.assertIn(
      f"votes.jsonl, line 3: dialogue_id, utterance, annotator and sample must"
      f" be unique, got {key}, which line 2 has",
      str(caught.exception),
    )

  def test_the_first_vote_that_comes_again_is_named(self):
    votes = [(d, 0, "a", 0, "", []) for d in (2, 0, 1, 1, 0)]
    with self.assertRaisesRegex(ValueError, r"line 4: .*'d1'.* line 3 has"):
      _build(votes)

  def test_names_both_files(self):
    builder = vote_columns.Builder(SPLIT, CLASSES, "none")
    for path, unit in (("one.jsonl", "line"), ("two.sqlite", "row")):
      builder.source(path, "", unit)
      builder.add(
        7, dialogue_id="d1", utterance=0, annotator="a", sample=0, labels=[]
      )
    with self.assertRaisesRegex(
      ValueError, "^two.sqlite, row 7: .* which line 7 of one.jsonl has"
    ):
      builder.build()

  @parameterized.parameters(
    ({"labels": ["tell"], "only": "ask"}, r"one of \['ask', 'none'\]"),
    ({"labels": ["shout"]}, "got 'shout': correct the row"),
    ({"labels": [], "only": "shout"}, "one class only .* got 'shout'"),
    ({"dialogue_id": "d9"}, "got 'd9'"),
    ({"utterance": 1}, "from 0 to 0 in dialogue 'd1', got 1: correct the row"),
  )
  def test_refuses(self, change, message):
    builder = vote_columns.Builder(SPLIT, CLASSES, "none")
    builder.source("votes.sqlite", "", "row")
    vote = {
      "dialogue_id": "d1",
      "utterance": 0,
      "annotator": "a",
      "sample": 0,
      "labels": [],
    }
    with self.assertRaisesRegex(
      ValueError, f"^votes.sqlite, row 3: .*{message}"
    ):
      builder.add(3, **{**vote, **change})
    with self.assertRaisesRegex(ValueError, "need votes, got none"):
      builder.build()

  def test_few_bytes_a_vote(self):
    places = itertools.product(range(50), ("a", "b"), PLACES)
    votes = _build(
      [(d, i, name, sample, "", ["ask"]) for sample, name, (d, i) in places]
    )
    size = sum(
      value.nbytes
      for value in vars(votes).values()
      if isinstance(value, np.ndarray)
    )
    # Utterance, annotator and sample take 4 bytes each, the kind of question
    # 2, whether it is valid 1, and a class that is named 8 and 2.
    self.assertEqual(size, len(votes) * (3 * 4 + 2 + 1 + 8 + 2))

  def test_labels_of_other_classes_count_as_told(self):
    counts_as = {"wonder": "ask", "order": "ask", "greet": "none"}
    builder = vote_columns.Builder(SPLIT, CLASSES, "none", counts_as)
    builder.source("votes.jsonl")
    given = (
      ["wonder"],
      ["order"],
      ["greet"],
      ["tell"],
      ["wonder", "order"],
      [],
    )
    for sample, labels in enumerate(given):
      builder.add(
        sample,
        dialogue_id="d1",
        utterance=0,
        annotator="a",
        sample=sample,
        labels=labels,
      )
    votes = builder.build()
    # Shares of labels of one class add up; naming both is still one vote.
    np.testing.assert_array_equal(votes.answers(), [0, 0, 3, 1, 0, 3])
    votes_UxC, valid_UxC = votes.counts()
    np.testing.assert_array_equal(votes_UxC, [[3, 1, 0]])
    np.testing.assert_array_equal(valid_UxC, [[6, 6, 6]])

  def test_a_label_cannot_count_as_no_class(self):
    for name in ("question", ""):
      with self.assertRaisesRegex(ValueError, "config.votes.counts_as"):
        vote_columns.Builder(SPLIT, CLASSES, "none", {"wonder": name})
    with self.assertRaisesRegex(ValueError, "config.votes.counts_as"):
      vote_columns.Builder(SPLIT, CLASSES, "", {"wonder": "none"})


if __name__ == "__main__":
  absltest.main()
