"""How a process treats its memory, where it has a glibc.

XLA on a CPU takes and frees its buffers at every call. Handing them back to the
system each time costs a page fault for every page: a sixth of MiniLM's training
step, up to half of a small student's.
"""

import contextlib
import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # malloc.h


def one_arena() -> None:
  """Has all threads that are yet to start take memory from one arena.

  Only there can `keep_freed` keep large blocks: glibc maps them one by one for
  threads that have an arena of their own. Where a thread has one already, later
  ones take it in turn with the first, so call this before pyarrow is imported,
  which starts a thread: a step of MiniLM's takes 6 % longer with two arenas.
  """
  _set(_ARENA_MAX, 1)


def keep_freed() -> None:
  """Has glibc keep what is freed from now on.

  What was freed before goes back to the system: preparing takes other memory
  than training.
  """
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL("libc.so.6").malloc_trim(0)
  _set(_MMAP_MAX, 0)
  _set(_TRIM_THRESHOLD, -1)


def _set(option: int, value: int) -> None:
  with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL("libc.so.6").mallopt(option, value)
