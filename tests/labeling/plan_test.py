import dataclasses
import json

import numpy as np
from absl.testing import absltest

from configs import common
from labeling import bank as bank_lib
from labeling import plan as plan_lib
from labeling.settings import Settings
from ppl_jax.data import dialogues as dialogues_lib

CLASSES = ("ask", "tell", "bye")


def bank(*asks, order="given"):
  """A bank with a prompt for each thing to ask for."""
  placeholders = {"last": "$options", "every": "$options", "positive": "$class"}
  return bank_lib.for_classes(
    bank_lib.Bank(
      task="t",
      about="what an utterance does",
      prompts=tuple(
        bank_lib.Prompt(
          id=f"p{i}",
          asks=kind,
          template=f"Wording {i}. {placeholders[kind]} $dialogue",
          option_order=order,
        )
        for i, kind in enumerate(asks)
      ),
    ),
    CLASSES,
    "",
    "single_label",
  )


def settings(**values):
  """The defaults, with a model."""
  config = common.get_config()
  config.labeling.model = "m"
  return dataclasses.replace(Settings.from_config(config), **values)


def dialogue(length=5, name="d"):
  """A dialogue of so many utterances."""
  return dialogues_lib.Dialogue(
    name,
    ("A", "B") * (length // 2) + ("A",) * (length % 2),
    tuple(f"utterance number {i} of {name}" for i in range(length)),
    np.zeros((length, len(CLASSES)), np.uint8),
    np.zeros(length, bool),
  )


def keys(plan, *dialogues):
  """Names of all answers that are asked for."""
  return [
    (r.key, s) for d in dialogues for r in plan.requests(d) for s in r.samples
  ]


class PlanTest(absltest.TestCase):
  def test_every_utterance_is_asked_about_n_times(self):
    for asks in ("last", "every", "positive"):
      plan = plan_lib.Plan(
        settings(votes=3, utterances_per_request=2, context_turns=1), bank(asks)
      )
      votes = np.zeros((5, 3), int)
      for request in plan.requests(dialogue()):
        q = request.question
        column = [CLASSES.index(q.class_name)] if q.class_name else [0, 1, 2]
        for u in q.asked:
          votes[u, column] += len(request.samples)
        self.assertEqual(q.first, max(0, q.asked[0] - 1))
      np.testing.assert_array_equal(votes, 3)
      self.assertLen(keys(plan, dialogue()), plan.answers("d", 5))

  def test_answers_have_distinct_names(self):
    plan = plan_lib.Plan(settings(votes=4), bank("last", "every", "positive"))
    names = keys(plan, dialogue(), dialogue(name="e"))
    self.assertLen(set(names), len(names))

  def test_more_votes_keep_those_that_were_there(self):
    prompts = bank("last", "every", "every")
    few = keys(plan_lib.Plan(settings(votes=3), prompts), dialogue())
    many = keys(plan_lib.Plan(settings(votes=7), prompts), dialogue())
    self.assertContainsSubset(few, many)

  def test_a_new_prompt_takes_its_share_and_no_more(self):
    old = plan_lib.Plan(settings(votes=300), bank("every", "every"))
    new = plan_lib.Plan(settings(votes=300), bank("every", "every", "every"))
    before, after = keys(old, dialogue()), set(keys(new, dialogue()))
    kept = np.mean([key in after for key in before])
    self.assertBetween(kept, 0.55, 0.78)  # two thirds
    self.assertBetween(len(new.draws("d")["p2"]) / 300, 0.22, 0.45)

  def test_shuffled_options_differ_by_sample(self):
    plan = plan_lib.Plan(settings(votes=20), bank("every", order="shuffled"))
    orders = [r.question.options for r in plan.requests(dialogue())]
    self.assertLen(orders, 20)
    self.assertGreater(len(set(orders)), 2)

  def test_key_is_that_of_endpoint_and_request(self):
    base = settings(votes=1)
    prompts = bank("every")
    (first,) = plan_lib.Plan(base, prompts).requests(dialogue())
    for change in (
      {"endpoint": "http://other/v1"},
      {"model": "n"},
      {"temperature": 0.5},
      {"top_p": 0.5},
      {"top_k": 3},
      {"max_tokens": 7},
      {"extra_body": {"seed": 1}},
    ):
      plan = plan_lib.Plan(dataclasses.replace(base, **change), prompts)
      (other,) = plan.requests(dialogue())
      self.assertNotEqual(first.key, other.key, change)
    for change in ({"concurrency": 3}, {"structured": "never"}):
      plan = plan_lib.Plan(dataclasses.replace(base, **change), prompts)
      (other,) = plan.requests(dialogue())
      self.assertEqual(first.key, other.key, change)

  def test_top_k_is_sent_as_vllm_takes_it(self):
    (request,) = plan_lib.Plan(
      settings(votes=1, top_k=5), bank("every")
    ).requests(dialogue())
    self.assertEqual(json.loads(json.dumps(request.body))["top_k"], 5)

  def test_bound_is_above_what_any_tokenizer_gives(self):
    (request,) = plan_lib.Plan(settings(votes=1), bank("every")).requests(
      dialogue()
    )
    size = len(json.dumps(request.body["messages"]).encode())
    self.assertGreater(request.prompt_tokens_bound, 0.9 * size)
    self.assertLess(request.tokens_estimate[0], size)

  def test_shards_part_the_dialogues(self):
    names = [f"d{i}" for i in range(300)]
    shards = [
      {n for n in names if plan_lib.in_shard(n, (i, 3))} for i in range(3)
    ]
    self.assertEqual(sorted(n for s in shards for n in s), sorted(names))
    for shard in shards:
      self.assertBetween(len(shard), 70, 130)

  def test_unknown_prompt(self):
    with self.assertRaisesRegex(ValueError, r"got \['q'\]. It has \['p0'\]"):
      plan_lib.Plan(settings(prompts=("q",)), bank("every"))


class SettingsTest(absltest.TestCase):
  def test_refuses_what_cannot_be(self):
    for name, value, message in (
      ("model", "", "labeling.model must be given"),
      ("votes", 0, "votes must be at least 1, got 0"),
      ("structured", "yes", "must be 'auto' or 'never', got 'yes'"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        settings(**{name: value})


if __name__ == "__main__":
  absltest.main()
