"""Starts the real commands, small enough for a test."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# A student that learns nothing much in seconds, over all of the code.
SMALL = (
  "--config.dataset.options.train=24",
  "--config.dataset.options.validation=12",
  "--config.dataset.options.test=12",
  "--config.model.vocab_size=400",
  "--config.model.hidden_size=16",
  "--config.model.num_layers=1",
  "--config.model.num_heads=2",
  "--config.segments.buckets=(24,)",
  "--config.segments.max_length=32",
  "--config.batch.eval_segments=32",
  "--config.pretrain.epochs=4",
  "--config.pretrain.evals=2",
  "--config.finetune.gold_fraction=0.2",
  "--config.finetune.epochs=1",
  "--config.finetune.min_steps=12",
  "--config.finetune.evals=2",
  "--config.checkpoint_every=5",
)


def command(workdir, *flags, module="ppl_jax.main", config="quickstart"):
  """The command line of a run."""
  return [
    sys.executable,
    "-m",
    module,
    f"--config=configs/{config}.py",
    f"--workdir={workdir}",
    *flags,
  ]


def start(arguments, **variables) -> subprocess.Popen:
  """Starts a command in the project's root, with environment variables."""
  environment = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "JAX_PLATFORMS": "cpu",
    **variables,
  }
  return subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def run(arguments) -> tuple[int, str]:
  """Runs a command; returns its exit status and all that it printed."""
  process = start(arguments)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output
