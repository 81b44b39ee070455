"""What a student is, beside its parameters: the run's `student.json`."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from ppl_jax.data import atomic
from ppl_jax.models import bert

_FILE = "student.json"


@dataclasses.dataclass(frozen=True)
class Student:
  """All that is needed to feed a student's parameters and read its logits.

  Attributes:
    classes: in the order of the logits.
    task: 'single_label' (softmax, or a sigmoid for one class) or 'multi_label'.
    window: utterances a segment may span, None = all that fit.
    max_length: the longest segment, in tokens.
    buckets: token lengths that batches have, ascending, the last max_length.
    speaker_tokens: role to token.
    encoder: the encoder's shape.
    dropout: rate on hidden states in training.
    dtype: of the computation.
  """

  classes: tuple[str, ...]
  task: str
  window: int | None
  max_length: int
  buckets: tuple[int, ...]
  speaker_tokens: Mapping[str, str]
  encoder: bert.BertConfig
  dropout: float
  dtype: str

  @classmethod
  def from_config(
    cls,
    config: ConfigDict,
    *,
    classes: Sequence[str],
    task: str,
    encoder: bert.BertConfig,
  ) -> "Student":
    """Returns the student of a run's `segments` and `model` settings.

    Args:
      config: of `configs/`.
      classes: in the order of the logits.
      task: 'single_label' or 'multi_label'.
      encoder: the encoder's shape.
    """
    made = config.segments
    return cls(
      classes=tuple(classes),
      task=task,
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

  def save(self, workdir: pathlib.Path) -> None:
    """Writes student.json."""
    text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
    with atomic.replacing(workdir / _FILE) as temporary:
      temporary.write_text(text)

  @classmethod
  def load(cls, workdir: pathlib.Path) -> "Student":
    """Reads student.json.

    Raises:
      ValueError: the folder holds no run.
    """
    path = workdir / _FILE
    if not path.exists():
      raise ValueError(
        f"A run's folder must hold {_FILE}, got {workdir} without it. Name the"
        " --workdir of a run of `python -m ppl_jax.main`."
      )
    values = json.loads(path.read_text())
    values["classes"] = tuple(values["classes"])
    values["buckets"] = tuple(values["buckets"])
    values["encoder"] = bert.BertConfig(**values["encoder"])
    return cls(**values)
