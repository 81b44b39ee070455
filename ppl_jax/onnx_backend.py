"""Logits of an exported student by onnxruntime.

Shape letters: N segments, T tokens, C classes.
"""

import os
import pathlib

import numpy as np

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
_TOKENS = 1024  # of a batch


class OnnxBackend:
  """Runs a file with int64 inputs [N, T] and the output `logits` [N, C].

  Calls may come from several threads.

  Args:
    file: the model.
    max_length: the longest segment, in tokens.
    threads: cores to use, None = all.

  Attributes:
    lengths: token lengths that segments are padded to: any.

  Raises:
    ValueError: the file is not such a model.
  """

  def __init__(
    self, file: pathlib.Path, max_length: int, threads: int | None = None
  ):
    self.lengths = tuple(range(1, max_length + 1))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    available = onnxruntime.get_available_providers()
    try:
      self._session = onnxruntime.InferenceSession(
        os.fspath(file),
        options,
        providers=[name for name in _PROVIDERS if name in available],
      )
    except Exception as error:  # onnxruntime has a class for each fault
      raise ValueError(
        f"model.onnx must be a model that onnxruntime can run, got {file}:"
        f" {error}. Export it again."
      ) from error
    inputs = {i.name for i in self._session.get_inputs()}
    outputs = {o.name for o in self._session.get_outputs()}
    if inputs != _INPUTS or "logits" not in outputs:
      raise ValueError(
        f"model.onnx must have the inputs {sorted(_INPUTS)} and the output"
        f" logits, got {file} with {sorted(inputs)} and {sorted(outputs)}."
        " Export it with `python -m ppl_jax.export --format=onnx`."
      )

  def rows(self, length: int) -> int:
    """Returns how many segments of a length make a batch."""
    return max(8, _TOKENS // length)

  def start(
    self,
    tokens_NxT: np.ndarray,
    length_N: np.ndarray,
    context_length_N: np.ndarray,
  ) -> np.ndarray:
    """Computes logits.

    Args:
      tokens_NxT: int32.
      length_N: int32, tokens of each segment, at least 1.
      context_length_N: int32, leading tokens of type 0.

    Returns:
      Logits [N, C] float32.
    """
    feeds = segments.hf_inputs(tokens_NxT, length_N, context_length_N)
    return self._session.run(["logits"], feeds)[0]
