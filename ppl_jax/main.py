"""Trains a student: scores first, then gold.

python -m ppl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Every value of the config can be set: --config.pretrain.epochs=5. A run that
was killed goes on from its last checkpoint when the same command is given.
"""

import logging
import pathlib
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

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
  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  try:
    inputs = inputs_lib.prepare(_CONFIG.value, workdir)
  except (ValueError, ConnectionError) as error:
    _LOG.debug("Where it was found:", exc_info=True)
    sys.exit(f"error: {error}")
  train.train_and_evaluate(_CONFIG.value, inputs, workdir)


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  app.run(main)
