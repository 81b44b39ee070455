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
same, nothing is written. Needs the packages of `pip install -e '.[export]'`.

The way back is `python -m ppl_jax.import_pytorch`.
"""

import pathlib

from absl import flags

from ppl_jax import commands, exporter

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to be; must not exist.")
_FORMAT = flags.DEFINE_enum(
  "format", "pytorch", list(exporter.PACKAGES), "What to export to."
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
    exporter.export(
      pathlib.Path(_WORKDIR.value).expanduser(),
      pathlib.Path(_OUTPUT.value).expanduser(),
      kind=_FORMAT.value,
      int8=_INT8.value,
      max_changed=_MAX_CHANGED.value,
      source=source,
      limit=_SEGMENTS.value,
    )


if __name__ == "__main__":
  commands.run(main, required=["workdir", "output"])
