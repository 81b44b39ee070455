"""Starts the real commands, small enough for a test."""

import os
import pathlib
import socket
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
  "--config.pretrain.min_steps=0",
  "--config.pretrain.evals=2",
  "--config.finetune.gold_fraction=0.2",
  "--config.finetune.min_labels=0",
  "--config.finetune.epochs=1",
  "--config.finetune.min_steps=12",
  "--config.finetune.evals=2",
  "--config.checkpoint_every=5",
  "--config.baselines=False",
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


def joined(processes) -> list[tuple[str, ...]]:
  """The flags by which each of several processes joins the others."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  if processes == 1:
    return [()]
  return [
    (
      f"--coordinator_address={address}",
      f"--num_processes={processes}",
      f"--process_id={number}",
    )
    for number in range(processes)
  ]


def on_fake_devices(command, devices, processes) -> list[subprocess.Popen]:
  """Starts a command as several processes, each with its CPU devices."""
  return [
    start(
      [*command, *flags],
      # Quicker to compile; what is computed and sent about is the same.
      XLA_FLAGS="--xla_backend_optimization_level=0"
      f" --xla_force_host_platform_device_count={devices}",
    )
    for flags in joined(processes)
  ]


def start(
  arguments, *, start_new_session=False, **variables
) -> subprocess.Popen:
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
    start_new_session=start_new_session,
  )


def run(arguments, **variables) -> tuple[int, str]:
  """Runs a command; returns its exit status and all that it printed."""
  process = start(arguments, **variables)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output
