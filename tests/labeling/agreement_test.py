import hypothesis
import krippendorff
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import strategies as st

from labeling import agreement
from ppl_jax.data import dialogues, vote_columns

CLASSES = ("ask", "tell", "thank")
C = len(CLASSES)
U = 6
NAMES = ("a", "b", "c")
GOLD = (0, 1, 2, 0, 1, 0)
LABELLED = (True, True, True, True, True, False)


def _votes(answers):
  """Votes of (utterance, annotator, sample, only, labels) on a dialogue."""
  dialogue = dialogues.Dialogue(
    dialogue_id="d",
    speakers=("A",) * U,
    texts=tuple(f"text {i}" for i in range(U)),
    gold=np.eye(C, dtype=np.uint8)[list(GOLD)],
    labelled=np.array(LABELLED),
  )
  builder = vote_columns.Builder([dialogue], CLASSES, "none")
  builder.source("votes", "")
  for number, (u, annotator, sample, only, labels) in enumerate(answers):
    builder.add(
      number,
      dialogue_id="d",
      utterance=u,
      annotator=annotator,
      sample=sample,
      labels=labels,
      only=only,
    )
  return builder.build()


def _alpha(units):
  """Nominal alpha from its definition; units are lists of values."""
  units = [unit for unit in units if len(unit) > 1]
  values = [value for unit in units for value in unit]
  n = len(values)
  if len(set(values)) < 2:
    return np.nan
  observed = sum(
    sum(v != w for v in unit for w in unit) / (len(unit) - 1) for unit in units
  )
  expected = sum(v != w for v in values for w in values) / (n - 1)
  return 1 - observed / expected


def _answers(draw, samples, only):
  keys = draw(
    st.lists(
      st.tuples(
        st.integers(0, U - 1),
        st.sampled_from(NAMES),
        st.integers(0, samples - 1),
        st.sampled_from(only),
      ),
      min_size=1,
      unique=True,
      max_size=40,
    )
  )
  answers = []
  for key in keys:
    allowed = [(key[3],)] if key[3] else [(name,) for name in CLASSES]
    told = draw(st.sampled_from([*allowed, (), None]))
    answers.append((*key, told))
  return answers


_ONE_ANSWER = st.composite(_answers)(samples=3, only=("",))
_MIXED = st.composite(_answers)(samples=2, only=("", *CLASSES))
_SETTINGS = hypothesis.settings(deadline=None, max_examples=60)


def _valid(answers, annotators=NAMES):
  """Valid votes in the order of annotators and samples, by utterance."""
  units = [[] for _ in range(U)]
  for u, annotator, _, _, told in sorted(answers, key=lambda v: v[:3]):
    if told is not None and annotator in annotators:
      units[u].append(told)
  return units


