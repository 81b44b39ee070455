"""How a process treats its memory."""

import contextlib
import ctypes


def keep_freed() -> None:
  """Has glibc keep what is freed from now on, where there is a glibc.

  What was freed before goes back to the system: preparing takes other memory
  than training.

  XLA on a CPU takes and frees its buffers at every call; handing them back to
  the system each time costs a page fault for every page, up to half of a
  small student's step.
  """
  mmap_max, trim_threshold = -4, -1  # malloc.h
  with contextlib.suppress(OSError, AttributeError):
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc_trim(0)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)
