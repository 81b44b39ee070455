"""Tokenization against transformers, and its cache."""

import dataclasses
import json
import os
import pathlib
import pickle
import subprocess
import sys
import tempfile
import tracemalloc
from unittest import mock

import numpy as np
import tokenizers
import transformers
from absl.testing import absltest, parameterized

from ppl_jax.data import segments, tokenization, wordpiece

ROLES = {"USER": "[USR]", "SYSTEM": "[SYS]"}
CORPUS = (
  "Hello, my parcel has not arrived yet.",
  "I am sorry to hear that! May I have the order number?",
  "It's 4711-B; the café on Elm Street ordered it.",
  "Thank you. The parcel left our depot yesterday.",
  "So when will the parcel arrive?",
  "It will arrive tomorrow before noon, I promise.",
) * 3


@dataclasses.dataclass(frozen=True)
class Dialogue:
  speakers: tuple[str, ...]
  texts: tuple[str, ...]


DIALOGUES = (
  Dialogue(("USER", "SYSTEM", "USER"), CORPUS[:3]),
  Dialogue(("Zoë", "Bob"), ("The café?", "\x00\x01")),
  Dialogue((), ()),
  Dialogue(("USER",), ("[SEP] [CLS] [USR] parcel [MASK]",)),
)


def train(vocab_size=260):
  return tokenization.train_wordpiece(CORPUS, vocab_size, ROLES)


class TempFolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))


