"""What all commands share: the --config flag, and errors said in one line."""

import contextlib
import difflib
import logging
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import ConfigDict, config_flags

_LOG = logging.getLogger(__name__)
_INTERRUPTED = 130  # as shells have it
CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "A file of configs/; --config.KEY=VALUE sets a value.",
  lock_config=True,
)


def run(main: Callable[[Sequence[str]], None], required: Sequence[str]) -> None:
  """Parses the flags and runs `main`; the body of a command's module.

  Args:
    main: takes the arguments that are not flags, the program's name first.
    required: names of flags that must be given.
  """
  flags.mark_flags_as_required(required)

  def run_quietly(argv):
    if not flags.FLAGS["verbosity"].present:
      absl_logging.set_verbosity(absl_logging.WARNING)  # others' news
      for package in ("ppl_jax", "labeling"):
        logging.getLogger(package).setLevel(logging.INFO)
    main(argv)

  try:
    app.run(run_quietly, flags_parser=_parse_flags)
  except KeyboardInterrupt:
    print("\nInterrupted.", file=sys.stderr)
    sys.exit(_INTERRUPTED)


def refuse_arguments(argv: Sequence[str]) -> None:
  """Raises app.UsageError where there is more than the program's name."""
  if len(argv) > 1:
    raise app.UsageError(f"Flags only, got {argv[1:]}.")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
  """Ends the program in one line where what the user gave is not usable.

  Where it was found is shown with --verbosity=1.
  """
  try:
    yield
  except BrokenPipeError:  # whoever reads the output, such as `head`, left
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
  except (ValueError, OSError, FloatingPointError) as error:
    _LOG.debug("Where it was found:", exc_info=True)
    sys.exit(f"error: {error}")


def exit_on_interrupt(message: str = "") -> None:
  """Has Ctrl-C end the program at once, in one line and with status 130.

  For programs whose files are safe at any moment. An exception would be lost
  wherever JAX has Python called that may not raise, as when garbage is
  collected, and would have threads that save or compute complain.

  Args:
    message: the line; "" for none.
  """

  def end(signum, frame):
    del signum, frame
    if message:
      os.write(sys.stderr.fileno(), f"\n{message}\n".encode())
    os._exit(_INTERRUPTED)

  # Where it is ignored, as in the background of a shell, it stays so.
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns a tree of values by dotted keys; an empty branch is a value."""
  out = {}
  for key, value in values.items():
    if isinstance(value, dict) and value:
      out |= flat(value, f"{prefix}{key}.")
    else:
      out[f"{prefix}{key}"] = value
  return out


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
  """Says where two flat configs differ; empty where they do not."""
  unset = "(not set)"
  return "; ".join(
    f"{key}: {theirs.get(key, unset)!r} there, {ours.get(key, unset)!r} here"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key, unset) != theirs.get(key, unset)
  )


def _parse_flags(argv: list[str]) -> list[str]:
  """Parses flags; a config key that does not exist is named in one line."""
  try:
    return app.parse_flags_with_usage(argv)
  except (AttributeError, KeyError):
    given = dict(a.lstrip("-").partition("=")[::2] for a in argv[1:])
    values = runpy.run_path(given["config"])["get_config"]()
    for key in given:
      if key.startswith("config."):
        _check_key(values, key)
    raise


def _check_key(values: ConfigDict, key: str) -> None:
  """Exits where a config has no such key, with the nearest that it has."""
  place, *parts = key.split(".")
  for part in parts:
    have = sorted(values.keys()) if isinstance(values, ConfigDict) else []
    if part not in have:
      near = difflib.get_close_matches(part, have, n=1)
      hint = f"Did you mean {near[0]!r}?" if near else f"It has {have}."
      sys.exit(
        f"error: A flag must set a key that the config has, got --{key}:"
        f" {place} has no {part!r}. {hint}"
      )
    values, place = values[part], f"{place}.{part}"
