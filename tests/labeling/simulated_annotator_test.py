import collections
import re

import numpy as np
import openai
from absl.testing import absltest, parameterized

from labeling import simulated_annotator
from ppl_jax.data.readers import support
from tests.labeling.served import (
  CLASSES,
  EVERY,
  EVERY_MANY,
  LAST,
  LAST_MANY,
  OPTIONS,
  POSITIVE,
  ServerTestCase,
  body,
  dialogue,
  user,
)


class AnnotatorTest(ServerTestCase):
  def test_gold_in_every_form_without_noise(self):
    self.serve(noise=0)
    self.assertEqual(self.answer(user(1, LAST, end=2)), {"label": "ask"})
    self.assertEqual(self.answer(user(1, LAST_MANY)), {"labels": ["thank"]})
    self.assertEqual(
      self.answer(user(0, EVERY)),
      {
        "utterances": [
          {"number": 1, "words": "Is it late,", "label": "ask"},
          {"number": 2, "words": "Yes.", "label": "tell"},
        ]
      },
    )
    self.assertEqual(
      self.answer(user(1, EVERY_MANY, first=1, asked=2, end=3)),
      {
        "utterances": [
          {"number": 3, "words": "In the box", "labels": ["tell"]},
        ]
      },
    )
    # What an option is about may name others in quotes.
    before = 'Not "tell" but "thank"?\n- thank: no "ask"'
    self.assertEqual(
      self.answer(user(1, POSITIVE, before=before)),
      {
        "utterances": [
          {"number": 1, "words": "Hello."},
          {"number": 4, "words": "Thanks a lot."},
        ]
      },
    )
    after = f'Which of them is "ask", and not "tell"?\n\n{POSITIVE}'
    self.assertEqual(
      self.answer(user(0, after, before="Read this.")),
      {"utterances": [{"number": 1, "words": "Is it late,"}]},
    )

  def test_the_last_user_message_counts(self):
    self.serve(noise=0)
    messages = [
      {"role": "system", "content": "Label."},
      {"role": "user", "content": user(1, EVERY)},
      {"role": "assistant", "content": "{}"},
      {"role": "user", "content": [{"type": "text", "text": user(0, LAST)}]},
    ]
    reply = self.client.chat.completions.create(
      model="simulated", messages=messages
    )
    self.assertEqual(reply.choices[0].message.content, '{"label": "tell"}')

  def test_dialogues_with_the_same_lines(self):
    self.serve(noise=0)
    for number, label in ((1, "thank"), (2, "tell")):
      answer = self.answer(user(number, EVERY))
      self.assertEqual(answer["utterances"][0]["label"], label)
    answer = self.answer(user(3, EVERY, first=1))
    self.assertEqual([u["number"] for u in answer["utterances"]], [2, 3])

  def test_a_dialogue_without_a_line_of_its_own(self):
    corpus = [
      dialogue("first", ("Hm.", ["ask"]), ("So?", ["ask"])),
      dialogue("second", ("Oh.", ["ask"]), ("Yes.", ["ask"])),
      dialogue("mixed", ("Hm.", ["tell"]), ("Yes.", ["thank"])),
    ]
    self.serve(corpus, noise=0)
    answer = self.answer(user(2, EVERY, of=corpus))
    found = [entry["label"] for entry in answer["utterances"]]
    self.assertEqual(found, ["tell", "thank"])

  def test_none_and_several_classes(self):
    corpus = [dialogue("d", ("Oh?", ["ask", "thank"]), ("Well.", []))]
    offers = OPTIONS + "\n- nothing: of these"
    self.serve(corpus, noise=0, task="multi_label", none_label="nothing")
    for before, form, said in (
      (offers, EVERY_MANY, [["thank", "ask"], []]),
      (offers, EVERY, ["thank", "nothing"]),
      # Where none is not offered, something must be said.
      (OPTIONS, EVERY_MANY, [["thank", "ask"], ["thank"]]),
      (OPTIONS, EVERY, ["thank", "thank"]),
    ):
      with self.subTest(f"{form} {before}"):
        answer = self.answer(user(0, form, before=before, of=corpus))
        found = [u.get("label", u.get("labels")) for u in answer["utterances"]]
        self.assertEqual(found, said)
    text = user(0, POSITIVE, before='Only "thank".', of=corpus)
    self.assertEqual(
      [u["number"] for u in self.answer(text)["utterances"]], [1]
    )

  def test_any_option_without_gold(self):
    self.serve()
    reply = self.ask(user(4, LAST), n=60)
    said = collections.Counter(c.message.content for c in reply.choices)
    self.assertLen(said, len(CLASSES))
    self.assertGreater(min(said.values()), 8)

  def test_temperature_zero_and_seeds(self):
    said = {}
    for seed in (1, 1, 2):
      self.serve(seed=seed, noise=3)
      for temperature in (0, 1):
        replies = [
          self.ask(user(1, EVERY), n=20, temperature=temperature)
          for _ in range(2)
        ]
        texts = [[c.message.content for c in r.choices] for r in replies]
        same = said.setdefault((seed, temperature), texts)
        self.assertEqual(texts, same)  # whichever server gives them
    for seed in (1, 2):
      self.assertLen({t for r in said[seed, 0] for t in r}, 1)
      self.assertGreater(len(set(said[seed, 1][0])), 1)
      self.assertNotEqual(*said[seed, 1])
    self.assertNotEqual(said[1, 1], said[2, 1])

  def test_error_model_is_that_of_the_simulated_votes(self):
    options = {"train": 150, "validation": 0, "test": 0}
    corpus = list(support.read(None, "train", support.CLASSES, options))
    annotator = simulated_annotator.Annotator(
      corpus, support.CLASSES, "none", "single_label"
    )
    before = "\n".join(f"- {name}" for name in (*support.CLASSES, "none"))
    theirs, ours = (collections.defaultdict(list) for _ in range(2))
    for vote in support.votes(corpus, support.CLASSES, annotators=2):
      theirs[vote["dialogue_id"], vote["utterance"]].append(vote["label"])
    rng = np.random.default_rng(0)
    for d in range(len(corpus)):
      asked = annotator.read(body(user(d, EVERY, before=before, of=corpus)))
      for _ in range(2):
        said = annotator.answer(asked, rng, seed=0, noise=1)["utterances"]
        for i, entry in enumerate(said):
          ours[corpus[d].dialogue_id, i].append(entry["label"])
    gold = {
      (d.dialogue_id, i): support.CLASSES[d.gold[i].argmax()]
      for d in corpus
      for i in range(len(d.texts))
    }

    def measure(votes):
      pairs = [(*v, gold[key]) for key, v in votes.items() if None not in v]
      right = np.mean([a == g for a, _, g in pairs])
      both_wrong = np.mean([a == b != g for a, b, g in pairs])
      return right, both_wrong

    self.assertGreater(measure(theirs)[1], 0.1)  # they err together
    np.testing.assert_allclose(measure(ours), measure(theirs), atol=0.05)

  def test_a_rewording(self):
    self.serve()
    text = (
      'New words?\n<template>\nOld: $dialogue\n</template>\n{"template": ""}'
    )
    template = self.answer(text)["template"]
    self.assertEndsWith(template, "\n\nOld: $dialogue")

  @parameterized.parameters(
    ("Hello?", "must have a <dialogue> block"),
    (user(1, "Say it."), "example of an answer"),
    (user(1, LAST, before="- what: not a class"), "must list labels"),
    (user(1, POSITIVE, before='Which is "it"?'), "name it in double quotes"),
    (user(1, EVERY).replace("[2]", "[3]"), "one of the dataset"),
    (user(1, EVERY).replace("[2]", "2."), "must read '[number] speaker: text'"),
    (user(1, EVERY, asked=4), "must have lines to label"),
  )
  def test_unreadable(self, text, message):
    self.serve()
    with self.assertRaisesRegex(openai.BadRequestError, re.escape(message)):
      self.ask(text)
    self.assertEqual(self.server.log[0]["status"], 400)


if __name__ == "__main__":
  absltest.main()
