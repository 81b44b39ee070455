r"""Ablations: one setting is varied, all else is the config's.

    python -m ppl_jax.experiments.ablations --what=alpha \
      --config=configs/dailydialog.py --config.scores=scores.parquet \
      --config.dataset.only_scored=True --folder=runs/alpha --seeds=0,1,2 \
      --gold=0,0.01

--what is one of

    alpha        the margin's share of the score difference
    group_size   K, the segments of a dialogue whose pairs are formed
    window       utterances a segment spans; all: as many as fit
    targets      hard labels of the teacher in the pair loss, or soft ones
    scope        pairs of one dialogue or of different ones (hypothesis H1)
    votes        N votes an utterance, drawn from those in the score file
    calibrated   uniform shares of votes against scores calibrated on the gold
                 of --gold_dialogues dialogues; needs --votes
    noise        votes simulated from gold, whose error a whole dialogue shares
                 or each utterance has its own, at the same error rate, under
                 pairwise and pointwise training (hypothesis H2)

--values takes some of an ablation's values, or others. --noise=dialogue (or
utterance) runs alpha, scope and the like on votes simulated in that way, for
the dialogues of config.scores where that is given, else for all of train. The
folder fills as that of table1 does, see its --help.
"""

import contextlib
import functools
import hashlib
import pathlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ppl_jax import commands
from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import scores as scores_lib
from ppl_jax.experiments import grid, outputs, teacher

# Key of the config, values, and the one that the others are compared with.
_SETTINGS = {
  "alpha": ("pairs.alpha", ("0", "0.25", "0.5", "0.75", "1"), "0.5"),
  "group_size": ("pairs.group_size", ("2", "4", "8", "16"), "8"),
  "window": ("segments.window", ("1", "2", "3", "5", "all"), "3"),
  "targets": ("pairs.targets", ("hard", "soft"), "hard"),
  "scope": ("pairs.scope", ("intra", "cross"), "intra"),
  "votes": ("scores", ("1", "2", "3", "5"), "5"),
  "calibrated": ("scores", ("uniform", "gold"), "uniform"),
  "noise": ("scores", teacher.KINDS, "dialogue, pairwise"),
}
_TITLES = {
  "alpha": "margin alpha",
  "group_size": "segments of a group, K",
  "window": "utterances a segment spans",
  "targets": "targets of the pair loss",
  "scope": "pairs of one dialogue or of different ones",
  "votes": "votes an utterance",
  "calibrated": "aggregation of the votes",
  "noise": "error shared by, objective",
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
  "noise", None, teacher.KINDS, "Simulate votes whose error is shared by it."
)
_NOISE_VOTES = flags.DEFINE_integer("noise_votes", 5, "Votes simulated.")
_NOISE_SHARED = flags.DEFINE_float(
  "noise_shared",
  0.5,
  "Standard deviation of the error that votes share, gold being 0 or 1.",
)
_NOISE_OWN = flags.DEFINE_float("noise_own", 0.2, "And of each vote's own.")


