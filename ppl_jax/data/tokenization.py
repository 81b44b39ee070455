"""Text to token ids for the student, with the `tokenizers` library alone.

An utterance is its speaker's tokens followed by its text's. A speaker whose
role has a token in the config, such as ToD-BERT's [USR] and [SYS], is led by
it; any other by the speaker's name and a colon. What people typed is text
and nothing else: "[SEP]" inside an utterance never becomes the special token.

Ids of a split are streamed to disk once and memory-mapped from then on.
"""

import hashlib
import itertools
import json
import logging
import os
import pathlib
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import tokenizers
import tqdm
from tokenizers import (
  normalizers,
)

from ppl_jax.data import segments, wordpiece

_LOG = logging.getLogger(__name__)

# Raised when the same text would give other ids, so that no old cache is used.
_CACHE_VERSION = 1
_UTTERANCES_PER_BATCH = 4096
_NAMES_KEPT = 1024  # speakers whose tokens are remembered


class _Utterances(Protocol):
  """What is read of a dialogue."""

  @property
  def speakers(self) -> tuple[str, ...]: ...

  @property
  def texts(self) -> tuple[str, ...]: ...


class StudentTokenizer:
  """Turns utterances into token ids, without [CLS], [SEP], padding or cuts.

  Attributes:
    speaker_tokens: the token of each role; other speakers go by their name.
    cls_id: id of [CLS].
    sep_id: id of [SEP].
    pad_id: id of [PAD].
  """

  def __init__(
    self, tokenizer: tokenizers.Tokenizer, speaker_tokens: Mapping[str, str]
  ):
    """Takes over a tokenizer; its own truncation and padding are switched off.

    Args:
      tokenizer: has [CLS], [SEP], [PAD] and every speaker token.
      speaker_tokens: speaker (a role such as "USER") to token.

    Raises:
      ValueError: if the tokenizer lacks one of these tokens.
    """
    wanted = ("[CLS]", "[SEP]", "[PAD]", *speaker_tokens.values())
    missing = [
      token for token in wanted if tokenizer.token_to_id(token) is None
    ]
    if missing:
      raise ValueError(
        "the tokenizer must have [CLS], [SEP], [PAD] and every speaker token, "
        f"got none for {missing}; use the tokenizer of a BERT model and add "
        "the speaker tokens (from_folder does)."
      )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Marked as special, so that they too are plain text inside a text.
    tokenizer.add_special_tokens(list(speaker_tokens.values()))
    tokenizer.encode_special_tokens = True
    self._tokenizer = tokenizer
    self.speaker_tokens = dict(speaker_tokens)
    self.cls_id = tokenizer.token_to_id("[CLS]")
    self.sep_id = tokenizer.token_to_id("[SEP]")
    self.pad_id = tokenizer.token_to_id("[PAD]")
    self._prefixes: dict[str, list[int]] = {}

  def __reduce__(self):
    # A pickled tokenizers.Tokenizer forgets encode_special_tokens.
    return StudentTokenizer, (self._tokenizer, self.speaker_tokens)

  @property
  def vocab_size(self) -> int:
    """Rows that an embedding table needs: the largest id and one more."""
    return max(self._tokenizer.get_vocab().values()) + 1

  @property
  def key(self) -> str:
    """SHA-256 of all that decides which ids an utterance gets."""
    state = [
      _CACHE_VERSION,
      self._tokenizer.to_str(),
      sorted(self.speaker_tokens.items()),
    ]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()

  def encode_utterances(
    self, speakers: Sequence[str], texts: Sequence[str]
  ) -> list[np.ndarray]:
    """Encodes utterances, of one dialogue or of many.

    Args:
      speakers: who speaks, one for each text.
      texts: what is said.

    Returns:
      One int32 array for each utterance: the speaker's ids, then the text's.

    Raises:
      ValueError: if there are more of one than of the other, or a text cannot
        be written as UTF-8.
    """
    ids, lengths = self._encode(speakers, texts)
    ends = np.cumsum(lengths).tolist()
    return (
      [ids[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
      if ends
      else []
    )

  def encode_dialogues(
    self, dialogues: Iterable[_Utterances]
  ) -> segments.UtteranceTokens:
    """Encodes dialogues in memory; `tokenize_split` is for whole splits.

    Args:
      dialogues: each has `speakers` and `texts`.

    Raises:
      ValueError: as `encode_utterances`.
    """
    speakers, texts, first = [], [], [0]
    for dialogue in dialogues:
      speakers += dialogue.speakers
      texts += dialogue.texts
      first.append(len(texts))
    ids, lengths = self._encode(speakers, texts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return segments.UtteranceTokens(ids, offsets, np.array(first))

  def encode_utterance(self, speaker: str, text: str) -> list[int]:
    """Encodes one utterance, as `encode_utterances` does but at once.

    Args:
      speaker: who speaks.
      text: what is said.

    Returns:
      The speaker's ids, then the text's.

    Raises:
      ValueError: if one of them cannot be written as UTF-8.
    """
    prefix = self._prefixes.get(speaker)
    try:
      if prefix is None:
        prefix = self._encode_speaker(speaker)
      return prefix + self._encode_text(text)
    except (TypeError, UnicodeEncodeError) as error:
      raise _not_text(error) from error

  def _encode_speaker(self, speaker: str) -> list[int]:
    token = self.speaker_tokens.get(speaker)
    if token is not None:
      ids = [self._tokenizer.token_to_id(token)]
    else:
      ids = self._encode_text(f"{speaker}:")
    if len(self._prefixes) >= _NAMES_KEPT:
      self._prefixes.clear()
    self._prefixes[speaker] = ids
    return ids

  def _encode_text(self, text: str) -> list[int]:
    return self._tokenizer.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of token ids, special tokens by their names."""
    return self._tokenizer.decode(list(ids), skip_special_tokens=False)

  def save(self, path: str | os.PathLike) -> None:
    """Writes a tokenizer.json, which `tokenizers` and `transformers` read."""
    self._tokenizer.save(os.fspath(path))

  @classmethod
  def load(
    cls, path: str | os.PathLike, speaker_tokens: Mapping[str, str]
  ) -> "StudentTokenizer":
    """Reads the tokenizer.json that `save` wrote.

    Args:
      path: of the file.
      speaker_tokens: as when it was saved; the file does not hold the roles.

    Raises:
      ValueError: if the file is missing, broken or without a needed token.
    """
    return cls(_read_tokenizer(pathlib.Path(path)), speaker_tokens)

  def _encode(
    self, speakers: Sequence[str], texts: Sequence[str]
  ) -> tuple[np.ndarray, np.ndarray]:
    """All ids in one [total] int32 array, and [N] int64 lengths."""
    if len(speakers) != len(texts):
      raise ValueError(
        "there must be one speaker for each text, got "
        f"{len(speakers)} speakers for {len(texts)} texts; pass both in full."
      )
    names = sorted(set(speakers) - self.speaker_tokens.keys())
    prefixes = {
      speaker: [self._tokenizer.token_to_id(token)]
      for speaker, token in self.speaker_tokens.items()
    }
    try:
      encoded = self._tokenizer.encode_batch_fast(
        [f"{name}:" for name in names] + list(texts), add_special_tokens=False
      )
    except (TypeError, UnicodeEncodeError) as error:
      raise _not_text(error) from error
    prefixes |= {
      name: encoding.ids for name, encoding in zip(names, encoded, strict=False)
    }
    parts = []
    for speaker, encoding in zip(speakers, encoded[len(names) :], strict=True):
      parts.append(prefixes[speaker] + encoding.ids)
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    ids = np.fromiter(
      itertools.chain.from_iterable(parts), np.int32, int(lengths.sum())
    )
    return ids, lengths


def _not_text(error: Exception) -> ValueError:
  return ValueError(
    "speakers and texts must be strings that UTF-8 can hold, "
    f"got: {error}; remove lone surrogates such as '\\ud800'."
  )


def from_folder(
  folder: str | os.PathLike, speaker_tokens: Mapping[str, str]
) -> tuple[StudentTokenizer, int]:
  """Reads the tokenizer of a pretrained BERT in Hugging Face layout.

  Reads tokenizer.json; without it vocab.txt, added_tokens.json and, from
  tokenizer_config.json, do_lower_case, strip_accents and
  tokenize_chinese_chars. Speaker tokens that the model does not know get new
  ids after its own, so that the embedding table has to grow by as many rows.

  Args:
    folder: of the pretrained model.
    speaker_tokens: speaker (a role such as "USER") to token.

  Returns:
    The tokenizer, and how many speaker tokens were new to it.

  Raises:
    ValueError: if the folder has neither file, or one that is broken.
  """
  folder = pathlib.Path(folder)
  if (folder / "tokenizer.json").exists():
    tokenizer = _read_tokenizer(folder / "tokenizer.json")
  elif (folder / "vocab.txt").exists():
    tokenizer = _from_vocab_file(folder)
  else:
    raise ValueError(
      "a folder with pretrained weights must hold tokenizer.json or vocab.txt, "
      f"got neither in {folder}; copy the model's tokenizer files there."
    )
  new = [
    token
    for token in dict.fromkeys(speaker_tokens.values())
    if tokenizer.token_to_id(token) is None
  ]
  tokenizer.add_special_tokens(new)
  if new:
    _LOG.info("Added %d speaker tokens to %s: %s", len(new), folder, new)
  return StudentTokenizer(tokenizer, speaker_tokens), len(new)


def train_wordpiece(
  texts: Iterable[str], vocab_size: int, speaker_tokens: Mapping[str, str]
) -> StudentTokenizer:
  """Trains a tokenizer on a corpus; see `wordpiece.train`.

  Args:
    texts: read once.
    vocab_size: most tokens to have.
    speaker_tokens: speaker (a role such as "USER") to token.

  Raises:
    ValueError: no word in the corpus, or too small a vocab_size.
  """
  tokenizer = wordpiece.train(texts, vocab_size, speaker_tokens.values())
  return StudentTokenizer(tokenizer, speaker_tokens)


def tokenize_split(
  dialogues: Sequence[_Utterances],
  tokenizer: StudentTokenizer,
  cache_file: str | os.PathLike,
) -> segments.UtteranceTokens:
  """Encodes a split once; later calls map the files of the first.

  The files lie in a folder named like `cache_file` with the tokenizer's key
  added, so that another tokenizer never reads them. It appears in one piece:
  a killed process leaves none, and of two that work at once one wins. Memory
  does not grow with the number of dialogues.

  Args:
    dialogues: read in order, once; each has `speakers` and `texts`.
    tokenizer: encodes them.
    cache_file: path that stands for these dialogues in this order, such as
      prepared folder / split; a subset needs a path of its own.

  Raises:
    ValueError: if the cache holds another number of dialogues.
  """
  cache_file = pathlib.Path(cache_file)
  folder = cache_file.with_name(f"{cache_file.name}-{tokenizer.key[:16]}")
  if not folder.exists():
    _write_cache(dialogues, tokenizer, folder)
  tokens = segments.UtteranceTokens(
    **{
      name: np.load(folder / f"{name}.npy", mmap_mode="r")
      for name in ("ids", "offsets", "first")
    }
  )
  if tokens.num_dialogues != len(dialogues):
    raise ValueError(
      "a token cache must hold the dialogues it is read for, got "
      f"{tokens.num_dialogues} in {folder} for {len(dialogues)}; delete that "
      "folder, or give each set of dialogues a path of its own."
    )
  return tokens


def _write_cache(
  dialogues: Sequence[_Utterances],
  tokenizer: StudentTokenizer,
  folder: pathlib.Path,
) -> None:
  """Writes ids.npy, offsets.npy and first.npy, then shows them at once."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  unfinished = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
  unfinished.mkdir()
  try:
    with (
      _NpyWriter(unfinished / "ids.npy", np.int32) as ids_file,
      _NpyWriter(unfinished / "offsets.npy", np.int64) as offsets_file,
      _NpyWriter(unfinished / "first.npy", np.int64) as first_file,
    ):
      offsets_file.append(np.zeros(1, np.int64))
      first_file.append(np.zeros(1, np.int64))
      num_ids, num_utterances = 0, 0
      for speakers, texts, counts in _batches(dialogues):
        ids, lengths = tokenizer._encode(speakers, texts)
        ids_file.append(ids)
        offsets_file.append(num_ids + np.cumsum(lengths))
        first_file.append(num_utterances + np.cumsum(counts))
        num_ids += ids.size
        num_utterances += lengths.size
    try:
      unfinished.rename(folder)
    except OSError:
      if not folder.exists():
        raise
      shutil.rmtree(unfinished)  # Another process was first.
  except BaseException:
    shutil.rmtree(unfinished, ignore_errors=True)
    raise


def _batches(
  dialogues: Sequence[_Utterances],
) -> Iterator[tuple[list[str], list[str], list[int]]]:
  """Speakers and texts of whole dialogues, and each one's utterances."""
  speakers, texts, counts = [], [], []
  for index in tqdm.trange(
    len(dialogues), desc="tokenizing", unit="dialogue", delay=3.0
  ):
    dialogue = dialogues[index]
    speakers.extend(dialogue.speakers)
    texts.extend(dialogue.texts)
    counts.append(len(dialogue.texts))
    if len(texts) >= _UTTERANCES_PER_BATCH:
      yield speakers, texts, counts
      speakers, texts, counts = [], [], []
  if counts:
    yield speakers, texts, counts


class _NpyWriter:
  """Writes a one-dimensional .npy file whose length is not known before."""

  def __init__(self, path: pathlib.Path, dtype: np.dtype):
    self._path = path
    self._dtype = np.dtype(dtype)
    self._length = 0

  def __enter__(self) -> "_NpyWriter":
    self._file = self._path.open("wb")
    self._write_header()
    self._data_start = self._file.tell()
    return self

  def __exit__(self, *error):
    with self._file:
      self._file.seek(0)
      self._write_header()
      # NumPy leaves room in the header for the length to grow.
      assert self._file.tell() == self._data_start

  def append(self, array: np.ndarray) -> None:
    self._file.write(np.ascontiguousarray(array, self._dtype).data)
    self._length += array.size

  def _write_header(self) -> None:
    np.lib.format.write_array_header_1_0(
      self._file,
      {
        "descr": np.lib.format.dtype_to_descr(self._dtype),
        "fortran_order": False,
        "shape": (self._length,),
      },
    )


def _read_tokenizer(path: pathlib.Path) -> tokenizers.Tokenizer:
  """Reads a tokenizer.json."""
  try:
    return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
  except Exception as error:  # tokenizers raises no narrower class
    raise ValueError(
      f"a tokenizer.json must be readable by the tokenizers library, got "
      f"{path}: {error}; copy or save the file again."
    ) from error


def _from_vocab_file(folder: pathlib.Path) -> tokenizers.Tokenizer:
  """The tokenizer of a folder without tokenizer.json, as transformers has it.

  Defaults are those of transformers.BertTokenizer.
  """
  settings = _read_json(folder / "tokenizer_config.json")
  with (folder / "vocab.txt").open(encoding="utf-8") as file:
    vocabulary = {line.rstrip("\n"): i for i, line in enumerate(file)}
  needed = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
  missing = [token for token in needed if token not in vocabulary]
  if missing:
    raise ValueError(
      f"a BERT vocabulary must have {', '.join(needed)}, got none for "
      f"{missing} in {folder / 'vocab.txt'}; take the file of a BERT model."
    )
  tokenizer = wordpiece.bert_tokenizer(
    vocabulary,
    normalizers.BertNormalizer(
      lowercase=settings.get("do_lower_case", True),
      strip_accents=settings.get("strip_accents"),
      handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    ),
  )
  added = _read_json(folder / "added_tokens.json")
  tokenizer.add_special_tokens(
    [token for token in wordpiece.SPECIAL_TOKENS if token in vocabulary]
    + sorted(added, key=lambda token: added[token])
  )
  for token, i in added.items():
    if tokenizer.token_to_id(token) != i:
      raise ValueError(
        "ids in added_tokens.json must follow those of vocab.txt without a "
        f"gap, got {i} for {token} in {folder}, where "
        f"{tokenizer.token_to_id(token)} would be next; restore both files "
        "from the model."
      )
  return tokenizer


def _read_json(path: pathlib.Path) -> dict:
  """A JSON file's object; empty where there is no file."""
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(
      f"{path.name} must be JSON, got {path}: {error}; restore the file."
    ) from error
