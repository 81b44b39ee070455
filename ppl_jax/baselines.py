"""Classifiers to compare a student with, trained in seconds on the same votes.

The majority class, a logistic regression on the TF-IDF of words, and one on
given features (a linear probe). NumPy, SciPy and scikit-learn only.

A logistic regression minimises the cross-entropy of `vote_cross_entropy` in
`calibration`, summed instead of averaged, plus penalty / 2 |weight|^2. This is
what scikit-learn minimises with C = 1 / penalty when each row is repeated for
each class with its share of votes S as the weight; or, where sigmoids decide,
as a positive of weight S and a negative of weight 1 - S.

Shapes: M examples, N texts to classify, C classes, H features, V terms.
"""

import dataclasses
import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import optimize, sparse
from sklearn.feature_extraction import text as sklearn_text

from ppl_jax import logits as logits_lib
from ppl_jax import metrics

# From strong to weak. For 100 to 7,000 utterances of DailyDialog, the best is
# 0.1 or 0.03 with TF-IDF, and from 300 to 30 with the mean states of MiniLM.
TFIDF_PENALTIES = (1.0, 0.3, 0.1, 0.03)
TFIDF_PENALTY = 0.1
LINEAR_PENALTIES = (1_000.0, 300.0, 100.0, 30.0, 10.0, 3.0)

_FOLDS = 4
_MAX_TERMS = 20_000
_RIDGE = 1e-6  # of a bias, per row: moves none that data determine
_GRADIENT = 1e-5  # per row; a fit stops there

