"""Files that appear whole or not at all, and locks that one process holds."""

import contextlib
import errno
import fcntl
import pathlib
from collections.abc import Iterator
from typing import TextIO

# Of a file system without locks; Lustre says the last.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write; it takes the name `path` once that is done."""
  temporary = path.with_name(f".{path.name}")
  yield temporary
  temporary.replace(path)


def hold(path: pathlib.Path, refusal: str) -> TextIO:
  """Locks a file, made if missing, until what is returned is closed.

  Where the file system has no locks, nobody is kept out.

  Raises:
    ValueError: another process holds it; with the message `refusal`.
    OSError: it cannot be opened.
  """
  file = path.open("a")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    if e.errno in _NO_LOCKS:
      return file
    file.close()
    if isinstance(e, BlockingIOError):
      raise ValueError(refusal) from e
    raise
  return file
