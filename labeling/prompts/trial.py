"""How good a prompt is on dialogues with gold."""

import dataclasses
import json
from collections.abc import Iterable, Sequence

import numpy as np

from labeling import parse
from labeling.plan import Plan
from labeling.store import Store
from ppl_jax import calibration
from ppl_jax.data import dialogues as dialogues_lib


@dataclasses.dataclass(frozen=True)
class Trial:
  """One prompt on a gold set; shares are NaN where nothing was answered.

  Attributes:
    prompt_id: of the prompt.
    answers: sampled answers that came back.
    unusable: share of them that made no vote.
    utterances: gold utterances with a vote.
    accuracy: share of these whose largest score is gold; with one class, or
      many labels, share of (utterance, class) with S > 1/2 where gold is 1.
    agreement: [C] kappa of S > 1/2 and gold, for each class.
    ece: of S, S = 0 in the first bucket; see `calibration.vote_ece`.
    cost: money for 1,000 utterances, one answer each.
    mistakes: (dialogue, utterance, share of votes for gold) of those that are
      wrong, the most certain first.
  """

  prompt_id: str
  answers: int
  unusable: float
  utterances: int
  accuracy: float
  agreement: np.ndarray
  ece: float
  cost: float
  mistakes: tuple[tuple[dialogues_lib.Dialogue, int, np.ndarray], ...]


def judge(
  plan: Plan,
  store: Store,
  dialogues: Iterable[dialogues_lib.Dialogue],
  classes: Sequence[str],
  task: str,
) -> Trial:
  """Compares the answers to one prompt with the gold.

  Args:
    plan: of one prompt alone.
    store: holds the answers.
    dialogues: with gold.
    classes: the C classes.
    task: 'single_label' or 'multi_label'.
  """
  (prompt_id,) = plan.prompts
  column = {name: c for c, name in enumerate(classes)}
  scores, gold, places = [], [], []
  answers = usable = asked = 0
  cost = 0.0
  for dialogue in dialogues:
    shape = len(dialogue.texts), len(classes)
    votes, valid = np.zeros(shape, int), np.zeros(shape, int)
    asked += shape[0] * len(plan.draws(dialogue.dialogue_id)[prompt_id])
    for request in plan.requests(dialogue):
      cost += store.cost(request)
      class_name = request.question.class_name
      could = [column[class_name]] if class_name else slice(None)
      for _, status, found in store.answers(request):
        answers += 1
        usable += status == parse.Status.VALID
        for vote in found:
          valid[vote.utterance, could] += 1
          for label in vote.labels:
            votes[vote.utterance, column[label]] += 1
    voted = dialogue.labelled & (valid > 0).all(axis=1)
    scores.append(votes[voted] / valid[voted])
    gold.append(dialogue.gold[voted])
    places += [(dialogue, int(u)) for u in np.flatnonzero(voted)]
  S_UxC = np.concatenate(scores)
  gold_UxC = np.concatenate(gold).astype(bool)
  hard_UxC = S_UxC > 0.5
  if task == "single_label" and len(classes) > 1:
    right_U = (S_UxC.argmax(1) == gold_UxC.argmax(1)) & S_UxC.any(1)
    accuracy = right_U.mean() if len(right_U) else np.nan
  else:
    right_U = (hard_UxC == gold_UxC).all(1)
    accuracy = (hard_UxC == gold_UxC).mean() if len(right_U) else np.nan
  # The most certain mistakes teach most.
  wrong = np.flatnonzero(~right_U)
  wrong = wrong[np.argsort(-S_UxC[wrong].max(1), kind="stable")]
  return Trial(
    prompt_id,
    answers,
    1 - usable / answers if answers else np.nan,
    len(right_U),
    float(accuracy),
    _kappa(hard_UxC, gold_UxC),
    calibration.vote_ece(S_UxC, gold_UxC, zeros="first_bucket"),
    1000 * cost / asked if asked else np.nan,
    tuple((*places[u], S_UxC[u]) for u in wrong),
  )


def _kappa(first_UxC: np.ndarray, second_UxC: np.ndarray) -> np.ndarray:
  """Cohen's kappa of each column; NaN where chance alone agrees in full."""
  if not len(first_UxC):
    return np.full(first_UxC.shape[1], np.nan)
  p, q = first_UxC.mean(0), second_UxC.mean(0)
  chance = p * q + (1 - p) * (1 - q)
  agree = (first_UxC == second_UxC).mean(0)
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.where(chance < 1, (agree - chance) / (1 - chance), np.nan)


def table(trials: Sequence[Trial], classes: Sequence[str]) -> str:
  """Returns a table for people, the most accurate first."""
  head = ["prompt", "accuracy", "ECE", "unusable", "cost/1k", "weakest class"]
  rows = []
  for t in sorted(trials, key=lambda t: -np.nan_to_num(t.accuracy)):
    weakest = "-"
    if not np.isnan(t.agreement).all():
      c = int(np.nanargmin(t.agreement))
      weakest = f"{classes[c]} (kappa {t.agreement[c]:.2f})"
    rows.append(
      [
        t.prompt_id,
        f"{t.accuracy:.1%}",
        f"{t.ece:.3f}",
        f"{t.unusable:.1%}",
        f"{t.cost:.4f}",
        weakest,
      ]
    )
  widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
  return "\n".join(
    "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
    for row in (head, *rows)
  )


def to_json(trial: Trial, classes: Sequence[str]) -> str:
  """Returns a trial as a line of JSON; null where nothing is known."""
  values = {
    f.name: getattr(trial, f.name)
    for f in dataclasses.fields(trial)
    if f.name not in ("agreement", "mistakes")
  }
  values["agreement"] = dict(
    zip(classes, np.round(trial.agreement, 4).tolist(), strict=True)
  )
  agreement = values["agreement"]
  for known in (values, agreement):
    known |= {
      k: None for k, v in known.items() if isinstance(v, float) and v != v
    }
  return json.dumps(values)
