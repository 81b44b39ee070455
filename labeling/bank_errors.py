"""What is wrong with a prompt bank's file, in a line that names the place."""

import difflib
from collections.abc import Collection, Sequence
from typing import Any

import pydantic

_REMEDIES = {
  "missing": "add the key",
  "extra_forbidden": "take it out or correct its name",
  "string_type": "write a text, in quotes where YAML reads a number or yes/no",
}


def describe(
  data: Any,
  where: str,
  error: pydantic.ValidationError,
  keys: Collection[str],
) -> str:
  """Says what the first fault is, where, and what to do.

  Args:
    data: what was read from the file.
    where: the file.
    error: of its validation.
    keys: all that a bank knows, to guess what a misspelt one was meant to be.

  Returns:
    The line.
  """
  fault = error.errors(include_url=False)[0]
  place = ", ".join([where, *_places(data, fault["loc"])])
  if fault["type"] == "value_error":
    return f"{place}: {fault['ctx']['error']}"
  got = repr(fault["input"])
  if fault["type"] == "missing":
    got = "none"
  elif fault["type"] == "extra_forbidden":
    near = difflib.get_close_matches(str(fault["loc"][-1]), keys, n=1)
    got = f"this one (did you mean {near[0]!r}?)" if near else "this one"
  remedy = _REMEDIES.get(fault["type"], "correct it")
  return f"{place}: {fault['msg']}, got {got}: {remedy}"


def _places(data: Any, loc: Sequence[str | int]) -> list[str]:
  """The keys that lead to a fault; a prompt by its id, entries from 1."""
  places = []
  for step, key in enumerate(loc):
    if isinstance(data, dict):
      # Of keys that are no text, `loc` holds another spelling: 0 for False.
      key = next((own for own in data if own == key), key)
      places.append(str(key))
    elif isinstance(data, list | tuple) and isinstance(key, int):
      places.append(f"entry {key + 1}")
    try:
      data = data[key]
    except (KeyError, IndexError, TypeError):
      break
    if list(loc[:step]) == ["prompts"] and isinstance(data, dict):
      places[-2:] = [f"prompt {data.get('id', loc[step] + 1)!r}"]
  return places