# Scripts without blanks between words: each character is a word.
_UNSPACED = (
  r"\u0e00-\u109f\u1780-\u17ff\u3005-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
  r"\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Accents, points, vowel signs and joiners, which \w lacks.
_MARKS = (
  r"\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
  r"\u06d6-\u06ed\u0900-\u0963\u0966-\u0dff\u200c\u200d"
)
_LETTER = rf"[^\W{_UNSPACED}]"
_WORD = rf"{_LETTER}(?:{_LETTER}|[{_MARKS}])*"
_TOKEN = re.compile(rf"{_WORD}(?:'{_WORD})*|[^\s\u200c\u200d\ufe0e\ufe0f]")


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
  """Utterances with their targets.

  Attributes:
    texts: the M utterances' own texts.
    targets_MxC: float, shares of votes in [0, 1], or gold as a multi-hot; NaN
      where there is none. Under a softmax a row with a NaN or of sum 0 does not
      count, otherwise an entry that is NaN.
    dialogue_M: int, each utterance's dialogue.
  """

  texts: Sequence[str]
  targets_MxC: np.ndarray
  dialogue_M: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Linear:
  """A linear classifier: weight_CxH and bias_C, float64."""

  weight_CxH: np.ndarray
  bias_C: np.ndarray

  def logits(self, features_NxH) -> np.ndarray:
    """Returns float64 [N, C] for features, an array or a sparse matrix."""
    return features_NxH @ self.weight_CxH.T + self.bias_C


@dataclasses.dataclass(frozen=True, eq=False)
class Tfidf:
  """A linear classifier of texts; see `fit_tfidf`."""

  vectorizer: sklearn_text.TfidfVectorizer
  linear: Linear
  task: str

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Returns probabilities, float64 [N, C]."""
    return logits_lib.probabilities(self.logits(texts), self.task)

  def logits(self, texts: Sequence[str]) -> np.ndarray:
    """Returns logits, float64 [N, C]."""
    if not len(texts):
      return np.zeros((0, len(self.linear.bias_C)))
    return self.linear.logits(self.vectorizer.transform(texts))


def terms(text: str) -> list[str]:
  """Returns a text's words and its pairs of neighbouring words, in lower case.

  Punctuation marks and emoji are words, and so is each character of a script
  without blanks between words. The first and the last word also pair with the
  end of the text, so that each text has a term.
  """
  text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
  words = _TOKEN.findall(text)
  pairs = itertools.pairwise(["", *words, ""])
  return words + [f"{first} {second}" for first, second in pairs]


def fit_tfidf(
  examples: Examples, heldout: Examples, task: str, *, max_rows: int = 20_000
) -> Tfidf:
  """Fits a logistic regression on the TF-IDF of `terms`.

  It has the 20,000 most frequent terms, each with 1 + log of its count. The
  penalty is the one of `TFIDF_PENALTIES`, tried from the strongest on, after
  which the held-out cross-entropy rises.

  Args:
    examples: to fit on. If more than `max_rows` count, a fixed sample of whole
      dialogues is fitted, the last of which may be cut.
    heldout: to choose the penalty by, sampled in the same way; `TFIDF_PENALTY`
      is taken if none of it counts.
    task: 'single_label' (softmax, for more than one class) or 'multi_label'
      (sigmoid a class).
    max_rows: the most examples to fit, and to choose by.

  Returns:
    The classifier, which gives a class without votes a small probability.

  Raises:
    ValueError: another task, other shapes, targets outside [0, 1], or no
      example that counts.
  """

  def counted(part):
    texts_M = np.array([*part.texts, ""], object)[:-1]  # object even if empty
    *data, rank_M = _counted(texts_M, part.targets_MxC, part.dialogue_M, task)
    keep = np.sort(np.argsort(rank_M, kind="stable")[:max_rows])
    return [values[keep] for values in data]

  texts, *sums = counted(examples)
  _check_any(texts)
  vectorizer = sklearn_text.TfidfVectorizer(
    analyzer=terms, sublinear_tf=True, max_features=_MAX_TERMS
  )
  features_MxV = vectorizer.fit_transform(texts)
  texts, *heldout_sums = counted(heldout)
  if len(texts):
    path = _path(features_MxV, *sums, TFIDF_PENALTIES)
    part = (vectorizer.transform(texts), *heldout_sums)
    _, (linear,) = _choose([path], [part])
  else:
    (linear,) = _path(features_MxV, *sums, (TFIDF_PENALTY,))
  return Tfidf(vectorizer, linear, task)


def fit_linear(
  features_MxH: np.ndarray,
  targets_MxC: np.ndarray,
  heldout_features_MxH: np.ndarray | None,
  heldout_targets_MxC: np.ndarray | None,
  task: str,
  *,
  dialogue_M: np.ndarray | None = None,
  weight_M: np.ndarray | None = None,
  penalties: Sequence[float] = LINEAR_PENALTIES,
) -> Linear:
  """Fits a logistic regression on features: a linear probe.

  The penalty is on the weights of features of mean 0 and standard deviation 1
  over the rows that count. The bias has none but a ridge of 1e-6 a row, which
  keeps it finite for a class without votes. The penalty is the one, tried from
  the first on, after which the held-out cross-entropy rises. If nothing that
  counts is held out, quarters of the dialogues are in turn, before all are
  fitted.

  Args:
    features_MxH: finite floats. Some three float64 copies are made, six if
      dialogues are held out here.
    targets_MxC: as in `Examples`.
    heldout_features_MxH: features of other rows; None: none.
    heldout_targets_MxC: their targets.
    task: 'single_label' (softmax, for more than one class) or 'multi_label'
      (sigmoid a class).
    dialogue_M: int, each row's dialogue; None: each row is its own.
    weight_M: how often each row counts, 0 or more; None: once.
    penalties: above 0, from strong to weak. The middle one is taken if a single
      dialogue counts and nothing is held out.

  Returns:
    The classifier, of features as they are given.

  Raises:
    ValueError: another task, other shapes, features not finite, targets outside
      [0, 1], negative weights, or no row that counts.
  """
  if dialogue_M is None:
    dialogue_M = np.arange(len(features_MxH))
  *data, rank_M = _counted(
    _floats(features_MxH), targets_MxC, dialogue_M, task, weight_M
  )
  _check_any(rank_M)
  if heldout_features_MxH is not None:
    *part, _ = _counted(
      _floats(heldout_features_MxH),
      heldout_targets_MxC,
      np.arange(len(heldout_features_MxH)),
      task,
    )
    if len(part[0]):
      return _choose([_scaled_path(*data, penalties)], [part])[1][0]
  chosen = len(penalties) // 2
  fold_M = rank_M % _FOLDS
  folds = np.unique(fold_M)
  if len(folds) > 1 and len(penalties) > 1:
    paths = [
      _scaled_path(*(values[fold_M != fold] for values in data), penalties)
      for fold in folds
    ]
    parts = [[values[fold_M == fold] for values in data] for fold in folds]
    chosen, _ = _choose(paths, parts)
  *_, linear = _scaled_path(*data, penalties[: chosen + 1])
  return linear


def majority(targets_MxC: np.ndarray, task: str, count: int) -> np.ndarray:
  """Predicts the class with the largest sum of shares, whatever the text.

  Where sigmoids decide, predicts each class whose mean share is above 1/2.

  Args:
    targets_MxC: as in `Examples`.
    task: 'single_label' or 'multi_label'.
    count: N.

  Returns:
    Probabilities 0 and 1, float64 [N, C].

  Raises:
    ValueError: another task, targets outside [0, 1], or no row that counts.
  """
  S_MxC, total_MxC = _sums(targets_MxC, task)
  _check_any(np.flatnonzero(total_MxC))
  share_C = S_MxC.sum(axis=0) / np.maximum(total_MxC.sum(axis=0), 1e-12)
  decided_1xC = metrics.preferred(share_C[None], task)
  return np.repeat(decided_1xC, count, axis=0).astype(np.float64)


def _check_any(rows) -> None:
  if not len(rows):
    raise ValueError(
      "A baseline needs at least one utterance with votes or gold, got none."
      " Give scores or gold of train."
    )


def _floats(features_MxH) -> np.ndarray:
  features_MxH = np.asarray(features_MxH, np.float64)
  if features_MxH.ndim != 2 or not np.isfinite(features_MxH).all():
    raise ValueError(
      "Features must be finite numbers [rows, features], got shape"
      f" {features_MxH.shape}, or NaN or infinity. Check the encoder's output."
    )
  return features_MxH


def _counted(items_M, targets_MxC, dialogue_M, task, weight_M=None):
  """Returns the items that count, their weighted `_sums`, and ranks.

  A rank, int [M], is the place of an item's dialogue in a fixed random order.
  """
  S_MxC, total_MxC = _sums(targets_MxC, task)
  weight_M = np.ones(len(S_MxC)) if weight_M is None else np.asarray(weight_M)
  dialogue_M = np.asarray(dialogue_M)
  lengths = len(S_MxC), len(items_M), len(dialogue_M), len(weight_M)
  if len(set(lengths)) > 1 or not (weight_M >= 0).all():
    raise ValueError(
      "Targets, what they are of, dialogues and weights must be as many, and"
      f" weights not negative, got {lengths}. Give one for each utterance."
    )
  S_MxC, total_MxC = weight_M[:, None] * S_MxC, weight_M[:, None] * total_MxC
  used = np.flatnonzero(total_MxC.any(axis=1))
  found, index_M = np.unique(dialogue_M[used], return_inverse=True)
  rank_M = np.random.default_rng(0).permutation(len(found))[index_M]
  return items_M[used], S_MxC[used], total_MxC[used], rank_M


def _sums(targets_MxC, task) -> tuple[np.ndarray, np.ndarray]:
  """Returns float64 targets, 0 for none, and how much they share out.

  The latter is [M, 1], the sum of a row's targets, under a softmax; else
  [M, C], 1 for each target there is.
  """
  S_MxC = np.asarray(targets_MxC, np.float64)
  if task not in ("single_label", "multi_label"):
    raise ValueError(
      f"A task must be 'single_label' or 'multi_label', got {task!r}. Set"
      " dataset.task to one of them."
    )
  none_MxC = np.isnan(S_MxC)
  inside_MxC = none_MxC | ((S_MxC >= 0) & (S_MxC <= 1 + 1e-6))
  if S_MxC.ndim != 2 or not inside_MxC.all():
    raise ValueError(
      "Targets must be [rows, classes] in [0, 1] or NaN, got shape"
      f" {S_MxC.shape}, or others. Give shares of votes or gold."
    )
  if task == "single_label" and S_MxC.shape[1] > 1:
    S_MxC = np.where(none_MxC.any(axis=1, keepdims=True), 0, S_MxC)
    return S_MxC, S_MxC.sum(axis=1, keepdims=True)
  return np.where(none_MxC, 0, S_MxC), np.where(none_MxC, 0.0, 1.0)


def _choose(paths, parts) -> tuple[int, tuple[Linear, ...]]:
  """Returns the place along paths after which the loss rises, and its fits.

  Args:
    paths: followed side by side.
    parts: for each path, the features and `_sums` held out from it.
  """
  lowest = np.inf
  for place, fits in enumerate(zip(*paths, strict=True)):
    loss = sum(
      _loss(fit.logits(features), *sums)[0]
      for fit, (features, *sums) in zip(fits, parts, strict=True)
    )
    if loss >= lowest:
      break
    lowest, best = loss, (place, fits)
  return best


def _scaled_path(features_MxH, S_MxC, total_MxC, penalties) -> Iterator[Linear]:
  """Yields a `_path` of standardised features, for features as they are."""
  share_M = total_MxC.sum(axis=1) / total_MxC.sum()
  mean_H = share_M @ features_MxH
  features_MxH = features_MxH - mean_H
  std_H = np.sqrt(share_M @ features_MxH**2)
  std_H[std_H <= 1e-6 * np.abs(mean_H)] = 1  # a constant but for rounding
  features_MxH /= std_H
  for fit in _path(features_MxH, S_MxC, total_MxC, penalties):
    weight_CxH = fit.weight_CxH / std_H
    yield Linear(weight_CxH, fit.bias_C - weight_CxH @ mean_H)


def _path(features_MxH, S_MxC, total_MxC, penalties) -> Iterator[Linear]:
  """Yields the fit at each penalty, started from the one before."""
  num_classes = S_MxC.shape[1]
  if sparse.issparse(features_MxH) and 1 < num_classes == total_MxC.shape[1]:
    # Sigmoids have weights of their own; alone, a class takes fewer steps.
    paths = (
      _path(features_MxH, S_MxC[:, [c]], total_MxC[:, [c]], penalties)
      for c in range(num_classes)
    )
    for fits in zip(*paths, strict=True):
      yield Linear(
        np.concatenate([fit.weight_CxH for fit in fits]),
        np.concatenate([fit.bias_C for fit in fits]),
      )
    return
  # A class alone may have no row.
  rows = total_MxC.sum() / total_MxC.shape[1] or 1.0
  ridge = _RIDGE * rows

  def objective(flat, penalty):
    weight_HxC = flat[:-num_classes].reshape(-1, num_classes)
    bias_C = flat[-num_classes:]
    z_MxC = features_MxH @ weight_HxC + bias_C
    value, gradient_MxC = _loss(z_MxC, S_MxC, total_MxC)
    value += (penalty * (weight_HxC**2).sum() + ridge * (bias_C**2).sum()) / 2
    gradient_HxC = features_MxH.T @ gradient_MxC + penalty * weight_HxC
    gradient_C = gradient_MxC.sum(axis=0) + ridge * bias_C
    gradient = np.concatenate([gradient_HxC.ravel(), gradient_C])
    return value / rows, gradient / rows

  flat = np.zeros((features_MxH.shape[1] + 1) * num_classes)
  for penalty in penalties:
    flat = optimize.minimize(
      objective,
      flat,
      args=(penalty,),
      jac=True,
      method="L-BFGS-B",
      options={"maxiter": 1_000, "gtol": _GRADIENT, "ftol": 1e-10},
    ).x
    weight_HxC = flat[:-num_classes].reshape(-1, num_classes)
    yield Linear(weight_HxC.T, flat[-num_classes:])


def _loss(z_MxC, S_MxC, total_MxC) -> tuple[float, np.ndarray]:
  """Returns the summed cross-entropy of `_sums`, and its gradient in z.

  It is total log(sum exp z) - S z, or with log(1 + exp z) for sigmoids.
  """
  if total_MxC.shape == S_MxC.shape:
    small_MxC = np.exp(-np.abs(z_MxC))
    log_MxC = np.maximum(z_MxC, 0) + np.log1p(small_MxC)
    p_MxC = np.where(z_MxC >= 0, 1, small_MxC) / (1 + small_MxC)
  else:
    top_Mx1 = z_MxC.max(axis=1, keepdims=True)
    p_MxC = np.exp(z_MxC - top_Mx1)
    sum_Mx1 = p_MxC.sum(axis=1, keepdims=True)
    p_MxC /= sum_Mx1
    log_MxC = top_Mx1 + np.log(sum_Mx1)
  value = (total_MxC * log_MxC).sum() - (S_MxC * z_MxC).sum()
  return float(value), total_MxC * p_MxC - S_MxC
