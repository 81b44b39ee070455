"""Baselines against scikit-learn, loops and arithmetic."""

import math

import numpy as np
from absl.testing import absltest, parameterized
from scipy import optimize, sparse
from sklearn import linear_model

from ppl_jax import baselines, calibration

_SINGLE, _MULTI = "single_label", "multi_label"


def _features(M, H, seed=0):
  """Correlated, of unlike scales, far from 0."""
  rng = np.random.default_rng(seed)
  x_MxH = rng.normal(size=(M, H)) @ rng.normal(size=(H, H))
  return x_MxH * 10.0 ** rng.uniform(-2, 2, H) + rng.normal(size=H) * 5


def _shares(x_MxH, C, seed=0, votes=5, strength=1.0):
  """Votes that depend on the features."""
  rng = np.random.default_rng(seed)
  scaled = (x_MxH - x_MxH.mean(axis=0)) / x_MxH.std(axis=0)
  z_MxC = strength * scaled @ rng.normal(size=(x_MxH.shape[1], C))
  p_MxC = np.exp(z_MxC) / np.exp(z_MxC).sum(axis=1, keepdims=True)
  return np.stack([rng.multinomial(votes, p) / votes for p in p_MxC])


def _hard(x_MxH, C, seed=0):
  return _shares(x_MxH, C, seed, votes=1)


def _loss(weight, bias, features, targets, task, row_weights=None):
  """The summed cross-entropy, by loops."""
  total = 0.0
  for i, (x, s) in enumerate(zip(features, targets, strict=True)):
    z = [
      float(np.dot(w, x)) + float(b) for w, b in zip(weight, bias, strict=True)
    ]
    row = 1.0 if row_weights is None else row_weights[i]
    if task == _SINGLE and len(z) > 1:
      if any(math.isnan(v) for v in s):
        continue
      log_sum = math.log(sum(math.exp(v) for v in z))
      total -= row * sum(v * (a - log_sum) for v, a in zip(s, z, strict=True))
    else:
      for v, a in zip(s, z, strict=True):
        if not math.isnan(v):
          total -= row * v * math.log(1 / (1 + math.exp(-a)))
          total -= row * (1 - v) * math.log(1 / (1 + math.exp(a)))
  return total


def _fit(features, targets, task=_SINGLE, penalty=3.0, **kwargs):
  return baselines.fit_linear(
    features, targets, None, None, task, penalties=(penalty,), **kwargs
  )


def _standardised(x_MxH):
  return (x_MxH - x_MxH.mean(axis=0)) / x_MxH.std(axis=0)


def _assert_same(actual, expected, rtol=2e-3, atol=2e-3):
  np.testing.assert_allclose(
    actual.weight_CxH, expected.weight_CxH, rtol=rtol, atol=atol
  )
  np.testing.assert_allclose(
    actual.bias_C, expected.bias_C, rtol=rtol, atol=atol
  )


def _examples(texts, targets, dialogue=None):
  dialogue = np.arange(len(texts)) if dialogue is None else dialogue
  return baselines.Examples(texts, np.asarray(targets, float), dialogue)


def _none(C):
  return _examples([], np.zeros((0, C)))


