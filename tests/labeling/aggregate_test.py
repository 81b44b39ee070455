import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from labeling import aggregate
from ppl_jax.data import dialogues, scores, vote_columns

CLASSES = ("ask", "tell")
D = 20
UNLABELLED = 3


def _split():
  rng = np.random.default_rng(0)
  return [
    dialogues.Dialogue(
      dialogue_id=f"d{d}",
      speakers=("A", "B"),
      texts=("one", "two"),
      gold=np.eye(2, dtype=np.uint8)[rng.integers(0, 2, 2)],
      labelled=np.full(2, d != UNLABELLED),
    )
    for d in range(D)
  ]


class AggregateTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.split = _split()
    builder = vote_columns.Builder(self.split, CLASSES, "none")
    builder.source("votes", "")
    rng = np.random.default_rng(1)
    # The last dialogue has no votes.
    for d, i in np.ndindex(D - 1, 2):
      for a in range(3):
        builder.add(
          0,
          dialogue_id=f"d{d}",
          utterance=i,
          annotator=f"a{a}",
          sample=0,
          labels=(CLASSES[rng.integers(0, 2)],),
        )
    self.votes = builder.build()

  def test_draws_dialogues_with_gold(self):
    drawn = [aggregate.draw_gold(self.votes, 10, seed) for seed in (0, 0, 1)]
    for gold_D in drawn:
      self.assertEqual(gold_D.shape, (D - 1,))
      self.assertEqual(gold_D.sum(), 10)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    self.assertFalse(np.array_equal(drawn[0], drawn[2]))
    all_D = aggregate.draw_gold(self.votes, D - 2, 0)
    np.testing.assert_array_equal(np.flatnonzero(~all_D), [UNLABELLED])
    fewer = aggregate.draw_gold(self.votes, 4, 0)
    self.assertTrue((drawn[0] | ~fewer).all())
    with self.assertRaisesRegex(ValueError, f"gold, {D - 2}, got {D - 1}"):
      aggregate.draw_gold(self.votes, D - 1, 0)

  def test_reads_ids(self):
    ids = self.folder / "ids.txt"
    ids.write_text("d5\n\n d2 \r\nd5\n")
    gold_D = aggregate.read_gold_ids(self.votes, ids)
    np.testing.assert_array_equal(np.flatnonzero(gold_D), [2, 5])
    ids.write_text(f"d5\n\nd{D - 1}\n")
    with self.assertRaisesRegex(ValueError, f"^{ids}, line 3: .*'d{D - 1}'"):
      aggregate.read_gold_ids(self.votes, ids)
    with self.assertRaisesRegex(ValueError, "--gold_ids must name a file"):
      aggregate.read_gold_ids(self.votes, self.folder)

  def test_writes_what_it_is_told_about(self):
    dataset = dialogues.Dataset(
      "jsonl", CLASSES, "single_label", "", self.folder, {"train": self.split}
    )
    path = self.folder / "scores.parquet"
    gold_D = aggregate.draw_gold(self.votes, 6, 0)
    for method in aggregate.METHODS:
      lines = aggregate.write(
        path,
        self.votes,
        dataset,
        "train",
        method=method,
        gold_D=gold_D,
        about={"models": ["m"], "requests": 7},
      )
      self.assertIn("scored: 38 of 38 utterances in 19 of 20 dialogues", lines)
      self.assertIn("gold of 6 dialogues is set aside; of the other 13:", lines)
      read = scores.read_scores(path)
      self.assertEqual(read.metadata["models"], ["m"])
      self.assertEqual(read.metadata["requests"], 7)
      self.assertEqual(read.metadata["aggregation"]["method"], method)
      matched = scores.match(read, self.split, CLASSES)
      self.assertIsNone(matched[-1])
      self.assertFalse(np.isnan(np.concatenate(matched[:-1])).any())
    with self.assertRaisesRegex(ValueError, "at least 5 dialogues"):
      aggregate.write(path, self.votes, dataset, "train", method="gold")


if __name__ == "__main__":
  absltest.main()
