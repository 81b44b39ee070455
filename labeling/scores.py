r"""Votes that were made elsewhere, to the score file that training reads.

    python -m labeling.scores --config=configs/dailydialog.py \
      --votes=votes.jsonl.gz --scores=scores.parquet

The votes are JSON lines; `ppl_jax.data.votes.votes_to_scores` says which. With
gold at hand, it also says how good the votes are.
"""

from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import config_dict

from ppl_jax import calibration, commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import scores as scores_lib
from ppl_jax.data import votes as votes_lib

_VOTES = flags.DEFINE_string("votes", None, "JSON lines, or gzipped ones.")
_SCORES = flags.DEFINE_string("scores", None, "Parquet file to write.")


def make_scores(
  config: config_dict.ConfigDict, votes_path: str, scores_path: str
) -> list[str]:
  """Writes the score file.

  Args:
    config: with `dataset` and `votes` as in `configs/common.py`.
    votes_path: JSON lines, gzipped where the name ends in .gz.
    scores_path: the Parquet file to write.

  Returns:
    Lines that say what was read and, where there is gold, how good it is.

  Raises:
    ValueError: data, votes or settings are not usable.
  """
  dataset = dialogues_lib.load_config(config.dataset)
  split = config.votes.split
  if split not in dataset.splits:
    raise ValueError(
      f"config.votes.split must be one of {', '.join(dataset.splits)}, got"
      f" {split!r}: name the split that was voted on"
    )
  dialogues = list(dataset.splits[split])
  scores = votes_lib.votes_to_scores(
    votes_path,
    dialogues,
    dataset.classes,
    config.votes.none_label,
    dataset=dataset.name,
    split=split,
  )
  scores_lib.write_scores(scores_path, scores)
  counts = scores.metadata["votes"]
  report = [
    f"votes: {counts['all']}, of which {counts['unusable']} unusable and"
    f" {counts['none']} for none of the classes",
    *_quality(dialogues, scores, dataset.task),
  ]
  return [*report, f"scores: {scores_path}"]


def _quality(
  dialogues: Sequence[dialogues_lib.Dialogue],
  scores: scores_lib.Scores,
  task: str,
) -> list[str]:
  """Lines on the scored utterances, and against their gold."""
  rows = scores.rows
  voted = [d for d in dialogues if d.dialogue_id in rows]
  score_UxC = np.concatenate([rows[d.dialogue_id].score for d in voted])
  gold_UxC = np.concatenate([d.gold for d in voted])
  labelled_U = np.concatenate([d.labelled for d in voted])
  scored_U = ~np.isnan(score_UxC).any(axis=1)
  lines = [
    f"scored: {scored_U.sum()} of {len(scored_U)} utterances in {len(voted)}"
    f" of {len(dialogues)} dialogues"
  ]
  both_U = scored_U & labelled_U
  if not both_U.any():
    return [*lines, "gold: none for these utterances"]
  score_UxC, gold_UxC = score_UxC[both_U], gold_UxC[both_U]
  if task == "single_label" and gold_UxC.shape[1] > 1:
    agree = (score_UxC.argmax(1) == gold_UxC.argmax(1)).mean()
    lines.append(f"largest score (the first of equals) is gold: {agree:.1%}")
  else:
    agree = ((score_UxC > 0.5) == gold_UxC).mean()
    lines.append(f"score above one half is gold, over all classes: {agree:.1%}")
  columns = [slice(None), *([c] for c in range(len(scores.classes)))]
  for name, c in zip(("all classes", *scores.classes), columns, strict=True):
    a, b = (
      calibration.vote_ece(score_UxC[:, c], gold_UxC[:, c], zeros=zeros)
      for zeros in ("drop", "first_bucket")
    )
    lines.append(f"ECE, {name}: {a:.3f} without S = 0, {b:.3f} with it")
  return lines


def main(argv: Sequence[str]) -> None:
  """Runs the command; see the module's text."""
  commands.refuse_arguments(argv)
  with commands.user_errors():
    report = make_scores(commands.CONFIG.value, _VOTES.value, _SCORES.value)
  print("\n".join(report))


if __name__ == "__main__":
  commands.run(main, required=["config", "votes", "scores"])
