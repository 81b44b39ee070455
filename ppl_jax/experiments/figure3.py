r"""Figure 3: the calibration error of scores against the number of votes.

    python -m ppl_jax.experiments.figure3 --config=configs/dailydialog.py \
      --votes=votes.jsonl.gz --folder=runs/figure3

Of every utterance's votes 1, 2, ... are drawn without replacement, --draws
times, and the error of their shares is measured on all classes: without S = 0,
and with it in the first bucket (the paper leaves that open). Votes are those of
a score file, --config.scores=FILE, or of --votes=FILE. The folder gets
figure3.csv, .md, .png and command.json.
"""

import numpy as np
from absl import flags
from matplotlib import figure

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import ensembles
from ppl_jax.experiments import outputs, paper, teacher

_VOTES = flags.DEFINE_multi_string(
  "votes", [], "Files with votes, as of labeling.scores."
)
_DRAWS = flags.DEFINE_integer(
  "draws", 100, "Times that votes are drawn.", lower_bound=1
)
_NAMES = ("without S = 0", "with S = 0")  # as of ensembles.TREATMENTS


def _draw(path, sizes, errors) -> None:
  fig = figure.Figure(figsize=(5.5, 4), layout="constrained")
  axis = fig.subplots()
  for j, name in enumerate(_NAMES):
    mean, spread = errors[..., j].mean(axis=0), errors[..., j].std(axis=0)
    (line,) = axis.plot(sizes, mean, marker="o", label=name)
    axis.fill_between(
      sizes, mean - spread, mean + spread, color=line.get_color(), alpha=0.2
    )
    axis.annotate(
      f"{mean[-1]:.3f}",
      (sizes[-1], mean[-1]),
      xytext=(0, 6),
      textcoords="offset points",
      ha="center",
    )
  axis.set(
    xlabel="votes on an utterance",
    ylabel="expected calibration error",
    title="Figure 3: mean and standard deviation over draws",
  )
  axis.set_ylim(bottom=0)
  if len(sizes) <= 12:
    axis.set_xticks(sizes)
  axis.grid(axis="y", color="0.9")
  axis.legend()
  outputs.save(fig, path)


def main(argv):
  """Runs the experiment; see the module's text."""
  commands.refuse_arguments(argv)
  config = commands.CONFIG.value
  with commands.user_errors():
    folder = outputs.folder()
    dataset = dialogues_lib.load_config(config.dataset)
    path = teacher.score_file(config, _VOTES.value, folder)
    told = teacher.load(dataset, path)
    sizes, errors = ensembles.ensemble_ece(
      told.votes_UxC,
      told.valid_UxC,
      told.gold_UxC,
      config.seed,
      draws=_DRAWS.value,
    )
  outputs.write_command(
    folder / "command.json", seeds=[config.seed], draws=_DRAWS.value
  )
  rows = [
    {
      "votes": int(size),
      "zeros": name,
      "mean": errors[:, i, j].mean(),
      "standard_deviation": errors[:, i, j].std(),
      "least": errors[:, i, j].min(),
      "most": errors[:, i, j].max(),
    }
    for i, size in enumerate(sizes)
    for j, name in enumerate(_NAMES)
  ]
  outputs.write_csv(folder / "figure3.csv", rows)
  table = outputs.table(
    ["votes", *_NAMES],
    [
      [
        str(size),
        *(
          f"{errors[:, i, j].mean():.3f} ± {errors[:, i, j].std():.3f}"
          for j in range(len(_NAMES))
        ),
      ]
      for i, size in enumerate(sizes)
    ],
  )
  first, last = paper.FIGURE3
  text = (
    "# Figure 3\n\nExpected calibration error in five buckets of S, over"
    f" {len(np.unique(told.dialogue_U)):,} dialogues,"
    f" {len(told.gold_UxC):,} labelled utterances of {told.split} and"
    f" {len(told.classes)} classes; mean ± standard deviation over"
    f" {_DRAWS.value} draws of the votes.\n\n{table}\nThe paper's falls from"
    f" {paper.FIGURE3[first]} at {first} vote to {paper.FIGURE3[last]} at"
    f" {last} ({paper.SOURCE}, its own votes).\n"
  )
  outputs.write_text(folder / "figure3.md", text)
  _draw(folder / "figure3.png", sizes, errors)
  print(f"{text}\nTable and picture in {folder}")


if __name__ == "__main__":
  commands.run(main, required=["config", "folder"])
