"""Logits of an exported student by onnxruntime.

Shape letters: N segments, T tokens, C classes.
"""

import concurrent.futures
import os
import pathlib
import threading

import numpy as np

from ppl_jax import cores
from ppl_jax.data import segments

try:
  import onnxruntime
except ImportError as error:
  raise ValueError(
    "A folder with model.onnx is run by onnxruntime, got no such package: pip"
    " install onnxruntime, or name the --workdir of a run."
  ) from error

_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_TOKENS = 512  # of a batch


class OnnxBackend:
  """Runs a file with int64 inputs [N, T] and the output `logits` [N, C].

  A single segment is computed by all cores together, as it is waited for. Of
  batches each core computes one of its own, which is a fifth faster: nothing is
  shared out within a batch, and no core waits for another.

  Calls may come from several threads.

  Args:
    file: the model.
    max_length: the longest segment, in tokens.
    threads: cores to use, None = all.
    live: load the model for single segments now, not at the first of them.
    batch: the like for batches.

  Attributes:
    lengths: token lengths that segments are padded to: any.
    parallel: batches that are computed at the same time.

  Raises:
    ValueError: the file is not such a model.
  """

  def __init__(
    self,
    file: pathlib.Path,
    max_length: int,
    threads: int | None = None,
    *,
    live: bool = True,
    batch: bool = True,
  ):
    self.lengths = tuple(range(1, max_length + 1))
    self._file = file
    available = onnxruntime.get_available_providers()
    self._providers = [name for name in _PROVIDERS if name in available]
    self._threads = threads or 0  # 0: onnxruntime's choice, all cores
    on_cpu = self._providers == ["CPUExecutionProvider"]
    self.parallel = (threads or cores.usable()) if on_cpu else 1
    self._pool = concurrent.futures.ThreadPoolExecutor(self.parallel)
    self._lock = threading.Lock()
    self._sessions: dict[int, onnxruntime.InferenceSession] = {}
    if live:
      self._session(is_batch=False)
    if batch or not live:
      self._session(is_batch=True)

  def _session(self, *, is_batch: bool) -> onnxruntime.InferenceSession:
    """Returns the session for batches, or for single segments."""
    threads = 1 if is_batch and self.parallel > 1 else self._threads
    with self._lock:
      if threads not in self._sessions:
        self._sessions[threads] = self._load(threads)
      return self._sessions[threads]

  def _load(self, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
      session = onnxruntime.InferenceSession(
        os.fspath(self._file), options, providers=self._providers
      )
    except Exception as error:  # onnxruntime has a class for each fault
      raise ValueError(
        "model.onnx must be a model that onnxruntime can run, got"
        f" {self._file}: {error}. Export it again."
      ) from error
    inputs = {i.name for i in session.get_inputs()}
    outputs = {o.name for o in session.get_outputs()}
    if inputs != _INPUTS or "logits" not in outputs:
      raise ValueError(
        f"model.onnx must have the inputs {sorted(_INPUTS)} and the output"
        f" logits, got {self._file} with {sorted(inputs)} and"
        f" {sorted(outputs)}."
        " Export it with `python -m ppl_jax.export --format=onnx`."
      )
    return session

  def rows(self, length: int) -> int:
    """Returns how many segments of a length make a batch."""
    return max(8, _TOKENS // length)

  def start(
    self,
    tokens_NxT: np.ndarray,
    length_N: np.ndarray,
    context_length_N: np.ndarray,
  ) -> "np.ndarray | _Later":
    """Computes logits of a single segment, or starts to, of a batch.

    Args:
      tokens_NxT: int32.
      length_N: int32, tokens of each segment, at least 1.
      context_length_N: int32, leading tokens of type 0.

    Returns:
      Logits [N, C] float32 for np.asarray, which waits for them.
    """
    is_batch = len(tokens_NxT) > 1
    session = self._session(is_batch=is_batch)
    feeds = segments.hf_inputs(tokens_NxT, length_N, context_length_N)
    if is_batch:
      return _Later(self._pool.submit(session.run, ["logits"], feeds))
    return session.run(["logits"], feeds)[0]


class _Later:
  """An array that a thread computes."""

  def __init__(self, future: concurrent.futures.Future):
    self._future = future

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    [array] = self._future.result()
    return array if dtype is None else array.astype(dtype)
