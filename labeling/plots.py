"""Pictures of votes."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib import figure

from ppl_jax import calibration

_DPI = 150
# Cells of a matrix whose numbers are still readable.
_ANNOTATED = 16


def bars(
  path: pathlib.Path,
  names: Sequence[str],
  series: dict[str, np.ndarray],
  label: str,
) -> None:
  """Draws shares side by side, for each name one of each series.

  Args:
    path: the PNG to write.
    names: of classes or annotators.
    series: from a legend to one share a name; NaN is not drawn.
    label: what the shares are of.
  """
  height = max(2.5, 0.3 * len(names) * len(series) + 1)
  fig = figure.Figure(figsize=(6, height), layout="constrained")
  axis = fig.subplots()
  width = 0.8 / len(series)
  for k, (legend, values) in enumerate(series.items()):
    place = np.arange(len(names)) + (k - (len(series) - 1) / 2) * width
    axis.barh(place, np.nan_to_num(values), height=width, label=legend)
  axis.set_yticks(range(len(names)), names, parse_math=False)
  axis.invert_yaxis()
  axis.set(xlabel=label)
  fig.legend(loc="outside upper center", ncols=len(series))
  fig.savefig(path, dpi=_DPI)


def agreement(
  path: pathlib.Path, names: Sequence[str], alpha_AxA: np.ndarray
) -> None:
  """Draws Krippendorff's alpha of each pair of annotators as a PNG."""
  A = len(names)
  size = max(4.0, 0.4 * A + 2)
  fig = figure.Figure(figsize=(size + 1, size), layout="constrained")
  axis = fig.subplots()
  image = axis.imshow(alpha_AxA, cmap="Blues", vmin=0, vmax=1)
  if A <= _ANNOTATED:
    for a, b in np.argwhere(~np.isnan(alpha_AxA)):
      color = "white" if alpha_AxA[a, b] > 0.5 else "black"
      text = f"{alpha_AxA[a, b]:.2f}"
      axis.text(b, a, text, ha="center", va="center", color=color, fontsize=8)
  axis.set_xticks(range(A), names, rotation=45, ha="right", parse_math=False)
  axis.set_yticks(range(A), names, parse_math=False)
  fig.colorbar(image, label="Krippendorff's alpha")
  fig.savefig(path, dpi=_DPI)


def reliability(path: pathlib.Path, buckets: calibration.Reliability) -> None:
  """Draws the share of gold over the scores' buckets as a PNG.

  Args:
    path: the PNG to write.
    buckets: of the scores above 0.
  """
  fig = figure.Figure(figsize=(4.5, 4.5), layout="constrained")
  axis = fig.subplots()
  filled = buckets.count > 0
  mean = buckets.confidence[filled] / buckets.count[filled]
  gold = buckets.correct[filled] / buckets.count[filled]
  axis.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="calibrated")
  axis.plot(mean, gold, marker="o", label="votes")
  edges = np.linspace(0, 1, len(buckets.count) + 1)
  axis.bar(
    edges[:-1],
    buckets.count / max(buckets.count.sum(), 1),
    width=np.diff(edges),
    align="edge",
    alpha=0.2,
    label="share of the scores above 0",
  )
  axis.set(
    xlabel="mean score", ylabel="share of gold", xlim=(0, 1), ylim=(0, 1.02)
  )
  axis.legend(loc="upper left")
  fig.savefig(path, dpi=_DPI)


def ensembles(
  path: pathlib.Path, sizes: np.ndarray, errors: dict[str, np.ndarray]
) -> None:
  """Draws calibration errors over ensemble sizes, with their spread, as a PNG.

  Args:
    path: the PNG to write.
    sizes: [N] votes.
    errors: from a legend to [draws, N] errors.
  """
  fig = figure.Figure(figsize=(5, 4), layout="constrained")
  axis = fig.subplots()
  for legend, error in errors.items():
    mean, spread = error.mean(axis=0), error.std(axis=0)
    axis.errorbar(sizes, mean, yerr=spread, marker="o", capsize=3, label=legend)
  axis.set(xlabel="votes in an ensemble", ylabel="expected calibration error")
  axis.set_ylim(bottom=0)
  axis.xaxis.get_major_locator().set_params(integer=True)
  axis.legend()
  fig.savefig(path, dpi=_DPI)
