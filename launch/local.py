r"""Runs a command as several processes on this machine, on fake devices.

python -m launch.local --processes=2 --devices=4 \
    python -m ppl_jax.main --config=configs/quickstart.py --workdir=runs/local

Each process, here called a worker, has --devices CPU devices of its own and
gets --coordinator_address, --num_processes and --process_id after the flags
of the command, which may be any that takes these three. Lines are led by the
worker's number. When one worker fails or is killed the others are ended, and
with --restarts all of them start again: ppl_jax.main then goes on from its last
checkpoint. The exit status is that of the worker that failed first, 128 and the
signal's number where it was killed.
"""

import codecs
import contextlib
import ctypes
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from absl import app, flags

_PROCESSES = flags.DEFINE_integer(
  "processes", 2, "How many workers to start.", lower_bound=1
)
_DEVICES = flags.DEFINE_integer(
  "devices", 1, "CPU devices that each worker has.", lower_bound=1
)
_RESTARTS = flags.DEFINE_integer(
  "restarts",
  0,
  "How often to start all workers again after one failed.",
  lower_bound=0,
)
_GRACE = flags.DEFINE_float(
  "grace",
  5.0,
  "Seconds between asking the other workers to end (SIGTERM) and ending them.",
  lower_bound=0.0,
)
_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Output:
  """What the workers print, line by line.

  Text after a carriage return replaces what the line had before: a progress
  bar. Worker 0's is redrawn in place on a terminal; elsewhere, and of other
  workers, only the last state of a line is shown.
  """

  def __init__(self):
    self._rest: dict[int, str] = {}
    self._bar = ""
    self._terminal = sys.stdout.isatty()

  def add(self, number: int, text: str) -> None:
    """Takes text of a worker; shows the lines that it ends."""
    *lines, rest = (self._rest.get(number, "") + text).split("\n")
    if number == 0:
      self._erase_bar()
    start = max(rest.rfind("\r", 0, len(rest.rstrip("\r"))), 0)
    self._rest[number] = rest[start:]
    for line in lines:
      self._show(number, line)
    if number == 0 and self._terminal:
      self._bar = _last_state(rest) if "\r" in rest else ""
      self._draw_bar()

  def finish(self, number: int) -> None:
    """Shows what is left of a worker that has ended."""
    rest = self._rest.pop(number, "")
    if number == 0:
      self._erase_bar()
    if _last_state(rest):
      self._show(number, rest)

  def _show(self, number, line):
    clear = "\r\x1b[K" if self._bar else ""
    print(f"{clear}[{number}] {_last_state(line)}", flush=True)
    self._draw_bar()

  def _erase_bar(self):
    if self._bar:
      print("\r\x1b[K", end="")
      self._bar = ""

  def _draw_bar(self):
    if self._bar:
      width = shutil.get_terminal_size().columns - 1
      print("\r\x1b[K" + f"[0] {self._bar}"[:width], end="", flush=True)


