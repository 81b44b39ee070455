"""Segments: an utterance with the utterances before it, as token ids.

Segment i of a dialogue is `[CLS] context [SEP] utterance i [SEP]`; there are
as many segments as utterances. The context is a window of stride 1: the
utterances i - window + 1 to i - 1 of the same dialogue, so that `window`
counts utterance i itself. Where a segment would be longer than `max_length`
the context loses its oldest tokens first, and an utterance that is too long
on its own loses its tail. Token type 0 is `[CLS] context [SEP]`, token type 1
is `utterance i [SEP]`.

Token ids of a split lie in one flat array, each utterance led by its speaker's
tokens. The context of an utterance is then the slice just before it, and a
segment is two slice copies.

Shape letters: U utterances of a split, D dialogues, N segments, T tokens.
"""

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ppl_jax.data import mapped

SPECIAL_TOKENS = 3  # [CLS], [SEP] after the context, [SEP] at the end
MIN_LENGTH = SPECIAL_TOKENS + 1
_STRETCH = 16_384  # utterances


@dataclasses.dataclass(frozen=True, eq=False)
class UtteranceTokens:
  """Token ids of all utterances of a split, without [CLS] and [SEP].

  Attributes:
    ids: [total] int32, utterance after utterance; may be memory-mapped.
    offsets: [U + 1] int64; utterance u is `ids[offsets[u]:offsets[u + 1]]`.
    first: [D + 1] int64; the utterances of dialogue d are `first[d]` to
      `first[d + 1] - 1`.

  Raises:
    ValueError: if the three do not describe the same utterances.
  """

  ids: np.ndarray
  offsets: np.ndarray
  first: np.ndarray

  def __post_init__(self):
    # Slicing np.memmap costs over a microsecond, slicing a plain view of it
    # a tenth of that.
    for field, dtype in (
      ("ids", np.int32),
      ("offsets", np.int64),
      ("first", np.int64),
    ):
      object.__setattr__(
        self, field, np.asarray(getattr(self, field), dtype=dtype)
      )
    ends = [
      (int(array[0]), int(array[-1])) if array.size else None
      for array in (self.offsets, self.first)
    ]
    wanted = [(0, self.ids.size), (0, self.offsets.size - 1)]
    if ends != wanted:
      raise ValueError(
        "offsets must run from 0 to the number of ids and first from 0 to the "
        f"number of utterances, {wanted}; got {ends}. If they come from a "
        "cache, delete it and tokenize again."
      )

  @property
  def num_utterances(self) -> int:
    """Number of utterances, which is the number of segments."""
    return self.offsets.size - 1

  @property
  def num_dialogues(self) -> int:
    """Number of dialogues."""
    return self.first.size - 1

  def dialogue_start(self, utterances_N: np.ndarray) -> np.ndarray:
    """[N] int64: the first utterance of each utterance's dialogue."""
    later = np.searchsorted(self.first, utterances_N, side="right")
    return self.first[later - 1]


class DialogueWindow:
  """What the next segment of a dialogue needs, while the dialogue goes on.

  Gives, utterance by utterance, the segments that `write_segments` gives of
  the whole dialogue, and never holds more than max_length tokens.

  Args:
    window: utterances in a segment, or None for all that fit.
    max_length: tokens in a segment, special tokens included.

  Attributes:
    utterances: how many were added.
  """

  def __init__(self, window: int | None, max_length: int):
    check(window, max_length)
    self.utterances = 0
    self._room = max_length - SPECIAL_TOKENS
    self._context: list[int] = []
    self._lengths = None
    if window is not None:
      self._lengths = collections.deque(maxlen=window - 1)

  def segment(
    self, ids: Sequence[int], cls_id: int, sep_id: int
  ) -> tuple[list[int], int]:
    """Returns the segment of the next utterance, and its tokens of type 0.

    Args:
      ids: the utterance's token ids, without [CLS] and [SEP].
      cls_id: id of [CLS].
      sep_id: id of [SEP].
    """
    own = ids[: self._room]
    left = self._room - len(own)
    context = self._context[-left:] if left else []
    return [cls_id, *context, sep_id, *own, sep_id], len(context) + 2

  def add(self, ids: Sequence[int]) -> None:
    """Makes an utterance part of the context of those after it."""
    self.utterances += 1
    self._context += ids
    keep = self._room
    if self._lengths is not None:
      self._lengths.append(len(ids))
      keep = min(keep, sum(self._lengths))
    del self._context[: max(0, len(self._context) - keep)]