class LinearTest(parameterized.TestCase):
  @parameterized.parameters(
    (_SINGLE, 3, False), (_SINGLE, 1, False), (_MULTI, 3, True)
  )
  def test_lowest_point_of_a_loss_written_as_loops(self, task, C, gaps):
    x_MxH = _standardised(_features(25, 2))
    S_MxC = _shares(x_MxH, max(C, 2))[:, :C]
    if gaps:
      S_MxC[3, 1] = S_MxC[7, 0] = np.nan
    weight_M = np.random.default_rng(1).uniform(0.5, 2, len(x_MxH))
    # What is standardised with the weights of what counts stays as it is.
    share_M = weight_M * (~np.isnan(S_MxC)).sum(axis=1)
    if task == _SINGLE and C > 1:
      share_M = weight_M * S_MxC.sum(axis=1)
    share_M /= share_M.sum()
    x_MxH -= share_M @ x_MxH
    x_MxH /= np.sqrt(share_M @ x_MxH**2)
    penalty = 2.0
    fit = _fit(x_MxH, S_MxC, task, penalty, weight_M=weight_M)

    def objective(flat):
      weight, bias = flat[: 2 * C].reshape(C, 2), flat[2 * C :]
      return (
        _loss(weight, bias, x_MxH, S_MxC, task, weight_M)
        + penalty / 2 * (weight**2).sum()
      )

    at = np.concatenate([fit.weight_CxH.ravel(), fit.bias_C])
    gradient = optimize.approx_fprime(at, objective, 1e-6)
    np.testing.assert_allclose(gradient, 0, atol=2e-3)
    rng = np.random.default_rng(2)
    for scale in (0.3, 0.03):
      for _ in range(20):
        other = at + scale * rng.normal(size=at.shape)
        self.assertGreater(objective(other), objective(at) - 1e-9)

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_gradient_of_the_loss(self, task):
    rng = np.random.default_rng(0)
    z_MxC = rng.normal(size=(4, 3)) * 3
    S_MxC = rng.dirichlet(np.ones(3), size=4)
    S_MxC[1, 2] = np.nan
    S_MxC, total_MxC = baselines._sums(S_MxC, task)
    value, gradient = baselines._loss(z_MxC, S_MxC, total_MxC)
    expected = optimize.approx_fprime(
      z_MxC.ravel(),
      lambda z: baselines._loss(z.reshape(4, 3), S_MxC, total_MxC)[0],
      1e-7,
    )
    np.testing.assert_allclose(gradient.ravel(), expected, atol=1e-5)
    large, _ = baselines._loss(z_MxC * 1e4, S_MxC, total_MxC)
    self.assertTrue(np.isfinite([value, large]).all())

  @parameterized.parameters((_SINGLE, 4), (_SINGLE, 1), (_MULTI, 3))
  def test_loss_is_that_of_calibration(self, task, C):
    rng = np.random.default_rng(0)
    z_MxC = rng.normal(size=(30, C))
    S_MxC = rng.uniform(size=(30, C)) / C
    S_MxC[rng.uniform(size=(30, C)) < 0.1] = np.nan
    S, total = baselines._sums(S_MxC, task)
    expected = calibration.vote_cross_entropy(
      z_MxC, S_MxC, np.zeros(C), 1, task
    )
    actual = baselines._loss(z_MxC, S, total)[0] / total.sum()
    self.assertAlmostEqual(actual, expected, places=12)

  @parameterized.parameters(0.5, 20.0)
  def test_hard_labels_are_fitted_as_by_scikit_learn(self, penalty):
    x_MxH = _features(300, 6)
    gold_MxC = _hard(x_MxH, 4)
    fit = _fit(x_MxH, gold_MxC, penalty=penalty)
    reference = linear_model.LogisticRegression(
      C=1 / penalty, tol=1e-8, max_iter=5_000
    ).fit(_standardised(x_MxH), gold_MxC.argmax(axis=1))
    np.testing.assert_allclose(
      fit.weight_CxH * x_MxH.std(axis=0), reference.coef_, atol=2e-3
    )
    np.testing.assert_allclose(
      fit.logits(x_MxH) - fit.logits(x_MxH).mean(axis=1, keepdims=True),
      reference.decision_function(_standardised(x_MxH)),
      atol=1e-2,
    )

  def test_sigmoids_are_fitted_as_by_scikit_learn(self):
    x_MxH = _features(200, 5)
    gold_MxC = (_shares(x_MxH, 3) > 0.3).astype(float)
    fit = _fit(x_MxH, gold_MxC, _MULTI, penalty=2.0)
    for c in range(3):
      reference = linear_model.LogisticRegression(
        C=1 / 2.0, tol=1e-8, max_iter=5_000
      ).fit(_standardised(x_MxH), gold_MxC[:, c])
      np.testing.assert_allclose(
        fit.logits(x_MxH)[:, c],
        reference.decision_function(_standardised(x_MxH)),
        atol=1e-2,
      )

  def test_shares_are_rows_repeated_a_class(self):
    x_MxH = _features(80, 4)
    S_MxC = _shares(x_MxH, 3)
    row, column = np.nonzero(S_MxC)
    repeated = _fit(x_MxH[row], np.eye(3)[column], weight_M=S_MxC[row, column])
    _assert_same(_fit(x_MxH, S_MxC), repeated)

  def test_shares_of_sigmoids_are_a_positive_and_a_negative(self):
    x_MxH = _features(80, 4)
    S_MxC = _shares(x_MxH, 3)[:, :1]
    repeated = _fit(
      np.concatenate([x_MxH, x_MxH]),
      np.repeat([[1.0], [0.0]], 80, axis=0),
      weight_M=np.concatenate([S_MxC, 1 - S_MxC])[:, 0],
    )
    _assert_same(_fit(x_MxH, S_MxC), repeated)

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_a_weight_is_how_often_a_row_is_there(self, task):
    x_MxH = _features(40, 3)
    S_MxC = _shares(x_MxH, 3)
    count_M = np.random.default_rng(0).integers(0, 4, 40)
    _assert_same(
      _fit(x_MxH, S_MxC, task, weight_M=count_M),
      _fit(
        np.repeat(x_MxH, count_M, axis=0),
        np.repeat(S_MxC, count_M, axis=0),
        task,
      ),
    )

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_weight_and_bias_are_of_raw_features(self, task):
    x_MxH = _features(100, 4)
    S_MxC = _shares(x_MxH, 3)
    fit = _fit(x_MxH, S_MxC, task)
    scaled = _fit(_standardised(x_MxH), S_MxC, task)
    np.testing.assert_allclose(
      x_MxH @ fit.weight_CxH.T + fit.bias_C,
      scaled.logits(_standardised(x_MxH)),
      atol=2e-3,
    )

  def test_a_constant_feature_has_no_weight(self):
    x_MxH = _features(60, 3)
    S_MxC = _shares(x_MxH, 3)
    for constant in (0.0, 0.1, -1e6):
      wider = np.concatenate([x_MxH, np.full((60, 1), constant)], axis=1)
      fit = _fit(wider, S_MxC)
      np.testing.assert_allclose(fit.weight_CxH[:, 3], 0, atol=1e-9)
      np.testing.assert_allclose(
        fit.logits(wider), _fit(x_MxH, S_MxC).logits(x_MxH), atol=2e-3
      )

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_a_class_without_votes(self, task):
    x_MxH = _features(60, 3)
    S_MxC = _shares(x_MxH, 4)
    S_MxC[:, 2] = 0
    S_MxC[S_MxC.sum(axis=1) == 0, 0] = 1
    fit = _fit(x_MxH, S_MxC, task)
    z_MxC = fit.logits(x_MxH)
    self.assertTrue(np.isfinite(z_MxC).all())
    self.assertTrue((z_MxC[:, 2] < -4).all())

  def test_one_class_that_all_have(self):
    x_MxH = _features(30, 3)
    fit = _fit(x_MxH, np.ones((30, 1)))
    self.assertTrue((fit.logits(x_MxH) > 4).all())
    self.assertEqual(fit.weight_CxH.shape, (1, 3))

  def test_rows_and_entries_without_targets_do_not_count(self):
    x_MxH = _features(60, 3)
    S_MxC = _shares(x_MxH, 3)
    S_MxC[:10, 1] = np.nan
    S_MxC[10:20] = 0
    _assert_same(_fit(x_MxH, S_MxC), _fit(x_MxH[20:], S_MxC[20:]))
    # An entry alone: its class is fitted on the others.
    S_MxC = _shares(x_MxH, 3)
    S_MxC[:10, 1] = np.nan
    S_MxC[50:] = np.nan
    some = _fit(_standardised(x_MxH), S_MxC, _MULTI).logits(
      _standardised(x_MxH)
    )
    reference = linear_model.LogisticRegression(
      C=1 / 3, tol=1e-8, max_iter=5_000
    )
    share_M = (~np.isnan(S_MxC)).sum(axis=1) / (~np.isnan(S_MxC)).sum()
    x_MxH = _standardised(x_MxH)
    x_MxH = x_MxH - share_M @ x_MxH
    x_MxH /= np.sqrt(share_M @ x_MxH**2)
    for c, rows in enumerate((slice(50), slice(10, 50), slice(50))):
      n = len(S_MxC[rows])
      reference.fit(
        np.concatenate([x_MxH[rows]] * 2),
        np.repeat([1, 0], n),
        np.concatenate([S_MxC[rows, c], 1 - S_MxC[rows, c]]),
      )
      np.testing.assert_allclose(
        some[:, c], reference.decision_function(x_MxH), atol=1e-2
      )

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_held_out_rows_choose_the_penalty(self, task):
    x_MxH = _features(60, 20)
    S_MxC = _shares(x_MxH, 3, votes=1, strength=0.3)
    train, held = slice(40), slice(40, None)
    loss = {}
    for penalty in baselines.LINEAR_PENALTIES:
      fit = _fit(x_MxH[train], S_MxC[train], task, penalty)
      loss[penalty] = calibration.vote_cross_entropy(
        fit.logits(x_MxH[held]), S_MxC[held], np.zeros(3), 1, task
      )
    best = min(loss, key=loss.get)
    self.assertNotIn(best, [max(loss), min(loss)])
    chosen = baselines.fit_linear(
      x_MxH[train], S_MxC[train], x_MxH[held], S_MxC[held], task
    )
    _assert_same(chosen, _fit(x_MxH[train], S_MxC[train], task, best))

  def test_without_held_out_rows_dialogues_choose(self):
    # Each dialogue has one text four times and one label by chance: what is
    # learned of one says nothing of others, which rows on their own hide.
    rng = np.random.default_rng(0)
    x_MxH = np.repeat(rng.normal(size=(30, 40)), 4, axis=0)
    S_MxC = np.repeat(np.eye(3)[rng.integers(0, 3, 30)], 4, axis=0)
    arguments = (x_MxH, S_MxC, None, None, _SINGLE)
    by_row = baselines.fit_linear(*arguments)
    by_dialogue = baselines.fit_linear(
      *arguments, dialogue_M=np.repeat(np.arange(30) * 7, 4)
    )
    weakest = _fit(x_MxH, S_MxC, penalty=baselines.LINEAR_PENALTIES[-1])
    _assert_same(by_row, weakest, rtol=2e-2, atol=2e-2)
    strong = _fit(x_MxH, S_MxC, penalty=baselines.LINEAR_PENALTIES[1])
    largest = np.abs(by_dialogue.weight_CxH).max()
    self.assertLessEqual(largest, np.abs(strong.weight_CxH).max() + 1e-3)

  def test_folds_by_hand(self):
    x_MxH = _features(48, 10)
    S_MxC = _shares(x_MxH, 3, votes=1, strength=0.3)
    dialogue_M = np.repeat(np.arange(6), 8)
    weight_M = np.random.default_rng(0).uniform(0, 2, 48)
    fold_M = baselines._counted(x_MxH, S_MxC, dialogue_M, _SINGLE)[-1] % 4
    self.assertLen(set(zip(dialogue_M, fold_M, strict=True)), 6)
    self.assertCountEqual(np.bincount(fold_M), [16, 16, 8, 8])
    loss = {}
    for penalty in baselines.LINEAR_PENALTIES:
      loss[penalty] = 0.0
      for fold in range(4):
        out = fold_M == fold
        fit = _fit(
          x_MxH[~out], S_MxC[~out], penalty=penalty, weight_M=weight_M[~out]
        )
        loss[penalty] += _loss(
          fit.weight_CxH,
          fit.bias_C,
          x_MxH[out],
          S_MxC[out],
          _SINGLE,
          weight_M[out],
        )
    best = min(loss, key=loss.get)
    self.assertNotIn(best, [max(loss), min(loss)])
    chosen = baselines.fit_linear(
      x_MxH,
      S_MxC,
      np.zeros((3, 10)),
      np.full((3, 3), np.nan),
      _SINGLE,
      dialogue_M=dialogue_M,
      weight_M=weight_M,
    )
    expected = _fit(x_MxH, S_MxC, penalty=best, weight_M=weight_M)
    _assert_same(chosen, expected)

  def test_one_dialogue_has_the_middle_penalty(self):
    x_MxH = _features(20, 3)
    S_MxC = _shares(x_MxH, 3)
    fit = baselines.fit_linear(
      x_MxH,
      S_MxC,
      None,
      None,
      _SINGLE,
      dialogue_M=np.full(20, 5),
      penalties=(100.0, 10.0, 1.0),
    )
    _assert_same(fit, _fit(x_MxH, S_MxC, penalty=10.0))

  def test_twice_the_same(self):
    x_MxH = _features(50, 5).astype(np.float32)
    S_MxC = _shares(x_MxH, 3)
    first, second = (
      baselines.fit_linear(x_MxH, S_MxC, None, None, _SINGLE) for _ in range(2)
    )
    np.testing.assert_array_equal(first.weight_CxH, second.weight_CxH)
    np.testing.assert_array_equal(first.bias_C, second.bias_C)
    self.assertEqual(first.weight_CxH.dtype, np.float64)

  def test_what_is_refused(self):
    x_MxH = _features(10, 3)
    S_MxC = _shares(x_MxH, 3)
    bad = x_MxH.copy()
    bad[2, 1] = np.nan
    for features, targets, kwargs, message in (
      (x_MxH, S_MxC, {"task": "tracking"}, "task must be"),
      (x_MxH[:9], S_MxC, {}, "must be as many"),
      (x_MxH[:, 0], S_MxC, {}, "must be finite numbers"),
      (bad, S_MxC, {}, "must be finite"),
      (x_MxH, S_MxC * 5, {}, r"in \[0, 1\]"),
      (x_MxH, -S_MxC, {}, r"in \[0, 1\]"),
      (x_MxH, S_MxC[:, 0], {}, "rows, classes"),
      (x_MxH, S_MxC * np.nan, {}, "at least one utterance"),
      (x_MxH, S_MxC, {"weight_M": np.zeros(10)}, "at least one utterance"),
      (x_MxH, S_MxC, {"weight_M": np.full(10, -1)}, "not negative"),
      (x_MxH, S_MxC, {"weight_M": np.ones(9)}, "must be as many"),
      (x_MxH, S_MxC, {"dialogue_M": np.ones(9)}, "must be as many"),
    ):
      with self.subTest(message), self.assertRaisesRegex(ValueError, message):
        _fit(features, targets, **kwargs)


class TermsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("Don’t go!", "don't go ! | don't|don't go|go !|! "),
    ("你好吗", "你 好 吗 | 你|你 好|好 吗|吗 "),
    ("ไปไหน", "ไ ป ไ ห น | ไ|ไ ป|ป ไ|ไ ห|ห น|น "),
    ("ok😂❤️", "ok 😂 ❤ | ok|ok 😂|😂 ❤|❤ "),
    ("<CARD> 42", "< card > 42 | <|< card|card >|> 42|42 "),
    ("Это ещё", "это ещё | это|это ещё|ещё "),
    ("हिन्दी है।", "हिन्दी है । | हिन्दी|हिन्दी है|है ।|। "),
    ("cafe\u0301", "café | café|café "),
    ("\u200d", " "),
  )
  def test_terms(self, text, expected):
    words, pairs = [], expected
    if expected.strip():
      words, pairs = expected.split(" |", 1)
      words = words.split(" ")
    self.assertEqual(baselines.terms(text), words + pairs.split("|"))

  def test_an_emoji_is_one_word_with_and_without_its_selector(self):
    self.assertEqual(baselines.terms("❤️"), baselines.terms("❤"))


class TfidfTest(parameterized.TestCase):
  TEXTS = (
    "Where do you live?",
    "I live in Rome.",
    "Give me the salt, please.",
    "What time is it?",
    "It is late.",
    "Please sit down.",
    "Do you like it?",
    "I like Rome.",
    "Please give me more time.",
  )
  GOLD = np.eye(3)[[0, 1, 2] * 3]

  def test_shares_are_fitted_as_by_scikit_learn_on_repeated_rows(self):
    S_MxC = 0.7 * self.GOLD + 0.1
    fit = baselines.fit_tfidf(_examples(self.TEXTS, S_MxC), _none(3), _SINGLE)
    features = fit.vectorizer.transform(self.TEXTS)
    row, column = np.nonzero(S_MxC)
    reference = linear_model.LogisticRegression(
      C=1 / baselines.TFIDF_PENALTY, tol=1e-8, max_iter=5_000
    ).fit(features[row], column, S_MxC[row, column])
    np.testing.assert_allclose(
      fit(self.TEXTS), reference.predict_proba(features), atol=1e-3
    )
    np.testing.assert_allclose(fit(self.TEXTS).sum(axis=1), 1)

  def test_sigmoids_are_fitted_as_by_scikit_learn_on_repeated_rows(self):
    S_MxC = 0.7 * self.GOLD + 0.1
    S_MxC[4, 2] = np.nan
    fit = baselines.fit_tfidf(_examples(self.TEXTS, S_MxC), _none(3), _MULTI)
    features = fit.vectorizer.transform(self.TEXTS)
    for c in range(3):
      used = ~np.isnan(S_MxC[:, c])
      S = S_MxC[used, c]
      reference = linear_model.LogisticRegression(
        C=1 / baselines.TFIDF_PENALTY, tol=1e-8, max_iter=5_000
      ).fit(
        sparse.vstack([features[used]] * 2),
        np.repeat([1, 0], len(S)),
        np.concatenate([S, 1 - S]),
      )
      np.testing.assert_allclose(
        fit(self.TEXTS)[:, c],
        reference.predict_proba(features)[:, 1],
        atol=1e-3,
      )

  def test_it_learns_what_words_say(self):
    fit = baselines.fit_tfidf(
      _examples(self.TEXTS, self.GOLD), _none(3), _SINGLE
    )
    new = ["Where is it?", "I like it.", "Please give me salt."]
    self.assertSequenceEqual(list(fit(new).argmax(axis=1)), [0, 1, 2])
    self.assertEqual(fit(new).dtype, np.float64)
    np.testing.assert_allclose(
      np.exp(fit.logits(new)) / np.exp(fit.logits(new)).sum(1, keepdims=True),
      fit(new),
    )
    self.assertEqual(fit([]).shape, (0, 3))
    self.assertTrue(np.isfinite(fit(["нет", "\ufe0f"])).all())

  def test_a_word_said_often_weighs_the_logarithm(self):
    texts = ["yes yes yes yes no", "maybe"]
    fit = baselines.fit_tfidf(_examples(texts, np.eye(2)), _none(2), _SINGLE)
    values = fit.vectorizer.transform(texts).toarray()[0]
    yes, no = (fit.vectorizer.vocabulary_[word] for word in ("yes", "no"))
    self.assertAlmostEqual(values[yes] / values[no], 1 + math.log(4))

  def test_scripts_without_blanks(self):
    texts = [
      "你好吗",
      "我很好",
      "你去哪",
      "我在家",
      "ไปไหน",
      "อยู่บ้าน",
      "😂😂",
      "😡",
    ]
    gold = np.eye(2)[[0, 1, 0, 1, 0, 1, 0, 1]]
    fit = baselines.fit_tfidf(_examples(texts, gold), _none(2), _SINGLE)
    self.assertTrue((fit.vectorizer.transform(texts).getnnz(axis=1) > 1).all())
    np.testing.assert_array_equal(fit(texts).argmax(axis=1), [0, 1] * 4)
    self.assertSequenceEqual(
      list(fit(["你在哪", "我好", "😂", "😡😡"]).argmax(axis=1)), [0, 1, 0, 1]
    )

  @parameterized.parameters((_SINGLE, 3), (_MULTI, 3), (_SINGLE, 1))
  def test_a_class_without_votes_or_with_all(self, task, C):
    for share in (0.0, 1.0):
      S_MxC = np.full((len(self.TEXTS), C), 1 - share)
      S_MxC[:, 0] = share
      if task == _SINGLE and C > 1:
        S_MxC /= S_MxC.sum(axis=1, keepdims=True)
      fit = baselines.fit_tfidf(_examples(self.TEXTS, S_MxC), _none(C), task)
      np.testing.assert_allclose(fit(self.TEXTS)[:, 0], share, atol=0.01)

  def test_a_class_whose_entries_are_all_missing(self):
    S_MxC = self.GOLD.copy()
    S_MxC[:, 1] = np.nan
    fit = baselines.fit_tfidf(_examples(self.TEXTS, S_MxC), _none(3), _MULTI)
    np.testing.assert_allclose(fit(self.TEXTS)[:, 1], 0.5)

  @parameterized.parameters(_SINGLE, _MULTI)
  def test_held_out_texts_choose_the_penalty(self, task):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghij"), 5)) for _ in range(120)]
    S_MxC = np.stack([[0.6 * ("a" in t), 0.6 * ("b" in t)] for t in texts])
    S_MxC = np.concatenate([S_MxC, 1 - S_MxC.sum(1, keepdims=True)], axis=1)
    S_MxC = (
      np.stack(
        [
          rng.multinomial(2, np.maximum(s, 0) / np.maximum(s, 0).sum())
          for s in S_MxC
        ]
      )
      / 2
    )
    examples = _examples(texts[:80], S_MxC[:80])
    heldout = _examples(texts[80:], S_MxC[80:])
    sums = baselines._sums(examples.targets_MxC, task)
    fit = baselines.fit_tfidf(examples, heldout, task)
    x_MxV = fit.vectorizer.transform(examples.texts)
    x_NxV = fit.vectorizer.transform(heldout.texts)
    linears, losses = [], []
    for linear in baselines._path(x_MxV, *sums, baselines.TFIDF_PENALTIES):
      linears.append(linear)
      losses.append(
        calibration.vote_cross_entropy(
          linear.logits(x_NxV), heldout.targets_MxC, np.zeros(3), 1, task
        )
      )
    best = int(np.argmin(losses))
    self.assertLess(best, 3)
    _assert_same(fit.linear, linears[best], rtol=1e-6, atol=1e-6)

  def test_texts_without_targets_do_not_count(self):
    S_MxC = np.concatenate([self.GOLD, np.full((2, 3), np.nan)])
    examples = _examples((*self.TEXTS, "zebra", "zebu"), S_MxC)
    fit = baselines.fit_tfidf(examples, _none(3), _SINGLE)
    self.assertNotIn("zebra", fit.vectorizer.vocabulary_)

  def test_a_sample_is_of_whole_dialogues_and_the_same_again(self):
    texts = [f"d{d} u{u}" for d in range(20) for u in range(5)]
    gold = np.eye(2)[np.arange(100) % 2]
    examples = _examples(texts, gold, np.repeat(np.arange(20) * 3, 5))
    fits = [
      baselines.fit_tfidf(examples, examples, _SINGLE, max_rows=30)
      for _ in range(2)
    ]
    seen = {t for t in fits[0].vectorizer.vocabulary_ if t[0] == "d"}
    dialogues = {t for t in seen if " " not in t}
    self.assertLen(dialogues, 6)
    self.assertLen([t for t in seen if " u" in t], 30)
    self.assertNotEqual(dialogues, {f"d{d}" for d in range(6)})
    np.testing.assert_array_equal(fits[0](texts), fits[1](texts))

  def test_what_is_refused(self):
    examples = _examples(self.TEXTS, self.GOLD)
    with self.assertRaisesRegex(ValueError, "at least one utterance"):
      baselines.fit_tfidf(_none(3), examples, _SINGLE)
    with self.assertRaisesRegex(ValueError, "task must be"):
      baselines.fit_tfidf(examples, examples, "tracking")
    with self.assertRaisesRegex(ValueError, "must be as many"):
      baselines.fit_tfidf(
        _examples(self.TEXTS[1:], self.GOLD), examples, _SINGLE
      )


