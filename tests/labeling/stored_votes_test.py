import dataclasses
import pathlib
import sqlite3
import sys
import tempfile

import numpy as np
from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import asking

from labeling import aggregate, parse
from labeling import bank as bank_lib
from labeling import votes as votes_lib
from labeling.plan import Plan
from labeling.store import Answer, Outcome, Store
from ppl_jax.data import dialogues as dialogues_lib

TWO, THREE = ("question", "answer"), ("question", "answer", "request")
VOTES = 4


class _StoreTest(absltest.TestCase):
  """A votes file whose dialogues were labelled with several class lists."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = self.folder / "votes.sqlite"
    self.split = asking.dialogues(2)

  def label(self, classes, *, prompts=("plain", "every_in_context"), names=()):
    """Stores valid answers to all that is missing; says how many it asked for.

    Utterance i gets the i-th of `names`, or of all classes, round and round.
    """
    bank = bank_lib.load("generic")
    alone = bank.prompts[0].model_copy(
      update={
        "id": "alone",
        "asks": "positive",
        "template": "$class? $dialogue",
      }
    )
    bank = bank.model_copy(update={"prompts": (*bank.prompts, alone)})
    bank = bank_lib.for_classes(bank, classes, "none", "single_label")
    settings = asking.settings("http://x", votes=VOTES, prompts=prompts)
    names, asked = names or classes, 0
    store = Store(self.path)
    for dialogue in self.split:
      for request in Plan(settings, bank).requests(dialogue):
        store.ask(request, settings.endpoint)
        missing = store.missing(request)
        asked += len(missing)
        only = request.question.class_name
        labels = {u: names[u % len(names)] for u in request.question.asked}
        votes = tuple(
          parse.Vote(u, () if only not in ("", name) else (name,))
          for u, name in labels.items()
        )
        call = store.begin(request.key, missing, 0.0)
        store.finish(
          call,
          request.key,
          Outcome(parse.Status.VALID, 0.0),
          [Answer(s, parse.Status.VALID, "", "stop", votes) for s in missing],
        )
    store.close()
    return asked

  def forget(self):
    """Makes the file what an earlier version wrote."""
    db = sqlite3.connect(self.path)
    db.execute("DROP TABLE prompts")
    db.close()

  def read(self, classes, counts_as=None):
    return votes_lib.read([self.path], self.split, classes, "none", counts_as)

  def assert_valid(self, classes, wanted, counts_as=None):
    """Each class of each utterance could be named by so many votes."""
    votes, about = self.read(classes, counts_as)
    votes_UxC, valid_UxC = votes.counts()
    np.testing.assert_array_equal(
      valid_UxC, np.broadcast_to(wanted, valid_UxC.shape)
    )
    self.assertTrue((votes_UxC <= valid_UxC).all())
    return about["left_out"]


class OtherClassesTest(_StoreTest):
  def test_a_class_that_was_not_offered_has_no_votes_against_it(self):
    first = self.label(TWO)
    self.assertEqual(
      self.assert_valid(TWO, VOTES), {"other_texts": 0, "other_classes": 0}
    )
    second = self.label(THREE)
    with self.assertLogs(level="WARNING") as logs:
      left_out = self.assert_valid(THREE, VOTES)
    self.assertEqual(left_out["other_classes"], first)
    self.assertIn(
      f"{first} answers among ['question', 'answer']", logs.output[0]
    )
    # Either list counts on its own.
    with self.assertLogs(level="WARNING"):
      self.assertEqual(self.assert_valid(TWO, VOTES)["other_classes"], second)
    with self.assertLogs(level="WARNING"):
      votes, about = self.read(THREE)
    dataset = dialogues_lib.Dataset(
      "d", THREE, "single_label", "", self.folder, {"train": self.split}
    )
    votes = dataclasses.replace(
      votes,
      voted=dataclasses.replace(
        votes.voted, labelled_U=np.zeros_like(votes.voted.labelled_U)
      ),
    )
    lines = aggregate.write(
      self.folder / "s.parquet", votes, dataset, "train", about=about
    )
    self.assertIn(f"left out: {first} answers among other classes", lines)

  def test_votes_on_what_a_changed_dialogue_still_shows_count(self):
    """A dialogue that grew keeps the votes that were paid for."""
    self.label(TWO, prompts=("plain",))
    before = self.split[0]
    self.split = [
      dataclasses.replace(
        before,
        texts=(*before.texts, "One more."),
        speakers=(*before.speakers, before.speakers[0]),
        gold=np.vstack([before.gold, before.gold[:1]]),
        labelled=np.append(before.labelled, False),
      ),
      *self.split[1:],
    ]
    asked = self.label(TWO, prompts=("plain",))
    votes, about = self.read(TWO)
    self.assertEqual(about["left_out"]["other_texts"], 0)
    valid_UxC = votes.counts()[1]
    self.assertEqual(set(valid_UxC.ravel().tolist()), {asked})

  def test_asked_about_one_class_beside_others(self):
    self.label(TWO, prompts=("pick_out",))
    self.label(THREE, prompts=("pick_out",))
    with self.assertLogs(level="WARNING"):
      self.assert_valid(THREE, VOTES)

  def test_asked_about_one_class_alone_counts_whatever_the_others(self):
    self.label(TWO, prompts=("alone",))
    with self.subTest("never asked about the third"):
      self.assert_valid(THREE, [VOTES, VOTES, 0])
    asked = self.label(THREE, prompts=("alone",))
    self.assertEqual(asked, VOTES * len(self.split))  # of the third alone
    self.assert_valid(THREE, VOTES)
    with self.assertLogs(level="WARNING"):
      self.assert_valid(TWO, VOTES)

  def test_removed_and_renamed_classes(self):
    asked = self.label(THREE)
    with self.assertRaisesRegex(
      ValueError,
      rf"as they are now, \['question', 'answer'\], got {asked} answers among"
      r" \['question', 'answer', 'request'\].*counts_as",
    ):
      self.read(TWO)
    self.assert_valid(TWO, VOTES, {"request": "none"})
    renamed = ("question", "answer", "demand")
    with self.assertRaisesRegex(ValueError, "counts_as"):
      self.read(renamed)
    self.assert_valid(renamed, VOTES, {"request": "demand"})

  def test_a_class_that_became_the_answer_none(self):
    self.label(THREE)
    votes, _ = votes_lib.read([self.path], self.split, TWO, "request")
    votes_UxC, valid_UxC = votes.counts()
    np.testing.assert_array_equal(valid_UxC, VOTES)
    self.assertTrue((votes_UxC.sum(axis=1) == 0).any())

  def test_order_does_not_matter(self):
    self.label(TWO)
    self.label(TWO[::-1])
    self.assert_valid(TWO, 2 * VOTES)
    self.assert_valid(TWO[::-1], 2 * VOTES)


class EarlierVersionTest(_StoreTest):
  """Files without the table `prompts`."""

  def test_of_one_class_list(self):
    self.label(THREE)
    self.forget()
    self.assert_valid(THREE, VOTES)

  def test_a_class_that_no_answer_names(self):
    self.label(THREE, names=TWO)
    self.forget()
    with self.assertLogs(level="WARNING") as logs:
      self.assert_valid(THREE, VOTES)
    self.assertIn("also ['request']", logs.output[0])
    self.assertEqual(self.label(THREE), 0)
    with self.assertNoLogs(level="WARNING"):
      self.assert_valid(THREE, VOTES)

  def test_of_two_class_lists(self):
    first = self.label(TWO)
    self.label(THREE)
    self.forget()
    with self.assertLogs(level="WARNING") as logs:
      left_out = self.assert_valid(THREE, VOTES)
    self.assertEqual(left_out["other_classes"], first)
    self.assertIn("did not keep", logs.output[0])

  def test_grown_since(self):
    self.label(TWO)
    self.forget()
    self.label(THREE)
    with self.assertLogs(level="WARNING"):
      self.assert_valid(THREE, VOTES)

  def test_rare_class_in_two_wordings_counts_when_asked_again(self):
    self.label(THREE, names=TWO)
    self.label(THREE[::-1], names=TWO)
    self.forget()
    with self.assertRaisesRegex(ValueError, "the command that labelled"):
      self.read(THREE)
    self.assertEqual(self.label(THREE), 0)
    with self.assertLogs(level="WARNING"):
      self.assert_valid(THREE, VOTES)
    self.assertEqual(self.label(THREE[::-1]), 0)
    self.assert_valid(THREE, 2 * VOTES)

  def test_asked_about_one_class_alone(self):
    self.label(TWO, prompts=("alone",))
    self.forget()
    self.label(THREE, prompts=("alone",))
    self.assert_valid(THREE, VOTES)


if __name__ == "__main__":
  absltest.main()
