"""What every experiment leaves: CSV, Markdown, PNG, and how it was made."""

import contextlib
import csv
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from matplotlib import figure

from ppl_jax.data import atomic

FOLDER = flags.DEFINE_string(
  "folder", None, "Folder of the experiment; what it holds is not done again."
)
_DPI = 150
_PACKAGES = ("ppl-jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def folder() -> pathlib.Path:
  """Returns --folder, made if missing."""
  path = pathlib.Path(FOLDER.value).expanduser()
  path.mkdir(parents=True, exist_ok=True)
  return path


def write_command(path: pathlib.Path, **more: Any) -> None:
  """Writes the command, what it ran on, and more, as JSON."""
  module = sys.modules["__main__"].__spec__
  program = ["-m", module.name] if module else [sys.argv[0]]
  facts = {
    "command": shlex.join(["python", *program, *sys.argv[1:]]),
    "directory": os.getcwd(),
    **circumstances(),
    **more,
  }
  with atomic.replacing(path) as temporary:
    temporary.write_text(json.dumps(facts, indent=2) + "\n")


def circumstances() -> dict[str, Any]:
  """Returns the time, the machine, the versions and the commit."""
  versions = {"python": platform.python_version()}
  for name in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[name] = importlib.metadata.version(name)
  return {
    "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    "machine": f"{platform.platform()}, {os.cpu_count()} CPUs",
    "versions": versions,
    "git": _git(),
  }


def _git() -> dict[str, Any] | None:
  """The commit of this code, and whether files differ from it."""
  here = pathlib.Path(__file__).parent

  def ask(*words):
    return subprocess.run(
      ["git", "-C", here, *words], capture_output=True, text=True, check=True
    ).stdout.strip()

  try:
    changed = ask("status", "--porcelain", "--untracked-files=no")
    return {"commit": ask("rev-parse", "HEAD"), "changed": bool(changed)}
  except (OSError, subprocess.CalledProcessError):
    return None


def write_csv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """Writes rows; the columns are all that any has, in order of appearance."""
  columns = list(dict.fromkeys(key for row in rows for key in row))
  with (
    atomic.replacing(path) as temporary,
    temporary.open("w", encoding="utf-8", newline="") as f,
  ):
    writer = csv.DictWriter(f, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
      writer.writerow({k: _shown(v) for k, v in row.items()})


def _shown(value: Any) -> Any:
  if isinstance(value, float):
    return "" if np.isnan(value) else f"{value:.6g}"
  return value


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table in Markdown; all but the first column to the right."""
  lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
  return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a text file, whole or not at all."""
  with atomic.replacing(path) as temporary:
    temporary.write_text(text, encoding="utf-8")


def save(fig: figure.Figure, path: pathlib.Path) -> None:
  """Writes a picture as PNG."""
  with atomic.replacing(path) as temporary:
    fig.savefig(temporary, dpi=_DPI, format="png")


def percent(values: Sequence[float]) -> str:
  """Returns the mean of shares and their standard deviation, in percent."""
  return mean(100 * np.asarray(values, float), digits=1)


def mean(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
  """Returns the mean of values and their standard deviation.

  Args:
    values: maybe one, which has no deviation, or none.
    digits: after the point.
    sign: "+" to write that of a mean above 0 too.
  """
  values = np.asarray(values, float)
  if not len(values):
    return "-"
  text = f"{values.mean():{sign}.{digits}f}"
  if len(values) == 1:
    return text
  return f"{text} ± {values.std(ddof=1):.{digits}f}"


def draw_lines(
  path: pathlib.Path,
  lines: Mapping[str, Sequence[Sequence[float]]],
  ticks: Sequence[str],
  *,
  xlabel: str,
  title: str,
  joined: bool = True,
) -> None:
  """Draws mean accuracies with their spread over seeds.

  Args:
    path: the PNG to write.
    lines: from a legend to the shares of each tick, one a seed, maybe none.
    ticks: names on the x axis.
    xlabel: of the x axis.
    title: of the picture.
    joined: whether lines join the ticks.
  """
  width = max(5.0, 0.9 * len(ticks) + 3)
  fig = figure.Figure(figsize=(width, 4), layout="constrained")
  axis = fig.subplots()
  for k, (legend, shares) in enumerate(lines.items()):
    at = [i for i, values in enumerate(shares) if len(values)]
    mean = [100 * np.mean(shares[i]) for i in at]
    spread = [
      100 * np.std(shares[i], ddof=1) if len(shares[i]) > 1 else 0 for i in at
    ]
    # Side by side, or the spreads would hide one another.
    place = np.array(at) + 0.06 * (k - (len(lines) - 1) / 2)
    axis.errorbar(
      place,
      mean,
      yerr=spread,
      marker="o",
      linestyle="-" if joined else "",
      capsize=3,
      label=legend,
    )
  axis.set_xticks(range(len(ticks)), ticks)
  axis.set_xlim(-0.5, len(ticks) - 0.5)
  axis.set(xlabel=xlabel, ylabel="test accuracy, %")
  axis.set_title(title, fontsize=10)
  axis.grid(axis="y", color="0.9")
  fig.legend(loc="outside lower center", ncols=min(5, len(lines)))
  save(fig, path)