class EncodingTest(TempFolderTest):
  def test_speakers_lead(self):
    tokenizer = train()
    role, name = tokenizer.encode_utterances(
      ["USER", "Bob"], ["the parcel", "the parcel"]
    )
    self.assertEqual(role.dtype, np.int32)
    raw = tokenizers.Tokenizer.from_str(self.saved(tokenizer).read_text())
    self.assertEqual(role[0], raw.token_to_id("[USR]"))
    np.testing.assert_array_equal(
      name, raw.encode("bob: the parcel", add_special_tokens=False).ids
    )
    np.testing.assert_array_equal(
      role[1:], raw.encode("the parcel", add_special_tokens=False).ids
    )

  def saved(self, tokenizer):
    tokenizer.save(self.folder / "tokenizer.json")
    return self.folder / "tokenizer.json"

  @parameterized.product(window=(1, 2, None), max_length=(16, 24, 64))
  def test_segments_are_pairs_of_transformers(self, window, max_length):
    """Named speakers; the context joined to one text, cut from its left."""
    tokenizer = train()
    theirs = transformers.PreTrainedTokenizerFast(
      tokenizer_file=str(self.saved(tokenizer)),
      cls_token="[CLS]",
      sep_token="[SEP]",
      pad_token="[PAD]",
      unk_token="[UNK]",
      truncation_side="left",
      model_max_length=512,
    )
    # Without speaker tokens of their own: transformers gets them as text.
    ours = tokenization.StudentTokenizer(
      tokenizers.Tokenizer.from_str((self.saved(tokenizer)).read_text()), {}
    )
    speakers = ["Zoë", "Bob"] * 3
    texts = ["Hi!", "Hello, my parcel?", "Soon.", "When?", "At noon", "Thanks"]
    arrays = ours.encode_utterances(speakers, texts)
    tokens = segments.UtteranceTokens(
      np.concatenate(arrays),
      np.cumsum([0, *map(len, arrays)]),
      np.array([0, len(texts)]),
    )
    lengths = segments.segment_lengths(tokens, window, max_length)
    contexts = segments.context_lengths(tokens, window, max_length)
    led = [f"{s}: {t}" for s, t in zip(speakers, texts, strict=True)]
    cut = 0
    for i in range(len(texts)):
      oldest = 0 if window is None else max(0, i - window + 1)
      context = " ".join(led[oldest:i])
      cut += len(theirs(context, led[i])["input_ids"]) > max_length
      expected = theirs(
        context,
        led[i],
        truncation="only_first",
        padding="max_length",
        max_length=max_length,
        return_token_type_ids=True,
      )
      row = np.full(max_length, ours.pad_id, np.int32)
      segments.write_segments(
        tokens, [i], row[None], window, max_length, ours.cls_id, ours.sep_id
      )
      self.assertEqual(row.tolist(), expected["input_ids"])
      self.assertEqual(lengths[i], sum(expected["attention_mask"]))
      position = np.arange(lengths[i])
      self.assertEqual(
        (position >= contexts[i]).astype(int).tolist(),
        expected["token_type_ids"][: lengths[i]],
      )
    if (window, max_length) == (None, 16):
      self.assertGreater(cut, 0)

  def test_special_tokens_in_a_text_stay_text(self):
    tokenizer = train()
    typed = " ".join([*wordpiece.SPECIAL_TOKENS, *ROLES.values()])
    special = [tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id]
    for again in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
      (ids,) = again.encode_utterances(["USER"], [typed])
      self.assertEqual(ids[0], 5)  # the speaker's own token
      self.assertTrue(np.all(ids[1:] > 6))
      (ids,) = again.encode_utterances([typed], ["hello"])
      self.assertTrue(np.all(ids > 6))
      self.assertNoCommonElements(ids.tolist(), special)

  def test_speaker_tokens_that_were_ordinary_added_tokens_stay_text(self):
    raw = tokenizers.Tokenizer.from_str(
      self.saved(tokenization.train_wordpiece(CORPUS, 260, {})).read_text()
    )
    raw.add_tokens(["[usr]"])
    tokenizer = tokenization.StudentTokenizer(raw, {"USER": "[usr]"})
    (ids,) = tokenizer.encode_utterances(["USER"], ["[usr]"])
    self.assertEqual(ids.tolist().count(raw.token_to_id("[usr]")), 1)

  def test_text_without_tokens_still_gives_a_segment(self):
    tokenizer = train()
    arrays = tokenizer.encode_utterances(
      ["USER", "SYSTEM", "USER"], ["parcel", "\x00\x01", " "]
    )
    self.assertEqual([array.size for array in arrays], [2, 1, 1])
    tokens = segments.UtteranceTokens(
      np.concatenate(arrays), np.array([0, 2, 3, 4]), np.array([0, 3])
    )
    row = np.zeros(6, np.int32)
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    segments.write_segments(tokens, [1], row[None], None, 16, cls, sep)
    self.assertEqual(row.tolist(), [cls, *arrays[0], sep, arrays[1][0], sep])

  def test_no_utterances(self):
    self.assertEqual(train().encode_utterances([], []), [])

  def test_speakers_and_texts_of_other_number(self):
    with self.assertRaisesRegex(ValueError, "got 1 speakers for 2 texts"):
      train().encode_utterances(["USER"], ["a", "b"])

  def test_text_that_is_not_unicode(self):
    with self.assertRaisesRegex(ValueError, "surrogates"):
      train().encode_utterances(["USER"], ["x\ud800"])

  def test_tokenizer_without_a_speaker_token(self):
    raw = tokenizers.Tokenizer.from_str(self.saved(train()).read_text())
    with self.assertRaisesRegex(ValueError, r"got none for \['\[BOT\]'\]"):
      tokenization.StudentTokenizer(raw, {"BOT": "[BOT]"})

  def test_save_and_load(self):
    tokenizer = train()
    again = tokenization.StudentTokenizer.load(self.saved(tokenizer), ROLES)
    self.assertEqual(again.key, tokenizer.key)
    speakers, texts = ["USER", "Bob"], ["[SYS] parcel", "It's noon"]
    for a, b in zip(
      again.encode_utterances(speakers, texts),
      tokenizer.encode_utterances(speakers, texts),
      strict=True,
    ):
      np.testing.assert_array_equal(a, b)

  def test_load_names_a_missing_or_broken_file(self):
    path = self.folder / "tokenizer.json"
    with self.assertRaisesRegex(ValueError, str(path)):
      tokenization.StudentTokenizer.load(path, {})
    path.write_text("{")
    with self.assertRaisesRegex(ValueError, str(path)):
      tokenization.StudentTokenizer.load(path, {})