class CutCounts(NamedTuple):
  """How many segments do not hold all that they should.

  Attributes:
    context: segments that lost tokens of the utterances in their window.
    utterance: segments that lost tokens of their own utterance.
  """

  context: int
  utterance: int


def check(
  window: int | None,
  max_length: int,
  max_position_embeddings: int | None = None,
) -> None:
  """Refuses windows and lengths that cannot give segments.

  Args:
    window: utterances in a segment, or None for all that fit.
    max_length: tokens in a segment, special tokens included.
    max_position_embeddings: rows of the student's position table, if known.

  Raises:
    ValueError: if one of them is out of range.
  """
  if window is not None and window < 1:
    raise ValueError(
      "window counts the utterance itself and must be at least 1, "
      f"got {window}; set it to 1 for no context, or to None for all that fits."
    )
  if max_length < MIN_LENGTH:
    raise ValueError(
      f"max_length must be at least {MIN_LENGTH} to hold [CLS] [SEP] token "
      f"[SEP], got {max_length}; raise max_length."
    )
  if (
    max_position_embeddings is not None and max_length > max_position_embeddings
  ):
    raise ValueError(
      "max_length must not exceed the student's position table, got "
      f"max_length={max_length} with {max_position_embeddings} positions; "
      f"set max_length to {max_position_embeddings} or less, or take a student "
      "with more positions."
    )


def segment_lengths(
  tokens: UtteranceTokens, window: int | None, max_length: int
) -> np.ndarray:
  """[U] int32: number of tokens of every segment, special tokens included."""
  check(window, max_length)
  lengths_U = np.empty(tokens.num_utterances, np.int32)
  for some in _stretches(tokens):
    start, _, end = _slices(tokens, some, window, max_length)
    lengths_U[some] = end - start + SPECIAL_TOKENS
  return lengths_U


def context_lengths(
  tokens: UtteranceTokens, window: int | None, max_length: int
) -> np.ndarray:
  """[U] int32: number of leading tokens of every segment with token type 0."""
  check(window, max_length)
  lengths_U = np.empty(tokens.num_utterances, np.int32)
  for some in _stretches(tokens):
    start, middle, _ = _slices(tokens, some, window, max_length)
    lengths_U[some] = middle - start + 2
  return lengths_U


def cut_counts(
  tokens: UtteranceTokens, window: int | None, max_length: int
) -> CutCounts:
  """Counts the segments that `max_length` cuts; one may count in both."""
  check(window, max_length)
  context = utterance = 0
  for some in _stretches(tokens):
    start, _, end = _slices(tokens, some, window, max_length)
    oldest = _oldest(tokens, some, window)
    context += int(np.count_nonzero(start > tokens.offsets[oldest]))
    utterance += int(np.count_nonzero(end < tokens.offsets[some + 1]))
  return CutCounts(context, utterance)


def _stretches(tokens: UtteranceTokens) -> Iterator[np.ndarray]:
  """Yields all utterances, some at a time: memory must not grow with them."""
  for start in range(0, tokens.num_utterances, _STRETCH):
    yield np.arange(start, min(start + _STRETCH, tokens.num_utterances))
    mapped.release(tokens.offsets)
    mapped.release(tokens.first)


def write_segments(
  tokens: UtteranceTokens,
  utterances_N: np.ndarray,
  rows_NxT: np.ndarray,
  window: int | None,
  max_length: int,
  cls_id: int,
  sep_id: int,
) -> None:
  """Writes one segment to the start of each row.

  Args:
    tokens: the split's utterances.
    utterances_N: [N] integers, which utterance goes to which row.
    rows_NxT: [N, T] int32, written in place; already filled with padding, which
      is left as it is after the segments.
    window: utterances in a segment, or None for all that fit.
    max_length: tokens in a segment, special tokens included.
    cls_id: id of [CLS].
    sep_id: id of [SEP].

  Raises:
    ValueError: if an utterance does not exist, the number of rows differs
      from the number of utterances, or the rows are too short.
  """
  check(window, max_length)
  utterances_N = np.asarray(utterances_N, dtype=np.int64)
  if len(rows_NxT) != utterances_N.size:
    raise ValueError(
      "there must be one row for each utterance, got "
      f"{len(rows_NxT)} rows for {utterances_N.size} utterances; pass only "
      "the rows to be written."
    )
  if not utterances_N.size:
    return
  lowest, highest = int(utterances_N.min()), int(utterances_N.max())
  if lowest < 0 or highest >= tokens.num_utterances:
    raise ValueError(
      f"utterances must be in [0, {tokens.num_utterances}), got {lowest} to "
      f"{highest}; leave out the rows that hold no segment."
    )
  start_N, middle_N, end_N = _slices(tokens, utterances_N, window, max_length)
  longest = int((end_N - start_N).max()) + SPECIAL_TOKENS
  if longest > rows_NxT.shape[1]:
    raise ValueError(
      f"rows must hold the longest segment, got {rows_NxT.shape[1]} columns "
      f"for {longest} tokens; choose T from segment_lengths."
    )
  for row_T, start, middle, end in zip(
    rows_NxT, start_N.tolist(), middle_N.tolist(), end_N.tolist(), strict=True
  ):
    _write_row(tokens.ids, row_T, start, middle, end, cls_id, sep_id)


