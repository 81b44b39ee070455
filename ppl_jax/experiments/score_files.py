"""Score files that experiments make: thinned, aggregated anew, or simulated."""

import contextlib
import functools
import hashlib
import pathlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from ppl_jax.data import dialogues as dialogues_lib
from ppl_jax.data import scores as scores_lib
from ppl_jax.experiments import teacher

_VOTES = flags.DEFINE_integer("noise_votes", 5, "Votes simulated.")
_SHARED = flags.DEFINE_float(
  "noise_shared",
  0.5,
  "Standard deviation of the error that votes share, gold being 0 or 1.",
)
_OWN = flags.DEFINE_float("noise_own", 0.2, "And of each vote's own.")
_LATE = flags.DEFINE_float(
  "noise_late",
  0.2,
  "Of errors of timing, the share that name the utterance before.",
)
_EARLY = flags.DEFINE_float("noise_early", 0.2, "And the utterance after.")


def noise(kind: str, shared: float | None = None) -> teacher.Noise:
  """Returns the noise of a kind that the flags --noise_* describe.

  Args:
    kind: of `teacher.KINDS`.
    shared: instead of --noise_shared.

  Raises:
    ValueError: the flags are not usable.
  """
  timing = kind == "timing"
  return teacher.Noise(
    kind,
    _VOTES.value,
    _SHARED.value if shared is None else shared,
    _OWN.value,
    late=_LATE.value if timing else 0.0,
    early=_EARLY.value if timing else 0.0,
  )


def of_seed(
  make: Callable[[Any, int], str], what: Any
) -> Callable[[int], dict[str, str]]:
  """Returns which score file a seed has: what is drawn differs by it."""
  return lambda seed: {"scores": make(what, seed)}


class ScoreFiles:
  """Makes score files, each once; a name holds what its file is made of.

  Args:
    config: of the command.
    folder: of the experiment; they lie in its `scores`.
  """

  def __init__(self, config: ConfigDict, folder: pathlib.Path):
    self._config = config
    self._folder = folder / "scores"
    self._folder.mkdir(parents=True, exist_ok=True)

  def thinned(self, size: int, seed: int) -> str:
    """The scores of `size` votes an utterance, drawn by the seed."""
    given = self._config.scores
    if not given:
      raise ValueError(
        "Votes must be drawn from a score file, got config.scores=''. Name it"
        " with --config.scores."
      )
    path = self._file(f"votes-{size}", seed, [given])
    if not path.exists():
      scores = scores_lib.read_scores(given)
      scores_lib.write_scores(path, teacher.thin(scores, size, seed))
    return str(path)

  def aggregated(
    self, method: str, votes: Sequence[str], gold_dialogues: int
  ) -> str:
    """The scores of files with votes, by a method of labeling.scores."""
    path = self._file(method, (self._config.to_json(), gold_dialogues), votes)
    if not path.exists():
      teacher.make_scores(
        path,
        votes,
        f"--aggregation={method}",
        f"--gold_dialogues={gold_dialogues}",
      )
    return str(path)

  def simulated(self, how: teacher.Noise, seed: int) -> str:
    """Votes simulated for the dialogues of config.scores, else all of train."""
    about = f"votes{how.votes}-shared{how.shared:g}-own{how.own:g}"
    if how.kind == "timing":
      about += f"-late{how.late:g}-early{how.early:g}"
    known_in = [self._config.scores] if self._config.scores else []
    gold = dialogues_lib.config_files(self._config).get("config.dataset.gold")
    made_of = self.dataset.key, gold, seed
    path = self._file(f"{how.kind}-{about}", made_of, known_in)
    if not path.exists():
      dialogues = self.dataset.splits["train"]
      if self._config.scores:
        known = scores_lib.read_scores(self._config.scores).rows
        dialogues = [d for d in dialogues if d.dialogue_id in known]
      scores = teacher.simulate(
        dialogues, self.dataset.classes, self.dataset.task, how, seed
      )
      error = teacher.vote_error(scores, dialogues)
      moved = [
        f", {share:.0%} of the wrong votes {name.replace('_', ' ')}"
        for name, share in scores.metadata["sampling"].items()
        if name.startswith("moved_")
      ]
      print(
        f"errors of {how.kind}: {error:.1%} of answers wrong{''.join(moved)},"
        f" {path}"
      )
      scores_lib.write_scores(path, scores)
    return str(path)

  @functools.cached_property
  def dataset(self) -> dialogues_lib.Dataset:
    """The dataset of the config."""
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


def _settle(path: pathlib.Path) -> None:
  """Has a vote store's file hold what lies beside it, in its log."""
  if path.with_name(f"{path.name}-wal").exists():
    with contextlib.closing(sqlite3.connect(path)) as store:
      store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