class FromFolderTest(TempFolderTest):
  def write_vocabulary(self, **config):
    vocabulary = [
      *wordpiece.SPECIAL_TOKENS,
      *("Hello", "hello", "cafe", "café", "par", "##cel", ":", "[", "]"),
      *("a", "##b", "usr", "sep", "東", "京"),
    ]
    (self.folder / "vocab.txt").write_text(
      "\n".join(vocabulary) + "\n", encoding="utf-8"
    )
    if config:
      (self.folder / "tokenizer_config.json").write_text(json.dumps(config))
    return vocabulary

  @parameterized.parameters(
    {},
    {"do_lower_case": True},
    {"do_lower_case": False},
    {"do_lower_case": True, "strip_accents": False},
    {"tokenize_chinese_chars": False},
  )
  def test_vocab_txt_agrees_with_transformers(self, **config):
    vocabulary = self.write_vocabulary(**config)
    tokenizer, added = tokenization.from_folder(self.folder, {})
    self.assertEqual(added, 0)
    self.assertEqual(tokenizer.vocab_size, len(vocabulary))
    theirs = transformers.BertTokenizer(
      vocab={token: i for i, token in enumerate(vocabulary)}, **config
    )
    for text in ("Hello café parcel ab zebra", "hello CAFE 東京 [ ] usr"):
      (ids,) = tokenizer.encode_utterances(["a"], [text])
      self.assertEqual(
        ids.tolist(), theirs(f"a: {text}", add_special_tokens=False).input_ids
      )

  def test_speaker_tokens_are_added_after_the_vocabulary(self):
    vocabulary = self.write_vocabulary()
    roles = {"USER": "[USR]", "GUEST": "[USR]", "SYSTEM": "[SYS]"}
    tokenizer, added = tokenization.from_folder(self.folder, roles)
    self.assertEqual(added, 2)
    self.assertEqual(tokenizer.vocab_size, len(vocabulary) + 2)
    ids = tokenizer.encode_utterances(list(roles), ["[USR]", "a", "a"])
    size = len(vocabulary)
    usr = [vocabulary.index(token) for token in ("[", "usr", "]")]
    self.assertEqual(ids[0].tolist(), [size, *usr])
    self.assertEqual(ids[1][0], size)
    self.assertEqual(ids[2][0], size + 1)

  def test_added_tokens_of_the_model_are_kept(self):
    size = len(self.write_vocabulary())
    path = self.folder / "added_tokens.json"
    path.write_text(json.dumps({"[SYS]": size + 1, "[USR]": size}))
    tokenizer, added = tokenization.from_folder(self.folder, ROLES)
    self.assertEqual(added, 0)
    ids = tokenizer.encode_utterances(["USER", "SYSTEM"], ["", ""])
    self.assertEqual([array.tolist() for array in ids], [[size], [size + 1]])
    path.write_text(json.dumps({"[USR]": size + 5}))
    with self.assertRaisesRegex(ValueError, "without a gap"):
      tokenization.from_folder(self.folder, ROLES)

  def test_tokenizer_json_comes_first_and_is_never_cut_or_padded(self):
    self.write_vocabulary()
    train().save(self.folder / "tokenizer.json")
    raw = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=8)
    raw.save(str(self.folder / "tokenizer.json"))
    tokenizer, added = tokenization.from_folder(self.folder, ROLES)
    self.assertEqual(added, 0)
    self.assertEqual(tokenizer.vocab_size, train().vocab_size)
    short, long = tokenizer.encode_utterances(
      ["USER", "USER"], ["parcel", " ".join(CORPUS)]
    )
    (word,) = train().encode_utterances(["USER"], ["parcel"])
    np.testing.assert_array_equal(short, word)
    self.assertGreater(long.size, 100)
    tokenizer.save(self.folder / "again.json")
    saved = json.loads((self.folder / "again.json").read_text())
    self.assertIsNone(saved["truncation"])
    self.assertIsNone(saved["padding"])

  def test_folder_without_a_tokenizer(self):
    with self.assertRaisesRegex(ValueError, f"neither in {self.folder}; copy"):
      tokenization.from_folder(self.folder, {})

  def test_vocabulary_that_is_not_berts(self):
    (self.folder / "vocab.txt").write_text("<s>\n</s>\n[PAD]\n")
    with self.assertRaisesRegex(ValueError, r"got none for \['\[UNK\]'.*BERT"):
      tokenization.from_folder(self.folder, {})

  def test_broken_config_is_named(self):
    self.write_vocabulary()
    (self.folder / "tokenizer_config.json").write_text("{")
    with self.assertRaisesRegex(ValueError, "tokenizer_config.json"):
      tokenization.from_folder(self.folder, {})


