"""BERT-base on one GPU: segments a second and share of the card's peak.

    python -m benchmarks.gpu

Segments of T = 128 tokens, all full, bfloat16 compute on float32 parameters in
training, random weights. Ours is the training step (pair loss, clipping, AdamW)
and the logits step; PyTorch's is `BertForSequenceClassification` with SDPA
attention under torch.compile: autocast to bfloat16 and fused AdamW in training,
bfloat16 weights in prediction. Dropout is 0.1 on hidden states on both sides.
Each side first finds its best of the batch sizes --batch, alone; then the sides
take turns, each at its best.

FLOP are those of matrix products, an addition and a multiplication each, of one
segment in one layer, with H hidden, F feed-forward:

    8 T H^2   queries, keys, values and the attention's output
    4 T^2 H   attention's logits and its values
    4 T H F   feed-forward

times the layers, times 3 in training. Ours computes only the pooled token in
its last layer, and only what it computes is counted there: 4 T H^2 (keys,
values) and the rest for one token. The share of peak is FLOP a second over the
card's dense bfloat16 peak; known cards are in the list below, and --peak names
another's. Needs an NVIDIA GPU that both JAX and PyTorch see, and nothing else
running on it. --tiny tries the script on any machine; its figures say nothing.
"""

import abc
import functools
import gc
import json
import os
import statistics
import sys
import time

import numpy as np
from absl import flags

from benchmarks import common, pair_step
from ppl_jax import commands

_BATCHES = flags.DEFINE_multi_integer(
  "batch", [32, 64, 128, 256, 512, 1024], "Segments a batch, to choose from."
)
_STEPS = flags.DEFINE_integer("steps", 20, "Steps a turn.", lower_bound=1)
_PEAK = flags.DEFINE_float("peak", None, "The card's dense bf16 TFLOP/s.")
_TINY = flags.DEFINE_bool("tiny", False, "Try the script with a tiny encoder.")

_T, _K, _C = 128, 8, 4
_DROPOUT = 0.1
# Dense bf16 TFLOP/s by the name of the card, from NVIDIA's data sheets.
_PEAKS = {
  "H200": 989,
  "H100 PCIe": 756,
  "H100 NVL": 835,
  "H100": 989,
  "A100": 312,
  "L40S": 362,
  "L4": 121,
}


def _sizes() -> dict[str, int]:
  """Returns the encoder's sizes, as in a Hugging Face config."""
  names = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
  )
  values = (30_522, 768, 12, 12, 3_072, 512)
  if _TINY.value:
    values = (1_000, 64, 2, 2, 256, 512)
  return dict(zip(names, values, strict=True))


def _flop(last_layer_pools: bool, trains: bool) -> float:
  """Returns the FLOP of a segment; see the module's text."""
  sizes = _sizes()
  H, F = sizes["hidden_size"], sizes["intermediate_size"]
  layers = sizes["num_hidden_layers"]
  whole = 8 * _T * H**2 + 4 * _T**2 * H + 4 * _T * H * F
  last = whole
  if last_layer_pools:
    last = 4 * _T * H**2 + 4 * H**2 + 4 * _T * H + 4 * H * F
  return (3 if trains else 1) * ((layers - 1) * whole + last)


