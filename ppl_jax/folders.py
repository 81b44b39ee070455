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
    output: the name; there may be an empty folder of it.

  Raises:
    ValueError: there is something of that name, or no place for it.
  """
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise ValueError(
      f"A new folder must be named, got {output}, which exists. Name another,"
      " or delete it."
    )
  home = output.absolute().parent
  if not home.is_dir():
    raise ValueError(
      f"A new folder must lie in one that exists, got {output}. Make {home}"
      " first."
    )
  folder = output.with_name(f".{output.name}.{uuid.uuid4().hex}.tmp")
  folder.mkdir()
  try:
    yield folder
    folder.rename(output)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
