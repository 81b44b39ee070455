"""How far apart two cores are: nanoseconds for a word there and back.

A host may move a virtual machine's cores at any time: onto cores of one cache,
or of two, where what one writes takes several times as long to reach the other.
A program that uses both is slower then, one that uses one is not.
"""

import mmap
import os
import time

_TRIPS, _TRIES = 3_000, 3


class RoundTrip:
  """Measures the two cores that this process is pinned to; a side."""

  def __init__(self):
    first, second = sorted(os.sched_getaffinity(0))
    self._word = mmap.mmap(-1, 1)  # shared with the child
    wakes, self._wake = os.pipe()
    if not os.fork():
      os.close(self._wake)
      os.sched_setaffinity(0, {second})
      while os.read(wakes, 1):  # sleeps while nobody measures
        _answer(self._word)
      os._exit(0)
    os.close(wakes)
    os.sched_setaffinity(0, {first})

  def measure(self) -> float:
    """Returns nanoseconds, Python's own share included: the least of a few."""
    self._word[0] = 0
    os.write(self._wake, b"!")
    trips = []
    for _ in range(_TRIES):
      start = time.perf_counter_ns()
      for _ in range(_TRIPS):
        self._word[0] = 1
        while self._word[0] == 1:
          pass
      trips.append((time.perf_counter_ns() - start) / _TRIPS)
    self._word[0] = 2
    return min(trips)


def _answer(word: mmap.mmap) -> None:
  while True:
    said = word[0]
    if said == 1:
      word[0] = 0
    elif said == 2:
      return