def _batch(size: int) -> dict[str, np.ndarray]:
  """Returns arrays of one batch, without the shard axis."""
  rng = np.random.default_rng(0)
  shape = (size, _T)
  return {
    "tokens": rng.integers(1, _sizes()["vocab_size"], shape).astype(np.int32),
    "length": np.full(size, _T, np.int32),
    "context_length": np.full(size, _T // 2, np.int32),
    "row": np.ones(size, bool),
    "scores": rng.integers(0, 6, (size, _C)).astype(np.float32) / 5,
    "index": np.arange(size, dtype=np.int32).reshape(-1, _K),
  }


class _Answers(abc.ABC):
  """Measures one side; `trains` and `size` say what."""

  @abc.abstractmethod
  def device(self) -> tuple[str, str]:
    """Returns the card's name, and the library's with its version."""

  @abc.abstractmethod
  def _make(self, trains: bool, size: int):
    """Returns a function that takes so many steps and waits for them."""

  def speed(self, trains: bool, size: int) -> float | None:
    """Returns segments a second; None where the batch does not fit."""
    try:
      take = self._ready(trains, size)
      start = time.perf_counter()
      take(_STEPS.value)
      seconds = time.perf_counter() - start
    except Exception as error:  # each library and version has its own
      if "memory" not in str(error).lower() and "RESOURCE" not in str(error):
        raise
      return None
    finally:
      if (trains, size) != getattr(self, "_kept", None):
        self._ready.cache_clear()
        gc.collect()
    return size * _STEPS.value / seconds

  def keep(self, trains: bool, size: int) -> None:
    """Compiles a step for the turns to come."""
    self._kept = trains, size
    self._ready(trains, size)

  @functools.lru_cache(maxsize=1)  # noqa: B019, one object a process
  def _ready(self, trains: bool, size: int):
    take = self._make(trains, size)
    take(3)  # compiles
    return take


class _Ours(_Answers):
  """The project's steps."""

  def __init__(self):
    import jax

    if jax.default_backend() != "gpu" and not _TINY.value:
      sys.exit(
        "JAX must see a GPU, got only"
        f" {jax.devices()[0].platform}. Install it with `pip install -e"
        " '.[cuda]'`."
      )

  def device(self):
    import jax

    return jax.devices()[0].device_kind, f"jax {jax.__version__}"

  def _make(self, trains, size):
    import jax
    from flax import nnx

    from ppl_jax import sharding, train_step
    from ppl_jax.models import bert, pretrained

    model = pretrained.new_classifier(
      bert.BertConfig(**_sizes()),
      _C,
      dropout=_DROPOUT,
      dtype="bfloat16",
      seed=0,
    )
    graphdef, params = nnx.split(model, nnx.Param)
    mesh = sharding.make_mesh(1)
    arrays = {k: v[None] for k, v in _batch(size).items()}
    batch = sharding.put_batch(mesh, arrays)
    if not trains:
      logits_step = train_step.make_logits_step(graphdef, params, mesh)
      params = jax.device_put(params, sharding.over_parameters(mesh, params))

      def take(steps):
        for _ in range(steps):
          logits = logits_step(params, batch)
        logits.block_until_ready()

      return take
    step, state = pair_step.ours(graphdef, params, mesh)
    key = jax.random.key(0)

    def take(steps):
      nonlocal state
      for _ in range(steps):
        state, scalars = step(state, batch, key)
      if not np.isfinite(float(scalars["loss"])):
        raise FloatingPointError("The loss must stay finite.")

    return take


class _Torch(_Answers):
  """PyTorch, compiled."""

  def __init__(self):
    import torch

    self._torch = torch
    self._place = "cuda" if torch.cuda.is_available() else "cpu"
    if self._place == "cpu" and not _TINY.value:
      sys.exit(
        "PyTorch must see a GPU, got none. Install a build with CUDA: pip"
        " install torch."
      )
    torch.set_float32_matmul_precision("high")

  def device(self):
    card = "cpu"
    if self._place != "cpu":
      card = self._torch.cuda.get_device_name()
    return card, f"torch {self._torch.__version__}"

  def _make(self, trains, size):
    import transformers

    torch = self._torch
    torch._dynamo.reset()  # nothing of another batch size
    if self._place == "cuda":
      torch.cuda.empty_cache()
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(
      transformers.BertConfig(
        **_sizes(),
        num_labels=_C,
        attn_implementation="sdpa",
        hidden_dropout_prob=_DROPOUT,
        attention_probs_dropout_prob=0.0,
      )
    ).to(self._place)
    arrays = {
      k: torch.tensor(v, device=self._place) for k, v in _batch(size).items()
    }
    position = torch.arange(_T, device=self._place)
    # Rows are full: without a mask SDPA is free to take its fastest kernel.
    inputs = {
      "input_ids": arrays["tokens"].long(),
      "token_type_ids": (position >= arrays["context_length"][:, None]).long(),
    }
    if trains:
      return self._trainer(model.train(), inputs, arrays)
    model = torch.compile(model.to(torch.bfloat16).eval())

    def take(steps):
      with torch.inference_mode():
        for _ in range(steps):
          logits = model(**inputs).logits
      logits.float().cpu()  # waits

    return take

  def _trainer(self, model, inputs, arrays):
    torch = self._torch
    parameters = list(model.parameters())
    optimizer = pair_step.torch_adamw(parameters)
    pair_loss = pair_step.torch_loss(arrays["scores"], arrays["index"].long())

    @torch.compile
    def loss_of():
      with torch.autocast(self._place, dtype=torch.bfloat16):
        logits = model(**inputs).logits
      return pair_loss(logits.float())

    def take(steps):
      for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, pair_step.CLIP_NORM)
        optimizer.step()
      if not np.isfinite(loss.item()):
        raise FloatingPointError("The loss must stay finite.")

    return take