class MajorityTest(absltest.TestCase):
  def test_single_label_is_the_largest_sum_of_shares(self):
    S_MxC = np.array(
      [[0.6, 0.4, 0], [0.6, 0.2, 0.2], [0, 0.7, 0.3], [np.nan, 0, 1], [0] * 3]
    )
    prob = baselines.majority(S_MxC, _SINGLE, 4)  # 1.2, 1.3, 0.5
    np.testing.assert_array_equal(prob, [[0, 1, 0]] * 4)
    self.assertEqual(prob.dtype, np.float64)
    self.assertEqual(baselines.majority(S_MxC, _SINGLE, 0).shape, (0, 3))

  def test_sigmoids_take_means_above_a_half(self):
    S_MxC = np.array([[1, 0.5, 0.9, np.nan], [0.2, 0.5, np.nan, np.nan]])
    prob = baselines.majority(S_MxC, _MULTI, 2)  # 0.6, 0.5, 0.9, none
    np.testing.assert_array_equal(prob, [[1, 0, 1, 0]] * 2)
    for share, expected in ((0.4, 0), (0.6, 1)):
      prob = baselines.majority(np.full((3, 1), share), _SINGLE, 1)
      self.assertEqual(prob.item(), expected)

  def test_what_is_refused(self):
    with self.assertRaisesRegex(ValueError, "at least one utterance"):
      baselines.majority(np.full((2, 3), np.nan), _MULTI, 2)
    with self.assertRaisesRegex(ValueError, "task must be"):
      baselines.majority(np.ones((2, 3)), "tracking", 2)


if __name__ == "__main__":
  absltest.main()