class TrainTest(TempFolderTest):
  def test_layout_of_the_vocabulary(self):
    tokenizer = train()
    tokenizer.save(self.folder / "tokenizer.json")
    raw = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
    expected = [*wordpiece.SPECIAL_TOKENS, *ROLES.values()]
    self.assertEqual([raw.id_to_token(i) for i in range(7)], expected)
    self.assertEqual(
      sorted(raw.get_vocab().values()), list(range(tokenizer.vocab_size))
    )
    self.assertLessEqual(tokenizer.vocab_size, 260)
    self.assertEqual(raw.encode("PARCEL").tokens, ["[CLS]", "parcel", "[SEP]"])
    self.assertEqual(raw.encode("Café").tokens[1:-1], ["cafe"])

  def test_most_frequent_pieces_win(self):
    """Worked out by hand: "ab" 3 + 2 times, then "##cd", then "abcd"."""
    corpus = ["ab"] * 3 + ["abcd"] * 2
    base = tokenization.train_wordpiece(["a"], 1000, {}).vocab_size
    tokenizer = tokenization.train_wordpiece(corpus, base + 2, {})
    tokenizer.save(self.folder / "tokenizer.json")
    raw = tokenizers.Tokenizer.from_file(str(self.folder / "tokenizer.json"))
    self.assertEqual(
      [raw.id_to_token(i) for i in (base, base + 1)], ["ab", "##cd"]
    )

  def test_unseen_words_are_spelled(self):
    tokenizer = tokenization.train_wordpiece(["hi"], 200, {})
    (ids,) = tokenizer.encode_utterances(["Q"], ["zyx9 7qv & (jw)!"])
    self.assertNotIn(1, ids.tolist())

  def test_any_script_and_very_long_words(self):
    texts = ["東京 です", "привет мир", "x" * 500, "🙂🙂"]
    tokenizer = tokenization.train_wordpiece(texts, 400, {})
    ids = tokenizer.encode_utterances(["a"] * 2, ["東京", "мир 🙂🙂"])
    self.assertNotIn(1, np.concatenate(ids).tolist())

  def test_two_processes_give_the_same_file(self):
    program = (
      "import random, sys\n"
      "from ppl_jax.data import tokenization\n"
      "random.seed(0)\n"
      "letters = [chr(i) for i in range(0xA000, 0xA000 + 1160)]\n"
      "words = [''.join(random.choices(letters, k=4)) for _ in range(2000)]\n"
      "texts = [' '.join(random.choices(words, k=9)) for _ in range(900)]\n"
      "tokenization.train_wordpiece(texts, 4000, {'U': '[USR]'})"
      ".save(sys.argv[1])\n"
    )
    paths = [self.folder / name for name in ("a.json", "b.json")]
    for seed, path in enumerate(paths):
      subprocess.run(
        [sys.executable, "-c", program, path],
        check=True,
        cwd=pathlib.Path(tokenization.__file__).parents[2],
        env=os.environ | {"PYTHONHASHSEED": str(seed)},
      )
    self.assertEqual(paths[0].read_bytes(), paths[1].read_bytes())

  def test_order_of_the_texts_does_not_matter(self):
    # More letters than the alphabet takes, all equally frequent.
    letters = [chr(i) for i in range(0xA000, 0xA000 + 1160)]
    for corpus, vocab_size in ((CORPUS, 260), (letters, 2500)):
      forwards, backwards = (
        tokenization.train_wordpiece(texts, vocab_size, ROLES)
        for texts in (corpus, reversed(corpus))
      )
      self.assertEqual(forwards.key, backwards.key)

  def test_words_too_long_to_be_encoded_take_no_room(self):
    none, too_long, long = (
      tokenization.train_wordpiece(["a", "x" * length] * 2, 300, {}).vocab_size
      for length in (1, 101, 100)
    )
    self.assertEqual(too_long, none)
    self.assertGreater(long, none)

  def test_vocabulary_too_small(self):
    with self.assertRaisesRegex(ValueError, "got vocab_size=50 for 1"):
      train(50)

  @parameterized.parameters([[]], [["", " \x00"]])
  def test_corpus_without_a_word(self, texts):
    with self.assertRaisesRegex(ValueError, "at least one word, got none"):
      tokenization.train_wordpiece(iter(texts), 300, {})


