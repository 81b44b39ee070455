import numpy as np
from absl.testing import absltest

from labeling import ensembles
from ppl_jax import calibration
from ppl_jax.data import dialogues, vote_columns

CLASSES = ("ask", "tell")


def _votes(counts, gold, labelled=None):
  """Votes on a dialogue: for each utterance (votes for ask, tell, none)."""
  U = len(counts)
  dialogue = dialogues.Dialogue(
    dialogue_id="d",
    speakers=("A",) * U,
    texts=tuple(f"text {i}" for i in range(U)),
    gold=np.eye(2, dtype=np.uint8)[list(gold)],
    labelled=np.ones(U, np.bool_) if labelled is None else labelled,
  )
  builder = vote_columns.Builder([dialogue], CLASSES, "none")
  builder.source("votes", "")
  for u, row in enumerate(counts):
    labels = [("ask",)] * row[0] + [("tell",)] * row[1] + [()] * row[2]
    for sample, told in enumerate(labels):
      builder.add(
        0,
        dialogue_id="d",
        utterance=u,
        annotator="a",
        sample=sample,
        labels=told,
      )
  return builder.build()


class EnsemblesTest(absltest.TestCase):
  def test_all_votes_are_the_scores(self):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (40, 3))
    counts[7] = 0
    labelled = rng.random(40) < 0.8
    votes = _votes(counts, rng.integers(0, 2, 40), labelled)
    sizes, errors = ensembles.ensemble_ece(votes, 0)
    most = counts[labelled].sum(axis=1).max()
    np.testing.assert_array_equal(sizes, np.arange(1, most + 1))
    votes_UxC, valid_UxC = votes.counts()
    share_UxC = np.where(
      valid_UxC > 0, votes_UxC / np.maximum(valid_UxC, 1), np.nan
    )
    for j, zeros in enumerate(ensembles.TREATMENTS):
      expected = calibration.vote_ece(
        share_UxC[labelled], votes.voted.gold_UxC[labelled], zeros=zeros
      )
      np.testing.assert_allclose(errors[:, -1, j], expected, rtol=1e-6)

  def test_one_vote_is_drawn_from_those_that_there_are(self):
    # Of one vote, S is 1 for its class: with k of the two utterances right,
    # S = 1 is right k times in 2 and S = 0 wrong in 2 - k of 2.
    votes = _votes([(1, 3, 0), (1, 3, 0)], (0, 0))
    _, errors = ensembles.ensemble_ece(votes, 0)
    wrong = 2 * errors[:, 0, 0]
    np.testing.assert_allclose(wrong, wrong.round(), atol=1e-6)
    np.testing.assert_allclose(errors[:, 0, 1], errors[:, 0, 0], atol=1e-6)
    # A quarter of the draws is right.
    many = _votes([(1, 3, 0)] * 2_000, [0] * 2_000)
    _, errors = ensembles.ensemble_ece(many, 0)
    self.assertAlmostEqual(errors[:, 0, 0].mean(), 0.75, delta=0.01)
    # Of two votes, (1/2, 1/2) is drawn every second time, else (0, 1): over
    # three scores in four above 0, 1/2 of gold 1, 1/2 of gold 0 and 1 of gold
    # 0 lie in two buckets: (1/2 - 1/2) and 1, of which a third.
    self.assertAlmostEqual(errors[:, 1, 0].mean(), 1 / 3, delta=0.01)

  def test_votes_asked_for_one_class(self):
    dialogue = dialogues.Dialogue(
      dialogue_id="d",
      speakers=("A",),
      texts=("text",),
      gold=np.array([[1, 0]], np.uint8),
      labelled=np.ones(1, np.bool_),
    )
    builder = vote_columns.Builder([dialogue], CLASSES, "none")
    builder.source("votes", "")
    for sample in range(2):
      builder.add(
        0,
        dialogue_id="d",
        utterance=0,
        annotator="a",
        sample=sample,
        labels=("ask",) if sample else (),
        only="ask",
      )
    sizes, errors = ensembles.ensemble_ece(builder.build(), 0)
    np.testing.assert_array_equal(sizes, [1, 2])
    # S of tell is not known; that of ask is 0 or 1, and then 1/2.
    np.testing.assert_array_equal(np.unique(errors[:, 0, 1]), [0, 1])
    np.testing.assert_allclose(errors[:, 1, :], 0.5)

  def test_is_drawn_by_the_seed(self):
    votes = _votes([(2, 3, 1)] * 30, [0] * 30)
    first, again, other = (
      ensembles.ensemble_ece(votes, seed)[1] for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))

  def test_many_votes_are_sampled(self):
    sizes, errors = ensembles.ensemble_ece(_votes([(300, 200, 0)], (0,)), 0)
    self.assertLessEqual(len(sizes), 30)
    self.assertEqual((sizes[0], sizes[-1]), (1, 500))
    self.assertEqual(errors.shape[1], len(sizes))

  def test_needs_gold(self):
    votes = _votes([(1, 1, 0)], (0,), np.zeros(1, np.bool_))
    with self.assertRaisesRegex(ValueError, "need valid votes on utterances"):
      ensembles.ensemble_ece(votes, 0)


if __name__ == "__main__":
  absltest.main()
