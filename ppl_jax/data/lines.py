"""Lines of a file or a stream, as all readers of JSON lines take them."""

from collections.abc import Iterable, Iterator


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
