r"""Votes to the score file that training reads.

    python -m labeling.scores --config=configs/dailydialog.py \
      --votes=votes.jsonl.gz --scores=scores.parquet

The votes are what `labeling.main` keeps, or JSON lines, of which
`ppl_jax.data.votes.add_votes` says more. With gold at hand, it also says how
good the scores are. `--aggregation` weighs the votes:
dawid_skene by how annotators agree, gold by how they agree with the gold of a
few dialogues, `--gold_dialogues=100` of them or those of `--gold_ids=FILE`.
Quality is then that of the other dialogues, whatever the aggregation.
"""

import pathlib
from collections.abc import Sequence

from absl import flags
from ml_collections import config_dict

from labeling import aggregate, corpus
from labeling import votes as votes_lib
from ppl_jax import commands

_VOTES = flags.DEFINE_multi_string(
  "votes",
  None,
  "Vote store, or JSON lines, gzipped or not; may be given several times.",
)
_SCORES = flags.DEFINE_string("scores", None, "Parquet file to write.")
_AGGREGATION = flags.DEFINE_enum(
  "aggregation", "uniform", aggregate.METHODS, "How votes are weighed."
)
_GOLD_DIALOGUES = flags.DEFINE_integer(
  "gold_dialogues",
  0,
  "Voted dialogues whose gold may be used, drawn by config.seed.",
  lower_bound=0,
)
_GOLD_IDS = flags.DEFINE_string(
  "gold_ids", "", "A file with the ids of these dialogues, one a line."
)


def make_scores(
  config: config_dict.ConfigDict,
  votes_paths: Sequence[str],
  scores_path: str,
  *,
  method: str = "uniform",
  gold_dialogues: int = 0,
  gold_ids: str = "",
) -> list[str]:
  """Writes the score file.

  Args:
    config: with `seed`, `dataset` and `votes` as in `configs/common.py`.
    votes_paths: files with votes, as of `labeling.votes.read`.
    scores_path: the Parquet file to write.
    method: one of `labeling.aggregate.METHODS`.
    gold_dialogues: how many dialogues' gold may be used.
    gold_ids: a file that names them instead; or "".

  Returns:
    Lines that say what was read and, where there is gold, how good it is.

  Raises:
    ValueError: data, votes or settings are not usable.
  """
  if gold_dialogues and gold_ids:
    raise ValueError(
      "gold must be drawn or named, got both --gold_dialogues and --gold_ids:"
      " give one of them"
    )
  if method == "gold" and not (gold_dialogues or gold_ids):
    raise ValueError(
      "--aggregation=gold needs gold, got neither --gold_dialogues nor"
      " --gold_ids: say whose gold may be used"
    )
  dataset, dialogues = corpus.open_split(config)
  votes, about = votes_lib.read(
    votes_paths,
    dialogues,
    dataset.classes,
    config.votes.none_label,
    config.votes.counts_as,
    dataset.task,
  )
  if gold_ids:
    gold_D = aggregate.read_gold_ids(votes, gold_ids)
  else:
    gold_D = aggregate.draw_gold(votes, gold_dialogues, config.seed)
  return aggregate.write(
    scores_path,
    votes,
    dataset,
    config.votes.split,
    method=method,
    gold_D=gold_D,
    seed=config.seed,
    about=about,
  )


def main(argv: Sequence[str]) -> None:
  """Runs the command; see the module's text."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    report = make_scores(
      commands.CONFIG.value,
      _VOTES.value,
      pathlib.Path(_SCORES.value).expanduser(),
      method=_AGGREGATION.value,
      gold_dialogues=_GOLD_DIALOGUES.value,
      gold_ids=_GOLD_IDS.value,
    )
  print("\n".join(report))


if __name__ == "__main__":
  commands.run(main, required=["config", "votes", "scores"])
