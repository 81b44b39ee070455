"""How a process treats its memory."""

import contextlib
import ctypes


def keep_freed() -> None:
  """Has glibc keep freed memory, where there is a glibc.

  XLA on a CPU takes and frees its buffers at every call; handing them back to
  the system each time costs a page fault for every page, up to half of a
  small student's step.
  """
  mmap_max, trim_threshold = -4, -1  # malloc.h
  with contextlib.suppress(OSError, AttributeError):
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
