"""A corpus, requests about it, and a server that answers them."""

import dataclasses
import json

import numpy as np
import openai
from absl.testing import parameterized

from labeling.simulated_server import SimulatedServer
from ppl_jax.data import dialogues

CLASSES = ("ask", "tell", "thank")
LAST = '{"label": "..."}'
LAST_MANY = '{"labels": ["..."]}'
EVERY = '{"utterances": [{"number": 0, "words": "...", "label": "..."}]}'
EVERY_MANY = (
  '{"utterances": [{"number": 0, "words": "...", "labels": ["..."]}]}'
)
POSITIVE = '{"utterances": [{"number": 0, "words": "..."}]}'
OPTIONS = "- thank\n- ask: wants to know\n- tell: says: how it is"


def dialogue(dialogue_id, *turns, labelled=None):
  """Of (text, classes) turns."""
  gold = [[name in classes for name in CLASSES] for _, classes in turns]
  labelled = [True] * len(turns) if labelled is None else labelled
  return dialogues.Dialogue(
    dialogue_id=dialogue_id,
    speakers=tuple("AB"[i % 2] for i in range(len(turns))),
    texts=tuple(text for text, _ in turns),
    gold=np.array(gold, np.uint8),
    labelled=np.array(labelled, np.bool_),
  )


DIALOGUES = [
  dialogue("d0", ("Is it  late, or\nnot?", ["ask"]), ("Yes.", ["tell"])),
  dialogue(
    "d1",
    ("Hello.", ["thank"]),
    ("Where is it?", ["ask"]),
    ("In the box over there.", ["tell"]),
    ("Thanks a lot.", ["thank"]),
  ),
  # Begins like d1, and means something else by it.
  dialogue("d2", ("Hello.", ["tell"]), ("Good day.", ["thank"])),
  dialogue("all alike", *[("Yes.", ["tell"])] * 3),
  dialogue("no gold", *[("Well?", [])] * 2, labelled=[False, False]),
]


def user(number, form, first=0, asked=None, end=None, before=OPTIONS, of=None):
  """The user message about a dialogue."""
  d = (of or DIALOGUES)[number]
  lines = [
    f"[{i + 1}] {speaker}: {' '.join(text.split())}"
    for i, (speaker, text) in enumerate(zip(d.speakers, d.texts, strict=True))
  ][first:end]
  if asked is not None:
    lines.insert(asked - first, "---")
  shown = "\n".join(["<dialogue>", *lines, "</dialogue>"])
  return f"{before}\n\nHere it is:\n{shown}\n\nAnswer so:\n{form}\nNo more."


def body(text, **more):
  messages = [{"role": "user", "content": text}]
  return {"model": "simulated", "messages": messages, **more}


def schema(*labels):
  label = {"type": "string", "enum": list(labels)}
  return {
    "type": "json_schema",
    "json_schema": {
      "name": "answer",
      "strict": True,
      "schema": {"type": "object", "properties": {"label": label}},
    },
  }


class ServerTestCase(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls._client = cls.enterClassContext(
      openai.OpenAI(api_key="k", max_retries=0, timeout=20)
    )

  def serve(self, corpus=DIALOGUES, classes=CLASSES, **settings):
    """Starts a server, and a client for it."""
    self.server = self.enterContext(
      SimulatedServer(corpus, classes, **settings)
    )
    self.client = self._client.with_options(base_url=self.server.url)
    return self.server

  def change(self, **settings):
    """Changes settings of the server that runs."""
    service = self.server.service
    service.settings = dataclasses.replace(service.settings, **settings)

  def ask(self, text, **more):
    return self.client.chat.completions.create(**body(text, **more))

  def answer(self, text, **more):
    return json.loads(self.ask(text, **more).choices[0].message.content)
