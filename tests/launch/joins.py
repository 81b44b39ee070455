"""Joins as a worker of launch.local and adds up over all devices.

joins.py FOLDER: worker 1 kills itself when it is there for the first time.
"""

import os
import pathlib
import signal

import jax
import numpy as np
from absl import app, flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_JOINED = (
  flags.DEFINE_string("coordinator_address", None, ""),
  flags.DEFINE_integer("num_processes", None, ""),
  flags.DEFINE_integer("process_id", None, ""),
)


def main(argv):
  jax.distributed.initialize(**{flag.name: flag.value for flag in _JOINED})
  devices = np.array(jax.devices())
  spread = NamedSharding(Mesh(devices, "d"), PartitionSpec("d"))
  values = jax.make_array_from_callback(
    devices.shape, spread, lambda index: np.arange(1.0, 1 + devices.size)[index]
  )
  whole = NamedSharding(spread.mesh, PartitionSpec())
  total = jax.jit(lambda x: x.sum(), out_shardings=whole)(values)
  there = pathlib.Path(argv[1], "there")
  if jax.process_index() == 1 and not there.exists():
    there.touch()
    os.kill(os.getpid(), signal.SIGKILL)
  jax.experimental.multihost_utils.sync_global_devices("all are there")
  counts = f"{jax.process_count()} processes {devices.size} devices"
  # At once: Gloo's threads write there too.
  os.write(1, f"{counts} {int(total)}\n".encode())


if __name__ == "__main__":
  import jax.experimental.multihost_utils

  app.run(main)
