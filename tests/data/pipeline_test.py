import dataclasses

import numpy as np
from absl.testing import absltest

from ppl_jax.data import pipeline, plan, segments

_CLS, _SEP, _PAD = 1, 2, 0


def _split(sizes=(3, 1, 4), seed=0):
  rng = np.random.default_rng(seed)
  counts = rng.integers(1, 6, sum(sizes))
  tokens = segments.UtteranceTokens(
    ids=rng.integers(10, 99, counts.sum()).astype(np.int32),
    offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    first=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
  )
  scores = rng.random((sum(sizes), 2)).astype(np.float32)
  scores[1] = np.nan
  return pipeline.SplitArrays(
    tokens=tokens,
    dialogue_U=np.repeat(np.arange(len(sizes)), sizes),
    lengths_U=segments.segment_lengths(tokens, 2, 16),
    context_lengths_U=segments.context_lengths(tokens, 2, 16),
    scores_UxC=scores,
    valid_U=rng.integers(1, 6, sum(sizes)).astype(np.float32),
    gold_UxC=rng.integers(0, 2, (sum(sizes), 2)).astype(np.uint8),
    labelled_U=rng.random(sum(sizes)) < 0.5,
  )


def _materializer(split):
  return pipeline.Materializer(
    split, window=2, max_length=16, cls_id=_CLS, sep_id=_SEP, pad_id=_PAD
  )


class MaterializerTest(absltest.TestCase):
  def test_rows_are_their_utterances(self):
    split = _split()
    rows = np.array([[4, -1, 1], [7, 0, -1]])
    index = np.full((2, 1, 2), -1, np.int32)
    batch = _materializer(split)(plan.BatchPlan(16, 40, rows, index))
    for shard, row in np.ndindex(2, 3):
      u = rows[shard, row]
      tokens = batch["tokens"][shard, row]
      self.assertEqual(batch["row"][shard, row], u >= 0)
      if u < 0:  # one token to attend to, and nothing to learn from
        np.testing.assert_array_equal(tokens, [_CLS] + [_PAD] * 15)
        self.assertEqual(batch["length"][shard, row], 1)
        self.assertFalse(batch["labelled"][shard, row])
        self.assertTrue(np.isnan(batch["scores"][shard, row]).all())
        continue
      expected = np.zeros(16, np.int32)
      segments.write_segments(
        split.tokens, [u], expected[None], 2, 16, _CLS, _SEP
      )
      np.testing.assert_array_equal(tokens, expected)
      length = batch["length"][shard, row]
      self.assertEqual(tokens[length - 1], _SEP)
      self.assertEqual((tokens != _PAD).sum(), length)
      self.assertEqual(tokens[batch["context_length"][shard, row] - 1], _SEP)
      np.testing.assert_array_equal(
        batch["scores"][shard, row], split.scores_UxC[u]
      )
      self.assertEqual(batch["labelled"][shard, row], split.labelled_U[u])
      np.testing.assert_array_equal(
        batch["gold"][shard, row], split.gold_UxC[u] * split.labelled_U[u]
      )
      self.assertEqual(batch["dialogue"][shard, row], split.dialogue_U[u])

  def test_what_may_not_be_used_is_not_there(self):
    split = dataclasses.replace(_split(), labelled_U=np.ones(8, bool))
    split.gold_UxC[:] = 1
    make = dataclasses.replace(_materializer(split), gold_U=np.arange(8) == 4)
    rows = np.array([[4, -1, 3], [7, 0, -1]])
    index = np.full((2, 1, 2), -1, np.int32)
    batch = make(plan.BatchPlan(16, 40, rows, index, gold_rows=1))
    np.testing.assert_array_equal(batch["labelled"], rows == 4)
    np.testing.assert_array_equal(batch["gold"].all(-1), rows == 4)
    np.testing.assert_array_equal(batch["gold"].any(-1), rows == 4)
    np.testing.assert_array_equal(
      np.isnan(batch["scores"]).all(-1), np.isin(rows, (-1, 4, 7))
    )

  def test_places_are_those_of_all_tokens(self):
    rows = np.array([[4, -1, 1], [7, 0, -1]])
    index = np.full((2, 1, 2), -1, np.int32)
    make = _materializer(_split())
    batch = make(plan.BatchPlan(16, 40, rows, index))
    self.assertEqual(batch["place"].shape, (2, 40))
    for shard in range(2):
      expected = [
        row * 16 + position
        for row, length in enumerate(batch["length"][shard])
        for position in range(length)
      ]
      place = batch["place"][shard]
      self.assertEqual(list(place[: len(expected)]), expected)
      self.assertTrue((place[len(expected) :] == -1).all())
    self.assertNotIn("place", make(plan.BatchPlan(16, 48, rows, index)))

  def test_a_process_makes_its_shards_only(self):
    rows = np.array([[4, 1], [7, 0], [2, 3], [5, 6]])
    index = np.arange(8, dtype=np.int32).reshape(4, 1, 2)
    batch_plan = plan.BatchPlan(16, 40, rows, index)
    make = _materializer(_split())
    whole = make(batch_plan)
    halves = [make(batch_plan, slice(0, 2)), make(batch_plan, slice(2, 4))]
    for name, array in whole.items():
      np.testing.assert_array_equal(
        array, np.concatenate([half[name] for half in halves])
      )

  def test_scored(self):
    split = _split()
    split.scores_UxC[2, 0] = np.nan  # the other class has its score
    self.assertEqual(split.scored_U.tolist(), [True, False] + 6 * [True])


class BatchesTest(absltest.TestCase):
  def test_going_on_from_a_step_is_starting_there(self):
    split = _split((3, 1, 4, 6, 2))
    drawn = plan.Plan(
      np.arange(16),
      split.dialogue_U,
      split.lengths_U,
      buckets=(8, 16),
      rows=4,
      shards=1,
      group_size=2,
      seed=(0, 3),
    )
    make = _materializer(split)

    def run(start):
      return list(
        pipeline.batches(drawn, make, start=start, stop=11, shards=slice(None))
      )

    whole, rest = run(0), run(7)
    self.assertLen(whole, 11)
    self.assertLen(rest, 4)
    for one, other in zip(whole[7:], rest, strict=True):
      for name in one:
        np.testing.assert_array_equal(one[name], other[name])


if __name__ == "__main__":
  absltest.main()
