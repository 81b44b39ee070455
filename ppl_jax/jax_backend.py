"""Logits of a run's student by JAX, every shape compiled ahead.

Shape letters: N segments, T tokens, C classes.
"""

import concurrent.futures
import pathlib
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jax.sharding import SingleDeviceSharding
from jax.typing import DTypeLike

from ppl_jax import checkpoint, cores
from ppl_jax.models import bert, compiling, pretrained
from ppl_jax.student import Student

_STEP = 8  # tokens between the lengths of short segments
_CPU_TOKENS, _OTHER_TOKENS = 1024, 32768  # of a batch: what is fastest


class JaxBackend:
  """Runs `checkpoints/student` of a run on JAX's first device.

  Calls may come from several threads.

  Args:
    workdir: the run's folder.
    threads: cores that JAX uses, None = all.
    live: compile the shapes of single segments now, not at their first use.
    batch: the like for batches.

  Attributes:
    lengths: token lengths that segments are padded to, ascending.
    parallel: batches that are computed at the same time.

  Raises:
    ValueError: the folder holds no finished run.
  """

  parallel = 1

  def __init__(
    self,
    workdir: pathlib.Path,
    threads: int | None = None,
    *,
    live: bool = True,
    batch: bool = True,
  ):
    student = Student.load(workdir)
    self.lengths = _lengths(student.max_length)
    self._device = jax.devices()[0]
    self._cores = threads or cores.usable()
    graphdef, params = load_student(workdir, student, device=self._device)
    # A flat list is what a compiled function takes with the least ado.
    params, structure = jax.tree.flatten_with_path(params)
    on_cpu = self._device.platform == "cpu"
    turned = [
      on_cpu and _is_turned(path, student.encoder) for path, _ in params
    ]
    self._params = [
      _transposed(x) if turn else x
      for (_, x), turn in zip(params, turned, strict=True)
    ]

    def logits(params, tokens_NxT, length_N, context_length_N):
      params = [
        x.T if turn else x for x, turn in zip(params, turned, strict=True)
      ]
      model = nnx.merge(graphdef, jax.tree.unflatten(structure, params))
      return model(tokens_NxT, length_N, context_length_N)

    self._logits = jax.jit(logits)
    shapes = [(1, length) for length in self.lengths if live]
    shapes += [(self.rows(length), length) for length in self.lengths if batch]
    self._compiled = self._compile(shapes)

  def rows(self, length: int) -> int:
    """Returns how many segments of a length make a batch."""
    on_cpu = self._device.platform == "cpu"
    tokens = _CPU_TOKENS if on_cpu else _OTHER_TOKENS
    return max(8, tokens // length)

  def start(
    self,
    tokens_NxT: np.ndarray,
    length_N: np.ndarray,
    context_length_N: np.ndarray,
  ) -> jax.Array:
    """Starts computing logits.

    Args:
      tokens_NxT: int32; N is 1 or `rows(T)`, and T is one of `lengths`.
      length_N: int32, tokens of each segment, at least 1.
      context_length_N: int32, leading tokens of type 0.

    Returns:
      Logits [N, C] float32 for np.asarray, which waits for them.
    """
    shape = tokens_NxT.shape
    if shape not in self._compiled:
      self._compiled |= self._compile([shape])
    return self._compiled[shape](
      self._params, tokens_NxT, length_N, context_length_N
    )

  def _compile(self, shapes: Iterable[tuple[int, int]]) -> dict:
    """Compiles shapes, several at a time."""

    def lower(shape):
      ints = [
        jax.ShapeDtypeStruct(s, jnp.int32) for s in (shape, *[shape[:1]] * 2)
      ]
      return self._logits.lower(self._params, *ints)

    shapes = list(dict.fromkeys(shapes))
    bar = tqdm.tqdm(total=len(shapes), desc="compiling", unit="shape", delay=2)
    with bar, concurrent.futures.ThreadPoolExecutor(cores.usable()) as pool:
      futures = {}
      for shape in shapes:
        options = compiling.options(
          self._device.platform, live=shape[0] == 1, cores=self._cores
        )
        futures[shape] = pool.submit(lower(shape).compile, options)
        futures[shape].add_done_callback(lambda _: bar.update())
      return {shape: future.result() for shape, future in futures.items()}


def use_cache(folder: pathlib.Path) -> None:
  """Keeps compiled programs in a folder, for this process and later ones.

  Must be called before the first backend is made.
  """
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # By default only what took a second to compile is kept.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _is_turned(path, encoder: bert.BertConfig) -> bool:
  """Says which weights meet all tokens, and not only the one that is pooled.

  The product of the latter is one with a vector, which wants [out, in].
  """
  name = jax.tree_util.keystr(path)
  if "['weight']" not in name or "['pooler']" in name:
    return False
  if encoder.pooling == "mean" or "['key']" in name or "['value']" in name:
    return True
  return f"['layers'][{encoder.num_hidden_layers - 1}]" not in name


def _transposed(x: jax.Array) -> jax.Array:
  """Returns the transpose as it lies in memory, with nothing to compile."""
  return jax.device_put(np.ascontiguousarray(np.asarray(x).T), x.sharding)


def _lengths(max_length: int) -> tuple[int, ...]:
  """Returns ascending lengths, an eighth or 8 tokens apart, to max_length."""
  lengths, length = [], 0
  while length < max_length:
    length += max(_STEP, 2 ** (length.bit_length() - 4))
    lengths.append(min(length, max_length))
  return tuple(lengths)


def load_student(
  workdir: pathlib.Path,
  student: Student,
  *,
  device: jax.Device,
  dtype: DTypeLike | None = None,
) -> tuple[nnx.GraphDef, nnx.State]:
  """Returns the structure and the parameters of a finished run's student.

  Args:
    workdir: the run's folder.
    student: of that folder.
    device: where the parameters go.
    dtype: of the computation; None: as in training.

  Raises:
    ValueError: the run has not finished.
  """
  graphdef, shapes = pretrained.abstract_classifier(
    student.encoder,
    len(student.classes),
    dropout=student.dropout,
    dtype=dtype or student.dtype,
  )
  placed = SingleDeviceSharding(device)
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes
  )
  return graphdef, checkpoint.load_params(workdir, "student", like)
