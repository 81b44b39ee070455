import collections
import functools
import itertools
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues, vote_columns
from ppl_jax.data import support_templates as words
from ppl_jax.data import votes as votes_lib
from ppl_jax.data.readers import support


@functools.cache
def _split(split, seed=0):
  options = {"seed": seed}
  return tuple(support.read(None, split, support.CLASSES, options))


def _labels(dialogue):
  return [support.CLASSES[c] for c in dialogue.gold.argmax(axis=1)]


def _votes(split="train", count=None, **settings):
  chosen = _split(split)[:count]
  return list(support.votes(chosen, support.CLASSES, **settings))


def _entries(cell):
  return [" ".join(entry.split()).casefold() for entry in cell.split("|")]


def _tables():
  """From a list's name to its (train, validation, test) entries."""
  for name, cells in words.TEMPLATES.items():
    yield f"template {name}", cells
  for kind, cells in words.VALUES.items():
    yield f"value {kind}", cells
  for domain, lists in words.DOMAINS.items():
    for name, cells in lists.items():
      yield f"{domain} {name}", cells


def _contextual_texts(part):
  """From the texts whose class their context decides to their templates."""
  values = [v for cells in words.VALUES.values() for v in _entries(cells[part])]
  return {
    f"{opener} {template.format(value=value)}".strip().casefold(): template
    for group in ("yes", "no", "no_thanks", "thanks", "value")
    for template in _entries(words.TEMPLATES[group][part])
    for opener in (*words.ANSWER_OPENERS, "")
    for value in (values if group == "value" else [""])
  }


class CorpusTest(parameterized.TestCase):
  def test_same_options_same_dialogues(self):
    again = support.read(None, "test", support.CLASSES, {"seed": 0})
    for one, other in zip(_split("test"), again, strict=True):
      self.assertEqual(one.text_sha256(), other.text_sha256())
      np.testing.assert_array_equal(one.gold, other.gold)

  def test_another_seed_other_dialogues(self):
    hashes = {d.text_sha256() for d in _split("train")}
    other = {d.text_sha256() for d in _split("train", seed=1)}
    self.assertEmpty(hashes & other)

  def test_a_dialogue_does_not_depend_on_how_many_there_are(self):
    few = list(support.read(None, "train", support.CLASSES, {"train": 7}))
    self.assertEqual(
      [(d.dialogue_id, d.text_sha256()) for d in few],
      [(d.dialogue_id, d.text_sha256()) for d in _split("train")[:7]],
    )

  @parameterized.parameters(
    ("train", 500, 3500), ("validation", 200, 1000), ("test", 200, 1000)
  )
  def test_sizes(self, split, count, utterances):
    lengths = [len(d.texts) for d in _split(split)]
    self.assertLen(lengths, count)
    self.assertGreaterEqual(sum(lengths), utterances)
    self.assertBetween(min(lengths), 6, 10)
    self.assertBetween(max(lengths), 6, 10)

  @parameterized.parameters(*words.PARTS)
  def test_every_utterance_has_one_class_and_every_class_comes_up(self, split):
    gold = np.concatenate([d.gold for d in _split(split)])
    np.testing.assert_array_equal(gold.sum(axis=1), 1)
    self.assertGreater(gold.mean(axis=0).min(), 0.015)
    self.assertLess(gold.mean(axis=0).max(), 0.25)
    self.assertTrue(all(d.labelled.all() for d in _split(split)))
    speakers = {s for d in _split(split) for s in d.speakers}
    self.assertEqual(speakers, {"agent", "customer"})

  @parameterized.parameters(*words.PARTS)
  def test_texts_are_whole_sentences(self, split):
    for text in itertools.chain.from_iterable(d.texts for d in _split(split)):
      self.assertRegex(text, r"^[A-Z0-9]")
      self.assertRegex(text, r"[.?]$")
      self.assertNotRegex(text, r"[{}|:]|  ")
      self.assertLessEqual(len(text.split()), 25)

  def test_parts_have_no_template_phrase_or_value_in_common(self):
    for name, cells in _tables():
      entries = [entry for cell in cells for entry in _entries(cell)]
      self.assertLen(cells, len(words.PARTS), name)
      self.assertLen(set(entries), len(entries), name)
      self.assertNotIn("", entries, name)

  def test_splits_have_no_text_in_common(self):
    texts = [{t for d in _split(s) for t in d.texts} for s in words.PARTS]
    for one, other in itertools.combinations(texts, 2):
      self.assertEmpty(one & other)

  @parameterized.parameters(*words.PARTS)
  def test_a_third_of_the_utterances_need_their_context(self, split):
    templates = _contextual_texts(words.PARTS.index(split))
    classes = collections.defaultdict(collections.Counter)
    total = 0
    for dialogue in _split(split):
      for text, label in zip(dialogue.texts, _labels(dialogue), strict=True):
        total += 1
        template = templates.get(text.casefold())
        if template is not None:
          classes[template][label] += 1
    count = sum(sum(c.values()) for c in classes.values())
    self.assertBetween(count / total, 0.25, 0.38)
    # Who knows the template but not the context is right this often at best.
    best = sum(max(c.values()) for c in classes.values())
    self.assertLess(best / count, 0.7)

  def test_templates_of_all_classes(self):
    named = {name.split(".")[0] for name in words.TEMPLATES if "." in name}
    alone = {"check", "offer", "problem", "request", "confirm", "deny"}
    self.assertEqual(named | alone, set(support.CLASSES))

  def test_a_source_is_refused(self):
    self.assertEqual(support.source_files(None, {}), [])
    with self.assertRaisesRegex(ValueError, "reads no files, got 'folder'"):
      support.source_files(pathlib.Path("folder"), {})

  @parameterized.parameters(
    {"sede": 1}, {"train": -1}, {"test": 1.5}, {"seed": "0"}, {"seed": True}
  )
  def test_options_are_checked(self, **options):
    with self.assertRaisesRegex(ValueError, "whole number >= 0; got"):
      support.source_files(None, options)

  def test_loads_as_a_dataset(self):
    options = {"train": 3, "validation": 2, "test": 1}
    with tempfile.TemporaryDirectory() as folder:
      data = dialogues.load("support", data_dir=folder, options=options)
      self.assertEqual(data.classes, support.CLASSES)
      self.assertEqual({k: len(v) for k, v in data.splits.items()}, options)
      for got, want in zip(data.splits["train"], _split("train"), strict=False):
        self.assertEqual(got.text_sha256(), want.text_sha256())
        np.testing.assert_array_equal(got.gold, want.gold)


