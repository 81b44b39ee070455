"""Files that appear whole or not at all, and locks that one process holds."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write; it takes the name `path` once that is done."""
  temporary = path.with_name(f".{path.name}")
  yield temporary
  temporary.replace(path)


def hold(path: pathlib.Path, refusal: str) -> TextIO:
  """Locks a file, made if missing, until what is returned is closed.

  Raises:
    ValueError: another process holds it; with the message `refusal`.
    OSError: it cannot be opened, or its file system has no locks.
  """
  file = path.open("w")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    file.close()
    if isinstance(e, BlockingIOError):
      raise ValueError(refusal) from e
    raise
  return file
