"""A live stream: one JSON line an utterance in, one line out at once."""

import json
from collections.abc import Iterable
from typing import BinaryIO

from ppl_jax.data import lines as lines_lib
from ppl_jax.predictor import Predictor

_FIELDS = ("dialogue_id", "speaker", "text")


def run(predictor: Predictor, lines: Iterable[bytes], output: BinaryIO) -> None:
  """Answers each line before the next one is read.

  A line is `{"dialogue_id": ..., "speaker": ..., "text": ...}`; other fields
  are ignored, blank lines skipped. What is wrong with a line is told in its
  place, `{"error": ..., "line": n}` with n from 1, and changes nothing else.

  Args:
    predictor: labels the utterances.
    lines: UTF-8; utterances of many dialogues, those of one in their order.
    output: gets the lines, each flushed.
  """
  for number, line in lines_lib.numbered(lines):
    try:
      answer = predictor.add(*_parse(line)).to_json()
    except ValueError as error:
      answer = json.dumps({"error": str(error), "line": number})
    output.write(answer.encode() + b"\n")
    output.flush()


def _parse(line: bytes) -> list:
  """Returns the values of the fields; `Predictor.add` checks them."""
  try:
    values = json.loads(line)
  except (ValueError, RecursionError) as error:
    raise ValueError(
      f"a line must be JSON in UTF-8, got: {error}. Send one object a line."
    ) from error
  if not isinstance(values, dict):
    raise ValueError(
      f"a line must be a JSON object with {', '.join(_FIELDS)}, got a"
      f" {type(values).__name__}. Send one object a line."
    )
  missing = [field for field in _FIELDS if field not in values]
  if missing:
    raise ValueError(
      f"a line must have {', '.join(_FIELDS)}, got none for"
      f" {', '.join(missing)}. Add it."
    )
  return [values[field] for field in _FIELDS]
