"""Every bank that comes with the package, asked and answered in full."""

import itertools
import re

import numpy as np
from absl.testing import absltest, parameterized

from labeling import bank as bank_lib
from labeling import parse as parse_lib
from labeling import render
from ppl_jax.data import dialogues
from ppl_jax.data.readers import dailydialog, support

OWN = ("greeting", "order", "complaint")
DIALOGUE = dialogues.Dialogue(
  dialogue_id="d",
  speakers=("A", "B", "A", "B"),
  texts=(
    "Is this the Golden Fork?",
    "It is , how may I help?",
    "I want to order soup.",
    "Okay.",
  ),
  gold=np.zeros((4, 1), np.uint8),
  labelled=np.zeros(4, np.bool_),
)
# The answers that only a dataset with utterances outside of all classes needs,
# or whose votes were taken with it.
WITH_NONE = {
  "dailydialog_act",
  "generic",
  "iemocap_emotion",
  "intent",
  "support",
}


def load(name):
  bank = bank_lib.load(name)
  classes = bank.classes or OWN
  return bank_lib.for_classes(bank, tuple(classes), "none", "single_label")


def class_names(bank, prompt):
  return list(bank.classes) if prompt.asks == "positive" else [""]


def requests(bank, prompt):
  """All that a prompt asks about the last two utterances."""
  for class_name in class_names(bank, prompt):
    for asked in ((2,), (3,)) if prompt.asks == "last" else ((2, 3),):
      yield render.render(
        bank,
        prompt,
        DIALOGUE,
        asked=asked,
        first=1,
        order_seed=0,
        class_name=class_name,
      )


class PromptsTest(parameterized.TestCase):
  def test_the_banks_there_are(self):
    self.assertEqual(
      bank_lib.names(),
      [
        "bt_oasis",
        "dailydialog_act",
        "generic",
        "iemocap_emotion",
        "intent",
        "meld_sentiment",
        "mrda",
        "support",
      ],
    )

  def test_classes_are_the_readers(self):
    self.assertEqual(
      tuple(bank_lib.load("dailydialog_act").classes),
      dailydialog.class_names({}),
    )
    self.assertEqual(tuple(bank_lib.load("support").classes), support.CLASSES)
    sizes = {
      name: len(bank_lib.load(name).classes) for name in bank_lib.names()
    }
    self.assertEqual(
      sizes,
      {
        "bt_oasis": 42,
        "dailydialog_act": 4,
        "generic": 0,
        "iemocap_emotion": 6,
        "intent": 1,
        "meld_sentiment": 3,
        "mrda": 5,
        "support": 11,
      },
    )

  @parameterized.parameters(*bank_lib.names())
  def test_has_five_prompts_that_differ(self, name):
    bank = load(name)
    self.assertEqual(bank.task, name)
    self.assertGreaterEqual(len(bank.prompts), 5)
    self.assertEqual(
      {p.asks for p in bank.prompts}, {"last", "every", "positive"}
    )
    self.assertGreater(len({p.option_order for p in bank.prompts}), 1)
    asked = [str(next(requests(bank, p))[1]) for p in bank.prompts]
    self.assertLen(set(asked), len(asked))
    if name != "generic":
      self.assertTrue(any(p.examples for p in bank.prompts))
      self.assertTrue(all(bank.classes.values()))
    self.assertEqual(bool(bank.none), name in WITH_NONE)

  @parameterized.parameters(*bank_lib.names())
  def test_right_answers_come_back_as_votes(self, name):
    bank = load(name)
    for prompt in bank.prompts:
      for question, messages in requests(bank, prompt):
        roles = [m["role"] for m in messages]
        dialogue_roles = roles[roles[0] == "system" :]
        self.assertEqual(
          dialogue_roles,
          ["user", "assistant"] * len(prompt.examples) + ["user"],
        )
        self.assertRegex(
          messages[-1]["content"],
          r"(?s)<dialogue>\n\[2\] B: It is.*</dialogue>.*\n\nAnswer with one",
        )
        names = [x for x in question.options if x != question.none_label]
        choices = [(), *((x,) for x in names)]
        if prompt.asks != "positive" and not question.none_label:
          choices = choices[1:]
        for picked in zip(choices, choices[::-1], strict=True):
          labels = dict(zip(question.asked, picked, strict=False))
          self.assertEqual(
            parse_lib.parse(question, render.answer(question, labels), "stop"),
            (
              parse_lib.Status.VALID,
              tuple(parse_lib.Vote(i, labels[i]) for i in question.asked),
            ),
          )

  def test_generic_prompts_take_several_labels(self):
    bank = bank_lib.for_classes(
      bank_lib.load("generic"), OWN, "", "multi_label"
    )
    for prompt in bank.prompts:
      for question, _ in requests(bank, prompt):
        labels = dict.fromkeys(question.asked, question.options[:2])
        status, votes = parse_lib.parse(
          question, render.answer(question, labels), "stop"
        )
        self.assertEqual(status, parse_lib.Status.VALID)
        self.assertEqual(votes[0].labels, question.options[:2])

  @parameterized.parameters(*bank_lib.names())
  def test_the_class_is_the_first_that_stands_in_quotes(self, name):
    bank = load(name)
    for prompt in bank.prompts:
      if prompt.asks == "positive":
        for question, messages in requests(bank, prompt):
          for message in messages:
            if message["role"] == "user":
              text = message["content"].split("<dialogue>")[0]
              self.assertEqual(
                set(re.findall('"(.*?)"', text)), {question.class_name}
              )
              self.assertEqual(text.count('"'), 2)

  @parameterized.parameters(*bank_lib.names())
  def test_examples_are_answered_by_their_labels(self, name):
    bank = load(name)
    for prompt in bank.prompts:
      for class_name in class_names(bank, prompt):
        for number, example in enumerate(prompt.examples):
          shown = dialogues.Dialogue(
            dialogue_id="example",
            speakers=tuple(turn.speaker for turn in example.utterances),
            texts=tuple(turn.text for turn in example.utterances),
            gold=np.zeros((len(example.labels), 1), np.uint8),
            labelled=np.zeros(len(example.labels), np.bool_),
          )
          asked = example.labelled
          question, messages = render.render(
            bank,
            prompt,
            shown,
            asked=asked[-1:] if prompt.asks == "last" else asked,
            first=0,
            order_seed=0,
            class_name=class_name,
          )
          # The example as an earlier turn, and asked about, are the same.
          turns = [m["content"] for m in messages if m["role"] != "system"]
          self.assertEqual(turns[2 * number], turns[-1])
          status, votes = parse_lib.parse(
            question, turns[2 * number + 1], "stop"
          )
          self.assertEqual(status, parse_lib.Status.VALID)
          for vote in votes:
            labels = set(example.classes_of(vote.utterance))
            if class_name:
              labels &= {class_name}
            self.assertEqual(set(vote.labels), labels)

  def test_no_example_stands_in_two_banks(self):
    texts = {
      name: {
        turn.text
        for prompt in bank_lib.load(name).prompts
        for example in prompt.examples
        for turn in example.utterances
      }
      for name in bank_lib.names()
    }
    for one, other in itertools.combinations(texts, 2):
      self.assertEmpty(texts[one] & texts[other])


if __name__ == "__main__":
  absltest.main()
