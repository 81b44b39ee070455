"""A fine-tuned PyTorch classifier as a workdir: the way back of an export."""

import dataclasses
import pathlib
from collections.abc import Sequence

from flax import nnx
from ml_collections import ConfigDict

from ppl_jax import checkpoint, folders
from ppl_jax.data import segments, tokenization
from ppl_jax.models import bert, pretrained
from ppl_jax.student import Student


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
    workdir: the folder to be; those above it are made.
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
  return Student.from_config(
    config, classes=names, task=config.dataset.task, encoder=encoder
  )
