"""Where arrays live: the only file that names mesh axes."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_AXES = ("data", "fsdp")


def make_mesh(shards: int) -> Mesh:
  """Returns a mesh over all devices; a batch's shards are spread over it.

  Args:
    shards: shards of a batch.

  Raises:
    ValueError: the shards do not spread evenly over the devices.
  """
  devices = jax.device_count()
  if shards % devices:
    raise ValueError(
      "config.batch.shards must be a multiple of the number of devices,"
      f" {devices}, got {shards}. Set --config.batch.shards={devices} or a"
      " multiple of it."
    )
  return jax.make_mesh((devices, 1), _AXES, axis_types=(AxisType.Auto,) * 2)


def over_batch(mesh: Mesh) -> NamedSharding:
  """The leading shard axis of a batch, over all devices."""
  return NamedSharding(mesh, PartitionSpec(_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def local_shards(shards: int) -> slice:
  """Returns the shards of a batch that this process materialises."""
  per_process = shards // jax.process_count()
  first = jax.process_index() * per_process
  return slice(first, first + per_process)


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Makes global arrays of this process's shards of a batch."""
  target = over_batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(target, array)
    for name, array in batch.items()
  }
