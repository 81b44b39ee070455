"""Several processes as one run: how they find each other, and take turns."""

import contextlib
import datetime
import os
from collections.abc import Iterator

import jax
import orbax.checkpoint as ocp
from absl import flags

_ADDRESS = flags.DEFINE_string(
  "coordinator_address",
  None,
  "HOST:PORT of process 0, where the environment does not tell (a TPU pod,\n"
  " Slurm and Open MPI do).",
)
_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "How many processes there are.", lower_bound=1
)
_PROCESS = flags.DEFINE_integer(
  "process_id", None, "Which one this is, from 0.", lower_bound=0
)
_SILENCE = 30  # seconds after which a process counts as dead, and all end
_NO_CLUSTER = "coordinator_address should be defined."
_PATIENCE = datetime.timedelta(hours=6)  # to prepare the largest data


def join() -> None:
  """Joins the other processes, where flags or the environment name them.

  Must be called before anything else asks JAX for devices.

  Raises:
    ValueError: some of the flags are there and others are not; or they are
      needed.
  """
  given = {
    "coordinator_address": _ADDRESS.value,
    "num_processes": _PROCESSES.value,
    "process_id": _PROCESS.value,
  }
  missing = [name for name, value in given.items() if value is None]
  if not missing:
    jax.distributed.initialize(**given, heartbeat_timeout_seconds=_SILENCE)
    return
  if len(missing) < len(given):
    raise ValueError(
      "--coordinator_address, --num_processes and --process_id must be given"
      f" together, got no {' and no '.join(missing)}. Give all, or none."
    )
  try:
    jax.distributed.initialize(heartbeat_timeout_seconds=_SILENCE)
  except ValueError as error:
    if _NO_CLUSTER not in str(error):
      raise
    processes = os.environ.get("OMPI_COMM_WORLD_SIZE", "1")
    if processes != "1":
      raise ValueError(
        f"Open MPI started {processes} processes, and JAX cannot tell from this"
        " version of it where the first is. Give --coordinator_address,"
        " --num_processes and --process_id."
      ) from error


@contextlib.contextmanager
def first_process_first(what: str) -> Iterator[None]:
  """Has the first process do something alone, then all others.

  Args:
    what: is done, once in the life of a process.
  """
  first = jax.process_index() == 0
  wait = ocp.multihost.get_barrier_sync_fn()
  timeout_ms = int(_PATIENCE.total_seconds() * 1000)
  if not first:
    wait(key=what, timeout_ms=timeout_ms)
  yield
  if first:
    wait(key=what, timeout_ms=timeout_ms)
