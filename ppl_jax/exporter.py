"""A run's student in other formats, proven equal before it is written."""

import contextlib
import dataclasses
import importlib
import json
import logging
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from flax import nnx
from jax import export as jax_export

from ppl_jax import folders, model_card, parity
from ppl_jax.data import segments, tokenization
from ppl_jax.jax_backend import load_student
from ppl_jax.models import heads, pretrained
from ppl_jax.student import Student

_LOG = logging.getLogger(__name__)
_BOUND = 1e-4  # on the difference of two float32 logits
# What each format needs beside what training needs.
PACKAGES = {
  "pytorch": ("torch", "transformers"),
  "onnx": ("onnx", "onnxruntime"),
  "stablehlo": ("flatbuffers",),
}
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(
  workdir: pathlib.Path,
  output: pathlib.Path,
  *,
  kind: str = "pytorch",
  int8: bool = False,
  max_changed: float = 0.02,
  source: pathlib.Path | None = None,
  limit: int = 2000,
) -> dict[str, parity.Parity]:
  """Writes a student in another format, whole and equal, or not at all.

  Args:
    workdir: the run's folder.
    output: the folder to be; those above it are made.
    kind: 'pytorch', 'onnx' or 'stablehlo'.
    int8: quantise the weights; 'onnx' only.
    max_changed: share of labels that may change by `int8`.
    source: dialogues to compare on; None takes the run's data.
    limit: most segments to compare on; 0 takes all.

  Returns:
    How what was written compares to JAX in float32: by 'float32', and with
    `int8` also by 'int8'.

  Raises:
    ValueError: the folders or flags are not usable, a package is missing, or
      the exported model differs.
  """
  if int8 and kind != "onnx":
    raise ValueError(
      f"--int8 must come with --format=onnx, got --format={kind}. Leave one of"
      " them out."
    )
  _check_packages(kind)
  with folders.new(output) as folder:
    student = Student.load(workdir)
    tokenizer = tokenization.StudentTokenizer.load(
      workdir / "tokenizer.json", student.speaker_tokens
    )
    model = load(workdir, student)
    if source is None:
      sample = parity.sample_of_run(workdir, student, tokenizer, limit)
    else:
      sample = parity.sample_of_file(source, student, tokenizer, limit)
    student.save(folder)
    tokenizer.save(folder / "tokenizer.json")
    ours_MxC = sample.logits(jax_logits(model), "JAX")
    found = {}

    def gate(name, bound, share, compute, remedy):
      theirs_MxC = sample.logits(compute, f"{kind}, {name}")
      found[name] = parity.compare(sample, ours_MxC, theirs_MxC)
      what = f"The {kind} model in {name}"
      found[name].check(bound, share, what, remedy)

    write, read = _FORMATS[kind]
    write(folder, model, student)
    packages = " and ".join(PACKAGES[kind])
    remedy = f"try another version of {packages}."
    gate("float32", _BOUND, 0.0, read(folder), remedy)
    if kind == "pytorch":
      _check_tokenizer(folder, sample)
    if int8:
      _quantise(folder)
      remedy = "allow more with --max_changed, or leave --int8 out."
      gate("int8", np.inf, max_changed, read(folder), remedy)
    model_card.write(folder, workdir, student, kind, found)
    values = {name: dataclasses.asdict(p) for name, p in found.items()}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / "parity.json").write_text(text, encoding="utf-8")
  for name, value in found.items():
    _LOG.info("JAX against %s, %s: %s", kind, name, value)
  _LOG.info("The exported student is in %s", output)
  return found


def load(workdir: pathlib.Path, student: Student) -> heads.Classifier:
  """Returns the student of a finished run, computing in float32."""
  device = jax.local_devices()[0]
  return nnx.merge(
    *load_student(workdir, student, device=device, dtype="float32")
  )


def jax_logits(model: heads.Classifier) -> parity.Logits:
  """Returns the student as a function, compiled for each shape it meets."""
  graphdef, params = nnx.split(model, nnx.Param)
  compiled = jax.jit(lambda p, *batch: nnx.merge(graphdef, p)(*batch))

  def logits(*batch):
    # Or a GPU or TPU would round to fewer bits.
    with jax.default_matmul_precision("highest"):
      return compiled(params, *batch)

  return logits


def _check_packages(kind: str) -> None:
  missing = []
  for name in PACKAGES[kind]:
    try:
      importlib.import_module(name)
    except ImportError:
      missing.append(name)
  if missing:
    raise ValueError(
      f"--format={kind} needs {', '.join(PACKAGES[kind])}, got no"
      f" {', '.join(missing)}: pip install {' '.join(missing)}."
    )


def _write_pytorch(folder, model, student: Student) -> None:
  pretrained.save_classifier(folder, model, student.classes, student.task)
  special = ("unk", "cls", "sep", "pad", "mask")
  known = json.loads((folder / "tokenizer.json").read_text("utf-8"))
  vocabulary = {
    *known["model"]["vocab"],
    *(token["content"] for token in known["added_tokens"]),
  }
  tokens = {f"{name}_token": f"[{name.upper()}]" for name in special}
  settings = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **{k: token for k, token in tokens.items() if token in vocabulary},
    "model_max_length": student.max_length,
    "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    "padding_side": "right",
    "truncation_side": "left",  # of the context, its oldest tokens go
    "clean_up_tokenization_spaces": False,
  }
  text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
  (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _load_pytorch(folder: pathlib.Path) -> parity.Logits:
  import torch
  import transformers

  with _named(folder) as name:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
      name, trust_remote_code=True
    ).eval()

  def logits(*batch):
    with torch.inference_mode():
      arrays = segments.hf_inputs(*batch)
      inputs = {k: torch.from_numpy(v) for k, v in arrays.items()}
      return model(**inputs).logits.numpy()

  return logits


