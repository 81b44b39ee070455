"""What the benchmarks share: an idle machine, sides in turn, medians.

A side is a child process that runs the same module with --side. It is pinned to
as many cores as --threads says before it starts, so that its thread pools count
these, and works only while it is asked something.
"""

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import flags

THREADS = flags.DEFINE_enum("threads", "2", ["1", "2"], "Cores of each side.")
ROUNDS = flags.DEFINE_integer("rounds", 9, "Turns of each side.", lower_bound=1)
BUSY_OK = flags.DEFINE_bool("busy_ok", False, "Time on a busy machine too.")
SIDE = flags.DEFINE_string("side", None, "Of a child process, not for people.")


def refuse_busy() -> None:
  """Ends the program on a busy machine; with --busy_ok, warns."""
  load = os.getloadavg()[0]
  if load > 0.5:
    busy = f"the machine is busy: load average {load:.2f} over the last minute"
    if not BUSY_OK.value:
      sys.exit(f"Timing needs an idle machine, got one where {busy}; wait.")
    print(f"Not to be trusted: {busy}.", flush=True)


def spread(values: Sequence[float], digits: int = 2) -> str:
  """Returns the median, and the smallest and largest value."""
  middle, low, high = statistics.median(values), min(values), max(values)
  return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
  """Returns the spread of ours / theirs, round by round."""
  return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def memory() -> dict[str, float]:
  """Returns this process's memory in MiB: now, and at its peak."""
  # Not ru_maxrss, which begins with what the parent had.
  status = pathlib.Path("/proc/self/status").read_text()
  fields = dict(line.split(":", 1) for line in status.splitlines())
  return {
    name: int(fields[field].split()[0]) / 1024
    for name, field in (("now", "VmRSS"), ("peak", "VmHWM"))
  }


class Side:
  """A child process that answers questions; see `serve`.

  Args:
    name: given to it as --side.
    arguments: further flags, after those that this process was given.
    pinned: whether to keep it to the cores of --threads.
  """

  def __init__(self, name: str, *arguments: str, pinned: bool = True):
    self._name = name
    module = sys.modules["__main__"].__spec__.name
    command = [sys.executable, "-m", module, *sys.argv[1:], f"--side={name}"]
    command.append("--verbosity=-1")  # warnings
    environment = dict(os.environ)
    pin = None
    if pinned:
      threads = int(THREADS.value)
      cores = sorted(os.sched_getaffinity(0))[:threads]
      if len(cores) < threads:
        raise ValueError(
          f"--threads must be at most the cores there are, {len(cores)}, got"
          f" {threads}. Lower it."
        )
      environment["OMP_NUM_THREADS"] = str(threads)

      def pin():
        os.sched_setaffinity(0, cores)

    self._process = subprocess.Popen(
      [*command, *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=environment,
      preexec_fn=pin,
    )

  def ask(self, what: str, **values: Any) -> Any:
    """Returns the answer of one of the side's methods.

    Raises:
      ChildProcessError: the side ended instead; its own words are on stderr.
    """
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps([what, values]), file=self._process.stdin, flush=True)
    answer = self._process.stdout.readline()
    if not answer:
      raise ChildProcessError(
        f"The side {self._name!r} stopped with {self._process.wait()}; see"
        " what it said above."
      )
    return json.loads(answer)

  def close(self) -> None:
    """Ends the process."""
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()


@contextlib.contextmanager
def sides(
  names: Sequence[str], *arguments: str, pinned: bool = True
) -> Iterator[dict[str, Side]]:
  """Starts sides, and ends them; arguments as of `Side`."""
  started = {}
  try:
    for name in names:
      started[name] = Side(name, *arguments, pinned=pinned)
    yield started
  finally:
    for side in started.values():
      side.close()


def serve(make: Callable[[], Any]) -> None:
  """Answers the questions of `Side.ask` until there are no more.

  Args:
    make: gives an object with a method for each question; values in and out
      are JSON.
  """
  # Whatever libraries print must not get between the answers.
  output = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  answers = make()
  with output:
    for line in sys.stdin:
      what, values = json.loads(line)
      answer = getattr(answers, what)(**values)
      print(json.dumps(answer), file=output, flush=True)
