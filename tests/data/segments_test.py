"""Segments against a reference that builds them token by token."""

import tempfile

import hypothesis
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from ppl_jax.data import segments

CLS, SEP, PAD = 1, 2, 0

# Lengths of each utterance of each dialogue; both may be empty.
DIALOGUES = st.lists(
  st.lists(st.integers(0, 6), max_size=6), min_size=0, max_size=4
)
WINDOWS = st.none() | st.integers(1, 7)
MAX_LENGTHS = st.integers(segments.MIN_LENGTH, 24)


def make_tokens(dialogues):
  """Ids from 10 on, all different, so that each tells where it came from."""
  lengths = [length for dialogue in dialogues for length in dialogue]
  offsets = np.cumsum([0, *lengths])
  return segments.UtteranceTokens(
    ids=np.arange(10, 10 + offsets[-1], dtype=np.int32),
    offsets=offsets,
    first=np.cumsum([0, *map(len, dialogues)]),
  )


def reference(dialogues, window, max_length):
  """Per segment: tokens, number of type 0, and what was cut of each part."""
  number = 10
  result = []
  for dialogue in dialogues:
    utterances = []
    for length in dialogue:
      utterances.append(list(range(number, number + length)))
      number += length
    for i, utterance in enumerate(utterances):
      before = utterances[:i]
      if window is not None:
        before = before[len(before) - min(window - 1, len(before)) :]
      context = [token for other in before for token in other]
      own = list(utterance)
      whole = len(context), len(own)
      while 3 + len(context) + len(own) > max_length:
        if context:
          context.pop(0)
        else:
          own.pop()
      result.append(
        (
          [CLS, *context, SEP, *own, SEP],
          len(context) + 2,
          len(context) < whole[0],
          len(own) < whole[1],
        )
      )
  return result


