r"""Figure 4: does a larger score mean a positive label, within a dialogue?

    python -m ppl_jax.experiments.figure4 --config=configs/dailydialog.py \
      --votes=votes.jsonl.gz --folder=runs/figure4

The share of pairs of utterances with y_i = 1 and y_j = 0 in five buckets of
S_i - S_j > 0, over all classes: pairs of one dialogue, of different dialogues (the
control), and all. A line is fitted through each one's buckets, weighed by their
pairs, and once more with all buckets alike; its slope, and the difference that
hypothesis H2 is about, have 95 % intervals over resampled dialogues. Scores are
those of a score file, --config.scores=FILE, or the shares of --votes=FILE. The
folder gets figure4.csv, slopes.csv, figure4.md, .png and command.json.
"""

import dataclasses

import numpy as np
import scipy.sparse
import tqdm
from absl import flags
from matplotlib import figure

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.experiments import bootstrap, outputs, teacher

_VOTES = flags.DEFINE_multi_string(
  "votes", [], "Files with votes, as of labeling.scores."
)
_DRAWS = flags.DEFINE_integer(
  "draws", 2_000, "Times that dialogues are resampled.", lower_bound=1
)

KINDS = ("one dialogue", "different dialogues", "all pairs")
_M = 5
_TOLERANCE = 1e-6  # an edge belongs to the bucket below it
_VALUES_AT_ONCE = 4_000_000


def bucket_sums(
  S_V: np.ndarray, negative_BxV: np.ndarray, positive_BxV: np.ndarray
) -> np.ndarray:
  """Sums over the ordered pairs with S_i > S_j, by buckets of S_i - S_j.

  Args:
    S_V: V scores, not decreasing.
    negative_BxV: how many utterances of label 0 have each score, B times.
    positive_BxV: the like of label 1.

  Returns:
    float64 [B, 5, 3]: pairs, pairs with y_i = 1 and y_j = 0, and the sum of
    S_i - S_j, in (0, 0.2], ..., (0.8, 1].
  """
  both_BxV = negative_BxV + positive_BxV
  pad = ((0, 0), (1, 0))
  below_both, below_negative, below_S = (
    np.pad(np.cumsum(values, axis=1), pad)
    for values in (both_BxV, negative_BxV, both_BxV * S_V)
  )
  above = np.zeros((len(both_BxV), _M + 1, 3))  # an edge; the last has none
  for m in range(_M):
    j_V = np.searchsorted(S_V, S_V - m / _M - _TOLERANCE)
    count = below_both[:, j_V]
    above[:, m, 0] = (both_BxV * count).sum(axis=1)
    above[:, m, 1] = (positive_BxV * below_negative[:, j_V]).sum(axis=1)
    above[:, m, 2] = (both_BxV * (S_V * count - below_S[:, j_V])).sum(axis=1)
  return above[:, :-1] - above[:, 1:]


