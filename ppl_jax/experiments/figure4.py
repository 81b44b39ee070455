r"""Figure 4: does a larger score mean a positive label, within a dialogue?

    python -m ppl_jax.experiments.figure4 --config=configs/dailydialog.py \
      --votes=votes.jsonl.gz --folder=runs/figure4

The share of pairs of utterances with y_i = 1 and y_j = 0 in five buckets of
S_i - S_j > 0, over all classes: pairs of one dialogue, of different dialogues
(the control), and all. A line is fitted through each one's buckets, weighed by
their pairs, and once more with all buckets alike; its slope, and the difference
that hypothesis H2 is about, have 95 % intervals over resampled dialogues.
Scores are those of a score file, --config.scores=FILE, or the shares of
--votes=FILE. The folder gets figure4.csv, slopes.csv, figure4.md, .png and
command.json.
"""

import numpy as np
from absl import flags
from matplotlib import figure

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.experiments import bootstrap, outputs, preference, teacher
from ppl_jax.experiments.preference import BUCKETS, KINDS

_VOTES = flags.DEFINE_multi_string(
  "votes", [], "Files with votes, as of labeling.scores."
)
_RESAMPLES = flags.DEFINE_integer(
  "resamples", 2_000, "Times that dialogues are resampled.", lower_bound=1
)


def _draw(path, sums, resampled, rows) -> None:
  fig = figure.Figure(figsize=(6.5, 5), layout="constrained")
  axis = fig.subplots()
  lines = preference.fit(sums)
  for k, (name, marker) in enumerate(zip(KINDS, "osx", strict=True)):
    filled = sums[k, :, 0] > 0
    count, positive, S = sums[k, filled].T
    x, y = S / count, positive / count
    with np.errstate(invalid="ignore"):  # a resample may leave a bucket empty
      share = resampled[:, k, filled, 1] / resampled[:, k, filled, 0]
    ends = [bootstrap.interval(values) for values in share.T]
    low, high = np.reshape(ends, (-1, 2)).T
    told = rows[k]
    label = (
      f"{name}: slope {told['slope']:.3f} [{told['low']:.3f},"
      f" {told['high']:.3f}]"
    )
    # Side by side: "all pairs" lie on the control where dialogues are many.
    drawn = axis.errorbar(
      x + 0.015 * (k - 1),
      y,
      yerr=np.maximum([y - low, high - y], 0),
      fmt=marker,
      markersize=5,
      capsize=2,
      linewidth=1,
      label=label,
    )
    ends_x = np.array([0.0, 1.0])
    axis.plot(
      ends_x,
      lines.intercept[k] + lines.slope[k] * ends_x,
      color=drawn[0].get_color(),
      linestyle=("-", "-", (0, (2, 4)))[k],
      linewidth=1.5,
    )
  for edge in np.linspace(0, 1, BUCKETS + 1):
    axis.axvline(edge, color="0.92", linewidth=1, zorder=0)
  axis.set(
    xlabel="$S_i - S_j$, mean of its bucket",
    ylabel="share of pairs with $y_i = 1$, $y_j = 0$",
    xlim=(0, 1.04),
    title="Figure 4: bars and brackets are 95 % over dialogues",
  )
  axis.set_ylim(bottom=0)
  axis.legend(loc="lower right", fontsize=9)
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
  pairs = preference.Pairs(told.S_UxC, told.gold_UxC, told.dialogue_U)
  sums = pairs.sums(np.ones((1, pairs.D)))[0]
  resampled = preference.resample(pairs, _RESAMPLES.value, config.seed)
  rows = preference.slopes(sums, resampled)
  outputs.write_command(
    folder / "command.json", seeds=[config.seed], resamples=_RESAMPLES.value
  )
  outputs.write_csv(folder / "slopes.csv", rows)
  names = [
    f"({m / BUCKETS:.1f}, {(m + 1) / BUCKETS:.1f}]" for m in range(BUCKETS)
  ]
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
          for b in buckets[m::BUCKETS]
        ),
      ]
      for m in range(BUCKETS)
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
    f" dialogues, {len(told.gold_UxC):,} labelled utterances of {told.split}"
    f" and {len(told.classes)} classes.\n\n{shares}\nLines through the buckets,"
    f" with {_RESAMPLES.value:,} resamples of the dialogues.\n\n{fits}\nWith"
    f" buckets weighed by their pairs {_claim(weighed)}; with all alike"
    f" {_claim(alike)}.\n"
  )
  outputs.write_text(folder / "figure4.md", text)
  _draw(folder / "figure4.png", sums, resampled, rows)
  print(f"{text}\nTables and picture in {folder}")


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
