"""What a finished student said of a split's labelled utterances.

Parquet, one row an utterance, in the split's order. Columns: `dialogue_id`
string; `utterance` int32, 0-based; `gold` list<string>, empty where the
utterance is of no class; `logits` list<float32> [C], those that `predict`
turns into probabilities. The metadata's key `predictions` holds, as JSON, the
classes in order, the task and the split.

Shapes: N rows, C classes.
"""

import dataclasses
import json
import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ppl_jax.data import atomic

_FOLDER = "predictions"
_KEY = b"predictions"
_SCHEMA = pa.schema(
  {
    "dialogue_id": pa.string(),
    "utterance": pa.int32(),
    "gold": pa.list_(pa.string()),
    "logits": pa.list_(pa.float32()),
  }
)


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
  """A student's logits beside the gold.

  Attributes:
    split: as results.json names it.
    task: 'single_label' or 'multi_label'.
    classes: C names, in the order of the logits.
    dialogue_ids: N of them.
    utterance_N: int32, an utterance's place in its dialogue.
    gold_NxC: uint8, multi-hot.
    logits_NxC: float32.
  """

  split: str
  task: str
  classes: tuple[str, ...]
  dialogue_ids: tuple[str, ...]
  utterance_N: np.ndarray
  gold_NxC: np.ndarray
  logits_NxC: np.ndarray


def path(workdir: str | os.PathLike[str], split: str) -> pathlib.Path:
  """Returns where a run keeps its predictions of a split."""
  return pathlib.Path(workdir) / _FOLDER / f"{split}.parquet"


def save(file: pathlib.Path, predictions: Predictions) -> None:
  """Writes predictions, whole or not at all."""
  names = np.array(predictions.classes, object)
  table = pa.table(
    {
      "dialogue_id": list(predictions.dialogue_ids),
      "utterance": predictions.utterance_N,
      "gold": [list(names[row > 0]) for row in predictions.gold_NxC],
      "logits": list(predictions.logits_NxC),
    },
    _SCHEMA,
  )
  facts = {
    "split": predictions.split,
    "task": predictions.task,
    "classes": predictions.classes,
  }
  file.parent.mkdir(parents=True, exist_ok=True)
  with atomic.replacing(file) as temporary:
    pq.write_table(
      table.replace_schema_metadata({_KEY: json.dumps(facts)}), temporary
    )


def load(file: str | os.PathLike[str]) -> Predictions:
  """Reads predictions.

  Raises:
    ValueError: there is no such file, or it holds something else.
  """
  file = pathlib.Path(file)
  remedy = "run python -m ppl_jax.main again with the run's --workdir"
  if not file.is_file():
    raise ValueError(
      f"A run's predictions must be in {file}, no file: {remedy}"
    )
  try:
    table = pq.read_table(file)
  except pa.ArrowInvalid as e:
    raise ValueError(
      f"{file}: predictions must be Parquet, got {str(e)!r}: {remedy}"
    ) from e
  metadata = table.schema.metadata or {}
  if _KEY not in metadata or table.schema.names != _SCHEMA.names:
    raise ValueError(
      f"{file}: predictions must have the columns {_SCHEMA.names} and metadata"
      f" {_KEY.decode()!r}, got {table.schema.names}: {remedy}"
    )
  facts = json.loads(metadata[_KEY])
  classes = tuple(facts["classes"])
  gold_NxC = np.zeros((len(table), len(classes)), np.uint8)
  for row, labels in zip(gold_NxC, table["gold"].to_pylist(), strict=True):
    row[[classes.index(label) for label in labels]] = 1
  logits = table["logits"].combine_chunks().values.to_numpy()
  return Predictions(
    split=facts["split"],
    task=facts["task"],
    classes=classes,
    dialogue_ids=tuple(table["dialogue_id"].to_pylist()),
    utterance_N=table["utterance"].to_numpy(),
    gold_NxC=gold_NxC,
    logits_NxC=logits.reshape(len(table), len(classes)),
  )
