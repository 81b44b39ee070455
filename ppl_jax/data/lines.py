"""Lines of a file or a stream, as all readers of JSON lines take them."""

import contextlib
import gzip
import pathlib
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO


@contextlib.contextmanager
def opened(file: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file to be read, unpacked where its name ends in .gz.

  Raises:
    ValueError: while it is open: it is no gzip file, or a damaged one.
  """
  with (gzip.open if is_gzip(file) else open)(file, "rb") as f:
    try:
      yield f
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
      raise ValueError(
        f"{file} must be gzip from end to end, got: {error}. Pack it again, or"
        " take .gz off its name where it is not packed."
      ) from error


def is_gzip(file: pathlib.Path) -> bool:
  """Says whether a file is packed, by its name."""
  return file.suffix.lower() == ".gz"


def numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
  """Yields lines with their numbers from 1; blank ones are left out.

  Bytes, so that only a line feed ends a line and faults of the encoding are
  found with their line. A byte order mark is taken off the first.

  Args:
    lines: of a file that was opened for bytes, or of a stream.
  """
  for number, line in enumerate(lines, start=1):
    if number == 1:
      line = line.removeprefix(b"\xef\xbb\xbf")
    if line.strip():
      yield number, line
