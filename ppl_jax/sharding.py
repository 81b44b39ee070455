"""Where arrays live: the only file that names mesh axes.

A batch has a leading axis of S shards, spread over all devices. Parameters, and
what an optimiser keeps for each of them, are cut over the `fsdp` axis and equal
along `data`. A device gathers the parameters it lacks, works on whole shards of
its own, and adds its gradients to those of the others: nothing that has a
dialogue, segment, token or pair axis leaves a device.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

_DATA, _FSDP = AXES = ("data", "fsdp")
# The end of a parameter's path, and its axis that is cut over fsdp; others, and
# those that fsdp does not divide, are whole on every device.
_RULES = (
  (r"\bembedding\b", 1),  # [entries, H]: H, since few vocabularies divide
  (r"\bweight\b", 0),  # [out, in]
  (r"\bkernel\b", 0),  # [in, out]
)


def make_mesh(
  shards: int, *, accumulation: int = 1, data: int = -1, fsdp: int = 1
) -> Mesh:
  """Returns a mesh over all devices; a batch's shards are spread over it.

  Args:
    shards: shards of a batch.
    accumulation: parts of a device's shards that run one after another.
    data: devices along which parameters are equal; -1 = the rest.
    fsdp: devices over which parameters are cut; -1 = the rest.

  Raises:
    ValueError: the sizes are not those of the devices, or the shards do not
      spread evenly over them.
  """
  devices = jax.device_count()
  sizes = {_DATA: data, _FSDP: fsdp}
  for one, other in (AXES, AXES[::-1]):
    if sizes[one] == -1 and sizes[other] > 0:
      sizes[one] = devices // sizes[other]
  if min(sizes.values()) < 1 or sizes[_DATA] * sizes[_FSDP] != devices:
    raise ValueError(
      "config.mesh.data times config.mesh.fsdp must be the number of devices,"
      f" {devices}, got {data} and {fsdp}. Set one of them to -1, for the rest."
    )
  if shards % (devices * accumulation):
    raise ValueError(
      "config.batch.shards must be a multiple of the number of devices times"
      f" config.batch.accumulation, {devices} x {accumulation}, got {shards}."
      f" Set --config.batch.shards to {devices * accumulation} times a number."
    )
  return jax.make_mesh(
    tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * 2
  )


def platform(mesh: Mesh) -> str:
  """Returns the kind of the devices: 'cpu', 'gpu' or 'tpu'."""
  return mesh.devices.flat[0].platform


def over_batch(mesh: Mesh) -> NamedSharding:
  """The leading shard axis of a batch, over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """The same values on every device."""
  return NamedSharding(mesh, PartitionSpec())


def over_parameters(mesh: Mesh, tree: Any) -> Any:
  """Returns the sharding of each leaf of parameters, or of a state with them.

  Args:
    mesh: of `make_mesh`.
    tree: arrays, or their shapes.
  """

  def sharding(path, leaf):
    axis = _cut_axis(mesh, path, leaf)
    spec = [None] * leaf.ndim
    if axis is not None:
      spec[axis] = _FSDP
    return NamedSharding(mesh, PartitionSpec(*spec))

  return jax.tree_util.tree_map_with_path(sharding, tree)


def _cut_axis(mesh: Mesh, path, leaf) -> int | None:
  name = jax.tree_util.keystr(path)
  size = mesh.shape[_FSDP]
  for pattern, axis in _RULES:
    if leaf.ndim > axis and re.search(pattern, name):
      return axis if size > 1 and leaf.shape[axis] % size == 0 else None
  return None


def on_each_device(
  mesh: Mesh, params: Any, function: Callable, *, reduces: bool
) -> Callable:
  """Runs a function of whole parameters on each device's shards of a batch.

  Args:
    mesh: of `make_mesh`.
    params: parameters, or their shapes.
    function: (whole parameters, the device's shards of a batch, other values)
      -> what `reduces` says.
    reduces: True: the function returns (scalars that `add_up` has added up,
      the device's gradients), and the gradients are added up here; each device
      gets its cut. False: it returns an array with a leading shard axis.

  Returns:
    (parameters, batch, other values, the same everywhere) -> the like, of all
    shards.
  """
  shardings = over_parameters(mesh, params)
  specs = jax.tree.map(lambda s: s.spec, shardings)
  spread = PartitionSpec(AXES)

  def gather(param, spec):
    if _FSDP not in spec:
      return param
    return jax.lax.all_gather(param, _FSDP, axis=spec.index(_FSDP), tiled=True)

  def add(gradient, spec):
    if _FSDP not in spec:
      return jax.lax.psum(gradient, AXES)
    gradient = jax.lax.psum_scatter(
      gradient, _FSDP, scatter_dimension=spec.index(_FSDP), tiled=True
    )
    return jax.lax.psum(gradient, _DATA)

  def local(params, batch, values):
    out = function(jax.tree.map(gather, params, specs), batch, values)
    if reduces and mesh.size > 1:  # a lone device would copy all gradients
      scalars, gradients = out
      return scalars, jax.tree.map(add, gradients, specs)
    return out

  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(specs, spread, PartitionSpec()),
    out_specs=(PartitionSpec(), specs) if reduces else spread,
    check_vma=False,  # gradients are those of one device until they are added
  )


def add_up(tree: Any) -> Any:
  """Adds up values of all devices, within `on_each_device`."""
  return jax.tree.map(lambda x: jax.lax.psum(x, AXES), tree)


def first_shard(mesh: Mesh, shards: int) -> jax.Array:
  """Returns the number of a device's first shard, within `on_each_device`.

  Args:
    mesh: of `make_mesh`.
    shards: that every device has.
  """
  data, fsdp = (jax.lax.axis_index(axis) for axis in AXES)
  return (data * mesh.shape[_FSDP] + fsdp) * shards


@functools.cache
def local_shards(mesh: Mesh, shards: int) -> np.ndarray:
  """Returns the numbers of the shards that this process materialises.

  Args:
    mesh: of `make_mesh`.
    shards: of a batch.
  """
  places = over_batch(mesh).addressable_devices_indices_map((shards,))
  return np.unique([np.arange(shards)[index] for index in places.values()])


def put_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """Makes global arrays of this process's shards of a batch.

  Args:
    mesh: of `make_mesh`.
    batch: arrays with a leading axis of the shards of `local_shards`.
  """
  target = over_batch(mesh)
  own = len(target.addressable_devices)
  shards = mesh.size * len(next(iter(batch.values()))) // own
  numbers = local_shards(mesh, shards)

  def put(array):
    def part(index):
      start = np.searchsorted(numbers, index[0].start or 0)
      return array[start : start + shards // mesh.size]

    shape = (shards, *array.shape[1:])
    return jax.make_array_from_callback(shape, target, part)

  return {name: put(array) for name, array in batch.items()}
