"""What is minimised: names for sets of terms, and what terms promise."""

import dataclasses
import itertools
import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import common
from ppl_jax import objective, sharding, train_step

S, N, D, K, C = 2, 9, 2, 4, 3
# Task and number of classes; the last of them has a softmax.
_BINARY = (("single_label", 1), ("multi_label", 3))
_SOFTMAX = ("single_label", 3)
# Weights where classes are decided one by one and where one of several is;
# None: refused.
_SETS = {
  "auto": (
    {"pairs": 1, "one_versus_rest": 1},
    {"swapped_pairs": 1, "softmax": 1},
  ),
  "pairwise": ({"pairs": 1}, {"pairs": 1}),
  "pointwise": ({"one_versus_rest": 1}, {"one_versus_rest": 1}),
  "joint": (
    {"pairs": 1, "one_versus_rest": 1},
    {"pairs": 1, "one_versus_rest": 1},
  ),
  "softmax": (None, {"softmax": 1}),
  "plurality": (None, {"plurality": 1}),
  "swapped": (None, {"swapped_pairs": 1}),
  "paper": ({"pairs": 1}, {"pairs": 1}),
  "none": ({}, {}),
}
_CASES = [
  (name, task, classes, binary)
  for name, (binary, _) in _SETS.items()
  for task, classes in _BINARY
] + [(name, *_SOFTMAX, softmax) for name, (_, softmax) in _SETS.items()]


def _config(name, **terms):
  config = common.get_config()
  config.pretrain.objective = name
  config.pretrain.terms.update(terms)
  return config


def _on_votes(config, task="single_label", classes=C):
  return objective.on_votes(config, tuple(range(classes)), task)


def _batch(seed=0):
  """Shards with segments without a score, empty rows and short dialogues."""
  rng = np.random.default_rng(seed)
  row = np.ones((S, N), bool)
  row[:, -1] = False
  index = np.stack([rng.permutation(N - 1) for _ in range(S)])
  index = index[:, : D * K].reshape(S, D, K).astype(np.int32)
  index[1, 1, 2:] = -1
  scores = rng.integers(0, 5, (S, N, C)).astype(np.float32) / 4
  scores[:, 3] = scores[~row] = np.nan
  labelled = row & (rng.random((S, N)) < 0.7)
  gold = np.eye(C, dtype=np.float32)[rng.integers(0, C, (S, N))]
  return {
    "tokens": rng.integers(1, 5, (S, N, 2)).astype(np.int32),
    "length": np.full((S, N), 2, np.int32),
    "context_length": np.full((S, N), 1, np.int32),
    "row": row,
    "scores": scores,
    "smoothed": (scores + 0.2) / 2,
    "gold": gold * labelled[..., None],
    "labelled": labelled,
    "dialogue": rng.integers(0, 3, (S, N)).astype(np.int32),
    "index": index,
  }


class _Student(nnx.Module):
  """Its logits are the first token times a parameter a class."""

  def __init__(self):
    self.weight = nnx.Param(jnp.linspace(-1, 1, C))

  def __call__(
    self, tokens, length, context_length, *, place_M=None, dropout_key=None
  ):
    return tokens[:, :1].astype(jnp.float32) * self.weight[...][None]


def _loss_and_gradients(weights):
  graphdef, params = nnx.split(_Student(), nnx.Param)
  run = train_step.make_loss_and_gradients(
    graphdef,
    params,
    objective.Objective(weights=weights, task="single_label"),
    sharding.make_mesh(S, data=1),
  )
  means, gradients = jax.jit(run)(params, _batch(), jax.random.key(0))
  return means, np.concatenate(jax.tree.leaves(gradients), axis=None)


