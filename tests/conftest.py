"""Settings of all tests."""

import os
import shutil
import tempfile


def pytest_configure(config):
  """Has all tests, and the commands that they run, compile a program once.

  Read by JAX when it is imported, which is later; workers inherit it.
  """
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = tempfile.mkdtemp(prefix="ppl_jax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
