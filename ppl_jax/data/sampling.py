"""Draws shares of the gold, and dialogues to hold out. NumPy only."""

import numpy as np

_FEW_DIALOGUES = 1_000
_SHORTEST, _LONGEST = 8, 50  # labels of a stretch


def draw_gold(
  labelled_U: np.ndarray,
  dialogue_U: np.ndarray,
  fraction: float,
  seed: int,
  split: str = "train",
) -> np.ndarray:
  """Draws a share of the labelled utterances, nested over shares.

  Whole dialogues are drawn, or contiguous stretches where fewer than 1,000
  dialogues have labels: of a hundredth of the labels, but from 8 to 50
  utterances. With one seed, a smaller share lies inside every larger one.

  Args:
    labelled_U: bool, the utterances with gold.
    dialogue_U: int, their dialogues, not decreasing.
    fraction: in [0, 1], the share of labelled utterances wanted; the nearest
      that whole units give is drawn.
    seed: of the draw.
    split: its name, for errors.

  Returns:
    bool [U].

  Raises:
    ValueError: the fraction is outside [0, 1] or leaves no label.
  """
  if not 0 <= fraction <= 1:
    raise ValueError(
      "config.finetune.gold_fraction must lie in [0, 1], got"
      f" {fraction}. Give a share, such as 0.05."
    )
  if fraction == 0:
    return np.zeros(len(labelled_U), bool)
  # No array of 64 bits an utterance: corpora are large.
  new = _starts(dialogue_U[labelled_U])
  if new.sum() < _FEW_DIALOGUES:
    first = np.flatnonzero(_starts(dialogue_U)).astype(np.int32)
    position = np.arange(len(dialogue_U), dtype=np.int32)
    position -= np.repeat(first, np.diff(np.append(first, len(dialogue_U))))
    longest = min(_LONGEST, max(_SHORTEST, len(new) // 100))
    new |= _starts(position[labelled_U] // longest)
  unit = np.cumsum(new, dtype=np.int32)
  unit -= 1
  size = np.diff(np.append(np.flatnonzero(new), len(new)))
  order = np.random.default_rng([seed, 1]).permutation(len(size))
  drawn = np.append(0, np.cumsum(size[order]))
  count = int(np.argmin(np.abs(drawn - fraction * len(unit))))
  if count == 0:
    remedy = "Raise config.finetune.gold_fraction"
    if not len(unit):
      remedy = f"Label some of {split}"
    raise ValueError(
      "A gold fraction above 0 must leave at least one label in train and in"
      f" validation, got {fraction} of {len(unit)} labelled utterances in"
      f" {len(size)} stretches of {split}. {remedy}, or set"
      " config.finetune.gold_fraction=0 to train on votes alone."
    )
  out = np.zeros(len(labelled_U), bool)
  is_drawn = np.zeros(len(size), bool)
  is_drawn[order[:count]] = True
  out[labelled_U] = is_drawn[unit]
  return out


def hold_out(dialogue_M: np.ndarray, fraction: float, seed: int) -> np.ndarray:
  """Draws dialogues to hold out.

  Args:
    dialogue_M: int, a dialogue for each utterance, not decreasing.
    fraction: share of the dialogues, at least one is drawn.
    seed: of the draw.

  Returns:
    bool [M], the utterances of the dialogues drawn.

  Raises:
    ValueError: fewer than two dialogues, or a fraction outside (0, 1).
  """
  dialogues = dialogue_M[_starts(dialogue_M)]
  if len(dialogues) < 2 or not 0 < fraction < 1:
    raise ValueError(
      "Holding out votes needs at least two scored dialogues and"
      " config.pretrain.heldout_fraction in (0, 1), got"
      f" {len(dialogues)} dialogues and {fraction}. Score more dialogues."
    )
  count = min(max(1, round(fraction * len(dialogues))), len(dialogues) - 1)
  drawn = np.random.default_rng([seed, 2]).permutation(dialogues)[:count]
  is_drawn = np.zeros(dialogues[-1] + 1, bool)
  is_drawn[drawn] = True
  return is_drawn[dialogue_M]


def _starts(values: np.ndarray) -> np.ndarray:
  """Says where another value begins."""
  starts = np.ones(len(values), bool)
  np.not_equal(values[1:], values[:-1], out=starts[1:])
  return starts
