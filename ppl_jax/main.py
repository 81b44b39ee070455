"""Trains a student: scores first, then gold.

python -m ppl_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

Every value of the config can be set: --config.pretrain.epochs=5. A run that
was killed goes on from its last checkpoint when the same command is given, on
other devices too. On several machines, give the same command on each.
"""

# ruff: noqa: E402
from ppl_jax import memory

memory.one_arena()  # before an import starts a thread that has its own

import contextlib
import logging
import pathlib

import jax
from absl import flags

from ppl_jax import claim, commands, distributed, train
from ppl_jax import inputs as inputs_lib

_LOG = logging.getLogger("ppl_jax.main")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run: checkpoints, results, pictures."
)


def main(argv):
  """Runs training with the flags."""
  commands.refuse_arguments(argv)
  config = commands.CONFIG.value
  with commands.user_errors():
    distributed.join()
  _LOG.info("JAX %s on %s", jax.__version__, jax.devices())
  if not jax.config.jax_compilation_cache_dir:
    # A restart, and the next run alike, need not compile again.
    cache = pathlib.Path(config.dataset.data_dir).expanduser() / "xla"
    jax.config.update("jax_compilation_cache_dir", str(cache))
  workdir = pathlib.Path(_WORKDIR.value).expanduser()
  commands.exit_on_interrupt(
    "Interrupted. Give the same command again to go on."
  )
  with commands.user_errors(), _alone(workdir):
    with distributed.first_process_first("prepare"):
      inputs = inputs_lib.prepare(config, workdir)
    memory.keep_freed()
    train.train_and_evaluate(inputs, workdir)


def _alone(workdir: pathlib.Path) -> contextlib.AbstractContextManager:
  """Keeps other runs out; the processes of one run come in together."""
  if jax.process_index():
    return contextlib.nullcontext()
  return claim.alone(workdir)


if __name__ == "__main__":
  commands.run(main, required=["config", "workdir"])
