"""What XLA is told, beyond its defaults, when it compiles the student."""

# Triton's products take in what is computed around them, and lose to cuBLAS's
# with a kernel beside each: a training step of four layers of BERT-base on an
# H200, 512 segments of 128 tokens in bfloat16, took 23.9 ms with them and 23.2
# without, when GELU's gradient still kept a slope.
_GPU = {"xla_gpu_enable_triton_gemm": False}
# On one core XLA's own product of [in, out] weights is the fastest for a single
# segment without gradients: a sixth less time than YNNPACK's. On two it takes a
# tenth more, and half as much again where these share no cache; in batches a
# twelfth more.
_CPU_ONE_CORE_LIVE = {"xla_cpu_experimental_ynn_fusion_type": ""}


def options(
  platform: str, *, live: bool = False, cores: int | None = None
) -> dict | None:
  """Returns `compiler_options` of jax.jit.

  Args:
    platform: of the devices: 'cpu', 'gpu', 'tpu'.
    live: for segments that come one at a time.
    cores: that a CPU's program may use.
  """
  if platform == "gpu":
    return _GPU
  is_one_core_live = platform == "cpu" and live and cores == 1
  return _CPU_ONE_CORE_LIVE if is_one_core_live else None
