"""What training minimises: weighted terms, and names for sets of them.

A term is one entry of `TERMS`: its function in `losses`, the groups of segments
that it compares, and the tasks that it is for. Everything else, the batch plan,
the training step, the checks and the logs, asks here.

Shapes: S shards, N rows a shard, C classes, M segments of G groups.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ppl_jax import losses

_BINARY, _SOFTMAX = "binary", "softmax"


@dataclasses.dataclass(frozen=True)
class PairSettings:
  """How the term `pairs` compares two segments.

  Attributes:
    targets: 'hard' or 'soft', see `pairs.pair_weights`.
    alpha: the margin's share of the score difference, in [0, 1].
    equal_labels: whether pairs of equal labels count, with target 0.
    cross: pairs are of different dialogues instead of one; so are swapped
      pairs.
  """

  targets: str = "soft"
  alpha: float = 0.0
  equal_labels: bool = False
  cross: bool = False


@dataclasses.dataclass(frozen=True)
class Term:
  """A term of the loss on one shard of a batch.

  Attributes:
    function: (logits [N, C], the shard's arrays, the objective) -> (sum,
      count). The count must not depend on the logits: it is known, over all
      shards and devices, before they are computed.
    about: what it asks of the student, for `--help` and errors.
    grouped: it compares the segments of a group; the plan then draws groups.
    softmax: it compares the classes of an utterance: for single-label tasks of
      several classes only.
    holds: (scores [M, C], starts [G], settings) -> bool [G], the groups where
      something counts. None: every scored segment counts.
  """

  function: Callable[..., tuple[jax.Array, jax.Array]]
  about: str
  grouped: bool = False
  softmax: bool = False
  holds: Callable[..., np.ndarray] | None = None


def _pairs(logits_NxC, shard, objective):
  settings = objective.pairs
  hard = settings.targets == "hard"
  return losses.pairwise_batch(
    logits_NxC,
    shard["scores" if hard else "smoothed"],
    shard["index"],
    alpha=settings.alpha,
    targets=settings.targets,
    equal_labels=settings.equal_labels,
    group_ids_N=shard["dialogue"] if settings.cross else None,
  )


def _swapped_pairs(logits_NxC, shard, objective):
  return losses.swapped_pairs_batch(
    logits_NxC,
    shard["smoothed"],
    shard["index"],
    group_ids_N=shard["dialogue"] if objective.pairs.cross else None,
  )


def _one_versus_rest(logits_NxC, shard, objective):
  del objective
  return losses.pointwise(logits_NxC, shard["smoothed"], shard["row"])


def _softmax(logits_NxC, shard, objective):
  del objective
  return losses.softmax_shares(logits_NxC, shard["smoothed"], shard["row"])


def _plurality(logits_NxC, shard, objective):
  del objective
  return losses.plurality(logits_NxC, shard["scores"], shard["row"])


def _gold(logits_NxC, shard, objective):
  return losses.gold(
    logits_NxC, shard["gold"], shard["labelled"], task=objective.task
  )


def has_pair(scores_MxC, starts_G, settings: PairSettings) -> np.ndarray:
  """Says which groups hold a pair that counts for some class.

  Hard: a pair with S_i > 1/2 >= S_j; soft: with S_i (1 - S_j) > 0.
  """
  if settings.targets == "soft":
    first, second = scores_MxC > 0, scores_MxC < 1
  else:
    first, second = scores_MxC > 0.5, scores_MxC <= 0.5  # NaN is in neither
  if settings.equal_labels:
    first = second = first | second
  # Ordered pairs, less those of a segment with itself.
  pairs_GxC = _count(first, starts_G) * _count(second, starts_G)
  return ((pairs_GxC - _count(first & second, starts_G)) > 0).any(axis=1)


def has_swap(scores_MxC, starts_G, settings: PairSettings) -> np.ndarray:
  """Says which groups hold utterances i, j and classes c, c' to swap.

  That is, i != j and c != c' with S_ic S_jc' > 0.
  """
  del settings
  has_MxC = (scores_MxC > 0) & ~np.isnan(scores_MxC).any(axis=1)[:, None]
  of_class_GxC = _count(has_MxC, starts_G)
  of_row_M = has_MxC.sum(axis=1)[:, None]
  total_G = of_class_GxC.sum(axis=1)
  same_class_G = (of_class_GxC**2).sum(axis=1)
  same_row_G = _count(of_row_M**2, starts_G)[:, 0]
  return total_G**2 - same_class_G - same_row_G + total_G > 0


def _count(values_MxC, starts_G) -> np.ndarray:
  return np.add.reduceat(values_MxC.astype(np.int64), starts_G, axis=0)


# A term's name is its key in config.pretrain.terms, and loss_NAME in the logs.
TERMS: Mapping[str, Term] = {
  "pairs": Term(
    _pairs,
    "orders the utterances of a dialogue under each class",
    grouped=True,
    holds=has_pair,
  ),
  "swapped_pairs": Term(
    _swapped_pairs,
    "which of two utterances has which of two classes",
    grouped=True,
    softmax=True,
    holds=has_swap,
  ),
  "one_versus_rest": Term(
    _one_versus_rest, "a sigmoid for each class, against its share of votes"
  ),
  "softmax": Term(
    _softmax, "a softmax over the classes, against their shares", softmax=True
  ),
  "plurality": Term(
    _plurality,
    "a softmax over the classes, against the one with most votes",
    softmax=True,
  ),
}
_GOLD = Term(_gold, "cross-entropy on gold labels")

# What config.pretrain.objective may be: weights of terms, for one class or
# several at once (a sigmoid each), and for one class of several (a softmax).
OBJECTIVES: Mapping[str, Mapping[str, Mapping[str, float]]] = {
  "auto": {
    _BINARY: {"pairs": 1.0, "one_versus_rest": 1.0},
    _SOFTMAX: {"swapped_pairs": 1.0, "softmax": 1.0},
  },
  **{
    name: {_BINARY: weights, _SOFTMAX: weights}
    for name, weights in {
      "pairwise": {"pairs": 1.0},
      "pointwise": {"one_versus_rest": 1.0},
      "joint": {"pairs": 1.0, "one_versus_rest": 1.0},
      "softmax": {"softmax": 1.0},
      "plurality": {"plurality": 1.0},
      "swapped": {"swapped_pairs": 1.0},
      "paper": {"pairs": 1.0},
      "none": {},
    }.items()
  },
}
# Exactly the paper's loss: hard labels, its margin, pairs drawn two by two.
_PAPER_ALPHA, _PAPER_GROUP = 0.5, 2


@dataclasses.dataclass(frozen=True)
class Objective:
  """The weighted terms of a phase's loss.

  Attributes:
    weights: (term, weight) of what counts; 'gold' is a term here too.
    task: 'single_label' or 'multi_label'.
    pairs: how pairs are compared.
    group_size: K, the segments of a dialogue that are compared with each other;
      1 where nothing is.
  """

  weights: tuple[tuple[str, float], ...]
  task: str
  pairs: PairSettings = PairSettings()
  group_size: int = 1

  def of_gold(self, votes: float) -> "Objective":
    """Returns fine-tuning's: gold, and these terms by a weight, perhaps 0."""
    kept = [(name, votes * w) for name, w in self.weights if votes * w]
    return dataclasses.replace(self, weights=(*kept, ("gold", 1.0)))

  def terms(
    self, logits_SxNxC: jax.Array, batch: Mapping[str, jax.Array]
  ) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Returns each term's sum and count over all shards of a batch."""
    out = {}
    for name, _ in self.weights:
      term = _GOLD if name == "gold" else TERMS[name]
      function = functools.partial(term.function, objective=self)
      sums, counts = jax.vmap(function)(logits_SxNxC, dict(batch))
      out[name] = sums.sum(), counts.sum()
    return out

  def holds(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray] | None:
    """Says which groups are worth encoding; None: all.

    Returns:
      (scores [M, C], starts [G]) -> bool [G], if every term compares segments.
    """
    tests = [TERMS[name].holds for name, _ in self.weights]
    if not tests or None in tests:
      return None

    def holds(scores_MxC, starts_G):
      found = [test(scores_MxC, starts_G, self.pairs) for test in tests]
      return np.logical_or.reduce(found)

    return holds


