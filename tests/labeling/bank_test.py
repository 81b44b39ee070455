import pathlib
import re
import tempfile

import yaml
from absl.testing import absltest, parameterized

from labeling import bank as bank_lib

# What a small bank holds; tests change one thing of it.
MOOD = {
  "task": "mood",
  "about": "How a speaker feels.",
  "classes": {"happy": "pleased", "sad": "not pleased"},
  "none": "neither",
  "prompts": [
    {"id": "short", "asks": "last", "template": "$options\n$dialogue"},
    {
      "id": "all",
      "asks": "every",
      "template": "$options\n$dialogue",
      "examples": [
        {
          "utterances": [
            {"speaker": "Ann", "text": "It rains again."},
            {"speaker": "Ben", "text": "I love rain!"},
          ],
          "labels": [None, "happy"],
        }
      ],
    },
    {"id": "which", "asks": "positive", "template": "$class $dialogue"},
  ],
}


def mood(**changes):
  return {**MOOD, **changes}


def prompt(**changes):
  return mood(prompts=[{**MOOD["prompts"][1], **changes}])


def labels(*labels, **changes):
  turns = [{"speaker": "Ann", "text": "Hm."}] * len(labels)
  example = {"utterances": turns, "labels": list(labels)}
  return {**prompt(examples=[example]), **changes}


class BankTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.path = folder / "mood.yaml"

  def _load(self, data):
    text = (
      data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False)
    )
    self.path.write_text(text, "utf-8")
    return bank_lib.load(self.path)

  def test_reads_a_bank(self):
    bank = self._load(mood())
    self.assertEqual(bank.task, "mood")
    self.assertEqual(list(bank.classes), ["happy", "sad"])
    self.assertEqual([p.id for p in bank.prompts], ["short", "all", "which"])
    example = bank.prompts[1].examples[0]
    self.assertEqual(example.labelled, (1,))
    self.assertEqual(example.classes_of(1), ("happy",))
    self.assertEqual(bank.prompts[0].option_order, "given")
    self.assertEqual(bank.prompts[0].origin, "written")
    with self.assertRaises(ValueError):
      bank.task = "other"

  def test_reads_the_bank_of_the_documentation(self):
    text = bank_lib.__doc__.split("\n\n")[2]
    bank = self._load("\n".join(line[4:] for line in text.split("\n")))
    self.assertEqual(bank.prompts[0].examples[0].labels, (None, "happy"))

  @parameterized.named_parameters(
    ("no_key", {"about": "x"}, "task: Field required, got none: add the key"),
    (
      "unknown_key",
      prompt(tempalte="x"),
      "prompt 'all', tempalte: .*did you mean 'template'.*take it out",
    ),
    ("no_template", prompt(template=""), "prompt 'all', template: a text must"),
    (
      "no_dialogue",
      prompt(template="$options"),
      r"prompt 'all': .*must have \$dialogue, got only \$options",
    ),
    (
      "no_options",
      prompt(template="$dialogue"),
      r"prompt 'all': .*must have \$options",
    ),
    (
      "no_class",
      prompt(asks="positive", template="$dialogue", examples=[]),
      r"prompt 'all': .*must have \$class, got only \$dialogue",
    ),
    (
      "unknown_placeholder",
      prompt(template="$dialogue $options ${utterance}"),
      r"prompt 'all': .*'every' may have \$dialogue, \$options; got"
      r" \$utterance: .*\$\$",
    ),
    (
      "dollar",
      prompt(template="$dialogue $options $5"),
      r"prompt 'all': .*write \$\$",
    ),
    (
      "placeholder_in_system",
      prompt(system="Labels: $options"),
      r"prompt 'all': .*got \$options: move it",
    ),
    ("asks", prompt(asks="first"), "prompt 'all', asks: .*got 'first'"),
    ("order", prompt(option_order="random"), "prompt 'all', option_order: "),
    ("id", prompt(id="two words"), "prompt 'two words', id: "),
    ("no_prompts", mood(prompts=[]), "prompts: .*got ()"),
    ("prompt_is_text", mood(prompts=["x"]), "prompts, entry 1: .*got 'x'"),
    (
      "same_id",
      mood(prompts=[MOOD["prompts"][0], {**MOOD["prompts"][1], "id": "short"}]),
      "got 'short' twice: rename one",
    ),
    (
      "same_prompt",
      mood(prompts=[MOOD["prompts"][0], {**MOOD["prompts"][0], "id": "b"}]),
      "got 'short' and 'b' alike",
    ),
    ("class_is_none", mood(classes={"none": "x"}), "must not be a class"),
    (
      "single_class",
      mood(classes={"happy": ""}, none=""),
      "prompt 'short': with a single class",
    ),
    ("blank_class", mood(classes={" happy": "x"}), "classes.*got ' happy'"),
    (
      "fewer_labels",
      prompt(
        examples=[{**MOOD["prompts"][1]["examples"][0], "labels": ["sad"]}]
      ),
      "examples, entry 1: .*got 2 utterances and 1 labels",
    ),
    ("last_label", labels("sad", None), "prompt 'all'.*last utterance must"),
    (
      "label_between",
      labels("sad", None, "sad"),
      "prompt 'all'.*must be those of its last utterances",
    ),
    (
      "no_such_class",
      labels("bad"),
      r"prompt 'all', example 1: labels must be of \['happy', 'sad'\].*'bad'",
    ),
    ("label_twice", labels(["sad", "sad"], multi_label=True), "each once"),
    ("two_labels", labels(["sad", "happy"]), "one class, got"),
    (
      "none_not_offered",
      labels([], none=""),
      r"the answer none must be offered.*got \[\]",
    ),
    ("not_yaml", "task: [", "must be YAML.*line 1"),
    ("impossible_date", "task: 2024-13-45", "must be YAML"),
    ("key_twice", "task: a\ntask: b", "the key 'task' twice.*line 2"),
    ("list_key", "? [a]\n: b", "must be YAML"),
    ("empty", "", "got None"),
    ("label_is_no", labels(False), "labels, entry 1: .*got False.*in quotes"),
    (
      "class_is_no",
      mood(classes={False: "x"}),
      "classes, False: .*got False.*quotes",
    ),
    ("not_utf8", "task: \udcff", "must be YAML"),
  )
  def test_refuses_a_file_and_names_the_place(self, data, message):
    text = (
      data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False)
    )
    self.path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with self.assertRaisesRegex(
      ValueError, f"(?s)^{re.escape(str(self.path))}[:,] .*{message}"
    ):
      bank_lib.load(self.path)

  def test_refuses_what_is_no_bank(self):
    with self.assertRaisesRegex(ValueError, "got 'moood'"):
      bank_lib.load("moood")
    with self.assertRaisesRegex(ValueError, f"got '{self.path.parent}'"):
      bank_lib.load(self.path.parent)

  def test_takes_the_order_of_the_dataset(self):
    bank = bank_lib.for_classes(
      self._load(mood()), ["sad", "happy"], "none", "single_label"
    )
    self.assertEqual(
      list(bank.classes.items()), [("sad", "not pleased"), ("happy", "pleased")]
    )
    self.assertEqual((bank.none, bank.none_label), ("neither", "none"))

  def test_spells_and_leaves_out_none(self):
    bank = self._load(mood())
    other = bank_lib.for_classes(bank, bank.classes, "other", "single_label")
    self.assertEqual((other.none, other.none_label), ("neither", "other"))
    without = bank_lib.for_classes(bank, bank.classes, "", "single_label")
    self.assertEqual(without.none, "")
    with self.assertRaisesRegex(ValueError, "config.votes.none_label"):
      bank_lib.for_classes(bank, bank.classes, "sad", "single_label")

  def test_fills_a_bank_without_classes(self):
    empty = self._load(mood(classes={}, prompts=[MOOD["prompts"][0]]))
    for task, multi_label in (("single_label", False), ("multi_label", True)):
      bank = bank_lib.for_classes(empty, ("up", "down"), "none", task)
      self.assertEqual(bank.classes, {"up": "", "down": ""})
      self.assertEqual(bank.multi_label, multi_label)
    described = bank_lib.for_classes(
      empty, {"up": "it rises", "down": ""}, "none", "single_label"
    )
    self.assertEqual(described.classes, {"up": "it rises", "down": ""})

  def test_own_descriptions_replace_the_banks(self):
    bank = bank_lib.for_classes(
      self._load(mood()),
      {"happy": "", "sad": "in tears"},
      "none",
      "single_label",
    )
    self.assertEqual(bank.classes, {"happy": "pleased", "sad": "in tears"})

  def test_examples_are_checked_when_classes_come(self):
    empty = self._load(mood(classes={}))
    with self.assertRaisesRegex(ValueError, "prompt 'all', example 1: labels"):
      bank_lib.for_classes(empty, ("up", "down"), "none", "single_label")

  def test_refuses_other_classes_or_another_task(self):
    bank = self._load(mood())
    with self.assertRaisesRegex(
      ValueError, r"bank 'mood': .*without \['angry'\] and with \['sad'\]"
    ):
      bank_lib.for_classes(bank, ["happy", "angry"], "none", "single_label")
    with self.assertRaisesRegex(ValueError, "multi_label must be true"):
      bank_lib.for_classes(bank, ["happy", "sad"], "none", "multi_label")

  def test_hash_is_of_what_shapes_the_request(self):
    bank = self._load(mood())

    def sha(prompt_changes=None, **changes):
      data = mood(**changes)
      first = {**data["prompts"][0], **(prompt_changes or {})}
      other = self._load({**data, "prompts": [first]})
      return bank_lib.prompt_sha256(other, other.prompts[0])

    same = bank_lib.prompt_sha256(bank, bank.prompts[0])
    self.assertEqual(sha(), same)
    self.assertEqual(sha({"id": "new", "origin": "proposed"}), same)
    self.assertEqual(sha(task="other", about="other"), same)
    others = [
      sha({"template": "$dialogue\n$options"}),
      sha({"system": "Be brief."}),
      sha({"option_order": "reversed"}),
      sha({"asks": "every"}),
      sha({"examples": MOOD["prompts"][1]["examples"]}),
      sha(classes={"sad": "not pleased", "happy": "pleased"}),
      sha(classes={"happy": "pleased", "sad": "in tears"}),
      sha(none="none of these"),
      sha(none=""),
      sha(multi_label=True),
    ]
    self.assertLen({same, *others}, len(others) + 1)


if __name__ == "__main__":
  absltest.main()