class _Worker:
  """A running process of the job; its output is added to `output`."""

  def __init__(self, number: int, command: Sequence[str], output: _Output):
    self.number = number
    self._output = output
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    self._process = subprocess.Popen(
      command,
      env=_environment(),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      start_new_session=True,  # Ctrl-C is for us, and we end its children too
      preexec_fn=_die_with_parent if sys.platform == "linux" else None,
    )
    self.pipe = self._process.stdout
    os.set_blocking(self.pipe.fileno(), False)

  def read(self) -> bool:
    """Shows what is there to read; returns whether there may be more."""
    with contextlib.suppress(BlockingIOError):
      while data := os.read(self.pipe.fileno(), 1 << 16):
        self._output.add(self.number, self._decoder.decode(data))
      return False
    return True

  def status(self) -> int | None:
    """Returns the exit status, negative for a signal; None if it runs."""
    return self._process.poll()

  def send(self, number: signal.Signals) -> None:
    """Sends a signal to the worker and all that it started."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, number)

  def close(self) -> None:
    """Ends what the worker left behind."""
    self.send(signal.SIGKILL)
    self._process.wait()
    self.read()
    self.pipe.close()
    self._output.finish(self.number)


class _Stop:
  """Notices Ctrl-C, SIGTERM and SIGHUP, and wakes a selector at any signal.

  Attributes:
    signal: that was noticed, or None.
  """

  def __init__(self):
    self.signal: signal.Signals | None = None
    self.wakes, waker = socket.socketpair()
    self._waker = waker  # kept open
    for end in (self.wakes, waker):
      end.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    for number in _STOP:
      signal.signal(number, self._notice)

  def _notice(self, number, _):
    self.signal = self.signal or signal.Signals(number)


def main(argv):
  """Runs the job with the flags, and again as often as --restarts says."""
  command = argv[1:]
  if not command:
    raise app.UsageError(
      "A command must follow the flags, got none. Add it, such as: python -m"
      " ppl_jax.main --config=configs/quickstart.py --workdir=runs/local"
    )
  if not shutil.which(command[0]):
    sys.exit(
      f"error: The command must be a program, got {command[0]!r}, which is"
      " none. Put the flags of launch.local before it, or give its path."
    )
  stop = _Stop()
  for restart in range(_RESTARTS.value + 1):
    failed = _run(command, stop)
    if stop.signal:
      _say(f"{stop.signal.name}: all workers were ended")
      sys.exit(128 + stop.signal)
    if not failed:
      return
    left = _RESTARTS.value - restart
    says = " and ".join(_how(*item) for item in failed)
    _say(
      f"{says}; the others were ended"
      + (f"; starting all again, {left} restarts left" if left else "")
    )
  status = failed[0][1]
  sys.exit(status if status > 0 else 128 - status)


def _run(command, stop) -> list[tuple[int, int]]:
  """Runs all workers to their end.

  Returns:
    (worker, exit status) of those that failed first, empty where none did.
  """
  count, output = _PROCESSES.value, _Output()
  with (
    contextlib.ExitStack() as stack,
    selectors.DefaultSelector() as selector,
    _free_port() as port,
  ):
    # Nobody else on the network shall reach the coordinator.
    os.environ["JAX_COORDINATOR_BIND_ADDRESS"] = f"127.0.0.1:{port}"
    selector.register(stop.wakes, selectors.EVENT_READ)
    workers = []
    for number in range(count):
      joined = (
        f"--coordinator_address=127.0.0.1:{port}",
        f"--num_processes={count}",
        f"--process_id={number}",
      )
      worker = _Worker(number, [*command, *joined], output)
      stack.callback(worker.close)
      workers.append(worker)
      selector.register(worker.pipe, selectors.EVENT_READ, worker)
    for statuses in _watch(workers, selector, stop):
      failed = [(n, s) for n, s in statuses.items() if s]
      if failed or stop.signal:
        break
    else:
      return []
    for worker in workers:
      worker.send(signal.SIGTERM)
    deadline = time.monotonic() + _GRACE.value
    for _ in _watch(workers, selector, stop):
      if time.monotonic() > deadline:
        break
    return failed  # and leaving the stack ends who is still there


def _watch(workers, selector, stop) -> Iterator[dict[int, int | None]]:
  """Shows output; yields all exit statuses until every worker has ended."""
  while True:
    statuses = {worker.number: worker.status() for worker in workers}
    yield statuses
    if None not in statuses.values():
      return
    for key, _ in selector.select(timeout=0.2):
      if key.data is None:
        with contextlib.suppress(BlockingIOError):
          stop.wakes.recv(1 << 10)
      elif not key.data.read():
        selector.unregister(key.fileobj)


def _environment() -> dict[str, str]:
  """The variables of a worker: fake CPU devices, and lines at once."""
  devices = f"--xla_force_host_platform_device_count={_DEVICES.value}"
  return {
    **os.environ,
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {devices}".strip(),
    "JAX_PLATFORMS": "cpu",
    "PYTHONUNBUFFERED": "1",
  }


def _die_with_parent() -> None:
  """Has the kernel end a worker when we are killed ourselves."""
  pr_set_pdeathsig = 1  # linux/prctl.h
  ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


@contextlib.contextmanager
def _free_port() -> Iterator[int]:
  """Gives a port that nobody else is given meanwhile.

  It is bound here, and not listened on; the coordinator binds it as well, as
  gRPC shares the ports of one user.
  """
  with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    s.bind(("127.0.0.1", 0))
    yield s.getsockname()[1]


def _last_state(line: str) -> str:
  """What a line shows at last, with carriage returns obeyed."""
  states = [s for s in line.split("\r") if s.strip()]
  return states[-1] if states else ""


def _how(number: int, status: int) -> str:
  if status > 0:
    return f"worker {number} failed with exit status {status}"
  return f"worker {number} was killed by {signal.Signals(-status).name}"


def _say(message: str) -> None:
  print(f"launch.local: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
  flags.FLAGS.set_gnu_getopt(False)  # what follows the command is the command's
  app.run(main)