class SegmentsTest(parameterized.TestCase):
  @hypothesis.given(DIALOGUES, WINDOWS, MAX_LENGTHS)
  @hypothesis.settings(deadline=None)
  def test_agrees_with_reference(self, dialogues, window, max_length):
    tokens = make_tokens(dialogues)
    expected = reference(dialogues, window, max_length)

    lengths = segments.segment_lengths(tokens, window, max_length)
    self.assertEqual(lengths.dtype, np.int32)
    self.assertEqual(lengths.tolist(), [len(ids) for ids, *_ in expected])
    contexts = segments.context_lengths(tokens, window, max_length)
    self.assertEqual(contexts.dtype, np.int32)
    self.assertEqual(contexts.tolist(), [count for _, count, *_ in expected])
    self.assertEqual(
      segments.cut_counts(tokens, window, max_length),
      (sum(cut for *_, cut, _ in expected), sum(cut for *_, cut in expected)),
    )

    order = np.arange(tokens.num_utterances)[::-1]
    rows = np.full((len(expected), max_length), PAD, np.int32)
    segments.write_segments(tokens, order, rows, window, max_length, CLS, SEP)
    for u, (ids, *_) in enumerate(expected):
      padded = ids + [PAD] * (max_length - len(ids))
      row = np.full(max_length, PAD, np.int32)
      segments.write_segments(
        tokens, [u], row[None], window, max_length, CLS, SEP
      )
      self.assertEqual(row.tolist(), padded)
      self.assertEqual(rows[len(expected) - 1 - u].tolist(), padded)

  def test_context_stops_at_the_dialogue(self):
    tokens = make_tokens([[2, 1], [3]])  # ids 10 11, 12 | 13 14 15
    row = np.zeros(6, np.int32)
    segments.write_segments(tokens, [2], row[None], None, 64, CLS, SEP)
    self.assertEqual(row.tolist(), [CLS, SEP, 13, 14, 15, SEP])

  def test_a_row_may_be_shorter_than_max_length(self):
    tokens = make_tokens([[2, 1]])
    row = np.full(7, PAD, np.int32)
    segments.write_segments(tokens, [1], row[None], None, 512, CLS, SEP)
    self.assertEqual(row.tolist(), [CLS, 10, 11, SEP, 12, SEP, PAD])

  def test_same_utterance_twice_and_rows_of_a_larger_array(self):
    tokens = make_tokens([[1], [2]])
    batch = np.full((2, 3, 5), PAD, np.int32)
    segments.write_segments(
      tokens, np.array([1, 1, 0]), batch[1], None, 5, CLS, SEP
    )
    self.assertEqual(
      batch.tolist(),
      [
        [[PAD] * 5] * 3,
        [
          [CLS, SEP, 11, 12, SEP],
          [CLS, SEP, 11, 12, SEP],
          [CLS, SEP, 10, SEP, PAD],
        ],
      ],
    )

  def test_memory_mapped_ids(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = f"{folder}/ids.npy"
    np.save(path, np.arange(10, 14, dtype=np.int32))
    tokens = segments.UtteranceTokens(
      np.load(path, mmap_mode="r"), np.array([0, 1, 4]), np.array([0, 2])
    )
    row = np.zeros(7, np.int32)
    segments.write_segments(tokens, [1], row[None], None, 8, CLS, SEP)
    self.assertEqual(row.tolist(), [CLS, 10, SEP, 11, 12, 13, SEP])


class ErrorsTest(parameterized.TestCase):
  @parameterized.parameters(
    (0, 8, None, "window .* at least 1, got 0; .*None"),
    (-3, 8, None, "window .* got -3"),
    (1, 3, None, "max_length must be at least 4 .* got 3; raise"),
    (None, 513, 512, "position table, got max_length=513 with 512 positions"),
  )
  def test_check_refuses(self, window, max_length, positions, message):
    with self.assertRaisesRegex(ValueError, message):
      segments.check(window, max_length, positions)

  @parameterized.parameters((None, 4, 4), (1, 512, 512), (9, 600, None))
  def test_check_accepts(self, window, max_length, positions):
    segments.check(window, max_length, positions)

  def test_every_function_checks(self):
    tokens = make_tokens([[1, 2]])
    rows = np.zeros((1, 8), np.int32)
    for call in (
      lambda: segments.segment_lengths(tokens, 0, 8),
      lambda: segments.context_lengths(tokens, 0, 8),
      lambda: segments.cut_counts(tokens, 0, 8),
      lambda: segments.write_segments(tokens, [0], rows, 0, 8, CLS, SEP),
    ):
      with self.assertRaisesRegex(ValueError, "window"):
        call()

  @parameterized.parameters(-1, 2)
  def test_no_such_utterance(self, u):
    tokens = make_tokens([[1, 2]])
    rows = np.zeros((2, 8), np.int32)
    with self.assertRaisesRegex(ValueError, r"in \[0, 2\), got"):
      segments.write_segments(tokens, [0, u], rows, None, 8, CLS, SEP)
    self.assertFalse(rows.any())

  def test_rows_too_short(self):
    tokens = make_tokens([[1, 2]])
    rows = np.zeros((1, 5), np.int32)
    with self.assertRaisesRegex(ValueError, "got 5 columns for 6 tokens"):
      segments.write_segments(tokens, [1], rows, None, 8, CLS, SEP)

  def test_other_number_of_rows(self):
    with self.assertRaisesRegex(ValueError, "got 2 rows for 1 utterances"):
      segments.write_segments(
        make_tokens([[1]]), [0], np.zeros((2, 8), np.int32), 1, 8, CLS, SEP
      )

  @parameterized.parameters(
    (3, [0, 2], [0, 1]), (2, [1, 2], [0, 1]), (2, [0, 2], [0, 2]), (0, [], [])
  )
  def test_arrays_that_do_not_belong_together(self, total, offsets, first):
    with self.assertRaisesRegex(ValueError, "delete it and tokenize again"):
      segments.UtteranceTokens(
        np.zeros(total, np.int32), np.array(offsets), np.array(first)
      )


if __name__ == "__main__":
  absltest.main()
