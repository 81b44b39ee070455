import os
import platform
import subprocess
import sys

from absl.testing import absltest

# Prints the page faults of each of some calls, and the pages of their buffers.
_CALLS = """
import resource, sys
from ppl_jax import memory
if sys.argv[1] == "kept":
  memory.one_arena()
import jax, jax.numpy as jnp

def together(x):  # nothing can be freed before the end
  parts = [jnp.sin(x + i) @ x for i in range(24)]
  return sum(jnp.cumsum(part, 0) for part in reversed(parts))

x = jnp.ones((1024, 1024))
call = jax.jit(together).lower(x).compile()
print(call.memory_analysis().temp_size_in_bytes // resource.getpagesize())
if sys.argv[1] == "kept":
  memory.keep_freed()
for _ in range(8):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  call(x).block_until_ready()
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

# Settings that a user's own environment may have.
_OF_MALLOC = ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD")
# Prints malloc's arenas after the import of a module, and a thread more.
_ARENAS = """
import ctypes, importlib, sys, threading
importlib.import_module(sys.argv[1])
thread = threading.Thread(target=lambda: bytearray(100_000))
thread.start()
thread.join()
libc = ctypes.CDLL("libc.so.6")
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def printed(script, argument):
  """Returns what a script prints in a process of its own."""
  return subprocess.run(
    [sys.executable, "-c", script, argument],
    check=True,
    capture_output=True,
    text=True,
    env={k: v for k, v in os.environ.items() if k not in _OF_MALLOC},
  ).stdout


def faults(how):
  """Returns the pages of a call's buffers, and the faults of late calls."""
  pages, *faults = map(int, printed(_CALLS, how).split())
  return pages, min(faults[4:])


@absltest.skipUnless(platform.libc_ver()[0] == "glibc", "needs glibc")
class MemoryTest(absltest.TestCase):
  def test_a_call_takes_the_memory_that_the_last_one_left(self):
    pages, left = faults("kept")
    self.assertGreater(pages, 20_000)  # more than an arena of a thread holds
    self.assertLess(left, pages / 20)

  def test_training_has_one_arena_whatever_its_imports_start(self):
    def arenas(module):
      return printed(_ARENAS, module).count("<heap nr=")

    self.assertEqual(arenas("ppl_jax.main"), 1)
    self.assertGreater(arenas("json"), 1)  # or that would show nothing


if __name__ == "__main__":
  absltest.main()
