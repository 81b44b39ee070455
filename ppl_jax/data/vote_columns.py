"""Votes in memory, an array for each field, whatever they were read from.

Shape letters: V votes, N classes that they name, U utterances of the D
dialogues that were voted on, C classes.
"""

import array
import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ppl_jax.data import dialogues as dialogues_lib

ANY = -1  # in `Votes.only_V`


@dataclasses.dataclass(frozen=True, eq=False)
class Voted:
  """The dialogues that were voted on, in the order of their split.

  Attributes:
    dialogue_ids: D ids.
    text_sha256: D digests, of `Dialogue.text_sha256`.
    first: [D + 1] int64, the first utterance of each dialogue, and U.
    gold_UxC: uint8 multi-hot.
    labelled_U: bool; where False, the row of gold means nothing.
  """

  dialogue_ids: tuple[str, ...]
  text_sha256: tuple[str, ...]
  first: np.ndarray
  gold_UxC: np.ndarray
  labelled_U: np.ndarray

  @functools.cached_property
  def dialogue_U(self) -> np.ndarray:
    """int64 [U], the dialogue of each utterance."""
    return np.repeat(np.arange(len(self.dialogue_ids)), np.diff(self.first))


@dataclasses.dataclass(frozen=True, eq=False)
class Votes:
  """Votes, sorted by utterance, annotator, `only_V` and sample.

  Attributes:
    classes: the C classes, in order.
    none_label: the answer "none of the classes", or "" if there is none.
    annotators: names, sorted.
    utterance_V: int32, the utterance in `voted`.
    annotator_V: int32, the annotator in `annotators`.
    sample_V: int32, the sample's number.
    only_V: int16, the one class that the vote could name, or `ANY`.
    valid_V: bool; where False, the answer was unusable: no vote.
    label_vote_N: int64, not decreasing, the vote that names a class; a valid
      vote that is not in it is for none of those that it could name.
    label_class_N: int16, the class.
    voted: what was voted on.
    sources: for each file its name and SHA-256.
  """

  classes: tuple[str, ...]
  none_label: str
  annotators: tuple[str, ...]
  utterance_V: np.ndarray
  annotator_V: np.ndarray
  sample_V: np.ndarray
  only_V: np.ndarray
  valid_V: np.ndarray
  label_vote_N: np.ndarray
  label_class_N: np.ndarray
  voted: Voted
  sources: tuple[Mapping[str, str], ...]

  def __len__(self) -> int:
    return len(self.valid_V)

  def could_name(self, column: int) -> np.ndarray:
    """Says of each vote whether it is valid and could have named a class."""
    return self.valid_V & ((self.only_V == ANY) | (self.only_V == column))

  def names(self, column: int) -> np.ndarray:
    """Says of each vote whether it names a class."""
    names_V = np.zeros(len(self), np.bool_)
    names_V[self.label_vote_N[self.label_class_N == column]] = True
    return names_V

  def one_answer(self, task: str) -> bool:
    """Says whether a valid vote is one of several classes or none of them.

    Else it says yes or no to each class that it could name.
    """
    several = task == "single_label" and len(self.classes) > 1
    return several and bool((self.only_V == ANY).all())

  def answers(self) -> np.ndarray:
    """int64 [V], the one class that a vote names, C for none of them.

    Raises:
      ValueError: a vote names several.
    """
    if (np.diff(self.label_vote_N) == 0).any():
      raise ValueError(
        "a vote of a single-label task must name at most one class, got votes"
        " for several: set config.dataset.task to 'multi_label'"
      )
    answer_V = np.full(len(self), len(self.classes))
    answer_V[self.label_vote_N] = self.label_class_N
    return answer_V

  def counts(self) -> tuple[np.ndarray, np.ndarray]:
    """Counts what `ScoredDialogue` holds.

    Returns:
      uint32 [U, C], the valid votes for each class, and uint32 [U, C], the
      valid votes that could have named it.
    """
    U, C = len(self.voted.labelled_U), len(self.classes)
    utterance_N = self.utterance_V[self.label_vote_N]
    votes_UxC = _count(utterance_N, self.label_class_N, U, C)
    some_V = self.valid_V & (self.only_V != ANY)
    valid_UxC = _count(self.utterance_V[some_V], self.only_V[some_V], U, C)
    any_V = self.valid_V & (self.only_V == ANY)
    any_U = np.bincount(self.utterance_V[any_V], minlength=U)
    return votes_UxC, valid_UxC + any_U[:, None].astype(np.uint32)


