import itertools
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import numpy as np
from absl.testing import absltest, parameterized

from ppl_jax.data import dialogues, storage

CLASSES = ("ask", "tell")


def _line(dialogue_id, *utterances):
  return {
    "dialogue_id": dialogue_id,
    "utterances": [
      {"speaker": speaker, "text": text, "label": label}
      for speaker, text, label in utterances
    ],
  }


def _write(folder, **splits):
  folder.mkdir(parents=True, exist_ok=True)
  for split, lines in splits.items():
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def _dialogue(**changes):
  fields = {
    "dialogue_id": "d",
    "speakers": ("A", "B"),
    "texts": ("one", "two"),
    "gold": np.array([[1, 0], [0, 1]], np.uint8),
    "labelled": np.array([True, True]),
  }
  return dialogues.Dialogue(**{**fields, **changes})


def _load_once(args):
  source, data_dir = args
  return (
    dialogues.load("jsonl", source=source, data_dir=data_dir, classes=CLASSES)
    .splits["train"][0]
    .texts
  )


class DialoguesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    root = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.source, self.data_dir = root / "source", root / "prepared"
    _write(
      self.source,
      train=[
        _line("z", ("A", "Is the bakery open?", "ask"), ("B", "Yes.", "tell")),
        _line("a", ("A", "Caf\u00e9 \u4e2d\u6587 \U0001f600", None)),
        _line("m", ("A", "Where is my bag?", "ask"), ("B", "Here.", "tell")),
      ],
      validation=[
        _line("v", ("X", "Where is my bag?", "tell"), ("Y", "Here.", "ask"))
      ],
    )

  def _load(self, **changes):
    asked = {
      "source": self.source,
      "data_dir": self.data_dir,
      "classes": CLASSES,
    }
    return dialogues.load("jsonl", **{**asked, **changes})

  def test_load_gives_what_was_written_in_order(self):
    dataset = self._load()
    self.assertEqual(dataset.name, "jsonl")
    self.assertEqual(dataset.classes, CLASSES)
    self.assertEqual(dataset.task, "single_label")
    self.assertEqual(dataset.folder, self.data_dir / "jsonl" / dataset.key)
    self.assertEqual(list(dataset.splits), ["train", "validation"])
    train = dataset.splits["train"]
    self.assertLen(train, 3)
    self.assertEqual([d.dialogue_id for d in train], ["z", "a", "m"])
    first, second, _ = train
    self.assertEqual(first.speakers, ("A", "B"))
    self.assertEqual(first.texts, ("Is the bakery open?", "Yes."))
    np.testing.assert_array_equal(first.gold, [[1, 0], [0, 1]])
    self.assertEqual(first.gold.dtype, np.uint8)
    np.testing.assert_array_equal(first.labelled, [True, True])
    self.assertEqual(first.labelled.dtype, np.bool_)
    # One utterance, unlabelled, beyond ASCII.
    self.assertEqual(second.texts, ("Caf\u00e9 \u4e2d\u6587 \U0001f600",))
    self.assertEqual(second.gold.shape, (1, 2))
    np.testing.assert_array_equal(second.labelled, [False])

  def test_split_is_a_sequence(self):
    train = self._load().splits["train"]
    self.assertEqual(train[-1].dialogue_id, "m")
    self.assertEqual(train[np.int64(1)].dialogue_id, "a")
    self.assertEqual([d.dialogue_id for d in train[1:]], ["a", "m"])
    for index in (3, -4):
      with self.assertRaises(IndexError):
        train[index]
    copy = pickle.loads(pickle.dumps(train))
    self.assertEqual(copy[1].texts, train[1].texts)

  def test_a_long_split_keeps_its_order(self):
    lines = [_line(str(i), ("A", f"text {i}", None)) for i in range(300)]
    _write(self.source, train=lines)
    train = self._load().splits["train"]
    self.assertEqual(
      [d.dialogue_id for d in train], [str(i) for i in range(300)]
    )

  def test_prepares_once_for_one_content(self):
    first = self._load()
    before = [f.stat().st_mtime_ns for f in first.folder.rglob("*")]
    elsewhere = self.source.parent / "moved"
    os.rename(self.source, elsewhere)
    second = self._load(source=elsewhere)
    self.assertEqual(second.folder, first.folder)
    after = [f.stat().st_mtime_ns for f in second.folder.rglob("*")]
    self.assertEqual(before, after)

  def test_each_part_of_the_key_prepares_anew(self):
    keys = [self._load().key]
    keys.append(self._load(classes=CLASSES[::-1]).key)
    keys.append(self._load(task="multi_label").key)
    keys.append(self._load(drop_leaks=True).key)
    reader = dialogues._reader("jsonl")
    with absltest.mock.patch.object(reader, "VERSION", "another"):
      keys.append(self._load().key)
    _write(self.source, train=[_line("z", ("A", "Changed.", "ask"))])
    keys.append(self._load().key)
    self.assertLen(set(keys), len(keys))
    self.assertEqual(self._load().splits["train"][0].texts, ("Changed.",))

  def test_leaks_are_kept_unless_dropped_from_train_only(self):
    kept = self._load()
    self.assertEqual(
      [d.dialogue_id for d in kept.splits["train"]], ["z", "a", "m"]
    )
    dropped = self._load(drop_leaks=True)
    self.assertEqual(
      [d.dialogue_id for d in dropped.splits["train"]], ["z", "a"]
    )
    self.assertLen(dropped.splits["validation"], 1)

  def test_dropping_all_of_train_is_an_error(self):
    lines = [_line("m", ("A", "Here.", "tell"))]
    _write(self.source, train=lines, validation=lines)
    with self.assertRaisesRegex(ValueError, "config.dataset.drop_leaks"):
      self._load(drop_leaks=True)

  def test_a_failed_preparation_leaves_nothing(self):
    with self.source.joinpath("validation.jsonl").open("a") as f:
      f.write("{")
    for _ in range(2):
      with self.assertRaisesRegex(ValueError, r"validation\.jsonl, line 2: "):
        self._load()
    self.assertEqual(list((self.data_dir / "jsonl").iterdir()), [])

  def test_a_killed_preparation_is_not_taken_for_whole(self):
    # The reader of this program never ends, so that it dies in the middle.
    program = textwrap.dedent("""
      import itertools, sys
      from ppl_jax.data import dialogues
      from ppl_jax.data.readers import jsonl
      finite = jsonl.read
      def endless(source, split, *args, **kwargs):
        for first in finite(source, split, *args, **kwargs):
          yield first
          for i in itertools.count() if split == "train" else ():
            yield dialogues.Dialogue(
              str(i), first.speakers, first.texts, first.gold, first.labelled)
      jsonl.read = endless
      dialogues.load("jsonl", source=sys.argv[1], data_dir=sys.argv[2],
                     classes=("ask", "tell"))
    """)
    running = subprocess.Popen(
      [sys.executable, "-c", program, self.source, self.data_dir],
      stderr=subprocess.DEVNULL,
      cwd=pathlib.Path(dialogues.__file__).parents[2],
    )
    home = self.data_dir / "jsonl"
    for _ in range(600):
      if any(home.glob(".incomplete-*/dialogues/*")):
        break
      time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    [left] = home.iterdir()
    self.assertStartsWith(left.name, ".incomplete-")
    self.assertLen(self._load().splits["train"], 3)
    # Kept while it may be another process's, then removed.
    self.assertTrue(left.exists())
    os.utime(left, (0, 0))
    self._load(task="multi_label")
    self.assertFalse(left.exists())

  def test_processes_may_prepare_at_once(self):
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(3) as pool:
      found = pool.map(_load_once, [(self.source, self.data_dir)] * 3)
    self.assertEqual(found, [("Is the bakery open?", "Yes.")] * 3)
    self.assertLen(list((self.data_dir / "jsonl").iterdir()), 1)

  def test_losing_the_race_takes_the_winners_folder(self):
    winner = self._load()
    reader = dialogues._reader("jsonl")
    told = reader.read(self.source, "train", CLASSES, {}, task="single_label")
    parts = {"train": map(dialogues._record, told)}
    storage.write(winner.folder, parts, len(CLASSES))
    self.assertLen(list((self.data_dir / "jsonl").iterdir()), 1)
    self.assertLen(self._load().splits["validation"], 1)

  @parameterized.parameters(
    ({"task": "regression"}, "config.dataset.task"),
    ({"classes": ()}, "config.dataset.classes"),
    ({"classes": ("ask", "ask")}, "config.dataset.classes"),
    ({"classes": ("ask", "")}, "config.dataset.classes"),
    ({"classes": ("ask,tell",)}, r"""classes="\('ask', 'tell'\)\""""),
    ({"classes": "(ask, tell)"}, r"""classes="\('ask', 'tell'\)\""""),
    ({"source": ""}, "config.dataset.source"),
    ({"data_dir": ""}, "config.dataset.data_dir"),
    ({"source": "/no/such/folder"}, "/no/such/folder.*no train.jsonl"),
    ({"options": {"labels": "act"}}, "config.dataset.options"),
  )
  def test_refuses_settings(self, changes, message):
    with self.assertRaisesRegex(ValueError, message):
      self._load(**changes)

  @parameterized.parameters("no_such", "../jsonl", "", "__init__")
  def test_unknown_reader_names_the_known_ones(self, name):
    with self.assertRaisesRegex(
      ValueError, "one of bt_oasis, .*, jsonl, .*support"
    ):
      dialogues.load(name, data_dir=self.data_dir)

  def test_classes_of_a_reader_that_has_them(self):
    with self.assertRaisesRegex(ValueError, r"\['inform', .*got \['ask'"):
      dialogues.load("dailydialog", source=self.source, classes=CLASSES)
    with self.assertRaisesRegex(ValueError, "must be single_label, got"):
      dialogues.load("dailydialog", source=self.source, task="multi_label")

  def test_options_must_be_json(self):
    with self.assertRaisesRegex(ValueError, "JSON values"):
      dialogues._key(options={"a": {1, 2}})

  @parameterized.parameters(
    ({"speakers": ("A",)}, "1 speakers"),
    ({"gold": np.zeros((2, 3), np.uint8)}, r"gold \(2, 3\)"),
    ({"labelled": np.array([True])}, r"labelled \(1,\)"),
    ({"texts": ("one", " \t")}, "utterance 1 of train dialogue 'd'"),
    ({"gold": np.array([[1, 1], [0, 1]], np.uint8)}, "got 2 for utterance 0"),
    ({"gold": np.array([[1, 0], [0, 0]], np.uint8)}, "got 0 for utterance 1"),
  )
  def test_holds_readers_to_the_contract(self, changes, message):
    read = iter([_dialogue(**changes)])
    with self.assertRaisesRegex(ValueError, message):
      list(dialogues._checked("train", read, 2, "single_label"))

  def test_ids_are_unique_within_a_split(self):
    twice = itertools.repeat(_dialogue(), 2)
    with self.assertRaisesRegex(ValueError, "train dialogue 'd' twice"):
      list(dialogues._checked("train", twice, 2, "single_label"))

  def test_check_gold_by_task(self):
    none = np.zeros((1, 2), np.uint8)
    both = np.ones((1, 2), np.uint8)
    yes, no = np.array([True]), np.array([False])
    for gold in (none, both):
      dialogues.check_gold(gold, yes, "multi_label")
      dialogues.check_gold(gold, no, "single_label")
      with self.assertRaises(ValueError):
        dialogues.check_gold(gold, yes, "single_label")
    # One class: an utterance has it or has it not.
    dialogues.check_gold(none[:, :1], yes, "single_label")
    dialogues.check_gold(both[:, :1], yes, "single_label")

  def test_text_sha256_tells_all_texts_and_speakers_apart(self):
    variants = [
      _dialogue(),
      _dialogue(speakers=("B", "A")),
      _dialogue(texts=("one", "two ")),
      _dialogue(texts=("onetwo", "")),
      _dialogue(texts=("", "onetwo")),
      _dialogue(speakers=("A", "Bt"), texts=("one", "wo")),
      _dialogue(speakers=("A",), texts=('one"],["B","two',)),
    ]
    digests = {d.text_sha256() for d in variants}
    self.assertLen(digests, len(variants))
    # Neither the id nor the gold is part of it; the value is for all time.
    same = _dialogue(dialogue_id="e", gold=np.zeros((2, 2), np.uint8))
    self.assertEqual(same.text_sha256(), _dialogue().text_sha256())
    self.assertEqual(
      _dialogue().text_sha256(),
      "25191676bf5731915e96807fbfa8c6f30393d5c43f6f5827a5e4b03badaf746b",
    )


if __name__ == "__main__":
  absltest.main()
