"""How many processor cores there are to use."""

import os


def usable() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
