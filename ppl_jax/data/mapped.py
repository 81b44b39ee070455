"""Arrays on disk that have a row for each utterance, and so no bound."""

import mmap
import os
import pathlib
import tempfile

import numpy as np

_STRETCH = 16_384  # rows read at once


class Rows:
  """Rows in a file without a name, to be mapped once they are all there.

  A context, in which rows come and `map` is called; what it gives lasts.

  Args:
    folder: where there is room for the file; it is gone when nobody uses it.
    dtype: of the values.
    shape: of a row.
  """

  def __init__(
    self,
    folder: str | os.PathLike[str],
    dtype: np.typing.DTypeLike,
    shape: tuple[int, ...] = (),
  ):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, see exit
    self._dtype, self._shape = np.dtype(dtype), shape
    self._row_bytes = self._dtype.itemsize * int(np.prod(shape))
    self._count = 0

  def __enter__(self) -> "Rows":
    return self

  def __exit__(self, *_) -> None:
    self._file.close()

  def append(self, rows: np.ndarray) -> None:
    """Adds rows [N, ...] at the end."""
    self._file.seek(0, os.SEEK_END)
    self._write(rows)
    self._count += len(rows)

  def put(self, start: int, rows: np.ndarray) -> None:
    """Replaces the rows from `start` on, which are there."""
    self._file.seek(start * self._row_bytes)
    self._write(rows)

  def map(self) -> np.ndarray:
    """Returns all rows, read-only; what nobody reads takes no memory."""
    shape = (self._count, *self._shape)
    if not self._count:
      return np.zeros(shape, self._dtype)
    self._file.flush()
    # A plain view: slicing np.memmap itself costs ten times as much.
    return np.asarray(np.memmap(self._file, self._dtype, "r", shape=shape))

  def _write(self, rows: np.ndarray) -> None:
    self._file.write(np.ascontiguousarray(rows, self._dtype).data)


def moved(array: np.ndarray, folder: str | os.PathLike[str]) -> np.ndarray:
  """Returns an array that was in memory, mapped from a file; see `Rows`."""
  with Rows(folder, array.dtype, array.shape[1:]) as rows:
    rows.append(array)
    return rows.map()


def take(array: np.ndarray, is_taken: np.ndarray) -> np.ndarray:
  """Returns some rows of an array, in memory for those alone.

  Args:
    array: mapped, or not.
    is_taken: bool, whether a row is wanted.

  Returns:
    `array[is_taken]`.

  Raises:
    IndexError: there are not as many bools as rows.
  """
  if len(is_taken) != len(array):
    raise IndexError(
      "There must be a bool for each row, got"
      f" {len(is_taken)} for {len(array)} rows. Pass the array's own."
    )
  out = np.empty((np.count_nonzero(is_taken), *array.shape[1:]), array.dtype)
  end = 0
  for start in range(0, len(array), _STRETCH):
    some = slice(start, start + _STRETCH)
    rows = array[some][is_taken[some]]
    out[end : end + len(rows)] = rows
    end += len(rows)
    release(array)
  return out


def release(array: np.ndarray) -> None:
  """Gives back the memory of what was read of a mapped array; else nothing.

  The system does so itself where memory is short. Until then a process looks
  as if it needed all that it ever read.
  """
  while array is not None and not isinstance(array, mmap.mmap):
    array = getattr(array, "base", None)
  if array is not None and hasattr(mmap, "MADV_DONTNEED"):
    array.madvise(mmap.MADV_DONTNEED)
