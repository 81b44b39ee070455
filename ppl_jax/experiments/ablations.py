r"""Ablations: one setting is varied, all else is the config's.

    python -m ppl_jax.experiments.ablations --what=alpha \
      --config=configs/dailydialog.py --config.scores=scores.parquet \
      --config.dataset.only_scored=True --folder=runs/alpha --seeds=0,1,2 \
      --gold=0,0.01

--what is one of

    alpha        the margin's share of the score difference
    targets      hard labels of the teacher in the pair loss, or soft ones
    group_size   K, the segments of a dialogue that are compared
    scope        pairs of one dialogue or of different ones (hypothesis H1)
    window       utterances a segment spans; all: as many as fit
    votes        N votes an utterance, drawn from those in the score file
    calibrated   uniform shares of votes against scores calibrated on the gold
                 of --gold_dialogues dialogues; needs --votes
    noise        votes simulated from gold, whose error a whole dialogue shares
                 or each utterance has its own, or is of timing (see
                 `noise_map`), at the same error rate, under pairwise and
                 pointwise training (hypothesis H2)

A setting is varied where it has a meaning. The default objective has soft pairs
and no margin, so alpha is varied under pretrain.objective=pairwise with
pairs.targets=hard, and targets under pairwise, hard ones with the margin 1/2
and soft ones without. All others are varied under the config's objective;
group_size and scope are of its pairs, the default's swapped ones too. What the
command line sets of objective and targets stays as it is.

--values takes some of an ablation's values, or others. --noise=dialogue (or
utterance, or timing) runs alpha, scope and the like on votes simulated in that
way, for the dialogues of config.scores where that is given, else for all of
train. The folder fills as that of table1 does, see its --help.
"""

from collections.abc import Mapping, Sequence

from absl import flags
from ml_collections import config_flags

from ppl_jax import commands
from ppl_jax.experiments import grid, outputs, score_files, teacher

# Key of the config, values, and the one that the others are compared with.
_SETTINGS = {
  "alpha": ("pairs.alpha", ("0", "0.25", "0.5", "0.75", "1"), "0.5"),
  "group_size": ("pairs.group_size", ("2", "4", "8", "16"), "8"),
  "window": ("segments.window", ("1", "2", "3", "5", "all"), "3"),
  "targets": ("pairs.targets", ("hard", "soft"), "soft"),
  "scope": ("pairs.scope", ("intra", "cross"), "intra"),
  "votes": ("scores", ("1", "2", "3", "5"), "5"),
  "calibrated": ("scores", ("uniform", "gold"), "uniform"),
  "noise": ("scores", teacher.KINDS, "dialogue, pairwise"),
}
# What is set besides, unless the command line does.
_UNDER = {
  "alpha": {"pretrain.objective": "pairwise", "pairs.targets": "hard"},
  "targets": {"pretrain.objective": "pairwise"},
}
_TITLES = {
  "alpha": "margin alpha",
  "group_size": "segments of a group, K",
  "window": "utterances a segment spans",
  "targets": "targets of the pair loss",
  "scope": "pairs of one dialogue or of different ones",
  "votes": "votes an utterance",
  "calibrated": "aggregation of the votes",
  "noise": "kind of error, objective",
}
_ALL = 1_000  # utterances: more than fit into a segment

_WHAT = flags.DEFINE_enum("what", None, list(_SETTINGS), "What is varied.")
_VALUES = flags.DEFINE_list("values", [], "Some of its values, or others.")
_VOTES = flags.DEFINE_multi_string(
  "votes", [], "For calibrated: files with votes, as of labeling.scores."
)
_GOLD_DIALOGUES = flags.DEFINE_integer(
  "gold_dialogues", 100, "For calibrated: dialogues whose gold is used."
)
_NOISE = flags.DEFINE_enum(
  "noise", None, teacher.KINDS, "Simulate votes with errors of this kind."
)


def variants(
  what: str,
  values: Sequence[str],
  noise: str | None,
  data: score_files.ScoreFiles,
  under: Mapping[str, str],
) -> list[grid.Variant]:
  """Returns the rows of an ablation.

  Args:
    what: of the settings.
    values: of that setting, or others.
    noise: the kind of the errors where votes are simulated.
    data: makes score files.
    under: from keys of the config to values, of all rows but those of votes.

  Raises:
    ValueError: a value is none of the setting's.
  """
  key = _SETTINGS[what][0]
  if key == "scores" and noise:
    raise ValueError(
      f"--noise goes with settings of training, got --what={what}, which has"
      " votes of its own. Leave one of them out."
    )
  if what == "noise":
    return [
      grid.Variant(
        f"{kind}, {objective}",
        {"pretrain.objective": objective},
        of_seed=score_files.of_seed(data.simulated, score_files.noise(kind)),
      )
      for kind in [_one_of(what, kind) for kind in values]
      for objective in ("pairwise", "pointwise")
    ]
  if what == "votes":
    return [
      grid.Variant(
        size,
        {},
        of_seed=score_files.of_seed(data.thinned, _number(what, size, int)),
      )
      for size in values
    ]
  more = {}
  if noise:
    how = score_files.noise(noise)
    more["of_seed"] = score_files.of_seed(data.simulated, how)
  out = []
  for value in values:
    if what == "calibrated":
      if not _VOTES.value:
        raise ValueError(
          "--what=calibrated needs the votes themselves, got no --votes. Name"
          " the files that the score file was made of."
        )
      setting = data.aggregated(
        _one_of(what, value), _VOTES.value, _GOLD_DIALOGUES.value
      )
    elif what == "alpha":
      setting = _number(what, value, float)
    elif what in ("targets", "scope"):
      setting = _one_of(what, value)
    else:
      setting = _ALL if value == "all" else _number(what, value, int)
    out.append(grid.Variant(value, {**under, key: setting}, **more))
  return out


def _one_of(what: str, value: str) -> str:
  known = _SETTINGS[what][1]
  if value not in known:
    raise ValueError(
      f"--values of {what} must be some of {', '.join(known)}, got {value!r}."
      " Correct it."
    )
  return value


def _number(what: str, value: str, kind):
  try:
    return kind(value)
  except ValueError as e:
    raise ValueError(
      f"--values of {what} must be numbers, got {value!r}. Correct it."
    ) from e


def main(argv):
  """Runs the experiment; see the module's text."""
  commands.refuse_arguments(argv)
  what = _WHAT.value
  with commands.user_errors():
    values = _VALUES.value or _SETTINGS[what][1]
    data = score_files.ScoreFiles(commands.CONFIG.value, outputs.folder())
    given = config_flags.get_override_values(flags.FLAGS["config"])
    under = {
      key: value
      for key, value in _UNDER.get(what, {}).items()
      if key not in given
    }
    rows = variants(what, values, _NOISE.value, data, under)
    names = [row.name for row in rows]
    usual = _SETTINGS[what][2]
    title = f"Ablation: {_TITLES[what]}"
    if under:
      title += f", under {', '.join(f'{k}={v}' for k, v in under.items())}"
    if _NOISE.value:
      title += f", votes simulated with errors of {_NOISE.value}"
    grid.run(
      rows,
      reference=usual if usual in names else names[0],
      title=title,
      under=under,
      xlabel=_TITLES[what],
    )


if __name__ == "__main__":
  commands.run(main, required=["config", "folder", "what"])
