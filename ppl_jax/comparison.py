"""What anybody could train on a run's votes and gold, beside its student.

The majority class, TF-IDF with a logistic regression, and a linear probe of the
frozen encoder: seconds each. A student that is not better is not worth serving,
and says so. `baselines.json` keeps them from before training on.

Shapes: M utterances, C classes, H hidden size.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from ppl_jax import baselines, metrics, warm_start
from ppl_jax import logits as logits_lib
from ppl_jax.data import atomic
from ppl_jax.models import pretrained

_LOG = logging.getLogger(__name__)
_FILE = "baselines.json"
NAMES = {
  "majority": "majority class",
  "tfidf": "TF-IDF + logistic regression",
  "probe": "linear probe",
}
_KEPT = (
  "count",
  "accuracy",
  "one_versus_rest_accuracy",
  "macro_f1",
  "ece",
  "nll",
)
_DRAWS = 2_000  # resamples of dialogues


def begin(run, features: Mapping[str, np.ndarray]) -> None:
  """Trains the baselines, once a run, if config.baselines says so.

  Args:
    run: a `loop.Run` with its pooling chosen.
    features: of `warm_start.begin`.
  """
  path = run.workdir / _FILE
  if not run.config.baselines or path.exists():
    return
  found = _train(run, features)
  if run.is_first:
    with atomic.replacing(path) as temporary:
      temporary.write_text(json.dumps(found, indent=2) + "\n")


def finish(run, params, results: dict[str, Any]) -> list[str]:
  """Adds the baselines, and the votes' own accuracy, to a run's results.

  Args:
    run: a `loop.Run`.
    params: the finished student's.
    results: of the student; gets "baselines" and "votes".

  Returns:
    Lines for people.
  """
  lines = []
  path = run.workdir / _FILE
  if run.config.baselines and path.exists():
    results["baselines"] = json.loads(path.read_text())
    lines += _compare(results)
  votes = _votes(run, params)
  if votes:
    results["votes"] = votes
    lines.append(
      f"On the same {votes['count']} held-out utterances of train with gold:"
      f" votes {votes['votes']:.1%} right, student {votes['student']:.1%}"
      f" (difference {votes['difference']:+.1%}, 95 %"
      f" {votes['low']:+.1%} to {votes['high']:+.1%})"
    )
  return lines


def _train(run, features) -> dict[str, dict[str, Any]]:
  """Returns each baseline's metrics by split."""
  inputs = run.inputs
  votes, there = warm_start.training_rows(run), warm_start.heldout_rows(run)
  here = _with_gold(run, votes)
  tests = _tests(run)

  def texts(split, utterances_M):
    first = np.asarray(inputs.splits[split].split.tokens.first)
    dialogue_M = inputs.splits[split].split.dialogue_U[utterances_M]
    dialogues = inputs.dialogues[split]
    return [
      dialogues[d].texts[u - first[d]]
      for d, u in zip(dialogue_M, utterances_M, strict=True)
    ]

  def examples(rows):
    return baselines.Examples(
      texts(rows.split, rows.utterances_M),
      rows.targets_MxC,
      inputs.splits[rows.split].split.dialogue_U[rows.utterances_M],
    )

  found = {}
  majority = baselines.majority(here.targets_MxC, run.task, 1)
  found["majority"] = {
    name: _scored(run, rows, np.repeat(majority, len(rows.targets_MxC), axis=0))
    for name, rows in tests.items()
  }
  tfidf = baselines.fit_tfidf(examples(here), examples(there), run.task)
  found["tfidf"] = {
    name: _scored(run, rows, tfidf(texts(rows.split, rows.utterances_M)))
    for name, rows in tests.items()
  }
  params = _raw(run)
  if params is not None:
    pooling = inputs.student.encoder.pooling
    known = np.searchsorted(votes.utterances_M, here.utterances_M)
    same = features and np.array_equal(
      votes.utterances_M.take(known, mode="clip"), here.utterances_M
    )

    def pooled_of(rows):
      found = run.pooled(params, rows.split, rows.utterances_M, "baselines")
      return found[pooling]

    pooled = {name: pooled_of(rows) for name, rows in tests.items()}
    pooled["here"] = features["train"][known] if same else pooled_of(here)
    pooled["there"] = features["heldout"] if features else pooled_of(there)
    split = inputs.splits[here.split].split
    linear = baselines.fit_linear(
      pooled["here"],
      here.targets_MxC,
      pooled["there"],
      there.targets_MxC,
      run.task,
      dialogue_M=split.dialogue_U[here.utterances_M],
    )
    found["probe"] = {
      name: _scored(
        run,
        rows,
        logits_lib.probabilities(linear.logits(pooled[name]), run.task),
      )
      for name, rows in tests.items()
    }
  return found


def _with_gold(run, rows: warm_start.Rows) -> warm_start.Rows:
  """Returns the rows that are trained on, gold in place of votes."""
  inputs = run.inputs
  if not inputs.objective.weights or not inputs.gold_U.any():
    return rows
  split = inputs.splits["train"].split
  votes = ~inputs.gold_U[rows.utterances_M]
  labelled = np.flatnonzero(inputs.gold_U)
  utterances = np.concatenate([rows.utterances_M[votes], labelled])
  targets = np.concatenate(
    [rows.targets_MxC[votes], warm_start.gold(split, labelled)]
  )
  order = np.argsort(utterances)
  return warm_start.Rows("train", utterances[order], targets[order])


