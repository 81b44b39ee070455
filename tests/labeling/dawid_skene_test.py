import numpy as np
from absl.testing import absltest, parameterized

from labeling import dawid_skene
from ppl_jax.data import dialogues, vote_columns
from ppl_jax.data import votes as votes_lib

CLASSES = ("ask", "tell", "thank")
C = len(CLASSES)


def _votes(gold, answers):
  """Votes on one dialogue an utterance.

  Args:
    gold: class columns.
    answers: (utterance, annotator, sample, only, labels) each.
  """
  split = [
    dialogues.Dialogue(
      dialogue_id=f"d{u}",
      speakers=("A",),
      texts=(f"text {u}",),
      gold=np.eye(C, dtype=np.uint8)[[c]],
      labelled=np.ones(1, np.bool_),
    )
    for u, c in enumerate(gold)
  ]
  builder = vote_columns.Builder(split, CLASSES, "none")
  builder.source("votes", "")
  for number, (u, annotator, sample, only, labels) in enumerate(answers):
    builder.add(
      number,
      dialogue_id=f"d{u}",
      utterance=0,
      annotator=annotator,
      sample=sample,
      labels=labels,
      only=only,
    )
  return builder.build()


def _simulate(rng, num_utterances, skills, samples=1, favourite=None):
  """Gold, and answers of annotators that are right with these chances.

  Else they draw from all answers, or give their favourite.
  """
  gold = rng.integers(0, C, num_utterances)
  labels = [(name,) for name in CLASSES] + [()]
  answers = []
  for a, skill in enumerate(skills):
    for u in range(num_utterances):
      for sample in range(samples):
        other = rng.integers(0, C + 1) if favourite is None else favourite
        told = labels[gold[u] if rng.random() < skill else other]
        answers.append((u, f"a{a}", sample, "", told))
  return gold, answers


def _reference(answers, num_utterances, num_answers, rounds=50):
  """Expectation-maximisation; answers are (utterance, annotator, answer)."""
  posterior = np.zeros((num_utterances, num_answers))
  for u, _, k in answers:
    posterior[u, k] += 1
  posterior /= posterior.sum(axis=1, keepdims=True)
  for _ in range(rounds):
    prior = posterior.mean(axis=0)
    matrix = {}
    for u, a, k in answers:
      table = matrix.setdefault(a, np.zeros((num_answers, num_answers)))
      table[:, k] += posterior[u]
    for table in matrix.values():
      table /= np.maximum(table.sum(axis=1, keepdims=True), 1e-300)
    log = np.log(np.maximum(prior, 1e-10)) + np.zeros_like(posterior)
    for u, a, k in answers:
      log[u] += np.log(np.maximum(matrix[a][:, k], 1e-10))
    posterior = np.exp(log - log.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
  return posterior


class DawidSkeneTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_is_expectation_maximisation(self, samples):
    gold, answers = _simulate(
      np.random.default_rng(samples), 40, (0.8, 0.5, 0.4), samples
    )
    # Some votes are missing and some unusable.
    answers = answers[7:]
    answers[::9] = [(*vote[:4], None) for vote in answers[::9]]
    score_UxC, settings = dawid_skene.dawid_skene(
      _votes(gold, answers), "single_label"
    )
    self.assertEqual(settings["method"], "dawid_skene")
    expected = _reference(
      [
        (u, a, CLASSES.index(told[0]) if told else C)
        for u, a, _, _, told in answers
        if told is not None
      ],
      len(gold),
      C + 1,
    )
    np.testing.assert_allclose(score_UxC, expected[:, :C], atol=1e-4)

  @parameterized.parameters(0, 1)
  def test_recovers_gold_better_than_shares(self, seed):
    gold, answers = _simulate(
      np.random.default_rng(seed), 400, (0.9, 0.8, 0.3, 0.3, 0.2), favourite=1
    )
    votes = _votes(gold, answers)
    score_UxC, _ = dawid_skene.dawid_skene(votes, "single_label")
    votes_UxC, _ = votes.counts()
    weighed = (score_UxC.argmax(axis=1) == gold).mean()
    uniform = (votes_UxC.argmax(axis=1) == gold).mean()
    self.assertGreater(weighed, uniform + 0.1)
    self.assertGreater(weighed, 0.9)

  @parameterized.parameters("single_label", "multi_label")
  def test_yes_and_no_of_each_class(self, task):
    rng = np.random.default_rng(3)
    gold, answers = _simulate(rng, 30, (0.8, 0.6))
    for c, name in enumerate(CLASSES):
      for u in range(30):
        yes = rng.random() < (0.8 if gold[u] == c else 0.2)
        answers.append((u, "one", 0, name, (name,) if yes else ()))
    votes = _votes(gold, answers)
    score_UxC, _ = dawid_skene.dawid_skene(votes, task)
    for c, name in enumerate(CLASSES):
      expected = _reference(
        [
          (u, a, int(name in told))
          for u, a, _, only, told in answers
          if only in ("", name)
        ],
        30,
        2,
      )
      np.testing.assert_allclose(score_UxC[:, c], expected[:, 1], atol=1e-4)

  def test_no_valid_vote_no_score(self):
    answers = [
      (0, "a", 0, "", ("ask",)),
      (1, "a", 0, "", None),
      (2, "a", 0, "", ()),
    ]
    votes = _votes([0, 0, 0], answers)
    nan = np.full(C, np.nan)
    expected = [[1, 0, 0], nan, [0, 0, 0]]
    score_UxC, settings = dawid_skene.dawid_skene(votes, "single_label")
    np.testing.assert_allclose(score_UxC, expected, atol=1e-6)
    scores = votes_lib.to_scores(
      votes,
      dataset="d",
      split="train",
      weighted_UxC=score_UxC,
      aggregation=settings,
    )
    np.testing.assert_array_equal(scores.rows["d1"].score, [nan])
    self.assertEqual(scores.metadata["aggregation"], settings)
    # Asked of one class only, the others have no score.
    votes = _votes([0, 0], [(0, "a", 0, "ask", ("ask",)), *answers[1:2]])
    score_UxC, _ = dawid_skene.dawid_skene(votes, "single_label")
    np.testing.assert_allclose(score_UxC, [[1, np.nan, np.nan], nan])


if __name__ == "__main__":
  absltest.main()