class Pairs:
  """The pairs of a score file, for any weights of its dialogues.

  Args:
    S_UxC: scores, NaN for none.
    gold_UxC: multi-hot.
    dialogue_U: int, not decreasing.
  """

  def __init__(
    self, S_UxC: np.ndarray, gold_UxC: np.ndarray, dialogue_U: np.ndarray
  ):
    _, dialogue_U = np.unique(dialogue_U, return_inverse=True)
    self.D = int(dialogue_U[-1]) + 1
    first_D = np.searchsorted(dialogue_U, np.arange(self.D + 1))
    self._intra = np.zeros((self.D, _M, 3))
    self._columns = []
    for S_U, gold_U in zip(S_UxC.T, gold_UxC.T, strict=True):
      known_U = ~np.isnan(S_U)
      S_V, at_U = np.unique(S_U[known_U].astype(float), return_inverse=True)
      counts = [
        scipy.sparse.csr_array(
          (is_it.astype(float), (dialogue_U[known_U], at_U)),
          shape=(self.D, len(S_V)),
        )
        for is_it in (gold_U[known_U] == 0, gold_U[known_U] > 0)
      ]
      self._columns.append((S_V, *counts))
      for d in range(self.D):
        here = slice(first_D[d], first_D[d + 1])
        order = np.argsort(S_U[here])  # NaN last
        order = order[: known_U[here].sum()]
        label = gold_U[here][order][None] > 0
        self._intra[d] += bucket_sums(
          S_U[here][order].astype(float), ~label * 1.0, label * 1.0
        )[0]

  def sums(self, weights_BxD: np.ndarray) -> np.ndarray:
    """Sums of `bucket_sums` over classes, for weighted dialogues.

    A dialogue that counts twice is two with its pairs; an utterance of the one
    and its like in the other are no pair of different dialogues.

    Returns:
      float64 [B, 3, 5, 3], the second axis as `KINDS`.
    """
    weights_BxD = weights_BxD.astype(float)
    every = np.zeros((len(weights_BxD), _M, 3))
    for S_V, negative, positive in self._columns:
      step = max(1, _VALUES_AT_ONCE // len(S_V))
      for start in range(0, len(weights_BxD), step):
        here = slice(start, start + step)
        every[here] += bucket_sums(
          S_V, weights_BxD[here] @ negative, weights_BxD[here] @ positive
        )
    one, own = (
      np.einsum("bd,dmk->bmk", w, self._intra)
      for w in (weights_BxD, weights_BxD**2)
    )
    return np.stack([one, every - own, every - own + one], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Lines:
  """Straight lines through buckets; arrays of any leading shape.

  Attributes:
    slope: NaN with fewer than two buckets.
    intercept: at a difference of 0.
  """

  slope: np.ndarray
  intercept: np.ndarray


def fit(sums: np.ndarray, *, weighted: bool = True) -> Lines:
  """Least squares through buckets that hold pairs.

  Args:
    sums: [..., 5, 3], of `Pairs.sums`.
    weighted: whether a bucket weighs as its pairs, or all weigh the same.

  Returns:
    The lines of the share of pairs over the mean of S_i - S_j.
  """
  count, positive, S = np.moveaxis(sums, -1, 0)
  filled = count > 0
  some = np.where(filled, count, 1)
  x, y = S / some, positive / some
  w = count if weighted else filled.astype(float)
  total = w.sum(axis=-1, keepdims=True)
  total = np.where(total > 0, total, 1)
  x_mean = (w * x).sum(axis=-1, keepdims=True) / total
  y_mean = (w * y).sum(axis=-1, keepdims=True) / total
  spread = (w * (x - x_mean) ** 2).sum(axis=-1)
  product = (w * (x - x_mean) * (y - y_mean)).sum(axis=-1)
  known = filled.sum(axis=-1) > 1
  slope = np.where(known, product / np.where(known, spread, 1), np.nan)
  return Lines(slope, y_mean[..., 0] - slope * x_mean[..., 0])


def resample(pairs: Pairs, draws: int, seed: int) -> np.ndarray:
  """Returns `Pairs.sums` of resampled dialogues, [draws, 3, 5, 3]."""
  weights_BxD = bootstrap.weights(pairs.D, draws, seed)
  parts = np.array_split(weights_BxD, max(1, draws // 100))
  bar = tqdm.tqdm(parts, desc="resamples", delay=3, disable=None, leave=False)
  return np.concatenate([pairs.sums(part) for part in bar])


def slopes(sums: np.ndarray, resampled: np.ndarray) -> list[dict]:
  """Slopes of all kinds and the difference of the first two, by both fits."""
  rows = []
  for weighted in (True, False):
    ours = fit(sums, weighted=weighted).slope
    drawn = fit(resampled, weighted=weighted).slope
    names = [*KINDS, f"{KINDS[0]} less {KINDS[1]}"]
    ours = np.append(ours, ours[0] - ours[1])
    drawn = np.column_stack([drawn, drawn[:, 0] - drawn[:, 1]])
    for name, value, values in zip(names, ours, drawn.T, strict=True):
      low, high = bootstrap.interval(values)
      rows.append(
        {
          "buckets": "weighed by pairs" if weighted else "all alike",
          "pairs": name,
          "slope": float(value),
          "low": low,
          "high": high,
          "share_below_0": float((values < 0).mean()),
        }
      )
  return rows


def _draw(path, sums, resampled, rows) -> None:
  fig = figure.Figure(figsize=(6.5, 4.8), layout="constrained")
  axis = fig.subplots()
  lines = fit(sums)
  for k, (name, marker) in enumerate(zip(KINDS, "osx", strict=True)):
    count, positive, S = sums[k].T
    filled = count > 0
    with np.errstate(invalid="ignore", divide="ignore"):
      share = resampled[:, k, :, 1] / resampled[:, k, :, 0]
    ends = np.array([bootstrap.interval(share[:, m]) for m in range(_M)])
    x, y = (S / count)[filled], (positive / count)[filled]
    low, high = ends[filled].T
    told = rows[k]
    label = (
      f"{name}: slope {told['slope']:.2f} ({told['low']:.2f} to"
      f" {told['high']:.2f})"
    )
    # "All pairs" lie on the control where dialogues are many.
    x = x + 0.006 * (k - 1)
    drawn = axis.errorbar(
      x,
      y,
      yerr=np.maximum([y - low, high - y], 0),
      fmt=marker,
      markersize=5,
      capsize=3,
      label=label,
    )
    ends_x = np.array([0.0, 1.0])
    axis.plot(
      ends_x,
      lines.intercept[k] + lines.slope[k] * ends_x,
      color=drawn[0].get_color(),
      linestyle=":" if k == 2 else "-",
      linewidth=1,
    )
  for edge in np.linspace(0, 1, _M + 1):
    axis.axvline(edge, color="0.92", linewidth=1, zorder=0)
  axis.set(
    xlabel="difference of the scores, S_i - S_j (mean of its bucket)",
    ylabel="share of pairs with y_i = 1, y_j = 0",
    xlim=(0, 1.03),
    title="Figure 4",
  )
  axis.set_ylim(bottom=0)
  axis.legend(loc="upper left", fontsize=9)
  outputs.save(fig, path)


def _claim(row) -> str:
  """Says what a difference of slopes means for H2."""
  if row["low"] > 0:
    return "the line of one dialogue is steeper, as hypothesis H2 says"
  if row["high"] < 0:
    return "the line of one dialogue is flatter, against hypothesis H2"
  return "neither line is shown to be steeper: hypothesis H2 is left open"


def main(argv):
  """Runs the experiment; see the module's text."""
  commands.refuse_arguments(argv)
  config = commands.CONFIG.value
  with commands.user_errors():
    folder = outputs.folder()
    dataset = dialogues_lib.load_config(config.dataset)
    path = teacher.score_file(config, _VOTES.value, folder)
    told = teacher.load(dataset, path)
  pairs = Pairs(told.S_UxC, told.gold_UxC, told.dialogue_U)
  sums = pairs.sums(np.ones((1, pairs.D)))[0]
  resampled = resample(pairs, _DRAWS.value, config.seed)
  rows = slopes(sums, resampled)
  outputs.write_command(
    folder / "command.json", seeds=[config.seed], draws=_DRAWS.value
  )
  outputs.write_csv(folder / "slopes.csv", rows)
  names = [f"({m / _M:.1f}, {(m + 1) / _M:.1f}]" for m in range(_M)]
  buckets = [
    {
      "kind": kind,
      "bucket": names[m],
      "pairs": int(count),
      "mean_difference": S / count if count else np.nan,
      "share": positive / count if count else np.nan,
    }
    for kind, values in zip(KINDS, sums, strict=True)
    for m, (count, positive, S) in enumerate(values)
  ]
  outputs.write_csv(folder / "figure4.csv", buckets)
  shares = outputs.table(
    ["S_i - S_j", *KINDS],
    [
      [
        names[m],
        *(
          f"{b['share']:.1%} of {b['pairs']:,}" if b["pairs"] else "-"
          for b in buckets[m::_M]
        ),
      ]
      for m in range(_M)
    ],
  )
  fits = outputs.table(
    ["slope", "buckets", "value", "95 %"],
    [
      [
        row["pairs"],
        row["buckets"],
        f"{row['slope']:.3f}",
        f"{row['low']:.3f} to {row['high']:.3f}",
      ]
      for row in rows
    ],
  )
  weighed, alike = rows[len(KINDS)], rows[-1]
  text = (
    f"# Figure 4\n\nShare of pairs with y_i = 1 and y_j = 0, over {pairs.D:,}"
    f" dialogues, {len(told.gold_UxC):,} labelled utterances of {told.split} and"
    f" {len(told.classes)} classes.\n\n{shares}\nLines through the buckets, with"
    f" {_DRAWS.value:,} resamples of the dialogues.\n\n{fits}\nWith buckets"
    f" weighed by their pairs {_claim(weighed)}; with all alike {_claim(alike)}.\n"
  )
  outputs.write_text(folder / "figure4.md", text)
  _draw(folder / "figure4.png", sums, resampled, rows)
  print(f"{text}\nTables and picture in {folder}")


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