def _tests(run) -> dict[str, warm_start.Rows]:
  """Returns what is scored: the splits that are reported on, by name."""
  tests = {}
  for split in run.config.report:
    if split in run.inputs.splits:
      arrays = run.inputs.splits[split].split
      labelled = np.flatnonzero(arrays.labelled_U)
      if len(labelled):
        name = "dev_full" if split == "validation" else split
        tests[name] = warm_start.Rows(
          split, labelled, warm_start.gold(arrays, labelled)
        )
  return tests


def _scored(run, rows: warm_start.Rows, prob_MxC) -> dict[str, float]:
  counts = metrics.Classification.from_probabilities(
    prob_MxC,
    rows.targets_MxC,
    np.ones(len(prob_MxC), bool),
    run.task,
  )
  values = counts.compute(run.inputs.student.classes)
  return {name: values[name] for name in _KEPT}


def _raw(run):
  """Returns the parameters of the encoder before any training; None if lost."""
  inputs, config = run.inputs, run.config
  if not inputs.pretrained:
    return jax.device_put(inputs.params, run.placed)
  student = inputs.student
  kwargs = {
    "dropout": student.dropout,
    "dtype": student.dtype,
    "seed": config.seed,
  }
  C = len(student.classes)
  try:
    if config.model.pretrained:
      model = pretrained.load_classifier(
        pretrained.resolve(config.model.pretrained),
        C,
        student.encoder.vocab_size,
        num_layers=config.model.pretrained_layers,
        pooling=student.encoder.pooling,
        **kwargs,
      )
    else:
      model = pretrained.new_classifier(student.encoder, C, **kwargs)
  except ValueError as e:
    _LOG.info("No linear probe beside the student: %s", e)
    return None
  if model.bert.config != student.encoder:
    _LOG.info("No linear probe beside the student: its encoder is another.")
    return None
  return jax.device_put(nnx.state(model, nnx.Param), run.placed)


def _compare(results: Mapping[str, Any]) -> list[str]:
  """Says how the student compares, and what to try where it is not ahead."""
  lines = []
  for split in ("test", "dev_full"):
    if split not in results:
      continue
    student = results[split]
    beside, behind = [], []
    for name, title in NAMES.items():
      other = results["baselines"].get(name, {}).get(split)
      if not other:
        continue
      beside.append(
        f"{title} {100 * other['accuracy']:.1f} / {100 * other['macro_f1']:.1f}"
      )
      for measure, words in (
        ("accuracy", "accuracy"),
        ("macro_f1", "macro F1"),
      ):
        if other[measure] > student[measure]:
          behind.append(f"{title} in {words}")
    lines.append(
      f"{split}, accuracy / macro F1: student {100 * student['accuracy']:.1f} /"
      f" {100 * student['macro_f1']:.1f}; {'; '.join(beside)}"
    )
    if behind:
      lines.append(
        f"The student is behind {' and '.join(behind)} on {split}. More votes"
        " and longer training (--config.pretrain.min_steps) help a student that"
        " is still learning; a pretrained encoder (--config.model.pretrained)"
        " helps one that has little to learn from."
      )
  return lines


def _votes(run, params) -> dict[str, float] | None:
  """Scores votes and student on the same utterances, those of held-out votes.

  Gold is looked at here to report, as that of test is, and for nothing else.
  """
  inputs = run.inputs
  split = inputs.splits["train"].split
  chosen_U = inputs.heldout_U & split.labelled_U & ~inputs.gold_U
  if inputs.dev_split == "train":
    chosen_U &= ~inputs.dev_U
  utterances = np.flatnonzero(chosen_U)
  scores = split.scores_UxC[utterances]
  known = ~np.isnan(scores).any(axis=1)
  utterances, scores = utterances[known], scores[known]
  if not len(utterances):
    return None
  gold = split.gold_UxC[utterances].astype(bool)
  prob = logits_lib.probabilities(
    run.logits(params, "train", utterances), run.task
  )
  votes_M, student_M = (
    (metrics.decided(values, run.task) == gold).all(axis=1)
    for values in (scores, prob)
  )
  low, high = _interval(
    student_M.astype(float) - votes_M, split.dialogue_U[utterances]
  )
  return {
    "on": "held-out utterances of train with gold",
    "count": len(utterances),
    "votes": float(votes_M.mean()),
    "student": float(student_M.mean()),
    "difference": float(student_M.mean() - votes_M.mean()),
    "low": low,
    "high": high,
  }


def _interval(value_M, dialogue_M) -> tuple[float, float]:
  """Returns the 95 % interval of a mean, dialogues resampled."""
  _, group_M = np.unique(dialogue_M, return_inverse=True)
  sums, sizes = np.bincount(group_M, value_M), np.bincount(group_M)
  drawn = np.random.default_rng(11).multinomial(
    len(sizes), np.full(len(sizes), 1 / len(sizes)), size=_DRAWS
  )
  low, high = np.quantile((drawn @ sums) / (drawn @ sizes), (0.025, 0.975))
  return float(low), float(high)