class TermsTest(parameterized.TestCase):
  @parameterized.product(
    name=(*objective.TERMS, "gold"),
    pairs=(
      objective.PairSettings(),
      objective.PairSettings(targets="hard", alpha=0.5),
      objective.PairSettings(equal_labels=True, cross=True),
    ),
  )
  def test_a_count_does_not_depend_on_logits(self, name, pairs):
    batch = _batch()
    one = objective.Objective(((name, 1.0),), "single_label", pairs)
    logits = np.random.default_rng(1).normal(size=(S, N, C))
    total, count = one.terms(jnp.float32(logits), batch)[name]
    _, blind = one.terms(jnp.full((S, N, C), jnp.nan), batch)[name]
    self.assertTrue(math.isfinite(total))
    self.assertGreater(count, 0)
    self.assertEqual(count, blind)

  def test_terms_add_up_over_shards(self):
    batch = _batch()
    weights = tuple((name, 1.0) for name in (*objective.TERMS, "gold"))
    whole = objective.Objective(weights, "single_label")
    logits = jnp.float32(np.random.default_rng(1).normal(size=(S, N, C)))
    parts = [
      whole.terms(
        logits[s : s + 1], {k: v[s : s + 1] for k, v in batch.items()}
      )
      for s in range(S)
    ]
    for name, values in whole.terms(logits, batch).items():
      expected = np.sum([part[name] for part in parts], axis=0)
      np.testing.assert_allclose(values, expected, rtol=1e-5)

  def test_pairs_of_different_dialogues_are_others(self):
    logits = jnp.float32(np.random.default_rng(1).normal(size=(S, N, C)))
    for name in ("pairs", "swapped_pairs"):
      within, cross = (
        objective.Objective(
          ((name, 1.0),), "single_label", objective.PairSettings(cross=cross)
        ).terms(logits, _batch())[name]
        for cross in (False, True)
      )
      self.assertLess(cross[1], within[1])

  def test_labels_are_of_scores_and_shares_are_smoothed(self):
    logits = jnp.float32(np.random.default_rng(1).normal(size=(S, N, C)))
    batch = _batch()
    for name, pairs, reads in (
      ("plurality", objective.PairSettings(), "scores"),
      ("pairs", objective.PairSettings(targets="hard"), "scores"),
      ("pairs", objective.PairSettings(), "smoothed"),
      ("swapped_pairs", objective.PairSettings(), "smoothed"),
      ("one_versus_rest", objective.PairSettings(), "smoothed"),
      ("softmax", objective.PairSettings(), "smoothed"),
    ):
      one = objective.Objective(((name, 1.0),), "single_label", pairs)
      expected = one.terms(logits, batch)[name]
      for other in {"scores", "smoothed"} - {reads}:
        changed = batch | {other: np.full_like(batch[other], np.nan)}
        actual = one.terms(logits, changed)[name]
        np.testing.assert_array_equal(actual, expected, f"{name} {other}")


class CustomTermTest(parameterized.TestCase):
  """A term that somebody adds, in the training step's own loss."""

  def _loss(self, count):
    def function(logits_NxC, shard, objective):
      del objective
      total = jnp.where(shard["row"][:, None], logits_NxC**2, 0.0).sum()
      return total, count(logits_NxC, shard)

    term = objective.Term(function, "stays near zero")
    with mock.patch.dict(objective.TERMS, {"custom": term}):
      return _loss_and_gradients((("custom", 2.0), ("pairs", 1.0)))

  def test_takes_part(self):
    means, gradients = self._loss(lambda _, shard: shard["row"].sum() * 1.0)
    batch = _batch()
    logits = batch["tokens"][..., :1] * np.linspace(-1, 1, C)
    expected = (logits[batch["row"]] ** 2).sum() / batch["row"].sum()
    np.testing.assert_allclose(means["loss_custom"], expected, rtol=1e-5)
    np.testing.assert_allclose(
      means["loss"], 2 * expected + means["loss_pairs"], rtol=1e-5
    )
    self.assertTrue(np.isfinite(gradients).all())

  @parameterized.parameters(
    lambda f, _: jax.nn.sigmoid(f).sum(),
    lambda f, shard: jnp.where(shard["row"][:, None], f, 0.0).sum(),
    lambda f, _: jax.nn.softmax(f).max(axis=1).sum(),
  )
  def test_a_count_that_reads_logits_makes_the_loss_nan(self, count):
    means, _ = self._loss(count)
    self.assertTrue(np.isnan(means["loss_custom"]), means)
    self.assertTrue(np.isnan(means["loss"]), means)


