"""Makes a fine-tuned PyTorch classifier a workdir: the way back of an export.

python -m ppl_jax.import_pytorch --folder=FOLDER --workdir=DIR
python -m ppl_jax.import_pytorch --folder=FOLDER --workdir=DIR \
    --config=configs/mine.py

FOLDER holds a BertForSequenceClassification in Hugging Face layout. How its
segments are made is read from its student.json, which an export has; without
one, or to have it otherwise, name the config that it will be trained with.

    python -m ppl_jax.predict --workdir=DIR --input=dialogues.jsonl \
        --output=labels.jsonl
    python -m ppl_jax.main --config=configs/mine.py --config.init_from=DIR \
        --workdir=RUN     # fine-tunes it on gold

To train it on votes again, give the folder to --config.model.pretrained.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Sequence

from absl import flags
from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import checkpoint, commands, folders
from ppl_jax.data import segments, tokenization
from ppl_jax.models import bert, pretrained
from ppl_jax.student import Student

_LOG = logging.getLogger("ppl_jax.import_pytorch")
_FOLDER = flags.DEFINE_string("folder", None, "The classifier's folder.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder to be; must not exist.")
_CLASSES = flags.DEFINE_list(
  "classes", None, "Names of the logits in order, instead of the folder's."
)


def main(argv):
  """Runs the import with the flags."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    import_pytorch(
      pathlib.Path(_FOLDER.value).expanduser(),
      pathlib.Path(_WORKDIR.value).expanduser(),
      config=commands.CONFIG.value,
      classes=_CLASSES.value,
    )
  _LOG.info(
    "%s can be predicted from, and trained on by --config.init_from=%s",
    _WORKDIR.value,
    _WORKDIR.value,
  )


def import_pytorch(
  folder: pathlib.Path,
  workdir: pathlib.Path,
  *,
  config: ConfigDict | None = None,
  classes: Sequence[str] | None = None,
) -> Student:
  """Writes a workdir with a PyTorch classifier's weights, whole or not at all.

  Args:
    folder: in Hugging Face layout.
    workdir: the folder to be; its own folder must exist.
    config: says how segments are made; None takes the folder's student.json.
    classes: names of the C logits in order; None takes the folder's.

  Returns:
    The student.

  Raises:
    ValueError: the folder, the config or the names are not usable.
  """
  student = _student(folder, config, classes)
  tokenizer, _ = tokenization.from_folder(folder, student.speaker_tokens)
  model = pretrained.load_classifier(
    folder,
    len(student.classes),
    tokenizer.vocab_size,
    dropout=student.dropout,
    dtype=student.dtype,
    seed=0,
    fresh_scorer=False,
  )
  student = dataclasses.replace(student, encoder=model.bert.config)  # grown
  segments.check(
    student.window,
    student.max_length,
    student.encoder.max_position_embeddings,
  )
  with folders.new(workdir) as unfinished:
    student.save(unfinished)
    tokenizer.save(unfinished / "tokenizer.json")
    params = nnx.state(model, nnx.Param)
    for name in ("pretrained", "student"):  # to train on, and to predict from
      checkpoint.save_params(unfinished, name, params)
  return student


def _student(
  folder: pathlib.Path,
  config: ConfigDict | None,
  classes: Sequence[str] | None,
) -> Student:
  """Returns how a folder's classifier is fed and read."""
  names, task = pretrained.read_classes(folder)
  if classes and len(classes) != len(names):
    raise ValueError(
      f"--classes must name all logits, got {len(classes)} names for"
      f" {len(names)}, {list(names)}. Correct it."
    )
  names = tuple(classes or names)
  values = pretrained.read_config(folder)
  encoder = bert.BertConfig.from_hf(values)
  if config is None:
    if not (folder / "student.json").exists():
      raise ValueError(
        "How segments are made must be known: got no --config, and no"
        f" student.json in {folder}. Name the config that it will be trained"
        " with."
      )
    student = Student.load(folder)
    return dataclasses.replace(
      student,
      classes=names,
      task=task if len(names) > 1 else student.task,
      encoder=encoder,
    )
  if len(names) > 1 and config.dataset.task != task:
    raise ValueError(
      f"config.dataset.task must be the classifier's, {task}, got"
      f" {config.dataset.task}. Set it, or correct problem_type in"
      f" {folder / 'config.json'}."
    )
  wanted = tuple(config.dataset.classes)
  if wanted and wanted != names:
    raise ValueError(
      f"config.dataset.classes must be the classifier's, {list(names)}, got"
      f" {list(wanted)}. Correct it, or name the logits in order by --classes."
    )
  made = config.segments
  return Student(
    classes=names,
    task=config.dataset.task,
    window=made.window,
    max_length=made.max_length,
    buckets=(
      *sorted(b for b in made.buckets if b < made.max_length),
      made.max_length,
    ),
    speaker_tokens=dict(made.speaker_tokens),
    encoder=encoder,
    dropout=config.model.dropout,
    dtype=config.model.dtype,
  )


if __name__ == "__main__":
  commands.run(main, required=["folder", "workdir"])
