"""Saves and restores runs with Orbax.

A run's `checkpoints/` holds `state/` (what a killed run goes on from),
`pretrained/` (the student after the first phase) and `student/` (the result).
"""

import copy
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp


class StateCheckpoints:
  """The newest training state of a run, saved while training goes on.

  State and what goes with it (phase, best metric, patience, history) are one
  checkpoint: after a kill both are there or neither is.

  Args:
    workdir: the run's folder.
  """

  def __init__(self, workdir: pathlib.Path):
    self._manager = ocp.CheckpointManager(
      (workdir / "checkpoints" / "state").absolute(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=1, enable_async_checkpointing=True
      ),
      item_names=("state", "meta"),
    )

  def save(self, step: int, state: Any, meta: dict) -> None:
    """Starts saving; returns once the arrays have been copied.

    Args:
      step: grows over the phases of a run.
      state: a tree of arrays; may be donated afterwards.
      meta: JSON values; may be changed afterwards.
    """
    # On CPU Orbax may read the very buffers that the next step is given.
    state = jax.tree.map(jnp.copy, state)
    meta = copy.deepcopy(meta)  # written by a thread
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
      ),
    )

  def meta(self) -> dict | None:
    """Returns what was saved beside the newest state, None if there is none."""
    step = self._manager.latest_step()
    if step is None:
      return None
    args = ocp.args.Composite(meta=ocp.args.JsonRestore())
    return self._manager.restore(step, args=args)["meta"]

  def restore(self, like: Any) -> Any:
    """Returns the newest state, placed as the arrays of `like` are."""
    target = jax.tree.map(_abstract, like)
    args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
    return self._manager.restore(self._manager.latest_step(), args=args)[
      "state"
    ]

  def close(self) -> None:
    """Waits for what is being saved."""
    self._manager.wait_until_finished()
    self._manager.close()


def save_params(workdir: pathlib.Path, name: str, params: Any) -> None:
  """Saves a student under `checkpoints/<name>`, whole or not at all."""
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(_folder(workdir, name), params, force=True)


def has_params(workdir: pathlib.Path, name: str) -> bool:
  """Says whether `checkpoints/<name>` was saved."""
  return _folder(workdir, name).exists()


def load_params(workdir: pathlib.Path, name: str, like: Any) -> Any:
  """Returns the student of `checkpoints/<name>`, placed as `like` is.

  Args:
    workdir: a run's folder.
    name: 'pretrained' or 'student'.
    like: parameters of the same shapes.

  Raises:
    ValueError: the run has not got that far.
  """
  if not has_params(workdir, name):
    raise ValueError(
      f"A run must have finished its phase to be loaded from: got {workdir}"
      f" without checkpoints/{name}. Let that run finish, or name another."
    )
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(
      _folder(workdir, name), jax.tree.map(_abstract, like)
    )


def _folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
  return (workdir / "checkpoints" / name).absolute()


def _abstract(x: jax.Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