class OnVotesTest(parameterized.TestCase):
  def test_every_name_is_here(self):
    self.assertEqual(_SETS.keys(), objective.OBJECTIVES.keys())

  @parameterized.parameters(*(case for case in _CASES if case[3] is not None))
  def test_a_name_is_a_set_of_terms(self, name, task, classes, weights):
    config = _config(name)
    ours = _on_votes(config, task, classes)
    self.assertEqual(dict(ours.weights), weights)
    self.assertEqual(ours.task, task)
    grouped = bool({"pairs", "swapped_pairs"} & weights.keys())
    size = 2 if name == "paper" else config.pairs.group_size
    self.assertEqual(ours.group_size, size if grouped else 1)
    expected = objective.PairSettings(targets="soft", alpha=0.0)
    if name == "paper":
      expected = objective.PairSettings(targets="hard", alpha=0.5)
    self.assertEqual(ours.pairs, expected)

  @parameterized.parameters(*(case[:3] for case in _CASES if case[3] is None))
  def test_a_softmax_is_refused_where_there_is_none(self, name, task, classes):
    message = (
      f"got config.pretrain.objective='{name}' for"
      f" {'one class' if classes == 1 else 'several labels at once'}. Set"
      " config.pretrain.objective to auto, pairwise, pointwise or joint"
    )
    with self.assertRaisesRegex(ValueError, message):
      _on_votes(_config(name), task, classes)
    # What the message says to set does.
    for other in ("auto", "pairwise", "pointwise", "joint"):
      self.assertNotEmpty(_on_votes(_config(other), task, classes).weights)

  @parameterized.product(
    name=("softmax", "plurality", "swapped_pairs"), kind=_BINARY
  )
  def test_a_softmax_term_is_refused_where_there_is_none(self, name, kind):
    message = (
      f"{name} must be left out.*got config.pretrain.terms.{name}=0.5 for .*"
      f" Set config.pretrain.terms.{name} to 0"
    )
    with self.assertRaisesRegex(ValueError, message):
      _on_votes(_config("auto", **{name: 0.5}), *kind)
    # A weight of 0 is no term.
    self.assertEqual(
      _on_votes(_config("auto", **{name: 0.0}), *kind),
      _on_votes(_config("auto"), *kind),
    )

  @parameterized.parameters(
    ("auto", {"softmax": 0.25}, {"swapped_pairs": 1, "softmax": 0.25}),
    ("auto", {"softmax": 0.0}, {"swapped_pairs": 1}),
    ("auto", {"pairs": 2}, {"swapped_pairs": 1, "softmax": 1, "pairs": 2}),
    ("none", {"plurality": 1.0}, {"plurality": 1}),
    ("pairwise", {"pairs": 0.0}, {}),
  )
  def test_a_weight_that_is_set_holds(self, name, terms, expected):
    ours = _on_votes(_config(name, **terms))
    self.assertEqual(dict(ours.weights), expected)
    grouped = bool({"pairs", "swapped_pairs"} & expected.keys())
    self.assertEqual(ours.group_size, 8 if grouped else 1)

  @parameterized.parameters(
    ("auto", {}, ("soft", 0.0, 5)),
    ("auto", {"targets": "hard"}, ("hard", 0.5, 5)),
    ("auto", {"targets": "hard", "alpha": 0.0}, ("hard", 0.0, 5)),
    ("auto", {"alpha": 0.25}, ("soft", 0.25, 5)),
    ("paper", {}, ("hard", 0.5, 2)),
    ("paper", {"targets": "soft"}, ("hard", 0.5, 2)),
    ("paper", {"alpha": 1.0}, ("hard", 1.0, 2)),  # for experiments
  )
  def test_how_pairs_are_compared(self, name, given, expected):
    config = _config(name)
    config.pairs.update({"group_size": 5, "scope": "cross"} | given)
    ours = _on_votes(config)
    self.assertEqual(
      (ours.pairs.targets, ours.pairs.alpha, ours.group_size), expected
    )
    self.assertTrue(ours.pairs.cross)

  @parameterized.parameters(
    ("pairwize", {}, "must be one of auto, pairwise, .* got 'pairwize'"),
    ("auto", {"softmax": -0.5}, r"terms.softmax must be .* 0, got -0.5"),
  )
  def test_refuses(self, name, terms, message):
    with self.assertRaisesRegex(ValueError, message):
      _on_votes(_config(name, **terms))

  def test_every_term_has_a_weight_in_the_config(self):
    terms = common.get_config().pretrain.terms
    self.assertEqual(set(terms), objective.TERMS.keys())
    self.assertEqual(set(terms.values()), {None})


