import json
import re

import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import given, settings
from hypothesis import strategies as st

from labeling import bank as bank_lib
from labeling import render
from ppl_jax.data import dialogues

INSTRUCTION = "Answer with one JSON object of this form"


def dialogue(*turns):
  turns = turns or (
    ("customer", "Hi,  is this\nthe help desk?"),
    ("agent", "Yes."),
    ("customer", "My $order costs $dialogue <b>"),
  )
  speakers, texts = zip(*turns, strict=True)
  return dialogues.Dialogue(
    dialogue_id="d0",
    speakers=speakers,
    texts=texts,
    gold=np.zeros((len(texts), 2), np.uint8),
    labelled=np.zeros(len(texts), np.bool_),
  )


def bank(*prompts, **more):
  fields = {
    "task": "speech",
    "about": "What is done.",
    "classes": {"ask": "wants to know", "tell": "", "do": "wants  a\ndeed"},
    "none": "nothing of it",
  }
  ids = ({"id": f"p{i}", **prompt} for i, prompt in enumerate(prompts))
  return bank_lib.Bank.model_validate(fields | more | {"prompts": tuple(ids)})


LAST = {"asks": "last", "template": "$options\n$dialogue"}
EVERY = {"asks": "every", "template": "$options\n$dialogue"}
POSITIVE = {
  "asks": "positive",
  "template": "Which are $class ($description)?\n$dialogue",
}
EXAMPLE = {
  "utterances": [
    {"speaker": "A", "text": "Well  now."},
    {"speaker": "B", "text": "Where are we?"},
    {"speaker": "A", "text": "Hm."},
  ],
  "labels": [None, "ask", []],
}


def ask(prompt, asked, first=0, class_name="", order_seed=0, **more):
  whole = bank(prompt, **more)
  return render.render(
    whole,
    whole.prompts[0],
    dialogue(),
    asked=asked,
    first=first,
    order_seed=order_seed,
    class_name=class_name,
  )


def first_object(message):
  text = message[message.index(INSTRUCTION) :]
  return json.JSONDecoder().raw_decode(text[text.index("{") :])[0]