class AgreementTest(parameterized.TestCase):
  @_SETTINGS
  @hypothesis.given(_ONE_ANSWER)
  def test_alpha_is_that_of_the_nominal_scale(self, answers):
    votes = _votes(answers)
    alpha, alpha_C = agreement.alphas(votes, "single_label")
    units = _valid(answers)
    np.testing.assert_allclose(alpha, _alpha(units), atol=1e-12)
    for c, name in enumerate(CLASSES):
      yes = [[(name,) == told for told in unit] for unit in units]
      np.testing.assert_allclose(alpha_C[c], _alpha(yes), atol=1e-12)

  def test_alpha_by_the_library_alone(self):
    rng = np.random.default_rng(0)
    table = rng.integers(0, C, (3, U))
    table[:, :3] = table[:1, :3]
    votes = _votes(
      [
        (u, name, 0, "", (CLASSES[table[a, u]],))
        for a, name in enumerate(NAMES)
        for u in range(U)
      ]
    )
    alpha, _ = agreement.alphas(votes, "single_label")
    expected = krippendorff.alpha(table, level_of_measurement="nominal")
    self.assertAlmostEqual(alpha, expected)

  @_SETTINGS
  @hypothesis.given(_ONE_ANSWER)
  def test_pairs(self, answers):
    alpha_AxA = agreement.pairwise(_votes(answers), "single_label")
    names = sorted({annotator for _, annotator, *_ in answers})
    for i, one in enumerate(names):
      own = _valid(answers, (one,))
      np.testing.assert_allclose(alpha_AxA[i, i], _alpha(own), atol=1e-12)
      for j, other in enumerate(names[:i]):
        pairs = [
          list(pair)
          for u in range(U)
          for pair in zip(own[u], _valid(answers, (other,))[u], strict=False)
        ]
        expected = _alpha(pairs)
        np.testing.assert_allclose(alpha_AxA[i, j], expected, atol=1e-12)
        np.testing.assert_allclose(alpha_AxA[j, i], expected, atol=1e-12)

  @_SETTINGS
  @hypothesis.given(_MIXED)
  def test_alpha_of_votes_asked_for_one_class(self, answers):
    alpha, alpha_C = agreement.alphas(_votes(answers), "multi_label")
    for c, name in enumerate(CLASSES):
      asked = [vote for vote in answers if vote[3] in ("", name)]
      yes = [[name in told for told in unit] for unit in _valid(asked)]
      np.testing.assert_allclose(alpha_C[c], _alpha(yes), atol=1e-12)
    if np.isnan(alpha_C).all():
      self.assertTrue(np.isnan(alpha))
    else:
      self.assertBetween(
        alpha, np.nanmin(alpha_C) - 1e-9, np.nanmax(alpha_C) + 1e-9
      )
    agreement.pairwise(_votes(answers), "multi_label")

  @_SETTINGS
  @hypothesis.given(_ONE_ANSWER)
  def test_entropy_of_one_answer(self, answers):
    entropy_U = agreement.entropy(_votes(answers), "single_label")
    for u, unit in enumerate(_valid(answers)):
      shares = [unit.count(told) / len(unit) for told in set(unit)]
      expected = -sum(share * np.log2(share) for share in shares)
      self.assertAlmostEqual(entropy_U[u], expected)

  @_SETTINGS
  @hypothesis.given(_MIXED)
  def test_entropy_of_yes_and_no(self, answers):
    entropy_U = agreement.entropy(_votes(answers), "multi_label")
    expected_U = np.zeros(U)
    for name in CLASSES:
      asked = [vote for vote in answers if vote[3] in ("", name)]
      for u, unit in enumerate(_valid(asked)):
        yes = np.mean([name in told for told in unit]) if unit else 0
        for share in (yes, 1 - yes):
          expected_U[u] -= share * np.log2(share) if share else 0
    np.testing.assert_allclose(entropy_U, expected_U, atol=1e-8)

  @_SETTINGS
  @hypothesis.given(_ONE_ANSWER, _MIXED)
  def test_accuracy(self, one, mixed):
    cases = (
      (one, "single_label"),
      (mixed, "multi_label"),
      # An annotator of whole answers, others as they are.
      (
        [v for v in one if v[1] == "a"] + [v for v in mixed if v[1] != "a"],
        "single_label",
      ),
    )
    for answers, task in cases:
      if not answers:
        continue
      names = sorted({name for _, name, *_ in answers})
      whole = [
        task == "single_label"
        and not any(only for _, n, _, only, _ in answers if n == name)
        for name in names
      ]
      right = {name: [] for name in names}
      for u, name, _, only, told in answers:
        gold = CLASSES[GOLD[u]]
        if told is None or not LABELLED[u]:
          continue
        if whole[names.index(name)]:
          right[name].append(told == (gold,))
        else:
          for c in (only,) if only else CLASSES:
            right[name].append((c in told) == (c == gold))
      expected = [
        np.mean(right[name]) if right[name] else np.nan for name in names
      ]
      found, of_labels = agreement.accuracy(_votes(answers), task)
      np.testing.assert_allclose(found, expected)
      np.testing.assert_array_equal(of_labels, whole)


if __name__ == "__main__":
  absltest.main()
