"""A stand-in for gcloud, with workers that are folders of this machine.

Run as `gcloud`, with STAND_IN=FOLDER. It writes its arguments to FOLDER/record
as a JSON line. ssh runs the command on each worker, with FOLDER/worker-N as
home, and scp copies there. What a test wants lies in files of FOLDER:

  workers   how many workers the slice has
  state     what the slice is; create writes READY, delete deletes it
  queue     what the queued resource is, a line for each look at it
  fail      lines `WORD STATUS [STATE]`: the first command with that word in it
            exits with the status and leaves the state; the line is used up;
            `WORD@2` is the second such command
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

FOLDER = pathlib.Path(os.environ["STAND_IN"])


def fail(arguments):
  """Exits where a line of `fail` says so."""
  path = FOLDER / "fail"
  lines = path.read_text().splitlines() if path.exists() else []
  for i, line in enumerate(lines):
    word, status, *state = line.split()
    word, _, turn = word.partition("@")
    if re.search(rf"(^|[ .=/]){word}( |$)", " ".join(arguments)):
      if turn == "2":
        lines[i] = line.replace("@2", "")
        path.write_text("\n".join(lines))
        return
      path.write_text("\n".join(lines[:i] + lines[i + 1 :]))
      if state:
        (FOLDER / "state").write_text(state[0])
      sys.exit(int(status))


def homes(worker):
  """Returns the folders of a worker, or of all."""
  count = int((FOLDER / "workers").read_text())
  numbers = range(count) if worker == "all" else [int(worker)]
  found = {number: FOLDER / f"worker-{number}" for number in numbers}
  for home in found.values():
    home.mkdir(exist_ok=True)
  return found


def ssh(flags):
  """Runs a command on workers at once; returns the first status but 0."""
  running = {}
  for number, home in homes(flags.get("worker", "0")).items():
    out = None
    if "output-directory" in flags:
      out = open(f"{flags['output-directory']}/{number}.log", "wb")  # noqa: SIM115
    running[number] = subprocess.Popen(
      ["bash", "-c", flags["command"]],
      cwd=home,
      env={**os.environ, "HOME": str(home)},
      stdin=subprocess.DEVNULL,
      stdout=out,
    )
  statuses = [process.wait() for process in running.values()]
  return next((status for status in statuses if status), 0)


def main(arguments):
  with (FOLDER / "record").open("a") as record:
    record.write(json.dumps(["gcloud", *arguments]) + "\n")
  fail(arguments)
  flags = dict(
    a[2:].partition("=")[::2] for a in arguments if a.startswith("--")
  )
  service, verb = arguments[2:4]
  state, queue = FOLDER / "state", FOLDER / "queue"
  if verb == "create":
    state.write_text("READY")
  elif verb == "delete":
    state.unlink()
  elif verb == "list" and service == "queued-resources":
    looks = queue.read_text().splitlines() if queue.exists() else []
    print(*looks[:1])
    queue.write_text("\n".join(looks[1:]))
  elif verb == "list" and state.exists():
    print(state.read_text())
  elif verb == "scp":
    for home in homes(flags["worker"]).values():
      shutil.copy(arguments[4], home / arguments[5].partition(":")[2])
  elif verb == "ssh":
    return ssh(flags)
  return 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