class TokenizeSplitTest(TempFolderTest):
  def test_holds_what_encode_utterances_gives(self):
    tokenizer = train()
    for batch in (1, 4, 4096):
      with mock.patch.object(tokenization, "_UTTERANCES_PER_BATCH", batch):
        tokens = tokenization.tokenize_split(
          DIALOGUES, tokenizer, self.folder / str(batch) / "train"
        )
      self.assertEqual(tokens.first.tolist(), [0, 3, 5, 5, 6])
      expected = [
        array
        for dialogue in DIALOGUES
        for array in tokenizer.encode_utterances(
          dialogue.speakers, dialogue.texts
        )
      ]
      self.assertEqual(tokens.num_utterances, len(expected))
      for u, array in enumerate(expected):
        start, end = tokens.offsets[u : u + 2]
        np.testing.assert_array_equal(tokens.ids[start:end], array)

  def test_is_written_once_and_mapped(self):
    tokenizer = train()
    path = self.folder / "train"
    first = tokenization.tokenize_split(DIALOGUES, tokenizer, path)
    with mock.patch.object(tokenization, "_write_cache") as write:
      again = tokenization.tokenize_split(DIALOGUES, tokenizer, path)
    write.assert_not_called()
    np.testing.assert_array_equal(again.ids, first.ids)
    self.assertIsInstance(again.ids.base, np.memmap)
    self.assertLen(list(self.folder.iterdir()), 1)

  def test_another_tokenizer_does_not_read_it(self):
    path = self.folder / "train"
    tokenization.tokenize_split(DIALOGUES, train(), path)
    other = tokenization.train_wordpiece(CORPUS, 200, ROLES)
    tokens = tokenization.tokenize_split(DIALOGUES, other, path)
    self.assertLess(tokens.ids.max(), 200)
    swapped = tokenization.StudentTokenizer(
      train()._tokenizer, {"USER": "[SYS]", "SYSTEM": "[USR]"}
    )
    tokens = tokenization.tokenize_split(DIALOGUES, swapped, path)
    self.assertEqual(tokens.ids[0], 6)

  def test_other_dialogues_under_the_same_path_are_refused(self):
    path = self.folder / "train"
    tokenization.tokenize_split(DIALOGUES, train(), path)
    with self.assertRaisesRegex(ValueError, "got 4 in .* for 3; delete"):
      tokenization.tokenize_split(DIALOGUES[:3], train(), path)

  def test_a_failure_leaves_nothing(self):
    bad = (*DIALOGUES, Dialogue(("USER",), ("\ud800",)))
    with (
      mock.patch.object(tokenization, "_UTTERANCES_PER_BATCH", 1),
      self.assertRaisesRegex(ValueError, "surrogates"),
    ):
      tokenization.tokenize_split(bad, train(), self.folder / "train")
    self.assertEmpty(list(self.folder.iterdir()))

  def test_the_other_process_was_first(self):
    tokenizer = train()
    path = self.folder / "train"
    write = tokenization._write_cache

    def write_twice(*args):
      write(*args)
      write(*args)

    with mock.patch.object(tokenization, "_write_cache", write_twice):
      tokens = tokenization.tokenize_split(DIALOGUES, tokenizer, path)
    self.assertEqual(tokens.num_dialogues, 4)
    self.assertLen(list(self.folder.iterdir()), 1)

  def test_no_dialogues(self):
    tokens = tokenization.tokenize_split([], train(), self.folder / "test")
    self.assertEqual(tokens.num_utterances, 0)
    self.assertEqual(segments.segment_lengths(tokens, None, 8).shape, (0,))

  def test_memory_does_not_grow_with_the_split(self):
    class Repeated:
      def __init__(self, count):
        self.count = count

      def __len__(self):
        return self.count

      def __getitem__(self, index):
        return DIALOGUES[0]

    tokenizer = train()
    peaks = []
    with mock.patch.object(tokenization, "_UTTERANCES_PER_BATCH", 300):
      for count in (300, 3000):
        tracemalloc.start()
        tokenization.tokenize_split(
          Repeated(count), tokenizer, self.folder / str(count)
        )
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    self.assertLess(peaks[1], 1.2 * peaks[0])


if __name__ == "__main__":
  absltest.main()