class Builder:
  """Takes votes one by one, checks them and lays them out in columns."""

  def __init__(
    self,
    dialogues: Sequence[dialogues_lib.Dialogue],
    classes: Sequence[str],
    none_label: str,
    counts_as: Mapping[str, str] | None = None,
  ):
    """Reads through the dialogues once.

    Args:
      dialogues: the split that was voted on.
      classes: the C classes, in order.
      none_label: the answer that means none of the classes; empty if there is
        no such answer.
      counts_as: from labels of the votes to the class that they count as, or
        to `none_label`; a vote for two labels of one class counts once.

    Raises:
      ValueError: `none_label` is a class, or a label counts as no class.
    """
    if none_label in classes:
      raise ValueError(
        "the answer that means none of the classes must not be a class, got"
        f" {none_label!r} of {list(classes)}: correct config.votes.none_label"
      )
    self._counts_as = dict(counts_as or {})
    for label, name in self._counts_as.items():
      if name not in classes and (not none_label or name != none_label):
        raise ValueError(
          "a label must count as one of the classes"
          f" {list(classes)} or as the answer none, {none_label!r}; got"
          f" {name!r} for {label!r}: correct config.votes.counts_as"
        )
    self._dialogues = dialogues
    self._classes = tuple(classes)
    self._none_label = none_label
    self._column = {name: c for c, name in enumerate(classes)}
    self._place = {}  # dialogue_id to its index, first utterance and length
    total = 0
    for d, dialogue in enumerate(dialogues):
      self._place[dialogue.dialogue_id] = (d, total, len(dialogue.texts))
      total += len(dialogue.texts)
    self._ids = list(self._place)
    self._annotators: dict[str, int] = {}
    self._sources = []
    self._columns = {
      name: array.array(kind)
      for name, kind in {
        "utterance": "i",
        "annotator": "i",
        "sample": "i",
        "only": "h",
        "valid": "b",
        "source": "i",
        "number": "q",
        "label_vote": "q",
        "label_class": "h",
      }.items()
    }

  @property
  def classes(self) -> tuple[str, ...]:
    """The C classes, in order."""
    return self._classes

  def count_as(self, labels: Iterable[str]) -> set[str]:
    """Returns what labels count as, the answer none left out."""
    return {self._counts_as.get(label, label) for label in labels} - {
      self._none_label
    }

  def source(
    self, path: str | os.PathLike[str], sha256: str = "", unit: str = "line"
  ) -> None:
    """Begins a file; `unit` is what `add` numbers in it; see `digest`."""
    self._sources.append((os.fspath(path), sha256, unit))

  def digest(self, sha256: str) -> None:
    """Gives the present source the SHA-256 of what was read of it."""
    path, _, unit = self._sources[-1]
    self._sources[-1] = (path, sha256, unit)

  def place(self, number: int) -> str:
    """Returns where in the present source a vote stands, for messages."""
    path, _, unit = self._sources[-1]
    return f"{path}, {unit} {number}"

  def add(
    self,
    number: int,
    *,
    dialogue_id: str,
    utterance: int,
    annotator: str,
    sample: int,
    labels: Sequence[str] | None,
    only: str = "",
  ) -> None:
    """Adds one vote of the present source.

    Args:
      number: its place there, for messages.
      dialogue_id: of the dialogue.
      utterance: from 0.
      annotator: any name.
      sample: its number among the annotator's.
      labels: the classes that it names, empty for none of those that it could,
        None for an unusable answer.
      only: the one class that it could name; empty for any.

    Raises:
      ValueError: there is no such utterance or class; names file and place.
    """
    unit = self._sources[-1][2]
    place = self._place.get(dialogue_id)
    if place is None:
      raise ValueError(
        f"{self.place(number)}: dialogue_id must be one of the split's"
        f" {len(self._place)} dialogues, got {dialogue_id!r}: check"
        " config.votes.split, the dataset, and that config.dataset.drop_leaks"
        " did not take it out"
      )
    _, first, length = place
    if not 0 <= utterance < length:
      raise ValueError(
        f"{self.place(number)}: utterance counts from 0 to {length - 1} in"
        f" dialogue {dialogue_id!r}, got {utterance}: correct the {unit}"
      )
    if only and only not in self._column:
      raise ValueError(
        f"{self.place(number)}: a vote that could name one class only must"
        f" name it from {list(self._classes)}, got {only!r}: correct the"
        f" {unit} or config.dataset.classes"
      )
    allowed = (only,) if only else self._classes
    if labels and (self._counts_as or self._none_label in labels):
      names = [self._counts_as.get(label, label) for label in labels]
      labels = [n for n in names if not n or n != self._none_label]
    for label in labels or ():
      if label not in allowed:
        none = (self._none_label,) if self._none_label else ()
        raise ValueError(
          f"{self.place(number)}: a label must be one of"
          f" {[*allowed, *none]} or null, got {label!r}: correct the {unit},"
          " config.dataset.classes or config.votes.none_label"
        )
    columns = self._columns
    for label in dict.fromkeys(labels or ()):
      columns["label_vote"].append(len(columns["valid"]))
      columns["label_class"].append(self._column[label])
    index = self._annotators.setdefault(annotator, len(self._annotators))
    columns["utterance"].append(first + utterance)
    columns["annotator"].append(index)
    columns["sample"].append(sample)
    columns["only"].append(self._column[only] if only else ANY)
    columns["valid"].append(labels is not None)
    columns["source"].append(len(self._sources) - 1)
    columns["number"].append(number)

  def build(self) -> Votes:
    """Lays the votes out.

    Raises:
      ValueError: there are no votes, or two are by one annotator with one
        sample's number, on one utterance and question; names both places.
    """
    if not self._columns["valid"]:
      raise ValueError("Scores need votes, got none. Name a file with votes.")
    column = {
      name: np.frombuffer(values, values.typecode)
      for name, values in self._columns.items()
    }
    annotators = tuple(sorted(self._annotators))
    rank = {name: a for a, name in enumerate(annotators)}
    rank_A = np.array([rank[name] for name in self._annotators], np.int32)
    annotator_V = rank_A[column["annotator"]]
    key = (
      column["sample"],
      column["only"],
      annotator_V,
      column["utterance"],
    )
    order_V = np.lexsort(key)
    self._check_unique(order_V, key, annotators, column)
    new_V = np.empty(len(order_V), np.int64)
    new_V[order_V] = np.arange(len(order_V))
    label_vote_N = new_V[column["label_vote"]]
    order_N = np.lexsort((column["label_class"], label_vote_N))
    voted, utterance_V = self._voted(column["utterance"][order_V])
    return Votes(
      classes=self._classes,
      none_label=self._none_label,
      annotators=annotators,
      utterance_V=utterance_V,
      annotator_V=annotator_V[order_V],
      sample_V=column["sample"][order_V],
      only_V=column["only"][order_V],
      valid_V=column["valid"][order_V].astype(np.bool_),
      label_vote_N=label_vote_N[order_N],
      label_class_N=column["label_class"][order_N],
      voted=voted,
      sources=tuple(
        {"file": os.path.basename(path), "sha256": sha256}
        for path, sha256, _ in self._sources
      ),
    )

  def _check_unique(self, order_V, key, annotators, column) -> None:
    """Raises ValueError for the first vote that was there before."""
    same_V = np.ones(max(len(order_V) - 1, 0), np.bool_)
    for values in key:
      same_V &= values[order_V[1:]] == values[order_V[:-1]]
    if not same_V.any():
      return
    # The sort is stable: of equal votes the first that was read comes first.
    second = order_V[1:][same_V].min()
    equal_V = np.logical_and.reduce(
      [values == values[second] for values in key]
    )
    first = np.flatnonzero(equal_V)[0]
    sample, only, annotator, utterance = (int(v[second]) for v in key)
    starts = [start for _, start, _ in self._place.values()]
    d = int(np.searchsorted(starts, utterance, side="right")) - 1
    got = (
      self._ids[d],
      utterance - starts[d],
      annotators[annotator],
      sample,
      *((self._classes[only],) if only != ANY else ()),
    )
    path, _, unit = self._sources[column["source"][second]]
    before, _, its_unit = self._sources[column["source"][first]]
    of = "" if before == path else f" of {before}"
    raise ValueError(
      f"{path}, {unit} {column['number'][second]}: dialogue_id, utterance,"
      f" annotator and sample must be unique, got {got}, which {its_unit}"
      f" {column['number'][first]}{of} has: take one out, or number the samples"
    )

  def _voted(self, utterance_V: np.ndarray) -> tuple[Voted, np.ndarray]:
    """What was voted on, and each vote's utterance in it."""
    starts = np.array([start for _, start, _ in self._place.values()])
    here_V = np.searchsorted(starts, utterance_V, side="right") - 1
    indices = np.unique(here_V)
    dialogues = [self._dialogues[int(d)] for d in indices]
    lengths = [len(dialogue.texts) for dialogue in dialogues]
    first = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    shift_V = (first[:-1] - starts[indices])[np.searchsorted(indices, here_V)]
    voted = Voted(
      dialogue_ids=tuple(d.dialogue_id for d in dialogues),
      text_sha256=tuple(d.text_sha256() for d in dialogues),
      first=first,
      gold_UxC=np.concatenate([d.gold for d in dialogues]),
      labelled_U=np.concatenate([d.labelled for d in dialogues]),
    )
    return voted, (utterance_V + shift_V).astype(np.int32)


def _count(
  row: np.ndarray, column: np.ndarray, rows: int, columns: int
) -> np.ndarray:
  """uint32 [rows, columns], how often each cell is named."""
  cell = row.astype(np.int64) * columns + column
  count = np.bincount(cell, minlength=rows * columns)
  return count.reshape(rows, columns).astype(np.uint32)
