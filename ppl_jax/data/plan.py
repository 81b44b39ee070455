"""The global batch plan: what forms batch t, a pure function of (seed, t).

NumPy only. Segments are named by their utterance's number in the split, 0 to
U - 1. The plan is the same for any number of processes and devices: it says
what every shard of a batch holds, and a process materialises its own shards.

Shapes: S shards, N rows (segments) a shard, D groups a shard, K segments a
group, U utterances of a split, C classes.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# Bins kept open while groups are packed: more would fill a little better and
# cost time in proportion.
_OPEN_BINS = 16
# A shard's room for tokens: over the mean of its rows, so that rows fill too;
# in steps, for hardware; and where it saves less than so much, all of N x T.
_SLACK, _ROOM_STEP, _LEAST_SAVED = 1.03, 32, 0.1
# Utterances that are drawn together, about, and groups that are looked at.
_PART, _GROUPS_AT_ONCE = 65_536, 4_096


@dataclasses.dataclass(frozen=True)
class BatchPlan:
  """What one batch holds.

  Attributes:
    length: T, the token length of all of its rows.
    room: most tokens a shard holds, one for an empty row. Less than N x T: only
      so many are computed.
    rows_SxN: int64, the utterance of each row, -1 for an empty row.
    index_SxDxK: int32, the rows of each group within its shard, -1 = none.
    gold_rows: the first rows of each shard are there for their gold alone.
  """

  length: int
  room: int
  rows_SxN: np.ndarray
  index_SxDxK: np.ndarray
  gold_rows: int = 0

  def of(self, utterances_M: np.ndarray) -> "BatchPlan":
    """Returns the plan whose rows are places in `utterances_M`, looked up."""
    rows = np.where(self.rows_SxN < 0, -1, utterances_M[self.rows_SxN])
    return dataclasses.replace(self, rows_SxN=rows)


def bucket_of(lengths: np.ndarray, buckets: Sequence[int]) -> np.ndarray:
  """Returns the number of the smallest bucket that holds each length."""
  return np.searchsorted(np.asarray(buckets), lengths, side="left")


class Plan:
  """Batches of groups of segments, epoch after epoch, without end.

  Each epoch draws the groups afresh: a dialogue's segments are shuffled and
  cut into groups of at most `group_size` whose sizes differ by at most one, so
  every segment is seen once an epoch. Groups are packed into shards of `rows`
  rows whose token length is the smallest bucket that holds them. A shard also
  has room for a number of tokens, one for each bucket, about what its rows hold
  on average; a group that has more gets N x T.

  Where there are many utterances, an epoch goes through random parts of the
  dialogues one after another, each drawn as above, so that the memory of what
  is drawn does not grow with the corpus.

  Args:
    utterances_M: the utterances to draw from.
    dialogue_M: their dialogues, not decreasing; groups never cross one, unless
      `cross`.
    lengths_M: their segments' token lengths.
    buckets: token lengths a batch may have, ascending.
    rows: rows a shard.
    shards: shards a batch.
    group_size: K; 1 for objectives without pairs.
    seed: together with the batch number, all that the plan depends on.
    keep_groups: given positions into utterances_M, sorted by group, and the
      groups' starts, says which groups are worth encoding. None: all.
    cross: groups are drawn over all dialogues instead of within one.
  """

  def __init__(
    self,
    utterances_M: np.ndarray,
    dialogue_M: np.ndarray,
    lengths_M: np.ndarray,
    *,
    buckets: Sequence[int],
    rows: int,
    shards: int,
    group_size: int,
    seed: Sequence[int],
    keep_groups: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    cross: bool = False,
  ):
    if group_size < 1 or group_size > rows:
      raise ValueError(
        "A group must fit into a shard: pairs.group_size must be from 1 to"
        f" the rows of a shard, {rows}, got {group_size}. Lower"
        " config.pairs.group_size or raise config.batch.segments."
      )
    self._utterances = np.asarray(utterances_M, np.int32)
    self._dialogue = np.asarray(dialogue_M)
    self._lengths = np.asarray(lengths_M, np.int32)
    self._buckets = tuple(buckets)
    self._parts = max(1, math.ceil(len(self._utterances) / _PART))
    self._rows, self._shards = rows, shards
    self._group_size = group_size
    self._seed = tuple(seed)
    self._keep_groups = keep_groups
    self._cross = cross
    self._starts = [0]  # first batch of each part of each epoch known so far
    self._drawn: tuple[int, _Part | None] = (-1, None)  # the last one
    self._rooms: tuple[int, ...] = ()
    self.batch(0)  # an empty plan is found now, not inside a loop

  @property
  def groups_per_shard(self) -> int:
    """D: as many groups of two as a shard has room for; lone rows have none."""
    return self._rows // 2 if self._group_size > 1 else 1

  def steps(self, epochs: int) -> int:
    """Returns the number of batches of the first `epochs` epochs."""
    while len(self._starts) <= epochs * self._parts:
      self._part(len(self._starts) - 1)
    return self._starts[epochs * self._parts]

  def batch(self, t: int) -> BatchPlan:
    """Returns batch t of the endless plan."""
    while self._starts[-1] <= t:
      self._part(len(self._starts) - 1)
    number = int(np.searchsorted(self._starts, t, side="right")) - 1
    drawn = self._part(number)
    length, room, bins = drawn.batch(t - self._starts[number])
    rows = np.full((self._shards, self._rows), -1, np.int64)
    index = np.full(
      (self._shards, self.groups_per_shard, self._group_size), -1, np.int32
    )
    for shard, groups in enumerate(bins):
      row = group_number = 0
      for number in groups:
        group = drawn.group(number)
        rows[shard, row : row + len(group)] = self._utterances[group]
        if len(group) > 1:
          index[shard, group_number, : len(group)] = np.arange(
            row, row + len(group)
          )
          group_number += 1
        row += len(group)
    return BatchPlan(length, room, rows, index)

  def room(self, length: int) -> int:
    """Returns a shard's room for tokens in batches of a token length."""
    return self._rooms[self._buckets.index(length)]

  def _part(self, number: int) -> "_Part":
    """Returns a part, counted from the first epoch's first on."""
    last, drawn = self._drawn
    if last != number:
      drawn = self._draw(number)
      self._drawn = number, drawn
      if number == len(self._starts) - 1:
        self._starts.append(self._starts[-1] + len(drawn.batches))
    if self._starts[-1] == 0 and len(self._starts) > self._parts:
      raise ValueError(
        "Training needs at least one usable batch, got none: no group of"
        " segments of one dialogue holds a pair that counts. Check that the"
        " score file covers the training dialogues and that its scores differ"
        " within a dialogue, or set config.pretrain.objective=pointwise, which"
        " needs no pairs."
      )
    return drawn

  def _positions(self, number: int) -> np.ndarray:
    """Returns the places in utterances_M that a part is of, ascending."""
    if self._parts == 1:
      return np.arange(len(self._utterances), dtype=np.int32)
    epoch, part = divmod(number, self._parts)
    rng = np.random.default_rng([*self._seed, epoch, self._parts])
    unit = np.arange(len(self._dialogue)) if self._cross else self._dialogue
    part_of = rng.permutation(int(unit[-1]) + 1) % self._parts
    return np.flatnonzero(part_of[unit] == part).astype(np.int32)

  def _draw(self, number: int) -> "_Part":
    rng = np.random.default_rng([*self._seed, number])
    segments, starts = self._groups(rng, self._positions(number))
    keep = self._kept(segments, starts)
    if not keep.any():
      return _Part.empty()
    sizes_G = np.diff(starts, append=len(segments))
    lengths = self._lengths[segments]
    bucket_G = bucket_of(np.maximum.reduceat(lengths, starts), self._buckets)
    tokens_G = np.add.reduceat(lengths, starts)
    if not self._rooms:  # of the first part, and kept: a shape is compiled
      self._rooms = self._find_rooms(
        bucket_G[keep], sizes_G[keep], tokens_G[keep]
      )
    order = rng.permutation(np.flatnonzero(keep))
    room_G = np.array(self._rooms)[bucket_G]
    too_large_G = tokens_G + self._rows - sizes_G > room_G
    last = len(self._buckets) - 1
    batches, left = [], []
    for bucket, length in enumerate(self._buckets):
      room = self._rooms[bucket]
      members = order[(bucket_G[order] == bucket) & ~too_large_G[order]]
      bins = self._pack(rng, members, sizes_G, tokens_G, room)
      # Bins that do not fill a batch ride along at the next longer T.
      bins = left + bins
      whole = len(bins) - (len(bins) % self._shards if bucket < last else 0)
      for b in range(0, whole, self._shards):
        batches.append((length, room, bins[b : b + self._shards]))
      left = bins[whole:]
    members, length = order[too_large_G[order]], self._buckets[last]
    room = self._rows * length
    bins = self._pack(rng, members, sizes_G, tokens_G, room)
    for b in range(0, len(bins), self._shards):
      batches.append((length, room, bins[b : b + self._shards]))
    order = rng.permutation(len(batches))
    batches = [batches[b] for b in order]
    bins = [some for *_, bins in batches for some in bins]
    return _Part(
      segments,
      starts,
      np.concatenate(bins),
      np.cumsum([0, *map(len, bins)], dtype=np.int32),
      np.cumsum([0, *(len(bins) for *_, bins in batches)], dtype=np.int32),
      np.array([shape for *shape, _ in batches], np.int32),
    )

  def _find_rooms(self, bucket_G, sizes_G, tokens_G) -> tuple[int, ...]:
    """Returns the room for tokens of each bucket, never less than before."""
    rooms, least = [], 0
    for bucket, length in enumerate(self._buckets):
      here = bucket_G == bucket
      mean = length
      if here.any():
        mean = tokens_G[here].sum() / sizes_G[here].sum()
      steps = math.ceil(_SLACK * mean * self._rows / _ROOM_STEP)
      least = max(least, steps * _ROOM_STEP)
      full = self._rows * length
      if least > (1 - _LEAST_SAVED) * full:
        least = full
      rooms.append(least)
    return tuple(rooms)

  def _pack(self, rng, groups, sizes_G, tokens_G, room) -> list[np.ndarray]:
    """Packs groups into bins, in random order; returns their groups."""
    # A row that stays empty has a token too.
    more_G = tokens_G[groups] - sizes_G[groups]
    bins = _first_fit(
      groups, sizes_G[groups], more_G, self._rows, room - self._rows
    )
    return [bins[b] for b in rng.permutation(len(bins))]

  def _kept(self, segments, starts) -> np.ndarray:
    """Says which groups are worth encoding, looking at some at a time."""
    keep = np.ones(len(starts), bool)
    if self._keep_groups is None:
      return keep
    for first in range(0, len(starts), _GROUPS_AT_ONCE):
      stop = min(first + _GROUPS_AT_ONCE, len(starts))
      end = starts[stop] if stop < len(starts) else len(segments)
      keep[first:stop] = self._keep_groups(
        segments[starts[first] : end], starts[first:stop] - starts[first]
      )
    return keep

  def _groups(self, rng, positions_P) -> tuple[np.ndarray, np.ndarray]:
    """Draws groups: positions sorted by group, and each group's start."""
    count = len(positions_P)
    dialogue = np.zeros(count, np.int32)
    if not self._cross:
      dialogue = self._dialogue[positions_P]
    order = np.lexsort((rng.random(count), dialogue))
    first = np.flatnonzero(np.diff(dialogue[order], prepend=-1))
    size = np.diff(np.append(first, count))
    position = np.arange(count) - np.repeat(first, size)
    groups = np.repeat(-(-size // self._group_size), size)
    group = position * groups // np.repeat(size, size)
    new = np.diff(group, prepend=-1) != 0
    new[first] = True
    return positions_P[order], np.flatnonzero(new).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class _Part:
  """What was drawn, in few and flat arrays: there may be many groups.

  Shapes: B batches, X bins of them, G groups.

  Attributes:
    segments_M: positions, sorted by group.
    starts_G: where each group starts.
    bins: the groups of all bins, a bin being what a shard holds.
    bin_starts: [X + 1], where each bin's groups start there.
    batch_starts: [B + 1], the first bin of each batch.
    batches: [B, 2], the token length and the room of each.
  """

  segments_M: np.ndarray
  starts_G: np.ndarray
  bins: np.ndarray
  bin_starts: np.ndarray
  batch_starts: np.ndarray
  batches: np.ndarray

  @classmethod
  def empty(cls) -> "_Part":
    """Returns a part without a group that counts."""
    none = np.zeros(0, np.int32)
    return cls(none, none, none, none, none, none.reshape(0, 2))

  def group(self, number: int) -> np.ndarray:
    """Returns a group's positions."""
    stop = number + 1
    end = self.starts_G[stop] if stop < len(self.starts_G) else None
    return self.segments_M[self.starts_G[number] : end]

  def batch(self, number: int) -> tuple[int, int, list[np.ndarray]]:
    """Returns a batch's token length, room and each shard's groups."""
    length, room = self.batches[number].tolist()
    first, last = self.batch_starts[number : number + 2]
    ends = self.bin_starts[first : last + 1]
    bins = [self.bins[a:b] for a, b in itertools.pairwise(ends)]
    return length, room, bins


def _first_fit(
  groups: np.ndarray,
  sizes: np.ndarray,
  tokens: np.ndarray,
  rows: int,
  room: int,
) -> list[np.ndarray]:
  """First fit into bins of rows and tokens, a bounded number of them open.

  Args:
    groups: numbers.
    sizes: of the groups, in rows.
    tokens: of the groups.
    rows: of a bin.
    room: of a bin, for tokens.

  Returns:
    The groups of each bin.
  """
  closed, opened = [], []
  for group, size, more in _each(groups, sizes, tokens):
    for entry in opened:
      if entry[0] >= size and entry[1] >= more:
        break
    else:
      entry = [rows, room, []]
      opened.append(entry)
      if len(opened) > _OPEN_BINS:
        fullest = min(
          range(len(opened) - 1),
          key=lambda b: min(opened[b][0] / rows, opened[b][1] / (room + 1)),
        )
        closed.append(np.array(opened.pop(fullest)[2], np.int32))
    entry[0] -= size
    entry[1] -= more
    entry[2].append(group)
    if not entry[0]:
      opened.remove(entry)
      closed.append(np.array(entry[2], np.int32))
  return closed + [np.array(entry[2], np.int32) for entry in opened]


def _each(*arrays: np.ndarray) -> Iterator[tuple[int, ...]]:
  """Yields what arrays hold at each place, as Python's own numbers."""
  for start in range(0, len(arrays[0]), _GROUPS_AT_ONCE):
    some = [array[start : start + _GROUPS_AT_ONCE].tolist() for array in arrays]
    yield from zip(*some, strict=True)


@dataclasses.dataclass(frozen=True)
class MixedPlan:
  """Two plans side by side in one batch: gold rows first, then vote rows."""

  gold: Plan
  votes: Plan

  def batch(self, t: int) -> BatchPlan:
    """Returns batch t of both, in the same shards."""
    gold, votes = self.gold.batch(t), self.votes.batch(t)
    shift = gold.rows_SxN.shape[1]
    index = votes.index_SxDxK
    length = max(gold.length, votes.length)
    # One for each length, or every mixture of two would be compiled.
    room = self.gold.room(length) + self.votes.room(length)
    if gold.room + votes.room > room:  # a group that is too large
      room = length * (gold.rows_SxN.shape[1] + votes.rows_SxN.shape[1])
    return BatchPlan(
      length,
      room,
      np.concatenate([gold.rows_SxN, votes.rows_SxN], axis=1),
      np.where(index < 0, index, index + shift),
      gold_rows=shift,
    )


def in_order(
  utterances_M: np.ndarray,
  lengths_M: np.ndarray,
  *,
  buckets: Sequence[int],
  rows: int,
  shards: int,
) -> list[BatchPlan]:
  """Plans a pass over a split for evaluation: shortest segments first."""
  order = np.argsort(lengths_M, kind="stable")
  bucket_M = bucket_of(np.asarray(lengths_M), buckets)
  index = np.full((shards, 1, 1), -1, np.int32)
  plans = []
  for start in range(0, len(order), rows * shards):
    chosen = order[start : start + rows * shards]
    filled = np.full(rows * shards, -1, np.int64)
    filled[: len(chosen)] = np.asarray(utterances_M)[chosen]
    length = buckets[bucket_M[chosen].max()]
    filled = filled.reshape(shards, rows)
    plans.append(BatchPlan(length, rows * length, filled, index))
  return plans
