r"""What votes look like: agreement, splits, reliability and ensemble size.

    python -m labeling.report --config=configs/dailydialog.py \
      --votes=votes.jsonl.gz --output=report

Writes into the folder, each table with its picture where it has one:

    annotators.csv, .png    votes, unusable answers and accuracy of each
    agreement.csv, .png     Krippendorff's alpha of each pair of them
    classes.csv, .png       votes, alpha and gold of each class
    splits.csv              the utterances whose votes are most split
    reliability.csv, .png   share of gold by score; the score is the share of
                            valid votes, every one of weight 1
    ensembles.csv, .png     calibration error of scores from fewer votes

The last two and accuracy need gold. Utterances count from 0.
"""

import csv
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from absl import flags

from labeling import agreement, corpus, plots
from labeling import votes as votes_lib
from ppl_jax import calibration, commands
from ppl_jax.data import ensembles, vote_columns

_VOTES = flags.DEFINE_multi_string(
  "votes",
  None,
  "A vote store, or JSON lines, gzipped or not; may be given several times.",
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write into.")
_MOST_SPLIT = 1_000
_SIZES_SHOWN = 8
_TREATMENTS = ("without S = 0", "with it")  # as of ensembles.TREATMENTS


def write_report(
  votes: vote_columns.Votes, task: str, output: pathlib.Path, seed: int
) -> list[str]:
  """Writes tables and pictures; see the module's text.

  Args:
    votes: at least one.
    task: 'single_label' or 'multi_label'.
    output: the folder; made if missing.
    seed: of the ensembles.

  Returns:
    A summary, in lines.
  """
  output.mkdir(parents=True, exist_ok=True)
  dialogues = len(votes.voted.dialogue_ids)
  lines = [
    f"votes: {len(votes)} by {len(votes.annotators)} annotators, on"
    f" {len(votes.voted.labelled_U)} utterances of {dialogues} dialogues;"
    f" {(~votes.valid_V).sum()} unusable",
    *_agreement(votes, task, output),
    _annotators(votes, task, output),
    _splits(votes, task, output),
  ]
  usable_V = votes.valid_V & votes.voted.labelled_U[votes.utterance_V]
  if usable_V.any():
    lines += [_reliability(votes, output), *_ensembles(votes, output, seed)]
  else:
    lines.append("gold: none for these utterances")
  return [*lines, f"report: {output}"]


def _agreement(votes, task, output) -> list[str]:
  alpha, alpha_C = agreement.alphas(votes, task)
  votes_UxC, valid_UxC = votes.counts()
  labelled_U = votes.voted.labelled_U
  gold_C = votes.voted.gold_UxC[labelled_U].sum(axis=0)
  count_C, valid_C = votes_UxC.sum(axis=0), valid_UxC.sum(axis=0)
  _table(
    output / "classes.csv",
    ("class", "votes", "could_name", "alpha", "gold", "labelled"),
    (
      (name, count_C[c], valid_C[c], alpha_C[c], gold_C[c], labelled_U.sum())
      for c, name in enumerate(votes.classes)
    ),
  )
  shares = {"votes": count_C / np.maximum(valid_C, 1)}
  if labelled_U.any():
    shares["gold"] = gold_C / labelled_U.sum()
  plots.bars(
    output / "classes.png", votes.classes, shares, "share of votes, of gold"
  )
  names = votes.annotators
  alpha_AxA = agreement.pairwise(votes, task)
  _table(
    output / "agreement.csv",
    ("annotator", *names),
    ((name, *alpha_AxA[a]) for a, name in enumerate(names)),
  )
  plots.agreement(output / "agreement.png", names, alpha_AxA)
  classes = ", ".join(
    f"{name} {'unknown' if np.isnan(value) else f'{value:.3f}'}"
    for name, value in zip(
      ("all", *votes.classes), (alpha, *alpha_C), strict=True
    )
  )
  lines = [f"agreement, Krippendorff's alpha: {classes}"]
  apart = [(alpha_AxA[a, b], a, b) for b in range(len(names)) for a in range(b)]
  known = sorted(pair for pair in apart if not np.isnan(pair[0]))
  if known:
    told = [f"{names[a]} and {names[b]} {v:.3f}" for v, a, b in known]
    lines.append(f"alpha by pairs: least {told[0]}, most {told[-1]}")
  return lines


def _annotators(votes, task, output) -> str:
  A = len(votes.annotators)
  none_V = votes.valid_V.copy()
  none_V[votes.label_vote_N] = False
  accuracy_A, one_answer_A = agreement.accuracy(votes, task)
  columns = {
    "votes": np.bincount(votes.annotator_V, minlength=A),
    "unusable": np.bincount(votes.annotator_V[~votes.valid_V], minlength=A),
    "none": np.bincount(votes.annotator_V[none_V], minlength=A),
    "accuracy": accuracy_A,
    "accuracy_of": np.where(one_answer_A, "labels", "yes and no"),
  }
  _table(
    output / "annotators.csv",
    ("annotator", *columns),
    zip(votes.annotators, *columns.values(), strict=True),
  )
  shares = {
    "accuracy": accuracy_A,
    "none": columns["none"] / columns["votes"],
    "unusable": columns["unusable"] / columns["votes"],
  }
  plots.bars(output / "annotators.png", votes.annotators, shares, "share")
  told = (
    f"{name} {'' if np.isnan(right) else f'{right:.1%} of {of} right, '}"
    f"{unusable:.1%} unusable"
    for name, right, of, unusable in zip(
      votes.annotators,
      accuracy_A,
      columns["accuracy_of"],
      shares["unusable"],
      strict=True,
    )
  )
  return f"annotators: {'; '.join(told)}"


def _splits(votes, task, output) -> str:
  entropy_U = agreement.entropy(votes, task)
  voted = votes.voted
  votes_UxC, valid_UxC = votes.counts()
  unusable_U = np.bincount(
    votes.utterance_V[~votes.valid_V], minlength=len(entropy_U)
  )
  split = np.flatnonzero(entropy_U)
  most = split[np.argsort(-entropy_U[split], kind="stable")][:_MOST_SPLIT]
  _table(
    output / "splits.csv",
    (
      "dialogue_id",
      "utterance",
      "entropy_bits",
      *(f"votes for {name}" for name in votes.classes),
      "most valid",
      "unusable",
      "gold",
    ),
    (
      (
        voted.dialogue_ids[voted.dialogue_U[u]],
        u - voted.first[voted.dialogue_U[u]],
        entropy_U[u],
        *votes_UxC[u],
        valid_UxC[u].max(),
        unusable_U[u],
        _gold(votes, u),
      )
      for u in most
    ),
  )
  voted_U = (valid_UxC > 0).any(axis=1)
  share = len(split) / max(voted_U.sum(), 1)
  return f"split: the votes on {share:.1%} of the utterances with valid votes"


def _gold(votes, utterance) -> str:
  if not votes.voted.labelled_U[utterance]:
    return ""
  columns = np.flatnonzero(votes.voted.gold_UxC[utterance])
  return " | ".join(votes.classes[c] for c in columns)


def _reliability(votes, output) -> str:
  votes_UxC, valid_UxC = votes.counts()
  known_UxC = (valid_UxC > 0) & votes.voted.labelled_U[:, None]
  score = votes_UxC[known_UxC] / valid_UxC[known_UxC]
  gold = votes.voted.gold_UxC[known_UxC]
  zero = score == 0
  buckets = calibration.reliability(score[~zero], gold[~zero], bins=5)
  rows = [("0", zero.sum(), 0.0, gold[zero].mean() if zero.any() else np.nan)]
  for k, count in enumerate(buckets.count):
    at_least_one = max(count, 1)
    rows.append(
      (
        f"({k / 5:.1f}, {(k + 1) / 5:.1f}]",
        count,
        buckets.confidence[k] / at_least_one if count else np.nan,
        buckets.correct[k] / at_least_one if count else np.nan,
      )
    )
  _table(output / "reliability.csv", ("scores", "count", "mean", "gold"), rows)
  plots.reliability(output / "reliability.png", buckets)
  told = ", ".join(
    f"{name} {share:.1%}" for name, _, _, share in rows if not np.isnan(share)
  )
  return f"share of gold by score: {told}"


def _ensembles(votes, output, seed) -> list[str]:
  labelled_U = votes.voted.labelled_U
  votes_UxC, valid_UxC = votes.counts()
  sizes, errors = ensembles.ensemble_ece(
    votes_UxC[labelled_U],
    valid_UxC[labelled_U],
    votes.voted.gold_UxC[labelled_U],
    seed,
  )
  _table(
    output / "ensembles.csv",
    ("votes", "zeros", "mean", "standard_deviation", "least", "most"),
    (
      (size, name, e.mean(), e.std(), e.min(), e.max())
      for i, size in enumerate(sizes)
      for name, e in zip(_TREATMENTS, errors[:, i].T, strict=True)
    ),
  )
  told = dict(zip(_TREATMENTS, np.moveaxis(errors, 2, 0), strict=True))
  plots.ensembles(output / "ensembles.png", sizes, told)
  shown = np.unique(np.linspace(0, len(sizes) - 1, _SIZES_SHOWN).astype(int))
  return [
    f"ECE by number of votes, {name}: "
    + ", ".join(
      f"{sizes[i]}: {errors_N[:, i].mean():.3f} ± {errors_N[:, i].std():.3f}"
      for i in shown
    )
    for name, errors_N in told.items()
  ]


def _table(
  path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
  """Writes a CSV; a number that is not known is left empty."""
  with path.open("w", encoding="utf-8", newline="") as f:
    writer = csv.writer(f, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
      writer.writerow(["" if v != v else _shown(v) for v in row])


def _shown(value: Any) -> Any:
  return f"{value:.6g}" if isinstance(value, float) else value


def main(argv: Sequence[str]) -> None:
  """Runs the command; see the module's text."""
  commands.refuse_arguments(argv)
  config = commands.CONFIG.value
  with commands.user_errors():
    dataset, dialogues = corpus.open_split(config)
    votes, _ = votes_lib.read(
      _VOTES.value,
      dialogues,
      dataset.classes,
      config.votes.none_label,
      config.votes.counts_as,
      dataset.task,
    )
    output = pathlib.Path(_OUTPUT.value).expanduser()
    summary = write_report(votes, dataset.task, output, config.seed)
  print("\n".join(summary))


if __name__ == "__main__":
  commands.run(main, required=["config", "votes", "output"])
