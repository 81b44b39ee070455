import itertools

import numpy as np
from absl.testing import absltest

from ppl_jax.experiments import preference


def _data(seed, D=12, C=2, continuous=False):
  rng = np.random.default_rng(seed)
  dialogue = np.repeat(np.arange(D), rng.integers(1, 9, D))
  U = len(dialogue)
  S = rng.random((U, C)) if continuous else rng.integers(0, 6, (U, C)) / 5
  S = np.where(rng.random((U, C)) < 0.1, np.nan, S).astype(np.float32)
  gold = (rng.random((U, C)) < np.nan_to_num(S)).astype(np.uint8)
  return S, gold, dialogue


def _brute_force(S, gold, copy_of, dialogue):
  """Sums over the pairs; `copy_of` is the dialogue before it was drawn."""
  sums = np.zeros((3, 5, 3))
  for c in range(S.shape[1]):
    for i, j in itertools.permutations(range(len(S)), 2):
      difference = np.float64(S[i, c]) - S[j, c]
      if not difference > 1e-6:
        continue
      m = int(np.ceil(difference * 5 - 1e-5)) - 1
      one = (1, gold[i, c] > gold[j, c], difference)
      if dialogue[i] == dialogue[j]:
        sums[[0, 2], m] += one
      elif copy_of[i] != copy_of[j]:
        sums[[1, 2], m] += one
  return sums


class PairsTest(absltest.TestCase):
  def test_sums_are_those_of_the_pairs(self):
    for continuous in (False, True):
      S, gold, dialogue = _data(0, continuous=continuous)
      sums = preference.Pairs(S, gold, dialogue).sums(np.ones((1, 12)))
      np.testing.assert_allclose(
        sums[0], _brute_force(S, gold, dialogue, dialogue), rtol=1e-6
      )

  def test_resampled_dialogues_are_copies(self):
    S, gold, dialogue = _data(1)
    rng = np.random.default_rng(1)
    drawn = rng.integers(0, 12, (2, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in drawn])
    sums = preference.Pairs(S, gold, dialogue).sums(weights)
    for b, row in enumerate(drawn):
      rows = [np.flatnonzero(dialogue == d) for d in row]
      copies = np.repeat(np.arange(12), [len(r) for r in rows])
      rows = np.concatenate(rows)
      expected = _brute_force(S[rows], gold[rows], dialogue[rows], copies)
      np.testing.assert_allclose(sums[b], expected, rtol=1e-6)


class FitTest(absltest.TestCase):
  def test_is_weighted_least_squares(self):
    rng = np.random.default_rng(0)
    count = rng.integers(1, 50, 5).astype(float)
    x, y = np.linspace(0.1, 0.9, 5), rng.random(5)
    sums = np.stack([count, count * y, count * x], axis=-1)
    for weighted in (True, False):
      slope, intercept = np.polyfit(
        x, y, 1, w=np.sqrt(count) if weighted else None
      )
      lines = preference.fit(sums, weighted=weighted)
      np.testing.assert_allclose(lines.slope, slope)
      np.testing.assert_allclose(lines.intercept, intercept)

  def test_empty_buckets_do_not_count(self):
    sums = np.zeros((2, 5, 3))
    sums[0, [1, 3]] = [(10, 2, 3), (5, 4, 3.5)]
    sums[1, 2] = (4, 1, 2)
    lines = preference.fit(sums)
    np.testing.assert_allclose(lines.slope, [(0.8 - 0.2) / (0.7 - 0.3), np.nan])

  def test_shifts_of_a_dialogue_flatten_the_control(self):
    """Where errors shift whole dialogues, only pairs of one are not misled."""
    rng = np.random.default_rng(0)
    dialogue = np.repeat(np.arange(300), 8)
    p = rng.random((2_400, 1)) * 0.5
    shift = 0.5 * rng.random((300, 1))[dialogue]
    gold = (rng.random(p.shape) < p * 2).astype(np.uint8)
    pairs = preference.Pairs(p + shift, gold, dialogue)
    sums = pairs.sums(np.ones((1, 300)))[0]
    resampled = preference.resample(pairs, 200, seed=0)
    rows = {
      row["pairs"]: row
      for row in preference.slopes(sums, resampled)
      if row["buckets"] == "weighed by pairs"
    }
    less = rows["one dialogue less different dialogues"]
    self.assertGreater(less["low"], 0)
    self.assertAlmostEqual(
      less["slope"],
      rows["one dialogue"]["slope"] - rows["different dialogues"]["slope"],
    )
    for row in rows.values():
      self.assertBetween(row["slope"], row["low"], row["high"])


if __name__ == "__main__":
  absltest.main()
