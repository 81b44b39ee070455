import itertools
from unittest import mock

import numpy as np
from absl.testing import absltest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_jax import objective
from ppl_jax.data import plan

_BUCKETS = (8, 16, 32)
_HARD = objective.PairSettings(targets="hard")


def _corpus(sizes, seed=0):
  """Utterances of dialogues of some sizes, with random segment lengths."""
  rng = np.random.default_rng(seed)
  dialogue = np.repeat(np.arange(len(sizes)), sizes)
  utterances = 100 + np.arange(len(dialogue))
  return utterances, dialogue, rng.integers(4, 33, len(dialogue))


def _plan(corpus, **kwargs):
  defaults = {
    "buckets": _BUCKETS,
    "rows": 8,
    "shards": 1,
    "group_size": 3,
    "seed": (0, 3),
  }
  return plan.Plan(*corpus, **(defaults | kwargs))


def _groups(batch):
  """The groups of a batch, as lists of utterances."""
  for shard, rows in enumerate(batch.rows_SxN):
    for index in batch.index_SxDxK[shard]:
      members = rows[index[index >= 0]]
      if len(members):
        yield list(members)


class PlanTest(absltest.TestCase):
  @settings(max_examples=30, deadline=None)
  @given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    rows=st.integers(3, 9),
    shards=st.integers(1, 3),
    group_size=st.integers(1, 3),
    seed=st.integers(0, 100),
  )
  def test_an_epoch_sees_every_segment_once(
    self, sizes, rows, shards, group_size, seed
  ):
    corpus = _corpus(sizes, seed)
    utterances, dialogue, lengths = corpus
    drawn = _plan(
      corpus,
      rows=rows,
      shards=shards,
      group_size=group_size,
      seed=(seed, 3),
    )
    for epoch in range(2):
      seen = []
      for t in range(drawn.steps(epoch), drawn.steps(epoch + 1)):
        batch = drawn.batch(t)
        self.assertEqual(batch.rows_SxN.shape, (shards, rows))
        filled = batch.rows_SxN[batch.rows_SxN >= 0]
        seen.extend(filled)
        self.assertLessEqual(lengths[filled - 100].max(), batch.length)
        for rows_N in batch.rows_SxN:
          tokens = lengths[rows_N[rows_N >= 0] - 100].sum() + (rows_N < 0).sum()
          self.assertLessEqual(tokens, batch.room)
        self.assertLessEqual(batch.room, rows * batch.length)
        for group in _groups(batch):
          self.assertLen(set(dialogue[np.array(group) - 100]), 1)
          self.assertLen(set(group), len(group))
          self.assertBetween(len(group), 2, group_size)
      np.testing.assert_array_equal(np.sort(seen), utterances)

  def test_groups_of_a_dialogue_are_as_few_and_as_even_as_can_be(self):
    for size, expected in ((7, [2, 2, 3]), (6, [3, 3]), (4, [2, 2]), (2, [2])):
      drawn = _plan(_corpus([size]))
      sizes = [
        len(group)
        for t in range(drawn.steps(1))
        for group in _groups(drawn.batch(t))
      ]
      self.assertEqual(sorted(sizes), expected)

  def test_a_batch_depends_on_the_seed_and_its_number_alone(self):
    corpus = _corpus([5, 9, 2, 14, 1, 7] * 5)
    forward, backward = _plan(corpus), _plan(corpus)
    batches = [forward.batch(t) for t in range(40)]
    for t in reversed(range(40)):
      again = backward.batch(t)
      self.assertEqual(again.length, batches[t].length)
      np.testing.assert_array_equal(again.rows_SxN, batches[t].rows_SxN)
      np.testing.assert_array_equal(again.index_SxDxK, batches[t].index_SxDxK)
    other = _plan(corpus, seed=(1, 3))
    self.assertFalse((other.batch(0).rows_SxN == batches[0].rows_SxN).all())

  def test_looking_at_some_groups_at_a_time_changes_nothing(self):
    corpus = _corpus([5, 9, 2, 14, 1, 7] * 20)
    scores = np.random.default_rng(0).random((len(corpus[0]), 2))

    def keep(members, starts):
      return objective.has_pair(scores[members], starts, _HARD)

    whole = _plan(corpus, keep_groups=keep)
    with mock.patch.object(plan, "_GROUPS_AT_ONCE", 3):
      some = _plan(corpus, keep_groups=keep)
      self.assertEqual(some.steps(2), whole.steps(2))
      for t in range(whole.steps(2)):
        ours, theirs = some.batch(t), whole.batch(t)
        np.testing.assert_array_equal(ours.rows_SxN, theirs.rows_SxN)
        np.testing.assert_array_equal(ours.index_SxDxK, theirs.index_SxDxK)

  def test_an_epoch_in_parts_sees_every_segment_once(self):
    corpus = utterances, dialogue, _ = _corpus([5, 9, 2, 14, 1, 7] * 20)
    for cross in (False, True):
      with mock.patch.object(plan, "_PART", 100):
        drawn = _plan(corpus, cross=cross)
        backward = _plan(corpus, cross=cross)
      epochs = []
      for e in range(2):
        batches = range(drawn.steps(e), drawn.steps(e + 1))
        rows = [drawn.batch(t).rows_SxN.ravel() for t in batches]
        seen = np.concatenate(rows)
        np.testing.assert_array_equal(np.sort(seen[seen >= 0]), utterances)
        epochs.append(seen[seen >= 0])
        for t, expected in reversed(list(zip(batches, rows, strict=True))):
          np.testing.assert_array_equal(
            backward.batch(t).rows_SxN.ravel(), expected
          )
      first, second = (set(dialogue[e[:100] - 100]) for e in epochs)
      self.assertNotEqual(first, second)  # other dialogues are in the part

  def test_a_part_without_a_pair_is_passed_over(self):
    corpus = _corpus([6] * 40)
    scores = np.zeros((240, 1))
    scores[7] = 1  # one dialogue has pairs

    def keep(members, starts):
      return objective.has_pair(scores[members], starts, _HARD)

    with mock.patch.object(plan, "_PART", 60):
      drawn = _plan(corpus, keep_groups=keep)
      self.assertEqual(drawn.steps(3), 3)
      for t in range(3):
        self.assertIn(107, drawn.batch(t).rows_SxN)
      scores[7] = 0
      with self.assertRaisesRegex(ValueError, "at least one usable batch"):
        _plan(corpus, keep_groups=keep)

  def test_epochs_draw_other_groups(self):
    drawn = _plan(_corpus([12] * 10))
    epochs = [
      {
        frozenset(group)
        for t in range(drawn.steps(e), drawn.steps(e + 1))
        for group in _groups(drawn.batch(t))
      }
      for e in range(2)
    ]
    self.assertLess(len(epochs[0] & epochs[1]), len(epochs[0]) // 2)

  def test_few_rows_stay_empty(self):
    corpus = _corpus([8] * 300)
    drawn = _plan(corpus, rows=32, group_size=7)  # groups of 4
    filled = [(drawn.batch(t).rows_SxN >= 0).mean() for t in range(70)]
    self.assertGreater(np.mean(filled), 0.95)  # tokens fill up too

  def test_room_for_tokens_is_one_a_length_and_used(self):
    corpus = _corpus([8] * 400)
    drawn = _plan(corpus, rows=32, group_size=4)
    lengths = corpus[2]
    rooms, used, full = {}, [], []
    for t in range(drawn.steps(3)):
      batch = drawn.batch(t)
      rooms.setdefault(batch.length, set()).add(batch.room)
      rows = batch.rows_SxN[batch.rows_SxN >= 0]
      used.append(lengths[rows - 100].sum() / batch.room)
      full.append(len(rows) / 32)
    self.assertEqual({len(r) for r in rooms.values()}, {1})
    self.assertLess(drawn.room(32), 0.8 * 32 * 32)
    self.assertGreater(np.mean(used), 0.9)
    self.assertGreater(np.mean(full), 0.9)

  def test_longer_batches_have_no_less_room(self):
    """Even where their groups hold few tokens: others ride along."""
    buckets = (32, 48, 64, 96, 128)
    rng = np.random.default_rng(0)
    kinds = ([56] * 4, [64] * 4, [70, 20, 20, 20])
    lengths = np.concatenate([kinds[k] for k in rng.integers(3, size=600)])
    utterances = np.arange(len(lengths))
    drawn = plan.Plan(
      utterances,
      np.repeat(np.arange(600), 4),
      lengths,
      buckets=buckets,
      rows=32,
      shards=4,
      group_size=8,
      seed=(0, 3),
    )
    drawn.steps(1)
    rooms = [drawn.room(length) for length in buckets]
    self.assertEqual(rooms, sorted(rooms))
    self.assertEqual(rooms[2], 32 * 64)

  def test_a_group_that_is_too_large_for_the_room_has_all_of_it(self):
    utterances, dialogue, lengths = _corpus([8] * 50)
    lengths[:] = 6
    lengths[-1] = 32  # of a bucket, with 7 short ones
    lengths[:8] = 32
    drawn = _plan((utterances, dialogue, lengths), group_size=8)
    rooms = {
      t: drawn.batch(t).room
      for t in range(drawn.steps(1))
      if drawn.batch(t).length == 32
    }
    self.assertEqual(
      sorted(rooms.values()), [drawn.room(32), 8 * 32], "one of each"
    )
    self.assertLess(drawn.room(32), 8 * 32)

  def test_groups_that_do_not_count_cost_no_row(self):
    corpus = _corpus([4] * 20)
    even = corpus[1] % 2 == 0
    scores = np.where(even, np.arange(80) % 4 > 1, 1.0).astype(np.float32)

    def keep(members, starts):
      return objective.has_pair(scores[members, None], starts, _HARD)

    drawn = _plan(corpus, group_size=4, keep_groups=keep)
    seen = np.concatenate(
      [drawn.batch(t).rows_SxN.ravel() for t in range(drawn.steps(1))]
    )
    np.testing.assert_array_equal(np.sort(seen[seen >= 0]), corpus[0][even])

  def test_no_pair_at_all_is_an_error(self):
    with self.assertRaisesRegex(ValueError, "got none"):
      _plan(_corpus([1, 1]), keep_groups=lambda m, s: np.zeros(len(s), bool))
    with self.assertRaisesRegex(ValueError, "got none"):
      _plan(_corpus([]))

  def test_a_group_must_fit_into_a_shard(self):
    with self.assertRaisesRegex(ValueError, "from 1 to the rows of a shard, 8"):
      _plan(_corpus([3]), group_size=9)

  def test_cross_groups_mix_dialogues(self):
    corpus = _corpus([4] * 50)
    drawn = _plan(corpus, cross=True)
    mixed = [
      len(set(corpus[1][np.array(group) - 100])) > 1
      for t in range(drawn.steps(1))
      for group in _groups(drawn.batch(t))
    ]
    self.assertGreater(np.mean(mixed), 0.9)

  def test_mixed_plan_puts_gold_rows_first(self):
    corpus = _corpus([4] * 10)
    gold = _plan(_corpus([5] * 2), rows=5, group_size=1, shards=2)
    votes = _plan(corpus, shards=2)
    both = plan.MixedPlan(gold, votes).batch(3)
    np.testing.assert_array_equal(both.rows_SxN[:, :5], gold.batch(3).rows_SxN)
    np.testing.assert_array_equal(both.rows_SxN[:, 5:], votes.batch(3).rows_SxN)
    self.assertEqual(list(_groups(both)), list(_groups(votes.batch(3))))
    self.assertEqual(
      both.length, max(gold.batch(3).length, votes.batch(3).length)
    )


class HasPairTest(absltest.TestCase):
  @settings(max_examples=60, deadline=None)
  @given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    targets=st.sampled_from(["hard", "soft"]),
    equal_labels=st.booleans(),
    seed=st.integers(0, 1000),
  )
  def test_against_every_pair_looked_at(
    self, sizes, targets, equal_labels, seed
  ):
    rng = np.random.default_rng(seed)
    choices = [0, 0.2, 0.5, 0.8, 1, np.nan]
    scores = rng.choice(choices, (sum(sizes), 2)).astype(np.float32)
    starts = np.cumsum([0, *sizes[:-1]])
    expected = []
    for start, size in zip(starts, sizes, strict=True):
      found = False
      pairs = itertools.permutations(range(start, start + size), 2)
      for (i, j), c in itertools.product(pairs, range(2)):
        s_i, s_j = scores[i, c], scores[j, c]
        if np.isnan(s_i) or np.isnan(s_j):
          continue
        if targets == "hard":
          s_i, s_j = s_i > 0.5, s_j > 0.5
        found |= bool(equal_labels or s_i * (1 - s_j) > 0)
      expected.append(found)
    got = objective.has_pair(
      scores,
      starts,
      objective.PairSettings(targets=targets, equal_labels=equal_labels),
    )
    self.assertEqual(list(got), expected)


class InOrderTest(absltest.TestCase):
  def test_every_utterance_once_and_shortest_first(self):
    utterances, _, lengths = _corpus([3, 9, 5])
    plans = plan.in_order(
      utterances, lengths, buckets=_BUCKETS, rows=2, shards=2
    )
    rows = np.concatenate([p.rows_SxN.ravel() for p in plans])
    rows = rows[rows >= 0]
    np.testing.assert_array_equal(np.sort(rows), utterances)
    self.assertTrue((np.diff(lengths[rows - 100]) >= 0).all())
    for p in plans:
      longest = lengths[p.rows_SxN[p.rows_SxN >= 0] - 100].max()
      self.assertEqual(p.length, min(b for b in _BUCKETS if b >= longest))


if __name__ == "__main__":
  absltest.main()