class _Data:
  """Makes score files, each once; a name holds what its file is made of."""

  def __init__(self, config: ConfigDict, folder: pathlib.Path):
    self._config = config
    self._folder = folder / "scores"
    self._folder.mkdir(parents=True, exist_ok=True)

  def thinned(self, size: int, seed: int) -> str:
    """The scores of `size` votes an utterance, drawn by the seed."""
    given = self._given()
    path = self._file(f"votes-{size}", seed, [given])
    if not path.exists():
      scores = scores_lib.read_scores(given)
      scores_lib.write_scores(path, teacher.thin(scores, size, seed))
    return str(path)

  def aggregated(self, method: str) -> str:
    """The scores of --votes by a method of labeling.scores."""
    if not _VOTES.value:
      raise ValueError(
        "--what=calibrated needs the votes themselves, got no --votes. Name the"
        " files that the score file was made of."
      )
    about = self._config.to_json(), _GOLD_DIALOGUES.value
    path = self._file(method, about, _VOTES.value)
    if not path.exists():
      teacher.make_scores(
        path,
        _VOTES.value,
        f"--aggregation={method}",
        f"--gold_dialogues={_GOLD_DIALOGUES.value}",
      )
    return str(path)

  def simulated(self, kind: str, seed: int) -> str:
    """Simulated votes whose error is shared by a dialogue or an utterance."""
    dataset = self._dataset
    settings = {
      "votes": _NOISE_VOTES.value,
      "shared": _NOISE_SHARED.value,
      "own": _NOISE_OWN.value,
    }
    about = "-".join(f"{name}{value:g}" for name, value in settings.items())
    known_in = [self._config.scores] if self._config.scores else []
    gold = dialogues_lib.config_files(self._config).get("config.dataset.gold")
    made_of = dataset.key, gold, seed
    path = self._file(f"{kind}-{about}", made_of, known_in)
    if not path.exists():
      dialogues = dataset.splits["train"]
      if self._config.scores:
        known = scores_lib.read_scores(self._config.scores).rows
        dialogues = [d for d in dialogues if d.dialogue_id in known]
      scores = teacher.simulate(
        dialogues,
        dataset.classes,
        dataset.task,
        kind=kind,
        seed=seed,
        **settings,
      )
      error = teacher.vote_error(scores, dialogues)
      print(f"error shared by {kind}: {error:.1%} of answers wrong, {path}")
      scores_lib.write_scores(path, scores)
    return str(path)

  @functools.cached_property
  def _dataset(self) -> dialogues_lib.Dataset:
    return dialogues_lib.load_config(self._config.dataset)

  def _file(self, name: str, about: Any, files: Sequence[str]) -> pathlib.Path:
    """Returns where scores lie that are made of `about` and of files."""
    paths = [pathlib.Path(file).expanduser() for file in files]
    for path in paths:
      _settle(path)
    digests = [
      dialogues_lib.file_sha256(path) if path.is_file() else str(path)
      for path in paths
    ]
    made_of = hashlib.sha256(repr((about, digests)).encode()).hexdigest()
    return self._folder / f"{name}-{made_of[:12]}.parquet"

  def _given(self) -> str:
    if not self._config.scores:
      raise ValueError(
        "--what=votes needs a score file to draw votes from, got"
        " config.scores=''. Name it with --config.scores."
      )
    return self._config.scores


def _settle(path: pathlib.Path) -> None:
  """Has a vote store's file hold what lies beside it, in its log."""
  if path.with_name(f"{path.name}-wal").exists():
    with contextlib.closing(sqlite3.connect(path)) as store:
      store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def variants(
  what: str, values: Sequence[str], noise: str | None, data: _Data
) -> list[grid.Variant]:
  """Returns the rows of an ablation.

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
        of_seed=_scores_of(data.simulated, kind),
      )
      for kind in [_one_of(what, kind) for kind in values]
      for objective in ("pairwise", "pointwise")
    ]
  if what == "votes":
    return [
      grid.Variant(
        size, {}, of_seed=_scores_of(data.thinned, _number(what, size, int))
      )
      for size in values
    ]
  more = {"of_seed": _scores_of(data.simulated, noise)} if noise else {}
  out = []
  for value in values:
    if what == "calibrated":
      setting = data.aggregated(_one_of(what, value))
    elif what == "alpha":
      setting = _number(what, value, float)
    elif what in ("targets", "scope"):
      setting = _one_of(what, value)
    else:
      setting = _ALL if value == "all" else _number(what, value, int)
    out.append(grid.Variant(value, {key: setting}, **more))
  return out


def _scores_of(
  make: Callable[[Any, int], str], kind: Any
) -> Callable[[int], dict[str, str]]:
  """Returns which score file a seed has: what is drawn differs by it."""
  return lambda seed: {"scores": make(kind, seed)}


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
    data = _Data(commands.CONFIG.value, outputs.folder())
    rows = variants(what, values, _NOISE.value, data)
    names = [row.name for row in rows]
    usual = _SETTINGS[what][2]
    on = (
      f", votes simulated with errors by {_NOISE.value}" if _NOISE.value else ""
    )
    grid.run(
      rows,
      reference=usual if usual in names else names[0],
      title=f"Ablation: {_TITLES[what]}{on}",
      xlabel=_TITLES[what],
    )


if __name__ == "__main__":
  commands.run(main, required=["config", "folder", "what"])
