"""Trains a WordPiece vocabulary and makes BERT's tokenizer of one.

The trainer of the `tokenizers` library does not give the same vocabulary in
every process; this one does.
"""

import collections
import itertools
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tokenizers
from tokenizers import (
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MAX_ALPHABET = 1000
_MAX_WORD_LENGTH = 100  # WordPiece makes [UNK] of longer words


def train(
  texts: Iterable[str], vocab_size: int, speaker_tokens: Iterable[str]
) -> tokenizers.Tokenizer:
  """Trains a lower-case BERT WordPiece vocabulary on a corpus.

  The same texts give the same vocabulary, whatever their order. ASCII letters,
  digits and punctuation are always in it, so that an English word that the
  corpus lacks is spelled and does not become [UNK].

  Args:
    texts: read once; memory grows with the number of different words only.
    vocab_size: most tokens to have; a small corpus gives fewer. Ids 0 to 4 are
      [PAD], [UNK], [CLS], [SEP] and [MASK], then come the speaker tokens.
    speaker_tokens: such as "[USR]".

  Raises:
    ValueError: if the corpus has no word, or vocab_size cannot hold the
      special tokens, the speaker tokens and the letters.
  """
  normalizer = normalizers.BertNormalizer(lowercase=True)
  pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  words = collections.Counter()
  for text in texts:
    pieces = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(text))
    words.update(piece for piece, _ in pieces)
  if not words:
    raise ValueError(
      "a WordPiece vocabulary needs a corpus with at least one word, got none; "
      "check the texts of the train split."
    )
  letters = collections.Counter()
  for word, count in words.items():
    for letter in word:
      letters[letter] += count
  by_count = sorted(letters, key=lambda letter: (-letters[letter], letter))
  alphanumeric = string.ascii_lowercase + string.digits
  alphabet = {*by_count[:_MAX_ALPHABET], *alphanumeric, *string.punctuation}
  words = {
    word: count
    for word, count in words.items()
    if len(word) <= _MAX_WORD_LENGTH and alphabet.issuperset(word)
  }
  inside = {*alphanumeric, *itertools.chain.from_iterable(w[1:] for w in words)}
  special = [*SPECIAL_TOKENS, *dict.fromkeys(speaker_tokens)]
  base = [
    *special,
    *sorted(alphabet),
    *(f"##{letter}" for letter in sorted(inside)),
  ]
  base = list(dict.fromkeys(base))
  if vocab_size < len(base):
    raise ValueError(
      "vocab_size must hold the special tokens, the speaker tokens and each "
      "letter at the start and inside of a word, got "
      f"vocab_size={vocab_size} for {len(base)} of these; set it to more than "
      f"{len(base)}."
    )
  vocabulary = _merge(words, base, vocab_size)
  tokenizer = bert_tokenizer(vocabulary, normalizer)
  tokenizer.add_special_tokens(special)
  return tokenizer


def bert_tokenizer(
  vocabulary: Mapping[str, int], normalizer: normalizers.Normalizer
) -> tokenizers.Tokenizer:
  """A BERT tokenizer with its pair template, for those who load the file."""
  tokenizer = tokenizers.Tokenizer(
    models.WordPiece(
      dict(vocabulary),
      unk_token="[UNK]",
      max_input_chars_per_word=_MAX_WORD_LENGTH,
    )
  )
  tokenizer.normalizer = normalizer
  tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  tokenizer.post_processor = processors.BertProcessing(
    ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
  )
  tokenizer.decoder = decoders.WordPiece()
  return tokenizer


def _merge(
  words: Mapping[str, int], base: Sequence[str], vocab_size: int
) -> dict[str, int]:
  """Adds the most frequent word pieces to a base vocabulary.

  The trainer of `tokenizers` gives ids to "##x" and drops rare letters in the
  order of a hash table that differs from process to process, and breaks ties
  between pieces by these ids. Handed over as special tokens in a fixed order
  they are settled before it looks at a word. What it trains is thrown away but
  for the vocabulary, so nothing of that is left in the tokenizer.
  """
  scratch = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
  scratch.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  scratch.train_from_iterator(
    _repeated(words),
    trainers.WordPieceTrainer(
      vocab_size=vocab_size,
      min_frequency=2,
      limit_alphabet=len(base),
      special_tokens=list(base),
      show_progress=False,
    ),
  )
  return scratch.get_vocab()


def _repeated(words: Mapping[str, int]) -> Iterator[str]:
  """Lines that hold each word as often as the corpus does."""
  line = 1000
  for word, count in words.items():
    for done in range(0, count, line):
      yield " ".join([word] * min(line, count - done))
