"""Folders that appear whole or not at all."""

import contextlib
import pathlib
import shutil
import uuid
from collections.abc import Iterator


@contextlib.contextmanager
def new(output: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder to fill that gets its name at the end, or is gone.

  Args:
    output: the name; there may be an empty folder of it. Folders above it that
      are missing are made at the end.

  Raises:
    ValueError: there is something of that name, or no place for it.
  """
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise ValueError(
      f"A new folder must be named, got {output}, which exists. Name another,"
      " or delete it."
    )
  home = next(p for p in output.absolute().parents if p.exists())
  if not home.is_dir():
    raise ValueError(
      f"A new folder must lie in a folder, got {output}, where {home} is a"
      " file. Name another."
    )
  folder = home / f".{output.name}.{uuid.uuid4().hex}.tmp"
  folder.mkdir()
  try:
    yield folder
    output.parent.mkdir(parents=True, exist_ok=True)
    folder.rename(output)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