def on_votes(config: ConfigDict, classes: Sequence[str], task: str):
  """Returns the objective of the first phase.

  Args:
    config: of `configs/`.
    classes: the dataset's.
    task: 'single_label' or 'multi_label'.

  Raises:
    ValueError: there is no such objective, or a term is not for the task.
  """
  name = config.pretrain.objective
  softmax = task == "single_label" and len(classes) > 1
  weights = _weights(config.pretrain, softmax)
  for key, weight in weights.items():
    if not 0 <= weight < float("inf"):
      raise ValueError(
        f"config.pretrain.terms.{key} must be a weight of at least 0, got"
        f" {weight}. Correct it."
      )
    if weight and TERMS[key].softmax and not softmax:
      given = (config.pretrain.get("terms") or {}).get(key)
      setting = "objective" if given is None else f"terms.{key}"
      kind = "one class" if len(classes) == 1 else "several labels at once"
      raise ValueError(
        f"The term {key} must be left out where classes are decided one by one,"
        f" got config.pretrain.{setting}={name if given is None else given!r}"
        f" for {kind}. Set config.pretrain."
        + (
          "objective to auto, pairwise, pointwise or joint."
          if given is None
          else f"{setting} to 0."
        )
      )
  counted = tuple((key, weight) for key, weight in weights.items() if weight)
  grouped = any(TERMS[key].grouped for key, _ in counted)
  given = config.pairs
  targets = "hard" if name == "paper" else given.targets
  alpha = given.alpha
  if alpha is None:  # soft targets say all that a margin could
    alpha = _PAPER_ALPHA if targets == "hard" else 0.0
  size = _PAPER_GROUP if name == "paper" else given.group_size
  return Objective(
    weights=counted,
    task=task,
    pairs=PairSettings(
      targets=targets,
      alpha=alpha,
      equal_labels=given.equal_labels,
      cross=given.scope == "cross",
    ),
    group_size=size if grouped else 1,
  )


def uses_votes(pretrain: Mapping[str, Any]) -> bool:
  """Says whether a run trains on votes.

  Args:
    pretrain: that part of a config, or of an older run's config.json.
  """
  return any(_weights(pretrain, softmax=True).values())


def describe(pretrain: Mapping[str, Any], softmax: bool) -> str:
  """Returns the first phase's terms and weights, as a text for people."""
  weights = _weights(pretrain, softmax)
  text = " + ".join(
    key.replace("_", " ") if weight == 1 else f"{weight:g} x {key}"
    for key, weight in weights.items()
    if weight
  )
  return text or "none"


def _weights(pretrain: Mapping[str, Any], softmax: bool) -> dict[str, float]:
  """Returns the weights of the named set, and those set one by one."""
  name = pretrain["objective"]
  if name not in OBJECTIVES:
    raise ValueError(
      f"config.pretrain.objective must be one of {', '.join(OBJECTIVES)}, got"
      f" {name!r}. Choose one of them."
    )
  given = pretrain.get("terms") or {}
  weights = dict(OBJECTIVES[name][_SOFTMAX if softmax else _BINARY])
  for key in TERMS:
    if given.get(key) is not None:
      weights[key] = float(given[key])
  return weights