class VotesTest(absltest.TestCase):
  def test_one_line_an_utterance_and_annotator(self):
    lines = _votes(count=4, annotators=3)
    keys = {(v["dialogue_id"], v["utterance"], v["annotator"]) for v in lines}
    want = {
      (d.dialogue_id, i, annotator)
      for d in _split("train")[:4]
      for i in range(len(d.texts))
      for annotator in ("a1", "a2", "a3")
    }
    self.assertEqual(keys, want)
    self.assertLen(lines, len(want))

  def test_votes_depend_on_neither_other_dialogues_nor_annotators(self):
    few = [v for v in _votes(count=9) if v["dialogue_id"] == "train-8"]
    first = [v for v in few if v["annotator"] in ("a1", "a2")]
    alone = support.votes(
      [_split("train")[8]], support.CLASSES, annotators=2, seed=0
    )
    self.assertEqual(list(alone), first)
    self.assertNotEqual(_votes(count=9, seed=1), _votes(count=9))

  def test_the_teacher_is_70_to_85_percent_right(self):
    builder = vote_columns.Builder(_split("train"), support.CLASSES, "none")
    builder.source("votes")
    lines = _votes()
    for number, vote in enumerate(lines, start=1):
      votes_lib.add_vote(builder, number, vote, "none")
    scores = votes_lib.to_scores(builder.build(), dataset="", split="train")
    right = total = 0
    for dialogue in _split("train"):
      score_LxC = scores.rows[dialogue.dialogue_id].score
      scored_L = ~np.isnan(score_LxC).any(axis=1)
      best_L = score_LxC[scored_L].argmax(axis=1)
      right += (best_L == dialogue.gold[scored_L].argmax(axis=1)).sum()
      total += scored_L.sum()
    self.assertBetween(right / total, 0.70, 0.85)
    labels = [line["label"] for line in lines]
    self.assertBetween(labels.count(None) / len(labels), 0.02, 0.05)
    self.assertBetween(labels.count("none") / len(labels), 0.001, 0.05)

  def test_without_noise_every_vote_is_right(self):
    exact = {"dialogue_noise": 0, "utterance_noise": 0, "annotator_noise": 0}
    lines = _votes(count=20, unusable=0, **exact)
    gold = {d.dialogue_id: _labels(d) for d in _split("train")[:20]}
    for vote in lines:
      want = gold[vote["dialogue_id"]][vote["utterance"]]
      self.assertEqual(vote["label"], want)

  def test_the_shift_of_a_dialogue_errs_in_one_direction(self):
    # A shift alone: whatever is wrong was taken for the dialogue's favourite,
    # and a fully shared shift is the same for all annotators.
    lines = _votes(
      count=100,
      unusable=0,
      dialogue_noise=0.5,
      shared=1.0,
      utterance_noise=0,
      annotator_noise=0,
    )
    gold = {d.dialogue_id: _labels(d) for d in _split("train")[:100]}
    wrong = collections.defaultdict(set)
    for vote in lines:
      if vote["label"] != gold[vote["dialogue_id"]][vote["utterance"]]:
        wrong[vote["dialogue_id"]].add(vote["label"])
    self.assertGreater(len(wrong), 30)
    self.assertEqual({len(labels) for labels in wrong.values()}, {1})

  def test_annotators_share_their_errors(self):
    def agreement(shared):
      # Share of utterances on which the first two annotators are both wrong,
      # in the same way.
      lines = _votes(annotators=2, unusable=0, shared=shared, utterance_noise=0)
      gold = {d.dialogue_id: _labels(d) for d in _split("train")}
      seen = {}
      same = 0
      for v in lines:
        place = v["dialogue_id"], v["utterance"]
        right = gold[v["dialogue_id"]][v["utterance"]]
        same += v["label"] != right and seen.get(place) == v["label"]
        seen[place] = v["label"]
      return same / len(seen)

    self.assertGreater(agreement(1.0), 2 * agreement(0.0))

  def test_utterances_without_gold_are_refused(self):
    dialogue = dialogues.Dialogue(
      dialogue_id="d",
      speakers=("agent",),
      texts=("Good day.",),
      gold=np.zeros((1, 2), np.uint8),
      labelled=np.zeros(1, np.bool_),
    )
    with self.assertRaisesRegex(ValueError, "'d' with 1 unlabelled"):
      list(support.votes([dialogue], ("a", "b")))

  def test_none_may_not_be_a_class(self):
    with self.assertRaisesRegex(ValueError, "'none' must not be a class"):
      list(support.votes([], ("a", "none")))


if __name__ == "__main__":
  absltest.main()
