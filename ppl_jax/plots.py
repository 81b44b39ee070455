"""Pictures of a run: training curves, confusion matrix, reliability."""

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib import figure

from ppl_jax import calibration, metrics

_DPI = 150
# Classes whose counts are still readable inside the cells.
_ANNOTATED = 16


def curves(path: pathlib.Path, history: Sequence[dict]) -> None:
  """Draws losses and evaluations over the steps, one column a phase.

  Args:
    path: the PNG to write.
    history: entries with 'phase' and 'step', and either 'loss' or the scalars
      of an evaluation.
  """
  phases = list(dict.fromkeys(entry["phase"] for entry in history))
  if not phases:
    return
  fig = figure.Figure(figsize=(5 * len(phases), 6), layout="constrained")
  axes = fig.subplots(2, len(phases), squeeze=False)
  for column, phase in enumerate(phases):
    entries = [entry for entry in history if entry["phase"] == phase]
    loss = [(e["step"], e["loss"]) for e in entries if "loss" in e]
    top, bottom = axes[:, column]
    top.plot(*zip(*loss, strict=True) if loss else ((), ()))
    top.set(title=phase, ylabel="training loss", xlabel="step")
    evaluations = [entry for entry in entries if "metric" in entry]
    for name in evaluations[0] if evaluations else ():
      if name not in ("phase", "step", "metric"):
        bottom.plot(
          [e["step"] for e in evaluations],
          [e[name] for e in evaluations],
          marker="o",
          markersize=3,
          label=name.replace("_", " "),
        )
    if evaluations:
      best = max(evaluations, key=lambda e: e["metric"])
      bottom.axvline(best["step"], color="0.7", linestyle=":", label="best")
      bottom.legend()
    bottom.set(
      ylabel="held-out votes" if phase == "pretrain" else "dev", xlabel="step"
    )
  _save(fig, path)


def classification(
  workdir: pathlib.Path,
  counts: metrics.Classification,
  classes: Sequence[str],
) -> None:
  """Draws confusion.png and reliability.png of a split into a folder."""
  if counts.confusion is not None:
    _confusion(workdir / "confusion.png", counts.confusion, classes)
  _reliability(workdir / "reliability.png", counts.reliability)


def _confusion(path, confusion_CxC: np.ndarray, classes) -> None:
  C = len(classes)
  size = max(4.5, 0.32 * C + 2)
  fig = figure.Figure(figsize=(size + 1, size), layout="constrained")
  axis = fig.subplots()
  totals = np.maximum(confusion_CxC.sum(axis=1, keepdims=True), 1)
  shares = confusion_CxC / totals
  image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
  if C <= _ANNOTATED:
    for i, j in np.ndindex(C, C):
      axis.text(
        j,
        i,
        f"{shares[i, j]:.0%}\n{int(confusion_CxC[i, j]):,}",
        ha="center",
        va="center",
        fontsize=8,
        color="white" if shares[i, j] > 0.5 else "black",
      )
  names = {"labels": classes, "parse_math": False}  # "$" is a name's own
  axis.set_xticks(range(C), **names, rotation=45, ha="right")
  axis.set_yticks(range(C), **names)
  accuracy = np.trace(confusion_CxC) / max(confusion_CxC.sum(), 1)
  axis.set(
    xlabel="predicted", ylabel="gold", title=f"test, accuracy {accuracy:.1%}"
  )
  fig.colorbar(image, label="share of the gold class")
  _save(fig, path)


def _reliability(path, buckets: calibration.Reliability) -> None:
  fig = figure.Figure(figsize=(4.5, 4.5), layout="constrained")
  axis = fig.subplots()
  filled = buckets.count > 0
  confidence = buckets.confidence[filled] / buckets.count[filled]
  accuracy = buckets.correct[filled] / buckets.count[filled]
  axis.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="calibrated")
  axis.plot(confidence, accuracy, marker="o", label="student")
  share = buckets.count / max(buckets.count.sum(), 1)
  edges = np.linspace(0, 1, len(share) + 1)
  axis.bar(
    edges[:-1],
    share,
    width=np.diff(edges),
    align="edge",
    alpha=0.2,
    label="share of utterances",
  )
  axis.set(
    xlabel="confidence",
    ylabel="accuracy",
    xlim=(0, 1),
    ylim=(0, 1.02),
    title="test, reliability",
  )
  axis.legend(loc="upper left")
  _save(fig, path)


def _save(fig: figure.Figure, path: pathlib.Path) -> None:

  fig.savefig(path, dpi=_DPI)