@contextlib.contextmanager
def _named(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives a folder a name for a while, the same for all.

  By the name transformers keeps a copy of the folder's code, for ever.
  """
  with tempfile.TemporaryDirectory() as home:
    link = pathlib.Path(home, "ppl_jax_export")
    link.symlink_to(folder.absolute())
    yield link


def _check_tokenizer(folder: pathlib.Path, sample: parity.Sample) -> None:
  """Refuses a folder whose AutoTokenizer gives other ids than training used."""
  import transformers

  with _named(folder) as name:
    theirs = transformers.AutoTokenizer.from_pretrained(
      name, trust_remote_code=True
    )

  def ids(text):
    return theirs(
      text,
      add_special_tokens=False,
      split_special_tokens=True,
      verbose=False,
    )["input_ids"]

  numbers = range(len(sample))
  for m in tqdm.tqdm(numbers, desc="tokenizer", unit="segment", delay=1):
    _, _, speaker, text = sample.utterance(m)
    token = sample.student.speaker_tokens.get(speaker)
    got = [theirs.convert_tokens_to_ids(token)] if token else ids(f"{speaker}:")
    got += ids(text)
    wanted = sample.tokenizer.encode_utterance(speaker, text)
    if got != wanted:
      raise ValueError(
        "AutoTokenizer must give the ids that training used, got others from"
        f" transformers {transformers.__version__} for {sample.place(m)}:"
        f" {got} for {wanted}. Nothing was written; install another version of"
        " transformers."
      )


def _write_onnx(folder, model, student: Student) -> None:
  import onnx

  from ppl_jax.models import onnx_graph

  weights = pretrained.hf_weights(model)
  onnx.save(onnx_graph.build(weights, student.encoder), folder / "model.onnx")


def _load_onnx(folder: pathlib.Path) -> parity.Logits:
  import onnxruntime

  session = onnxruntime.InferenceSession(
    folder / "model.onnx", providers=["CPUExecutionProvider"]
  )
  return lambda *batch: session.run(["logits"], segments.hf_inputs(*batch))[0]


def _quantise(folder: pathlib.Path) -> None:
  """Gives model.onnx weights of 8 bits, where that costs few labels.

  What the second map of the feed-forward reads has outliers that one scale for
  all does not hold: with it in 8 bits twice as many labels change. The pooler
  and the scorer are too small to gain from it. Where one token asks, the last
  layer has a key and a value for each head (`attention_of_one`), which
  onnxruntime cannot run so.
  """
  import onnx
  from onnxruntime import quantization

  whole, small = folder / "model.onnx", folder / "small.onnx"
  kept = re.compile(
    r"layer\.\d+\.output\.dense|self\.(key|value)$|pooler|classifier"
  )
  nodes = onnx.load(whole, load_external_data=False).graph.node
  log = logging.getLogger()
  level = log.level
  log.setLevel(logging.ERROR)  # it asks for a step that changes nothing here
  try:
    quantization.quantize_dynamic(
      whole,
      small,
      op_types_to_quantize=["MatMul", "Gather"],
      nodes_to_exclude=[
        n.name for n in nodes if any(kept.search(i) for i in n.input)
      ],
      # Products of signed weights overflow where a CPU has no VNNI.
      weight_type=quantization.QuantType.QUInt8,
      per_channel=True,
    )
  finally:
    log.setLevel(level)
  small.replace(whole)


def _write_stablehlo(folder, model, student: Student) -> None:
  graphdef, params = nnx.split(model, nnx.Param)
  params = jax.tree.map(np.asarray, params)
  limit = student.encoder.max_position_embeddings
  n, t = jax_export.symbolic_shape(
    "n, t", constraints=[f"t >= {segments.MIN_LENGTH}", f"t <= {limit}"]
  )

  def logits(tokens_NxT, length_N, context_length_N):
    model = nnx.merge(graphdef, jax.tree.map(jnp.asarray, params))
    return model(tokens_NxT, length_N, context_length_N)

  shapes = ((n, t), (n,), (n,))
  arguments = [jax.ShapeDtypeStruct(s, jnp.int32) for s in shapes]
  with jax.default_matmul_precision("highest"):
    exported = jax_export.export(jax.jit(logits), platforms=_PLATFORMS)(
      *arguments
    )
  (folder / "model.stablehlo").write_bytes(exported.serialize())


def _load_stablehlo(folder: pathlib.Path) -> parity.Logits:
  data = bytearray((folder / "model.stablehlo").read_bytes())
  return jax.jit(jax_export.deserialize(data).call)


_FORMATS: dict[str, tuple[Callable, Callable]] = {
  "pytorch": (_write_pytorch, _load_pytorch),
  "onnx": (_write_onnx, _load_onnx),
  "stablehlo": (_write_stablehlo, _load_stablehlo),
}
