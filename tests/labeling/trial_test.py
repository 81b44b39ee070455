import dataclasses
import json
import pathlib
import shlex
import sys
import tempfile

import numpy as np
from absl.testing import absltest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import asking
import commands

from labeling import bank as bank_lib
from labeling.prompts import improve, trial
from labeling.store import Store


class TrialTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.votes = self.folder / "votes.sqlite"

  def judge(self, url, prompt_id, **values):
    settings = asking.settings(
      url, prompts=(prompt_id,), price_input=1.0, price_output=4.0, **values
    )
    asking.label(self.votes, settings)
    store = Store(self.votes)
    try:
      return trial.judge(
        asking.plan(settings),
        store,
        asking.dialogues(6),
        asking.CLASSES,
        "single_label",
      )
    finally:
      store.close()

  def test_an_annotator_without_errors(self):
    with asking.server(noise=0.0) as server:
      for prompt in bank_lib.load("support").prompts:
        one = self.judge(server.url, prompt.id, votes=2)
        self.assertEqual(one.accuracy, 1.0)
        self.assertEqual(one.ece, 0.0)
        self.assertEqual(one.unusable, 0.0)
        self.assertEmpty(one.mistakes)
        kappa = one.agreement[~np.isnan(one.agreement)]
        np.testing.assert_allclose(kappa, 1.0)
        self.assertGreater(one.cost, 0.0)
      paid = sum(record["cost"] for record in server.log)
      store = Store(self.votes)
      self.assertAlmostEqual(store.spent(), paid)
      store.close()

  def test_errors_and_unusable_answers_show(self):
    with asking.server(noise=2.0, rates={"cut": 0.2}) as server:
      one = self.judge(server.url, "plain", votes=5)
    self.assertBetween(one.accuracy, 0.2, 0.95)
    self.assertBetween(one.unusable, 0.1, 0.3)
    wrong = round((1 - one.accuracy) * one.utterances)
    self.assertLen(one.mistakes, wrong)
    for dialogue, utterance, share_C in one.mistakes:
      gold = dialogue.gold[utterance].argmax()
      self.assertNotEqual(share_C.argmax(), gold)
    table = trial.table([one], asking.CLASSES)
    self.assertIn(f"{one.accuracy:.1%}", table)

  def test_command_scores_and_improves(self):
    small = (
      "--config=configs/quickstart.py",
      "--config.dataset.options.train=6",
      "--config.dataset.options.validation=1",
      "--config.dataset.options.test=1",
      "--config.labeling.model=simulated",
      "--config.labeling.votes=1",
      "--config.labeling.price_input=1",
      "--config.labeling.price_output=4",
      "--gold_dialogues=4",
      f"--votes={self.votes}",
    )
    module = [sys.executable, "-m", "labeling.prompts"]
    with asking.server(json_schema=False) as server:
      url = f"--config.labeling.endpoint={server.url}"
      figures = self.folder / "figures.jsonl"
      status, output = commands.run(
        [*module, "score", *small, url, f"--output={figures}"]
      )
      self.assertEqual(status, 0, output)
      for line in figures.read_text().splitlines():
        self.assertIn("closing", json.loads(line)["agreement"])
      prompts = bank_lib.load("support").prompts
      for prompt in prompts:
        self.assertRegex(output, rf"{prompt.id} +\d+\.\d%")
      new = self.folder / "bank.yaml"
      status, output = commands.run(
        [*module, "improve", *small, url, f"--output={new}", "--keep=8"]
      )
      self.assertEqual(status, 0, output)
      bank = bank_lib.load(new)
      self.assertLen(bank.prompts, 8)
      origins = [prompt.origin for prompt in bank.prompts]
      self.assertTrue(any("reworded from" in o for o in origins), origins)
      # Given again it takes the same wordings out of the store.
      before = len(server.log)
      again = self.folder / "again.yaml"
      status, output = commands.run(
        [*module, "improve", *small, url, f"--output={again}", "--keep=8"]
      )
      self.assertEqual(status, 0, output)
      self.assertEqual(again.read_text(), new.read_text())
      self.assertLen(server.log, before)
      # Improving what was improved finds names of its own.
      more = (f"--bank={new}", f"--output={self.folder / 'more.yaml'}")
      status, output = commands.run(
        [*module, "improve", *small, url, *more, "--keep=20"]
      )
      self.assertEqual(status, 0, output)
      bank_lib.load(self.folder / "more.yaml")
      paid = sum(record["cost"] for record in server.log)
      store = Store(self.votes)
      self.assertAlmostEqual(store.spent(), paid)
      store.close()
      before = len(server.log)
      status, output = commands.run(
        [*module, "score", *small, url, "--max_cost=0.0001"]
      )
      self.assertEqual(status, 0, output)  # all is there already
      self.assertLen(server.log, before)

  def test_list_and_show(self):
    module = [sys.executable, "-m", "labeling.prompts"]
    status, output = commands.run([*module, "list"])
    self.assertEqual(status, 0, output)
    for name in bank_lib.names():
      self.assertIn(f"{name}: ", output)
    status, output = commands.run(
      [*module, "show", "--config=configs/quickstart.py", "--prompt=plain"]
    )
    self.assertEqual(status, 0, output)
    self.assertIn("<dialogue>\n[1] ", output)
    # Whoever reads may leave early.
    show = shlex.join([*module, "show", "--config=configs/quickstart.py"])
    status, output = commands.run(["bash", "-c", f"{show} | head -n 1"])
    self.assertEqual(status, 0, output)
    self.assertEqual(output, "=== plain\n")
    status, output = commands.run([*module, "lift"])
    self.assertEqual(status, 1)
    self.assertIn("Give one of list, show, score, improve", output)


class ImproveTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.bank = bank_lib.load("support")
    self.prompt = self.bank.prompts[0]

  def read(self, text):
    return improve.read(
      self.bank, self.prompt, text, prompt_id="new", origin="here"
    )

  def test_reads_a_template(self):
    template = f"Be careful. {self.prompt.template}"
    for wrap in ("{}", "```json\n{}\n```"):
      new = self.read(wrap.format(json.dumps({"template": template})))
      self.assertEqual(new.template, template)
      self.assertEqual((new.id, new.origin), ("new", "here"))

  def test_refuses_what_is_no_template(self):
    for text in (
      None,
      "",
      "Here you are!",
      '{"template": 3}',
      '{"template": "no placeholders"}',
      '{"template": "$dialogue $options $unknown"}',
      json.dumps({"template": self.prompt.template}),
    ):
      with self.assertRaises(ValueError):
        self.read(text)

  def test_asks_with_the_mistakes_in_sight(self):
    dialogue = asking.dialogues(1)[0]
    nothing = np.zeros(len(asking.CLASSES))
    one = trial.Trial("plain", 1, 0, 1, 0.0, nothing, 0.0, 0.0, ())
    one = dataclasses.replace(one, mistakes=((dialogue, 2, nothing),))
    text = improve.messages(self.bank, self.prompt, one)[-1]["content"]
    self.assertIn(dialogue.texts[2], text)
    self.assertIn("$dialogue", text)
    self.assertIn(f"<template>\n{self.prompt.template.strip()}", text)


if __name__ == "__main__":
  absltest.main()
