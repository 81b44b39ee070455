"""Settings of all tests."""

import os
import shutil
import tempfile

# Take minutes; what is started first does not end alone.
_LONG = (
  "distributed_test.py",
  "sharding_test.py",
  "resume_test.py",
  "table1_test.py",
)


def pytest_configure(config):
  """Has all tests, and the commands that they run, compile once and quickly.

  Read by JAX when it is imported, which is later; workers inherit it. What is
  computed and sent about is the same on all levels of XLA's backend.
  """
  os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="ppl_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def pytest_collection_modifyitems(items):
  """Has the longest tests start first."""
  items.sort(key=lambda item: item.path.name not in _LONG)