_KINDS = {"ours": _Ours, "pytorch": _Torch}


def _peak(device: str) -> float | None:
  """Returns the card's peak in FLOP/s."""
  if _PEAK.value:
    return 1e12 * _PEAK.value
  found = [peak for name, peak in _PEAKS.items() if name in device]
  if found:
    return 1e12 * found[0]
  if _TINY.value:
    return 1e12
  sys.exit(
    f"The peak must be known, got the card {device!r}, which is none of"
    f" {', '.join(_PEAKS)}. Give its dense bf16 TFLOP/s with --peak."
  )


def _best(name: str, trains: bool) -> int:
  """Returns the batch size that is fastest for a side that is alone."""
  speeds = {}
  with common.sides([name], pinned=False) as sides:
    for size in sorted(_BATCHES.value):
      speed = sides[name].ask("speed", trains=trains, size=size)
      if speed is None:
        print(f"  {name}: a batch of {size} does not fit", flush=True)
        break
      speeds[size] = speed
      print(f"  {name}: batch {size}, {speed:.0f} segments/s", flush=True)
  if not speeds:
    sys.exit(f"No batch of --batch fits for {name}. Give smaller ones.")
  return max(speeds, key=speeds.get)


def _measure(trains: bool, peak: float) -> None:
  print("training" if trains else "prediction", flush=True)
  best = {name: _best(name, trains) for name in _KINDS}
  speeds = {name: [] for name in _KINDS}
  with common.sides(list(_KINDS), pinned=False) as sides:
    for name, side in sides.items():
      side.ask("keep", trains=trains, size=best[name])
    for _ in range(common.ROUNDS.value):
      for name, side in sides.items():
        speeds[name].append(side.ask("speed", trains=trains, size=best[name]))
  for name, values in speeds.items():
    flop = _flop(last_layer_pools=name == "ours", trains=trains)
    share = flop * statistics.median(values) / peak
    print(
      f"{name}: batch {best[name]}, {common.spread(values, 0)} segments/s,"
      f" {flop / 1e9:.2f} GFLOP a segment, {share:.1%} of peak"
    )
  print(f"ours / pytorch: {common.ratios(*speeds.values())}", flush=True)


def main(argv):
  """Measures training, then prediction."""
  commands.refuse_arguments(argv)
  # Both sides are on one card: JAX must not take three quarters of it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
  if common.SIDE.value:
    common.serve(_KINDS[common.SIDE.value])
    return
  if wrong := [size for size in _BATCHES.value if size < _K or size % _K]:
    raise ValueError(
      f"--batch must be a positive multiple of {_K}, got {wrong}."
    )
  common.refuse_busy()
  devices = {}
  for name in _KINDS:
    with common.sides([name], pinned=False) as sides:
      try:
        devices[name] = sides[name].ask("device")
      except ChildProcessError:  # it has said why
        sys.exit("This benchmark needs a GPU that JAX and PyTorch both see.")
  print("devices:", json.dumps(devices))
  print(
    f"T = {_T}, {common.ROUNDS.value} rounds of {_STEPS.value} steps,"
    f" {json.dumps(_sizes())}"
  )
  peak = _peak(devices["pytorch"][0])
  for trains in (True, False):
    _measure(trains, peak)


if __name__ == "__main__":
  commands.run(main, required=[])