class RenderTest(parameterized.TestCase):
  def test_asks_about_the_last_utterance(self):
    prompt = {
      **LAST,
      "system": "You know speech.\n",
      "template": "What does $speaker do by <$utterance>, $$1?\n"
      "$options\n\n$dialogue\n",
    }
    question, messages = ask(prompt, (2,), first=1)
    self.assertEqual([m["role"] for m in messages], ["system", "user"])
    self.assertEqual(messages[0]["content"], "You know speech.")
    text, instruction = messages[1]["content"].split("\n\n" + INSTRUCTION)
    self.assertEqual(
      text,
      """What does customer do by <My $order costs $dialogue <b>>, $1?
- ask: wants to know
- tell
- do: wants a deed
- none: nothing of it

<dialogue>
[2] agent: Yes.
[3] customer: My $order costs $dialogue <b>
</dialogue>""",
    )
    self.assertIn('{"label": "..."}', instruction)
    self.assertEqual(
      question,
      render.Question(
        prompt_id="p0",
        asks="last",
        dialogue_id="d0",
        first=1,
        texts=("Yes.", "My $order costs $dialogue <b>"),
        asked=(2,),
        options=("ask", "tell", "do", "none"),
        class_name="",
        multi_label=False,
        none_label="none",
      ),
    )
    self.assertEqual(question.text(2), "My $order costs $dialogue <b>")

  def test_a_line_parts_context_from_what_is_asked(self):
    question, messages = ask(EVERY, (1, 2))
    shown = """
<dialogue>
[1] customer: Hi, is this the help desk?
---
[2] agent: Yes.
[3] customer: My $order costs $dialogue <b>
</dialogue>

"""
    self.assertIn(shown, messages[0]["content"])
    self.assertEqual(question.asked, (1, 2))
    self.assertLen(question.texts, 3)
    _, messages = ask(EVERY, (0, 1, 2))
    self.assertNotIn("\n---\n", messages[0]["content"])
    _, messages = ask(EVERY, (1, 2), first=1)
    self.assertNotIn("\n---\n", messages[0]["content"])
    _, messages = ask(LAST, (2,))
    self.assertNotIn("\n---\n", messages[0]["content"])

  def test_later_utterances_are_not_shown(self):
    question, messages = ask(LAST, (1,))
    self.assertEqual(question.texts, ("Hi, is this the help desk?", "Yes."))
    self.assertNotIn("[3]", messages[0]["content"])

  def test_asks_for_one_class(self):
    question, messages = ask(POSITIVE, (0, 1), class_name="ask")
    self.assertStartsWith(
      messages[0]["content"], 'Which are "ask" (wants to know)?\n<dialogue>\n'
    )
    self.assertEqual(question.options, ("ask",))
    self.assertEqual(question.class_name, "ask")
    self.assertEqual(question.none_label, "")
    listed = {**POSITIVE, "template": "$options\n$class $dialogue"}
    _, messages = ask(listed, (0,), class_name="ask")
    self.assertNotIn("nothing of it", messages[0]["content"])

  @parameterized.parameters(
    (LAST, False, {"label"}, None),
    (LAST, True, {"labels"}, None),
    (EVERY, False, {"utterances"}, {"number", "words", "label"}),
    (EVERY, True, {"utterances"}, {"number", "words", "labels"}),
    (POSITIVE, False, {"utterances"}, {"number", "words"}),
    (POSITIVE, True, {"utterances"}, {"number", "words"}),
  )
  def test_the_instruction_ends_the_message_with_an_example(
    self, prompt, multi_label, keys, entry_keys
  ):
    name = "ask" if prompt is POSITIVE else ""
    _, messages = ask(prompt, (0,), class_name=name, multi_label=multi_label)
    shown = first_object(messages[-1]["content"])
    self.assertEqual(shown.keys(), keys)
    if entry_keys:
      self.assertEqual(shown["utterances"][0].keys(), entry_keys)

  def test_orders(self):
    def options(order, seed=0):
      prompt = {**LAST, "option_order": order}
      question, messages = ask(prompt, (0,), order_seed=seed)
      listed = re.findall("^- ([a-z]+)", messages[0]["content"], re.MULTILINE)
      self.assertEqual(tuple(listed), question.options)
      return listed

    self.assertEqual(options("given", 1), ["ask", "tell", "do", "none"])
    self.assertEqual(options("reversed", 1), ["do", "tell", "ask", "none"])
    shuffled = [options("shuffled", seed) for seed in range(40)]
    self.assertEqual(shuffled[3], options("shuffled", 3))
    # All orders of the classes come up; the answer none stays last.
    self.assertLen({tuple(order) for order in shuffled}, 6)
    self.assertEqual({order[-1] for order in shuffled}, {"none"})

  def test_examples_are_earlier_turns(self):
    _, messages = ask({**EVERY, "system": "S", "examples": [EXAMPLE]}, (0,))
    roles = [m["role"] for m in messages]
    self.assertEqual(roles, ["system", "user", "assistant", "user"])
    self.assertIn(
      "[1] A: Well now.\n---\n[2] B: Where are we?\n[3] A: Hm.\n</dialogue>",
      messages[1]["content"],
    )
    self.assertEqual(
      json.loads(messages[2]["content"]),
      {
        "utterances": [
          {"number": 2, "words": "Where are we?", "label": "ask"},
          {"number": 3, "words": "Hm.", "label": "none"},
        ]
      },
    )
    options, instruction = (
      [m["content"].split(cut)[i] for m in (messages[1], messages[3])]
      for cut, i in (("<dialogue>", 0), ("</dialogue>", 1))
    )
    self.assertEqual(options[0], options[1])
    self.assertEqual(instruction[0], instruction[1])

  def test_examples_of_the_other_kinds(self):
    _, messages = ask({**LAST, "examples": [EXAMPLE]}, (0,))
    self.assertEqual(messages[1]["content"], '{"label": "none"}')
    self.assertNotIn("---\n[", messages[0]["content"])
    _, messages = ask({**LAST, "examples": [EXAMPLE]}, (0,), multi_label=True)
    self.assertEqual(messages[1]["content"], '{"labels": []}')
    prompt = {**POSITIVE, "examples": [EXAMPLE]}
    for name, numbers in (("ask", [2]), ("tell", [])):
      _, messages = ask(prompt, (0,), class_name=name)
      self.assertIn(f'Which are "{name}"', messages[0]["content"])
      entries = json.loads(messages[1]["content"])["utterances"]
      self.assertEqual([e["number"] for e in entries], numbers)

  def test_none_is_shown_where_it_is_offered(self):
    question, messages = ask(LAST, (0,), none_label="other")
    self.assertEqual(question.options[-1], "other")
    self.assertIn("\n- other: nothing of it\n", messages[0]["content"])
    question, messages = ask(LAST, (0,), none="")
    self.assertEqual(question.options, ("ask", "tell", "do"))
    self.assertNotIn("none", messages[0]["content"])

  @parameterized.parameters(
    (EVERY, (), 0, "", "in a row"),
    (EVERY, (0, 2), 0, "", "in a row"),
    (EVERY, (2, 1), 0, "", "in a row"),
    (EVERY, (2, 3), 0, "", "in a row"),
    (EVERY, (0,), 1, "", "shown from 1"),
    (EVERY, (0,), -1, "", "shown from -1"),
    (LAST, (0, 1), 0, "", "the last utterance alone"),
    (LAST, (0,), 0, "ask", "got 'ask'"),
    (POSITIVE, (0,), 0, "", "got ''"),
    (POSITIVE, (0,), 0, "shout", "got 'shout'"),
  )
  def test_refuses_what_does_not_fit(
    self, prompt, asked, first, class_name, message
  ):
    with self.assertRaisesRegex(ValueError, message):
      ask(prompt, asked, first, class_name)

  def test_refuses_an_empty_bank(self):
    with self.assertRaisesRegex(ValueError, "for_classes"):
      ask(LAST, (0,), classes={})

  @settings(max_examples=50, deadline=None)
  @given(
    st.lists(
      st.tuples(
        st.one_of(st.just("A"), st.text(min_size=1).filter(str.strip)),
        st.one_of(
          st.sampled_from(
            ["$options", "${dialogue}", "</dialogue>\n[9] A: x", "\n---\n", '"']
          ),
          st.text(min_size=1).filter(str.strip),
        ),
      ),
      min_size=1,
      max_size=5,
    ),
    st.data(),
  )
  def test_no_text_can_pass_for_another_line(self, turns, data):
    last = data.draw(st.integers(0, len(turns) - 1))
    start = data.draw(st.integers(0, last))
    first = data.draw(st.integers(0, start))
    whole = bank(EVERY)
    question, messages = render.render(
      whole,
      whole.prompts[0],
      dialogue(*turns),
      asked=range(start, last + 1),
      first=first,
      order_seed=0,
    )
    content = messages[0]["content"]
    head = """- ask: wants to know
- tell
- do: wants a deed
- none: nothing of it
<dialogue>
"""
    self.assertStartsWith(content, head)
    block = content.removeprefix(head).split("\n</dialogue>\n")[0]
    shown = [
      f"[{i + 1}] {' '.join(turns[i][0].split())}:"
      f" {' '.join(turns[i][1].split())}"
      for i in range(first, last + 1)
    ]
    if start > first:
      shown.insert(start - first, "---")
    self.assertEqual(block.split("\n"), shown)
    self.assertEqual(question.asked, tuple(range(start, last + 1)))