class GoldTest(absltest.TestCase):
  def test_votes_are_kept_by_a_weight(self):
    ours = _on_votes(_config("auto", softmax=0.5))
    expected = {"swapped_pairs": 0.5, "softmax": 0.25, "gold": 1}
    self.assertEqual(dict(ours.of_gold(0.5).weights), expected)
    self.assertEqual(ours.of_gold(0.5).pairs, ours.pairs)
    self.assertEqual(ours.of_gold(0.0).weights, (("gold", 1.0),))


class HoldsTest(absltest.TestCase):
  @settings(max_examples=100, deadline=None, derandomize=True)
  @given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    classes=st.integers(1, 3),
    seed=st.integers(0, 1_000),
  )
  def test_swaps_against_every_one_looked_at(self, sizes, classes, seed):
    rng = np.random.default_rng(seed)
    shape = (sum(sizes), classes)
    scores = rng.choice([0, 0, 0, 0.3, 1, np.nan], shape).astype(np.float32)
    starts = np.cumsum([0, *sizes[:-1]])
    expected = []
    for start, size in zip(starts, sizes, strict=True):
      found = False
      pairs = itertools.permutations(range(start, start + size), 2)
      for (i, j), c, d in itertools.product(
        pairs, range(classes), range(classes)
      ):
        whole = not np.isnan(scores[[i, j]]).any()
        found |= bool(whole and c != d and scores[i, c] * scores[j, d] > 0)
      expected.append(found)
    got = objective.has_swap(scores, starts, objective.PairSettings())
    self.assertEqual(list(got), expected)

  def test_a_group_is_worth_encoding_if_any_term_finds_something(self):
    scores = np.array([[0, 0], [0, 0], [1, 0], [1, 0], [1, 0], [0, 1]])
    starts = np.array([0, 2, 4])
    both = objective.Objective(
      (("pairs", 1.0), ("swapped_pairs", 1.0)), "single_label"
    )
    swapped = dataclasses.replace(both, weights=(("swapped_pairs", 1.0),))
    for ours in (both, swapped):
      self.assertEqual(list(ours.holds()(scores, starts)), [False, False, True])
    scores[3] = [0, 0]  # votes for none: a pair, but nothing to swap
    self.assertEqual(list(both.holds()(scores, starts)), [False, True, True])
    self.assertFalse(swapped.holds()(scores, starts)[1])

  def test_a_term_of_single_utterances_needs_all(self):
    self.assertIsNone(_on_votes(_config("auto")).holds())
    self.assertIsNone(_on_votes(_config("none")).holds())
    self.assertIsNotNone(_on_votes(_config("swapped")).holds())


class OlderRunsTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"objective": "pairwise"}, True),
    ({"objective": "joint", "epochs": 3}, True),
    ({"objective": "none"}, False),
    ({"objective": "none", "terms": {}}, False),
    ({"objective": "none", "terms": {"pairs": None}}, False),
    ({"objective": "none", "terms": {"softmax": 0.5}}, True),
    ({"objective": "pairwise", "terms": {"pairs": 0.0}}, False),
  )
  def test_uses_votes(self, pretrain, expected):
    self.assertEqual(objective.uses_votes(pretrain), expected)

  @parameterized.parameters(
    ({"objective": "pairwise"}, True, "pairs"),
    ({"objective": "auto"}, False, "pairs + one versus rest"),
    ({"objective": "auto"}, True, "swapped pairs + softmax"),
    (
      {"objective": "auto", "terms": {"softmax": 0.5}},
      True,
      "swapped pairs + 0.5 x softmax",
    ),
    ({"objective": "none"}, True, "none"),
  )
  def test_describe(self, pretrain, softmax, expected):
    self.assertEqual(objective.describe(pretrain, softmax), expected)


if __name__ == "__main__":
  absltest.main()
