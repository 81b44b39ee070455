import dataclasses

import numpy as np
from absl.testing import absltest, parameterized

from labeling import gold_calibrated
from ppl_jax import calibration
from ppl_jax.data import dialogues, vote_columns

CLASSES = ("ask", "tell", "thank")
C = len(CLASSES)
LENGTH = 4


def _votes(gold_UxC, answers):
  """Votes on dialogues of four utterances.

  Args:
    gold_UxC: multi-hot.
    answers: (utterance, annotator, only, labels) each.
  """
  U = len(gold_UxC)
  split = [
    dialogues.Dialogue(
      dialogue_id=f"d{d}",
      speakers=("A",) * LENGTH,
      texts=tuple(f"text {d} {i}" for i in range(LENGTH)),
      gold=gold_UxC[d * LENGTH : (d + 1) * LENGTH].astype(np.uint8),
      labelled=np.ones(LENGTH, np.bool_),
    )
    for d in range(U // LENGTH)
  ]
  builder = vote_columns.Builder(split, CLASSES, "none")
  builder.source("votes", "")
  for number, (u, annotator, only, labels) in enumerate(answers):
    builder.add(
      number,
      dialogue_id=f"d{u // LENGTH}",
      utterance=u % LENGTH,
      annotator=annotator,
      sample=0,
      labels=labels,
      only=only,
    )
  return builder.build()


def _single_label(rng, num_dialogues, skills):
  """Gold and independent answers; a wrong one is drawn from all, and none."""
  gold = rng.choice(C, num_dialogues * LENGTH, p=(0.5, 0.3, 0.2))
  labels = [(name,) for name in CLASSES] + [()]
  answers = []
  for a, skill in enumerate(skills):
    for u, c in enumerate(gold):
      told = c if rng.random() < skill else rng.integers(0, C + 1)
      answers.append((u, f"a{a}", "", labels[told]))
  return np.eye(C)[gold], answers


def _with_gold(votes, gold_UxC):
  voted = dataclasses.replace(votes.voted, gold_UxC=gold_UxC.astype(np.uint8))
  return dataclasses.replace(votes, voted=voted)


def _first(votes, number):
  return np.arange(len(votes.voted.dialogue_ids)) < number


def _smooth(count, prior):
  return (count + 10 * prior) / (count.sum() + 10)


def _reference_tables(answers, truth, gold, num_truths, num_answers, right):
  """log P(answer | annotator, kind, truth), counted one by one.

  Args:
    answers: (utterance, annotator, kind, answer) each.
    truth: of each utterance.
    gold: the utterances that may be looked at.
    num_truths: T.
    num_answers: R.
    right: from a kind to its answer for each truth and its possible answers.
  """
  tables = {}
  for kind, (right_answer, possible) in right.items():
    seen = [
      (a, truth[u], r) for u, a, k, r in answers if k == kind and u in gold
    ]
    share = np.zeros(num_answers)
    for r in possible:
      share[r] = 1 + sum(r == s for _, _, s in seen)
    share /= share.sum()
    correct = sum(right_answer[t] == r for _, t, r in seen)
    chance = sum(share[right_answer[t]] for _, t, _ in seen)
    kappa = max(correct - chance, 0) / (len(seen) - chance + 1)
    for annotator in {a for _, a, k, _ in answers if k == kind}:
      for t in range(num_truths):
        one = (1 - kappa) * share
        one[right_answer[t]] += kappa
        pooled = np.zeros(num_answers)
        own = np.zeros(num_answers)
        for a, s, r in seen:
          pooled[r] += s == t
          own[r] += (s == t) and (a == annotator)
        with np.errstate(divide="ignore"):
          tables[annotator, kind, t] = np.log(
            _smooth(own, _smooth(pooled, one))
          )
  return tables


def _reference_logits(answers, truth, gold, num_truths, num_answers, right):
  """Log prior [T] and log-likelihood [U, T]."""
  tables = _reference_tables(
    answers, truth, gold, num_truths, num_answers, right
  )
  prior = np.array(
    [1 + sum(truth[u] == t for u in gold) for t in range(num_truths)]
  )
  likelihood = np.zeros((len(truth), num_truths))
  for u, a, k, r in answers:
    for t in range(num_truths):
      likelihood[u, t] += tables[a, k, t][r]
  return np.log(prior / prior.sum()), likelihood


def _posterior(prior, likelihood, temperature):
  odds = np.exp(prior + likelihood / temperature)
  return odds / odds.sum(axis=1, keepdims=True)


class GoldCalibratedTest(parameterized.TestCase):
  def test_one_answer_against_counts_one_by_one(self):
    rng = np.random.default_rng(0)
    gold_UxC, answers = _single_label(rng, 12, (0.8, 0.5))
    answers = answers[5:]
    # One annotator is also asked about single classes.
    for u in range(0, 48, 3):
      name = CLASSES[u % C]
      yes = (gold_UxC[u, u % C] == 1) ^ (rng.random() < 0.2)
      answers.append((u, "a0", name, (name,) if yes else ()))
    votes = _votes(gold_UxC, answers)
    gold_D = _first(votes, 7)
    score_UxC, settings = gold_calibrated.gold_calibrated(
      votes, "single_label", gold_D, 0
    )
    truth = gold_UxC.argmax(axis=1)
    counted = [
      (u, a, only, CLASSES.index(told[0]) if told else C)
      for u, a, only, told in answers
    ]
    right = {"": (list(range(C)), range(C + 1))}
    for c, name in enumerate(CLASSES):
      right[name] = ([c if t == c else C for t in range(C)], (c, C))
    logits = _reference_logits(
      counted, truth, set(range(7 * LENGTH)), C, C + 1, right
    )
    expected = _posterior(*logits, settings["temperature"])
    np.testing.assert_allclose(
      score_UxC[7 * LENGTH :], expected[7 * LENGTH :], rtol=1e-5
    )
    self.assertEqual(settings["gold_utterances"], 7 * LENGTH)
    self.assertEqual(settings["gold_dialogues"], [f"d{d}" for d in range(7)])

  def test_yes_and_no_against_counts_one_by_one(self):
    rng = np.random.default_rng(1)
    gold_UxC = (rng.random((10 * LENGTH, C)) < (0.6, 0.4, 0.2)).astype(int)
    answers = []
    for u, row in enumerate(gold_UxC):
      for a, noise in (("a0", 0.1), ("a1", 0.3)):
        told = row ^ (rng.random(C) < noise)
        names = tuple(n for n, yes in zip(CLASSES, told, strict=True) if yes)
        answers.append((u, a, "", names))
      yes = row[1] ^ (rng.random() < 0.2)
      answers.append((u, "a1", "tell", ("tell",) if yes else ()))
    votes = _votes(gold_UxC, answers)
    score_UxC, settings = gold_calibrated.gold_calibrated(
      votes, "multi_label", _first(votes, 6), 0
    )
    right = {kind: ([0, 1], (0, 1)) for kind in ("any", "one")}
    for c, name in enumerate(CLASSES):
      counted = [
        (u, a, "one" if only else "any", int(name in told))
        for u, a, only, told in answers
        if only in ("", name)
      ]
      logits = _reference_logits(
        counted, gold_UxC[:, c], set(range(6 * LENGTH)), 2, 2, right
      )
      expected = _posterior(*logits, settings["temperature"])[:, 1]
      np.testing.assert_allclose(
        score_UxC[6 * LENGTH :, c], expected[6 * LENGTH :], rtol=1e-5
      )

  def test_dialogues_with_gold_are_scored_by_the_others(self):
    # With as many dialogues as folds, each is its own fold.
    gold_UxC, answers = _single_label(np.random.default_rng(2), 5, (0.8, 0.6))
    votes = _votes(gold_UxC, answers)
    score_UxC, settings = gold_calibrated.gold_calibrated(
      votes, "single_label", _first(votes, 5), 0
    )
    truth = gold_UxC.argmax(axis=1)
    counted = [
      (u, a, "", CLASSES.index(told[0]) if told else C)
      for u, a, _, told in answers
    ]
    right = {"": (list(range(C)), range(C + 1))}

    def fit(gold_dialogues):
      """Parts out of fold; the cross-entropy's best temperature by a grid."""
      parts = []
      for d in gold_dialogues:
        rest = [e for e in gold_dialogues if e != d]
        rest_U = {u for e in rest for u in range(e * LENGTH, (e + 1) * LENGTH)}
        prior, likelihood = _reference_logits(
          counted, truth, rest_U, C, C + 1, right
        )
        here = slice(d * LENGTH, (d + 1) * LENGTH)
        parts.append((prior, likelihood[here], truth[here]))
      grid = np.exp(np.linspace(-1.5, 1.5, 3001))
      loss = [
        np.log(t) ** 2 / 2
        - sum(
          np.log(_posterior(*logits, t)[np.arange(LENGTH), y]).sum()
          for *logits, y in parts
        )
        for t in grid
      ]
      return grid[np.argmin(loss)]

    self.assertAlmostEqual(settings["temperature"], fit(range(5)), delta=2e-3)
    for d in range(5):
      rest = [e for e in range(5) if e != d]
      rest_U = {u for e in rest for u in range(e * LENGTH, (e + 1) * LENGTH)}
      logits = _reference_logits(counted, truth, rest_U, C, C + 1, right)
      here = slice(d * LENGTH, (d + 1) * LENGTH)
      np.testing.assert_allclose(
        score_UxC[here], _posterior(*logits, fit(rest))[here], atol=2e-3
      )

  @parameterized.parameters("single_label", "multi_label")
  def test_no_other_gold_is_looked_at(self, task):
    gold_UxC, answers = _single_label(
      np.random.default_rng(3), 20, (0.8, 0.7, 0.4)
    )
    votes = _votes(gold_UxC, answers)
    gold_D = _first(votes, 8)
    before, told = gold_calibrated.gold_calibrated(votes, task, gold_D, 0)
    other = gold_UxC.copy()
    other[8 * LENGTH :] = np.roll(other[8 * LENGTH :], 1, axis=1)
    after, same = gold_calibrated.gold_calibrated(
      _with_gold(votes, other), task, gold_D, 0
    )
    np.testing.assert_array_equal(before, after)
    self.assertEqual(told, same)
    # Nor does a dialogue's own gold change its scores.
    for d in range(8):
      here = slice(d * LENGTH, (d + 1) * LENGTH)
      other = gold_UxC.copy()
      other[here] = np.roll(other[here], 1, axis=1)
      after, _ = gold_calibrated.gold_calibrated(
        _with_gold(votes, other), task, gold_D, 0
      )
      np.testing.assert_array_equal(before[here], after[here])
      self.assertFalse(np.array_equal(before, after))

  @parameterized.parameters(0, 1)
  def test_temperature_of_independent_and_of_repeated_votes(self, seed):
    rng = np.random.default_rng(seed)
    gold_UxC, answers = _single_label(rng, 300, (0.75, 0.65, 0.55))
    votes = _votes(gold_UxC, answers)
    gold_D = _first(votes, 150)
    _, alone = gold_calibrated.gold_calibrated(
      votes, "single_label", gold_D, seed
    )
    self.assertBetween(alone["temperature"], 0.8, 1.25)
    copies = [
      (u, f"{a} {copy}", only, told)
      for copy in range(4)
      for u, a, only, told in answers
    ]
    repeated = _votes(gold_UxC, copies)
    score_UxC, four = gold_calibrated.gold_calibrated(
      repeated, "single_label", gold_D, seed
    )
    self.assertBetween(four["temperature"] / alone["temperature"], 3.6, 4.4)
    # And so what it says of the others' votes is true.
    here = slice(150 * LENGTH, None)
    self.assertLess(calibration.vote_ece(score_UxC[here], gold_UxC[here]), 0.05)
    votes_UxC, valid_UxC = repeated.counts()
    share_UxC = (votes_UxC / valid_UxC)[here]
    self.assertGreater(calibration.vote_ece(share_UxC, gold_UxC[here]), 0.1)

  def test_a_class_without_gold_can_win(self):
    gold_UxC, answers = _single_label(np.random.default_rng(4), 30, (0.9,) * 5)
    votes = _votes(gold_UxC, answers)
    # The gold is of dialogues that never thank.
    thanks_D = gold_UxC[:, 2].reshape(-1, LENGTH).any(axis=1)
    self.assertGreaterEqual((~thanks_D).sum(), 5)
    score_UxC, _ = gold_calibrated.gold_calibrated(
      votes, "single_label", ~thanks_D, 0
    )
    all_agree = (votes.counts()[0][:, 2] == 5) & (gold_UxC[:, 2] == 1)
    self.assertTrue(all_agree.any())
    np.testing.assert_array_equal(score_UxC[all_agree].argmax(axis=1), 2)

  @parameterized.parameters("single_label", "multi_label")
  def test_no_valid_vote_no_score(self, task):
    gold_UxC, answers = _single_label(np.random.default_rng(5), 6, (0.9, 0.8))
    unusable = [
      (u, a, only, None if u in (1, 21) else told)
      for u, a, only, told in answers
    ]
    votes = _votes(gold_UxC, unusable)
    score_UxC, settings = gold_calibrated.gold_calibrated(
      votes, task, _first(votes, 5), 0
    )
    np.testing.assert_array_equal(
      np.isnan(score_UxC).all(axis=1), np.isin(np.arange(24), (1, 21))
    )
    self.assertFalse(np.isnan(np.delete(score_UxC, (1, 21), axis=0)).any())
    self.assertEqual(settings["gold_utterances"], 5 * LENGTH - 1)

  def test_needs_gold(self):
    gold_UxC, answers = _single_label(np.random.default_rng(6), 8, (0.9,))
    votes = _votes(gold_UxC, answers)
    with self.assertRaisesRegex(ValueError, "at least 5 dialogues .* got 4"):
      gold_calibrated.gold_calibrated(
        votes, "single_label", _first(votes, 4), 0
      )


if __name__ == "__main__":
  absltest.main()