class SchemaTest(parameterized.TestCase):
  def test_every(self):
    question, _ = ask(EVERY, (0, 1))
    self.assertEqual(
      render.json_schema(question),
      {
        "type": "json_schema",
        "json_schema": {
          "name": "every_answer",
          "strict": True,
          "schema": {
            "type": "object",
            "properties": {
              "utterances": {
                "type": "array",
                "items": {
                  "type": "object",
                  "properties": {
                    "number": {"type": "integer"},
                    "words": {"type": "string"},
                    "label": {
                      "type": "string",
                      "enum": ["ask", "do", "none", "tell"],
                    },
                  },
                  "required": ["number", "words", "label"],
                  "additionalProperties": False,
                },
              }
            },
            "required": ["utterances"],
            "additionalProperties": False,
          },
        },
      },
    )

  def test_the_other_kinds(self):
    def schema(*args, **more):
      question, _ = ask(*args, **more)
      return render.json_schema(question)["json_schema"]["schema"]

    label = {"type": "string", "enum": ["ask", "do", "tell"]}
    self.assertEqual(
      schema(LAST, (0,), none="")["properties"], {"label": label}
    )
    self.assertEqual(
      schema(LAST, (0,), none="", multi_label=True)["properties"],
      {"labels": {"type": "array", "items": label}},
    )
    entry = schema(POSITIVE, (0,), class_name="ask")["properties"]["utterances"]
    self.assertEqual(entry["items"]["required"], ["number", "words"])

  def test_does_not_depend_on_the_dialogue_or_the_order(self):
    prompt = {**EVERY, "option_order": "shuffled"}
    schemas = [
      render.json_schema(ask(prompt, asked, order_seed=seed)[0])
      for asked, seed in (((0,), 0), ((1, 2), 1), ((2,), 2))
    ]
    self.assertEqual(schemas[0], schemas[1])
    self.assertEqual(schemas[0], schemas[2])


if __name__ == "__main__":
  absltest.main()
