"""What XLA is told, beyond its defaults, when it compiles the student."""

# Triton's products take in what is computed around them, and lose to cuBLAS's
# with a kernel beside each: a training step of four layers of BERT-base on an
# H200, 512 segments of 128 tokens in bfloat16, took 23.9 ms with them and 23.2
# without, when GELU's gradient still kept a slope.
_GPU = {"xla_gpu_enable_triton_gemm": False}
# Without gradients, XLA's own product of [in, out] weights is the fastest for
# a single segment: a fifth less time than with [out, in] and YNNPACK's. In
# batches YNNPACK's is, by a twelfth.
_CPU_LIVE = {"xla_cpu_experimental_ynn_fusion_type": ""}


def options(platform: str, *, live: bool = False) -> dict | None:
  """Returns `compiler_options` of jax.jit.

  Args:
    platform: of the devices: 'cpu', 'gpu', 'tpu'.
    live: for segments that come one at a time.
  """
  if platform == "gpu":
    return _GPU
  return _CPU_LIVE if platform == "cpu" and live else None
