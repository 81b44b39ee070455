"""Prepared folders: records of dialogues in ArrayRecord files, by TFDS.

TFDS names a folder by dataset and version only, so it would return old data
after a change of the source. Here the caller names the folder, by its content.
"""

import contextlib
import io
import itertools
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging

# To be part of the folder's name: a change of the features changes it.
FORMAT = "1.0.0"

_NAME = "dialogues"
_SHARD = 1_000_000  # records of a file
_AT_ONCE = 500  # records, between looks at the metadata
_INCOMPLETE = ".incomplete-"
_STALE_SECONDS = 24 * 3600


def write(
  folder: pathlib.Path,
  parts: Mapping[str, Iterator[Mapping[str, Any]]],
  num_classes: int,
) -> None:
  """Writes a folder that is there whole or not at all.

  Several processes may write the same folder at once: one of them wins.

  Args:
    folder: its name; its parent is made where it does not exist.
    parts: from a split's name to its records, each {"dialogue_id": str,
      "utterances": {"speaker": L str, "text": L str, "gold": [L, C] uint8,
      "labelled": [L] bool}}. Their order is kept.
    num_classes: C.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  for left in folder.parent.glob(_INCOMPLETE + "*"):
    # Left by a killed run: one that is still at work is younger.
    with contextlib.suppress(FileNotFoundError):
      if left.stat().st_mtime < time.time() - _STALE_SECONDS:
        shutil.rmtree(left, ignore_errors=True)
  work = tempfile.mkdtemp(prefix=_INCOMPLETE, dir=folder.parent)
  try:
    place = pathlib.Path(work) / _NAME / FORMAT
    place.mkdir(parents=True)
    with _quiet():
      _write_parts(place, parts, num_classes)
    os.chmod(work, 0o755)
    try:
      os.rename(work, folder)
    except OSError:
      # Another process was faster: what it wrote is the same.
      if not folder.exists():
        raise
  finally:
    shutil.rmtree(work, ignore_errors=True)


def read(folder: pathlib.Path) -> dict[str, Sequence[Mapping[str, Any]]]:
  """From each split in the folder to its records, decoded when asked for.

  Args:
    folder: written by `write`.

  Returns:
    Records as `write` takes them, but strings are bytes and the gold a list of
    [C] arrays.
  """
  with _quiet():
    builder = tfds.builder_from_directory(folder / _NAME / FORMAT)
    splits = builder.info.splits
    return {split: builder.as_data_source(split=split) for split in splits}


def _write_parts(place, parts, num_classes) -> None:
  """Writes records as they are drawn: a TFDS builder would hold them all."""
  features = tfds.features
  utterance = {
    "speaker": features.Text(),
    "text": features.Text(),
    "gold": features.Tensor(shape=(num_classes,), dtype=np.uint8),
    "labelled": np.bool_,
  }
  info = tfds.core.DatasetInfo(
    builder=tfds.core.DatasetIdentity(
      name=_NAME,
      version=tfds.core.Version(FORMAT),
      data_dir=os.fspath(place),
      module_name=__name__,
    ),
    description="Dialogues with speakers, texts and multi-hot gold labels.",
    features=features.FeaturesDict(
      {
        "dialogue_id": features.Text(),
        "utterances": features.Sequence(utterance),
      }
    ),
    disable_shuffling=True,
  )
  writer = tfds.core.SequentialWriter(
    info, max_examples_per_shard=_SHARD, file_format="array_record"
  )
  writer.initialize_splits(list(parts))
  for split, records in parts.items():
    bar = tqdm.tqdm(records, desc=f"preparing {split}", unit=" dialogues")
    records = iter(bar)
    while some := list(itertools.islice(records, _AT_ONCE)):
      writer.add_examples({split: some})
    writer.close_splits([split])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Of what TFDS says, leaves errors; our own progress bar stays."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
    logging.set_verbosity(verbosity)
