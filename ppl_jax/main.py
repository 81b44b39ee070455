"""Trains a student: scores first, then gold.

python -m ppl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Every value of the config can be set: --config.pretrain.epochs=5. A run that
was killed goes on from its last checkpoint when the same command is given.
"""

import contextlib
import ctypes
import difflib
import logging
import pathlib
import runpy
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

from ppl_jax import inputs as inputs_lib
from ppl_jax import train

_LOG = logging.getLogger("ppl_jax.main")
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/; --config.KEY=VALUE sets a value."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run: checkpoints, results, pictures."
)


def main(argv):
  """Runs training with the flags."""
  if len(argv) > 1:
    raise app.UsageError(f"Flags only, got {argv[1:]}.")
  absl_logging.set_verbosity(absl_logging.WARNING)  # others' news
  logging.getLogger("ppl_jax").setLevel(logging.INFO)
  _LOG.info("JAX %s on %s", jax.__version__, jax.devices())
  _keep_memory()
  # A restart, and the next run alike, need not compile again.
  cache = pathlib.Path(_CONFIG.value.dataset.data_dir).expanduser() / "xla"
  jax.config.update("jax_compilation_cache_dir", str(cache))
  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  try:
    inputs = inputs_lib.prepare(_CONFIG.value, workdir)
  except (ValueError, ConnectionError) as error:
    _LOG.debug("Where it was found:", exc_info=True)
    sys.exit(f"error: {error}")
  train.train_and_evaluate(_CONFIG.value, inputs, workdir)


def _keep_memory() -> None:
  """Has glibc keep freed memory, where there is a glibc.

  XLA on a CPU takes and frees its buffers at every step; handing them back to
  the system each time costs a page fault for every page, up to half of a
  small student's step.
  """
  mmap_max, trim_threshold = -4, -1  # malloc.h
  with contextlib.suppress(OSError, AttributeError):
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, -1)


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a config key that does not exist is named in one line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError):
    given = dict(a.lstrip("-").partition("=")[::2] for a in argv[1:])
    values = runpy.run_path(given["config"])["get_config"]()
    for key in given:
      if key.startswith("config."):
        _check_key(values, key)
    raise


def _check_key(values: ConfigDict, key: str) -> None:
  """Exits where a config has no such key, with the nearest that it has."""
  place, *parts = key.split(".")
  for part in parts:
    have = sorted(values.keys()) if isinstance(values, ConfigDict) else []
    if part not in have:
      near = difflib.get_close_matches(part, have, n=1)
      hint = f"Did you mean {near[0]!r}?" if near else f"It has {have}."
      sys.exit(
        f"error: A flag must set a key that the config has, got --{key}:"
        f" {place} has no {part!r}. {hint}"
      )
    values, place = values[part], f"{place}.{part}"


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main, flags_parser=_parse_flags)
