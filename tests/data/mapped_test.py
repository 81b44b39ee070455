import pathlib
import sys
import tempfile

import numpy as np
from absl.testing import absltest

from ppl_jax.data import mapped


def resident_file_bytes():
  """Returns the bytes of files that this process has in memory."""
  status = pathlib.Path("/proc/self/status").read_text()
  fields = dict(line.split(":", 1) for line in status.splitlines())
  # A temporary folder may lie in memory, which counts as shared.
  return 1_024 * sum(int(fields[f].split()[0]) for f in ("RssFile", "RssShmem"))


class RowsTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = self.enterContext(tempfile.TemporaryDirectory())

  def test_rows_come_back(self):
    rng = np.random.default_rng(0)
    expected = rng.random((5_000, 3), np.float32)
    with mapped.Rows(self.folder, np.float32, (3,)) as rows:
      rows.append(expected[:2])
      rows.append(np.zeros((0, 3)))
      rows.append(np.zeros((4_998, 3)))
      rows.put(2, expected[2:].astype(np.float64))
      array = rows.map()
    np.testing.assert_array_equal(array, expected)
    self.assertEqual(array.dtype, np.float32)
    mapped.release(array[7:])
    np.testing.assert_array_equal(array, expected)  # read anew
    with self.assertRaises(ValueError):
      array[0] = 1

  def test_no_rows(self):
    with mapped.Rows(self.folder, bool) as rows:
      self.assertEqual(rows.map().shape, (0,))

  def test_some_rows(self):
    expected = np.random.default_rng(0).random((40_000, 2))
    with mapped.Rows(self.folder, float, (2,)) as rows:
      rows.append(expected)
      array = rows.map()
    for step in (1, 7, 50_000):
      is_taken = np.arange(40_000) % step == 1 % step
      taken = mapped.take(array, is_taken)
      np.testing.assert_array_equal(taken, expected[is_taken])
      self.assertEqual(
        mapped.take(array[:, 0], is_taken).shape, taken[:, 0].shape
      )
    self.assertEqual(mapped.take(array, np.zeros(40_000, bool)).shape, (0, 2))
    with self.assertRaises(IndexError):
      mapped.take(array, np.ones(40_001, bool))

  @absltest.skipUnless(sys.platform == "linux", "needs /proc")
  def test_taking_some_rows_leaves_none_of_the_file_in_memory(self):
    with mapped.Rows(self.folder, np.float32, (16,)) as rows:
      for _ in range(64):
        rows.append(np.ones((16_384, 16)))
      array = rows.map()
    is_taken = np.arange(len(array)) % 100 == 0
    before = resident_file_bytes()
    taken = mapped.take(array, is_taken)
    self.assertLess(resident_file_bytes() - before, array.nbytes / 16)
    np.testing.assert_array_equal(taken, array[is_taken])
    self.assertGreater(resident_file_bytes() - before, array.nbytes / 2)

  def test_arrays_in_memory_have_nothing_to_release(self):
    array = np.arange(3)
    mapped.release(array)
    np.testing.assert_array_equal(array, [0, 1, 2])


if __name__ == "__main__":
  absltest.main()
