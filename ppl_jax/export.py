"""Exports a run's student to PyTorch, ONNX or StableHLO, proven equal.

python -m ppl_jax.export --workdir=DIR --output=OUT
python -m ppl_jax.export --workdir=DIR --output=OUT --format=onnx --int8

pytorch    a Hugging Face folder that transformers loads by itself:
           AutoModelForSequenceClassification.from_pretrained(OUT)
onnx       model.onnx, any batch and length; `ppl_jax.predict --workdir=OUT`
           runs it with onnxruntime
stablehlo  model.stablehlo, any batch and length, for jax.export.deserialize

OUT also gets a model card, README.md, with code that segments text and runs
the model. Before OUT gets its name, segments of the run's test split (or
validation, or train; or of --input) go through the student in JAX and through
what was written: unless all logits agree within 1e-4 and all labels are the
same, nothing is written. Needs: pip install 'ppl-jax[export]'.

The way back is `python -m ppl_jax.import_pytorch`.
"""

import dataclasses
import importlib
import json
import logging
import pathlib
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax import export as jax_export
from jax.sharding import SingleDeviceSharding

from ppl_jax import checkpoint, commands, folders, model_card, parity
from ppl_jax.data import segments, tokenization
from ppl_jax.models import heads, pretrained
from ppl_jax.student import Student

_LOG = logging.getLogger("ppl_jax.export")
_BOUND = 1e-4  # on the difference of two float32 logits
# What each format needs beside what training needs.
_PACKAGES = {
  "pytorch": ("torch", "transformers"),
  "onnx": ("onnx", "onnxruntime"),
  "stablehlo": ("flatbuffers",),
}
_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to be; must not exist.")
_FORMAT = flags.DEFINE_enum(
  "format", "pytorch", list(_PACKAGES), "What to export to."
)
_INT8 = flags.DEFINE_bool(
  "int8", False, "ONNX only: most weights in 8 bits, two fifths of the size."
)
_MAX_CHANGED = flags.DEFINE_float(
  "max_changed",
  0.02,
  "With --int8: the share of labels that may change.",
  lower_bound=0,
  upper_bound=1,
)
_INPUT = flags.DEFINE_string(
  "input",
  None,
  "Dialogues to compare on instead of the run's own, as for ppl_jax.predict.",
)
_SEGMENTS = flags.DEFINE_integer(
  "segments",
  2000,
  "Most segments to compare on, spread evenly over all lengths; 0 for all.",
  lower_bound=0,
)


def main(argv):
  """Runs the export with the flags."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    source = _INPUT.value and pathlib.Path(_INPUT.value).expanduser()
    export(
      pathlib.Path(_WORKDIR.value).expanduser(),
      pathlib.Path(_OUTPUT.value).expanduser(),
      kind=_FORMAT.value,
      int8=_INT8.value,
      max_changed=_MAX_CHANGED.value,
      source=source,
      limit=_SEGMENTS.value,
    )


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
    output: the folder to be; its own folder must exist.
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
    model = _load(workdir, student)
    if source is None:
      sample = parity.sample_of_run(workdir, student, tokenizer, limit)
    else:
      sample = parity.sample_of_file(source, student, tokenizer, limit)
    student.save(folder)
    tokenizer.save(folder / "tokenizer.json")
    ours_MxC = sample.logits(jax_logits(model), "JAX")
    found = {}

    def gate(name, bound, share, compute):
      theirs_MxC = sample.logits(compute, f"{kind}, {name}")
      found[name] = parity.compare(sample, ours_MxC, theirs_MxC)
      found[name].check(bound, share, f"The {kind} model in {name}")

    write, load = _FORMATS[kind]
    write(folder, model, student)
    gate("float32", _BOUND, 0.0, load(folder))
    if kind == "pytorch":
      _check_tokenizer(folder, sample)
    if int8:
      _quantise(folder)
      gate("int8", np.inf, max_changed, load(folder))
    model_card.write(folder, workdir, student, kind, found)
    values = {name: dataclasses.asdict(p) for name, p in found.items()}
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    (folder / "parity.json").write_text(text, encoding="utf-8")
  for name, value in found.items():
    _LOG.info("JAX against %s, %s: %s", kind, name, value)
  _LOG.info("The exported student is in %s", output)
  return found


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
  for name in _PACKAGES[kind]:
    try:
      importlib.import_module(name)
    except ImportError:
      missing.append(name)
  if missing:
    raise ValueError(
      f"--format={kind} needs {', '.join(_PACKAGES[kind])}, got no"
      f" {', '.join(missing)}: pip install 'ppl-jax[export]'."
    )


def _load(workdir: pathlib.Path, student: Student) -> heads.Classifier:
  """Returns the student of a finished run, computing in float32."""
  graphdef, shapes = pretrained.abstract_classifier(
    student.encoder,
    len(student.classes),
    dropout=student.dropout,
    dtype="float32",
  )
  placed = SingleDeviceSharding(jax.local_devices()[0])
  like = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), shapes
  )
  params = checkpoint.load_params(workdir, "student", like)
  return nnx.merge(graphdef, params)


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

  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder
  ).eval()

  def logits(*batch):
    with torch.inference_mode():
      inputs = {k: torch.from_numpy(v) for k, v in _masks(*batch).items()}
      return model(**inputs).logits.numpy()

  return logits


def _check_tokenizer(folder: pathlib.Path, sample: parity.Sample) -> None:
  """Refuses a folder whose AutoTokenizer gives other ids than training used."""
  import transformers

  theirs = transformers.AutoTokenizer.from_pretrained(folder)

  def ids(text):
    return theirs(
      text,
      add_special_tokens=False,
      split_special_tokens=True,
      verbose=False,
    )["input_ids"]

  for m in range(len(sample)):
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
  return lambda *batch: session.run(["logits"], _masks(*batch))[0]


def _quantise(folder: pathlib.Path) -> None:
  """Gives model.onnx weights of 8 bits, where that costs few labels.

  What the second map of the feed-forward reads has outliers that one scale for
  all does not hold: with it in 8 bits twice as many labels change. The pooler
  and the scorer are too small to gain from it.
  """
  import onnx
  from onnxruntime import quantization

  whole, small = folder / "model.onnx", folder / "small.onnx"
  kept = re.compile(r"layer\.\d+\.output\.dense|pooler|classifier")
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


def _masks(tokens_NxT, length_N, context_length_N) -> dict[str, np.ndarray]:
  """Returns a batch as BERT models of other libraries take it."""
  position_T = np.arange(tokens_NxT.shape[1])
  mask_NxT = position_T < length_N[:, None]
  type_NxT = mask_NxT & (position_T >= context_length_N[:, None])
  return {
    "input_ids": tokens_NxT.astype(np.int64),
    "attention_mask": mask_NxT.astype(np.int64),
    "token_type_ids": type_NxT.astype(np.int64),
  }


_FORMATS: dict[str, tuple[Callable, Callable]] = {
  "pytorch": (_write_pytorch, _load_pytorch),
  "onnx": (_write_onnx, _load_onnx),
  "stablehlo": (_write_stablehlo, _load_stablehlo),
}


if __name__ == "__main__":
  commands.run(main, required=["workdir", "output"])
