import tempfile

import numpy as np
from absl.testing import absltest

from ppl_jax.data import mapped


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

  def test_arrays_in_memory_have_nothing_to_release(self):
    array = np.arange(3)
    mapped.release(array)
    np.testing.assert_array_equal(array, [0, 1, 2])


if __name__ == "__main__":
  absltest.main()