def hf_inputs(
  tokens_NxT: np.ndarray, length_N: np.ndarray, context_length_N: np.ndarray
) -> dict[str, np.ndarray]:
  """Returns a batch as BERT models of other libraries take it.

  Args:
    tokens_NxT: int token ids.
    length_N: int, tokens of each segment, at least 1.
    context_length_N: int, leading tokens of type 0.

  Returns:
    input_ids, attention_mask and token_type_ids, int64 [N, T].
  """
  position_T = np.arange(tokens_NxT.shape[1])
  mask_NxT = position_T < length_N[:, None]
  type_NxT = mask_NxT & (position_T >= context_length_N[:, None])
  return {
    "input_ids": tokens_NxT.astype(np.int64),
    "attention_mask": mask_NxT.astype(np.int64),
    "token_type_ids": type_NxT.astype(np.int64),
  }


class SpecialIds(Protocol):
  """Ids of the tokens that frame and fill segments."""

  cls_id: int
  sep_id: int
  pad_id: int


def padded_rows(
  tokens: UtteranceTokens,
  utterances_N: np.ndarray,
  shape: tuple[int, int],
  window: int | None,
  max_length: int,
  special: SpecialIds,
) -> np.ndarray:
  """Returns segments in rows of one batch; see `write_segments`.

  Args:
    tokens: the split's utterances.
    utterances_N: [N] integers, the utterances of the first rows.
    shape: of the batch, with rows for N and maybe more, which hold [CLS] alone.
    window: utterances in a segment, or None for all that fit.
    max_length: tokens in a segment, special tokens included.
    special: usually a `tokenization.StudentTokenizer`.

  Returns:
    int32, of that shape.
  """
  rows = np.full(shape, special.pad_id, np.int32)
  rows[:, 0] = special.cls_id
  write_segments(
    tokens,
    utterances_N,
    rows[: len(utterances_N)],
    window,
    max_length,
    special.cls_id,
    special.sep_id,
  )
  return rows


def _write_row(
  ids: np.ndarray,
  row_T: np.ndarray,
  start: int,
  middle: int,
  end: int,
  cls_id: int,
  sep_id: int,
) -> None:
  """Writes `[CLS] ids[start:middle] [SEP] ids[middle:end] [SEP]`."""
  separator = middle - start + 1
  last = end - start + 2
  row_T[0] = cls_id
  row_T[1:separator] = ids[start:middle]
  row_T[separator] = sep_id
  row_T[separator + 1 : last] = ids[middle:end]
  row_T[last] = sep_id


def _oldest(
  tokens: UtteranceTokens, utterances_N: np.ndarray, window: int | None
) -> np.ndarray:
  """[N] int64: the oldest utterance in each one's window and dialogue."""
  start_N = tokens.dialogue_start(utterances_N)
  if window is None:
    return start_N
  return np.maximum(start_N, utterances_N - window + 1)


def _slices(
  tokens: UtteranceTokens,
  utterances_N: np.ndarray,
  window: int | None,
  max_length: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Where segments lie: context `ids[start:middle]`, own `ids[middle:end]`.

  Args:
    tokens: the split's utterances.
    utterances_N: [N] int64.
    window: utterances in a segment, or None for all that fit.
    max_length: tokens in a segment, special tokens included.

  Returns:
    start_N, middle_N, end_N: each [N] int64.
  """
  room = max_length - SPECIAL_TOKENS
  middle_N = tokens.offsets[utterances_N]
  end_N = np.minimum(tokens.offsets[utterances_N + 1], middle_N + room)
  start_N = np.maximum(
    tokens.offsets[_oldest(tokens, utterances_N, window)], end_N - room
  )
  return start_N, middle_N, end_N
