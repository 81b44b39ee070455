"""Files that appear whole or not at all."""

import contextlib
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a path to write; it takes the name `path` once that is done."""
  temporary = path.with_name(f".{path.name}")
  yield temporary
  temporary.replace(path)
