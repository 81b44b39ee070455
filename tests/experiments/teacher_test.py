import dataclasses
import pathlib
import sys
import tempfile

import numpy as np
from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import corpus

from ppl_jax.data import dialogues, scores
from ppl_jax.experiments import teacher


class TeacherTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.config = corpus.config(corpus.write(folder / "data"))
    self.dataset = dialogues.load_config(self.config.dataset)
    self.scores = scores.read_scores(self.config.scores)
    self.folder = folder

  def test_reads_scores_beside_gold(self):
    told = teacher.load(self.dataset, self.config.scores)
    train = self.dataset.splits["train"]
    gold = np.concatenate([d.gold[d.labelled] for d in train])
    np.testing.assert_array_equal(told.gold_UxC, gold)
    np.testing.assert_allclose(told.S_UxC, told.votes_UxC / 5, rtol=1e-6)
    self.assertEqual(told.split, "train")

  def test_score_files_of_elsewhere_are_refused(self):
    other = scores.Scores(
      self.scores.classes,
      {**self.scores.metadata, "split": "extra"},
      self.scores.rows,
    )
    path = self.folder / "other.parquet"
    scores.write_scores(path, other)
    with self.assertRaisesRegex(ValueError, "one of the splits train.*'extra'"):
      teacher.load(self.dataset, path)

  def test_votes_and_scores_are_one_of_two(self):
    with self.assertRaisesRegex(ValueError, "come from one place"):
      teacher.score_file(self.config, ["votes.jsonl"], self.folder)

  def test_thinned_votes_lie_in_one_another(self):
    thinned = [teacher.thin(self.scores, n, seed=3) for n in (1, 2, 3, 9)]
    for name, row in self.scores.rows.items():
      votes = [t.rows[name].votes.astype(int) for t in thinned]
      for n, t in zip((1, 2, 3), thinned, strict=False):
        np.testing.assert_array_equal(t.rows[name].valid, n)
      self.assertTrue((np.diff(votes, axis=0) >= 0).all())
      np.testing.assert_array_equal(votes[-1], row.votes)
    again = teacher.thin(self.scores, 2, seed=3)
    other = teacher.thin(self.scores, 2, seed=4)
    same = [
      all((t.rows[n].votes == again.rows[n].votes).all() for n in again.rows)
      for t in (thinned[1], other)
    ]
    self.assertEqual(same, [True, False])

  def _simulate(self, noise, task):
    C = len(corpus.CLASSES)
    rng = np.random.default_rng(0)
    some = [
      dialogues.Dialogue(
        f"d{d}",
        ("A",) * 10,
        ("x",) * 10,
        np.eye(C, dtype=np.uint8)[rng.integers(0, C, 10)],
        np.arange(10) != 3,
      )
      for d in range(400)
    ]
    return some, teacher.simulate(some, corpus.CLASSES, task, noise, seed=0)

  def test_weighted_scores_are_not_thinned(self):
    rows = {
      name: dataclasses.replace(row, weighted=row.score)
      for name, row in self.scores.rows.items()
    }
    weighted = scores.Scores(
      self.scores.classes, {**self.scores.metadata, "aggregation": "x"}, rows
    )
    with self.assertRaisesRegex(ValueError, "scores are shares of them"):
      teacher.thin(weighted, 1, seed=0)

  def test_votes_for_no_class_are_right_about_none(self):
    shares = np.array([[0.0, 0.0], [0.2, 0.0], [0.0, 0.4]])
    gold = np.array([[1, 0], [1, 0], [1, 0]])
    found = teacher._scored(shares, gold, "single_label")
    self.assertAlmostEqual(found["accuracy"], 1 / 3)

  def test_simulated_errors_are_as_many_but_not_shared(self):
    for task in ("single_label", "multi_label"):
      errors, within = [], []
      for kind in ("dialogue", "utterance"):
        some, made = self._simulate(teacher.Noise(kind, 5, 0.6, 0.1), task)
        errors.append(teacher.vote_error(made, some))
        rows = list(made.rows.values())
        self.assertTrue(all(np.isnan(row.score[3]).all() for row in rows))
        S = np.stack([row.score[np.arange(10) != 3] for row in rows])
        gold = np.stack([d.gold[np.arange(10) != 3] for d in some])
        # How much of the error is common to a dialogue and class.
        wrong = S - gold
        within.append(wrong.mean(axis=1).var() / wrong.var())
      self.assertEqual(*errors)
      self.assertBetween(errors[0], 0.05, 0.4)
      self.assertGreater(within[0], 2 * within[1])

  def test_shares_of_errors_name_the_gold_beside(self):
    late, early = 0.4, 0.15
    # One vote an utterance: what it names is known.
    noise = teacher.Noise("utterance", 1, 0.6, 0.2)
    for task in ("single_label", "multi_label"):
      some, before = self._simulate(noise, task)
      timing = dataclasses.replace(noise, kind="timing", late=late, early=early)
      _, after = self._simulate(timing, task)
      wrong = 0
      names, changed_to = dict.fromkeys(("late", "early"), 0), []
      for dialogue in some:
        was = before.rows[dialogue.dialogue_id].votes
        now = after.rows[dialogue.dialogue_id].votes
        for i, gold in enumerate(dialogue.gold):
          if i == 3:  # has no gold, and so no votes
            self.assertEqual((was[i].sum(), now[i].sum()), (0, 0))
            continue
          is_wrong = (was[i] != gold).any()
          self.assertEqual((now[i] != gold).any(), is_wrong)
          wrong += is_wrong
          beside = {
            name: dialogue.gold[j]
            for name, j in (("late", i - 1), ("early", i + 1))
            if 0 <= j < 10 and j != 3
          }
          named = [k for k, row in beside.items() if (row == now[i]).all()]
          for name in named:
            names[name] += is_wrong
          if (was[i] != now[i]).any():
            changed_to.append(named)
      told = after.metadata["sampling"]
      self.assertTrue(all(changed_to))
      for name, share in (("late", late), ("early", early)):
        self.assertAlmostEqual(told[f"moved_{name}"], share, delta=1 / wrong)
        # Others name it by chance; and some named it before.
        self.assertGreaterEqual(names[name] / wrong, told[f"moved_{name}"])
        least = changed_to.count([name]) / wrong
        self.assertBetween(least, 0.05, told[f"moved_{name}"])

  def test_no_more_errors_are_moved_than_have_another_gold_beside(self):
    same = [
      dialogues.Dialogue(
        f"d{d}",
        ("A",) * 4,
        ("x",) * 4,
        np.eye(3, dtype=np.uint8)[[0, 0, 0, 1]],
        np.ones(4, bool),
      )
      for d in range(50)
    ]
    noise = teacher.Noise("timing", 5, 0.6, 0.2, late=0.9, early=0.1)
    made = teacher.simulate(same, "abc", "single_label", noise, seed=0)
    wrong = sum(
      15 + 5 - row.votes[:3, 0].sum() - row.votes[3, 1]
      for row in made.rows.values()
    )
    last = sum(5 - row.votes[3, 1] for row in made.rows.values())
    told = made.metadata["sampling"]
    self.assertAlmostEqual(told["moved_late"], last / wrong)
    # All of the last utterance's errors name the first class, that before.
    self.assertEqual(sum(r.votes[3, 2] for r in made.rows.values()), 0)

  def test_shares_of_errors_are_at_most_all(self):
    with self.assertRaisesRegex(ValueError, "at most 1 together, got 0.6"):
      teacher.Noise("timing", 5, 0.5, 0.2, late=0.6, early=0.5)

  def test_majority_and_teacher_on_test(self):
    test = self.dataset.splits["test"]
    train = np.concatenate([d.gold for d in self.dataset.splits["train"]])
    gold = np.concatenate([d.gold for d in test])
    most = train.sum(axis=0).argmax()
    result = teacher.majority(self.dataset)
    self.assertAlmostEqual(result["accuracy"], gold[:, most].mean())
    told = teacher.accuracy(self.dataset, self.config.scores)
    S = np.concatenate([row.score for row in self.scores.rows.values()])
    self.assertAlmostEqual(
      told["accuracy"], (S.argmax(1) == train.argmax(1)).mean()
    )
    self.assertEqual((told["split"], told["count"]), ("train", len(train)))


if __name__ == "__main__":
  absltest.main()
