import dataclasses

import jax
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from ppl_jax import words
from ppl_jax.data import pipeline, plan, segments
from ppl_jax.models import bert, heads

VOCAB = 5_000


def materializer(utterances):
  """Of utterances given as (dialogue, ids)."""
  ids = [ids for _, ids in utterances]
  dialogue_U = np.array([d for d, _ in utterances], np.int32)
  counts = np.bincount(dialogue_U)
  U = len(ids)
  split = pipeline.SplitArrays(
    tokens=segments.UtteranceTokens(
      np.concatenate(ids),
      np.cumsum([0, *map(len, ids)]),
      np.cumsum([0, *counts]),
    ),
    dialogue_U=dialogue_U,
    lengths_U=np.full(U, 4, np.int32),
    context_lengths_U=np.full(U, 1, np.int32),
    scores_UxC=np.full((U, 2), np.nan, np.float32),
    valid_U=np.zeros(U, np.float32),
    gold_UxC=np.zeros((U, 2), np.uint8),
    labelled_U=np.ones(U, bool),
  )
  return pipeline.Materializer(
    split, window=1, max_length=8, cls_id=101, sep_id=102, pad_id=0
  )


class FindTest(parameterized.TestCase):
  def test_words_of_used_dialogues_and_their_context(self):
    materialize = materializer(
      [(0, [7, 8]), (0, [9]), (1, [4_000]), (2, [4_999, 7])]
    )
    found = words.find(materialize, np.array([0, 1, 0, 1], bool), VOCAB)
    self.assertLen(found, 1_024)
    self.assertContainsSubset([0, 101, 102, 7, 8, 9, 4_999], found.tolist())
    self.assertNotIn(4_000, found)
    np.testing.assert_array_equal(found, np.unique(found))

  @parameterized.parameters(1, 2, 3, 1_000)
  def test_stretches_change_nothing(self, stretch):
    rng = np.random.default_rng(0)
    dialogue_U = np.sort(rng.integers(0, 7, 40))
    dialogue_U -= dialogue_U[0]
    _, dialogue_U = np.unique(dialogue_U, return_inverse=True)
    ids = [rng.integers(2_000, VOCAB, rng.integers(1, 6)) for _ in dialogue_U]
    materialize = materializer(list(zip(dialogue_U, ids, strict=True)))
    used_U = rng.random(40) < 0.1
    self.assertTrue(0 < used_U.sum() < 40)
    self.enter_context(absltest.mock.patch.object(words, "_STRETCH", stretch))
    self.enter_context(absltest.mock.patch.object(words, "_MULTIPLE", 1))
    used = set(dialogue_U[used_U])
    wanted = {0, 101, 102}.union(
      *(i.tolist() for d, i in zip(dialogue_U, ids, strict=True) if d in used)
    )
    found = words.find(materialize, used_U, VOCAB)
    self.assertEqual(found.tolist(), sorted(wanted))

  def test_at_most_the_vocabulary(self):
    found = words.find(materializer([(0, [7])]), np.ones(1, bool), 150)
    np.testing.assert_array_equal(found, np.arange(150))


class RowsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    config = bert.BertConfig(VOCAB, 16, 1, 2, 32, 20)
    model = heads.Classifier(config, 2, rngs=nnx.Rngs(0))
    self.graphdef, self.params = nnx.split(model, nnx.Param)
    self.materialize = materializer([(0, [4_000, 7]), (1, [4_999])])
    self.ids_W = words.find(self.materialize, np.array([1, 0], bool), VOCAB)

  def table(self, params):
    return np.asarray(params["bert"]["embeddings"]["word"]["embedding"][...])

  def test_a_small_table_reads_the_same(self):
    small = words.take(self.params, self.ids_W)
    self.assertEqual(self.table(small).shape, (1_024, 16))
    row_V = words.rows(self.ids_W, VOCAB)
    tokens = np.array([[101, 4_000, 7, 102]], np.int32)

    def logits(params, tokens):
      model = nnx.merge(self.graphdef, params)
      return model(tokens, np.array([4]), np.array([1]))

    np.testing.assert_array_equal(
      logits(small, row_V[tokens]), logits(self.params, tokens)
    )
    self.assertTrue(np.isnan(logits(small, row_V[tokens * 0 + 4_999])).all())

  def test_a_batch_holds_rows(self):
    batch_plan = plan.BatchPlan(
      length=5,
      room=5,
      rows_SxN=np.array([[0]]),
      index_SxDxK=np.full((1, 1, 1), -1, np.int32),
    )
    row_V = words.rows(self.ids_W, VOCAB)
    split = dataclasses.replace(
      self.materialize.split, lengths_U=np.array([5, 4], np.int32)
    )
    materialize = dataclasses.replace(self.materialize, split=split)
    ids = materialize(batch_plan)["tokens"]
    self.assertEqual(ids.tolist(), [[[101, 102, 4_000, 7, 102]]])
    rows = dataclasses.replace(materialize, row_V=row_V)(batch_plan)["tokens"]
    np.testing.assert_array_equal(rows, row_V[ids])

  def test_what_training_lacks_stays(self):
    small = jax.tree.map(lambda x: x + 1.0, words.take(self.params, self.ids_W))
    whole = words.put(self.params, small, self.ids_W)
    wanted = self.table(self.params).copy()
    wanted[self.ids_W] += 1.0
    np.testing.assert_array_equal(self.table(whole), wanted)
    np.testing.assert_array_equal(
      whole["scorer"]["kernel"][...], self.params["scorer"]["kernel"][...] + 1.0
    )


if __name__ == "__main__":
  absltest.main()
