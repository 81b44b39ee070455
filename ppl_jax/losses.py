"""Losses as (sum, count), so that they add up before they are divided.

Shapes: D dialogues, K segments a dialogue, C classes, N rows of a batch. All
is computed and returned in float32, whatever the type of the arguments.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import entr

from ppl_jax import pairs


def pairwise(
  f_K: jax.Array,
  s_K: jax.Array,
  valid_K: jax.Array,
  *,
  alpha: float | jax.Array,
  targets: str = "hard",
  equal_labels: bool = False,
  group_ids_K: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Margin KL over the ordered pairs of one dialogue, for one class.

  Sums w_ij KL(t_ij || sigmoid(f_i - f_j - alpha (S_i - S_j))) with weights w
  and targets t of `pairs.pair_weights` (arXiv 2503.05620, section 3.4).
  Scores are data: no gradient flows into them. A constant added to f, or to
  S, over the dialogue changes no KL.

  With soft targets and no margin the two orders of a pair add up to
  w KL(p || sigmoid(f_i - f_j)) and a constant, where w = S_i (1 - S_j) +
  S_j (1 - S_i) is the chance that the labels differ and p = S_i (1 - S_j) / w.
  It is least at f_i - f_j = logit S_i - logit S_j, and what an annotator's
  logit has too much over a whole dialogue cancels: the conditional likelihood
  of logistic regression for matched pairs (Breslow and Day 1980, chapter 7),
  over all pairs of a dialogue as in a pairwise conditional likelihood (Liang
  and Qin 2000). Hard targets have no finite optimum on pairs that can be told
  apart, and use the score as a margin only.

  Args:
    f_K: the student's logits.
    s_K: scores in [0, 1]; NaN where there is none.
    valid_K: bool, False where there is no segment; f and S may be anything
      there, NaN included.
    alpha: the margin's share of the score difference, in [0, 1].
    targets: see `pairs.pair_weights`.
    equal_labels: see `pairs.pair_weights`.
    group_ids_K: see `pairs.pair_weights`.

  Returns:
    float32 scalars: the sum, and the sum of weights. Without a pair both are
    0 and so is the gradient.
  """
  s_K = jax.lax.stop_gradient(s_K)
  weights_KxK, targets_KxK = pairs.pair_weights(
    s_K,
    valid_K,
    targets=targets,
    equal_labels=equal_labels,
    group_ids_K=group_ids_K,
  )
  has_score_K = valid_K & ~jnp.isnan(s_K)
  f_K = jnp.where(has_score_K, f_K.astype(jnp.float32), 0.0)
  s_K = jnp.where(has_score_K, s_K.astype(jnp.float32), 0.0)
  margins_KxK = alpha * (s_K[:, None] - s_K[None, :])
  logits_KxK = f_K[:, None] - f_K[None, :] - margins_KxK
  kl_KxK = _cross_entropy(logits_KxK, targets_KxK)
  kl_KxK -= entr(targets_KxK) + entr(1.0 - targets_KxK)
  return (weights_KxK * kl_KxK).sum(), weights_KxK.sum()


def pairwise_batch(
  f_NxC: jax.Array,
  scores_NxC: jax.Array,
  index_DxK: jax.Array,
  *,
  alpha: float | jax.Array,
  targets: str = "hard",
  equal_labels: bool = False,
  group_ids_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`pairwise` over all dialogues and classes of a packed batch.

  Args:
    f_NxC: the student's logits, one row a segment.
    scores_NxC: scores in [0, 1]; NaN where there is none.
    index_DxK: int, the rows of each dialogue's segments; -1 for none.
    alpha: see `pairwise`.
    targets: see `pairs.pair_weights`.
    equal_labels: see `pairs.pair_weights`.
    group_ids_N: int, the dialogue of each row, if only pairs of different
      dialogues count; a line of the index is then a group of segments.

  Returns:
    float32 scalars: the sum, and the sum of weights.
  """
  rows_DxK = jnp.maximum(index_DxK, 0)
  valid_DxK = index_DxK >= 0
  f_DxKxC, scores_DxKxC = f_NxC[rows_DxK], scores_NxC[rows_DxK]
  ids_DxK = None if group_ids_N is None else group_ids_N[rows_DxK]

  def dialogue(f_KxC, scores_KxC, valid_K, ids_K):
    one_class = functools.partial(
      pairwise,
      valid_K=valid_K,
      alpha=alpha,
      targets=targets,
      equal_labels=equal_labels,
      group_ids_K=ids_K,
    )
    return jax.vmap(one_class, in_axes=1)(f_KxC, scores_KxC)

  sums, counts = jax.vmap(dialogue)(f_DxKxC, scores_DxKxC, valid_DxK, ids_DxK)
  return sums.sum(), counts.sum()


def swapped_pairs(
  f_KxC: jax.Array,
  s_KxC: jax.Array,
  valid_K: jax.Array,
  *,
  group_ids_K: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Which of two utterances of one dialogue has which of two classes.

  Given that utterances i and j have the classes c and c', one each, a softmax
  student says by sigmoid(z), z = f_ic - f_ic' - f_jc + f_jc', that i has c.
  Sums S_ic S_jc' softplus(-z) over i < j and c != c': the expected conditional
  log-likelihood if S are the chances of independent labels. It is least where
  z is that difference of log S, and a shift b_c of the annotator's logits over
  a whole dialogue cancels for every class: the conditional likelihood of the
  multinomial logit (McFadden 1974; Chamberlain 1980, for fixed effects), pair
  by pair. It compares classes of one utterance and utterances of one dialogue
  at once. A class's own constant it does not see, as pairs do not.

  Args:
    f_KxC: the student's logits.
    s_KxC: scores in [0, 1]. A segment with a NaN has no pair.
    valid_K: bool, False where there is no segment; f and S may be anything
      there, NaN included.
    group_ids_K: int, the dialogue of each segment; if given, only pairs of
      different dialogues count.

  Returns:
    float32 scalars: the sum, and the sum of weights S_ic S_jc'.
  """
  s_KxC = jax.lax.stop_gradient(s_KxC)
  has_score_K = valid_K & ~jnp.isnan(s_KxC).any(axis=1)
  f_KxC = jnp.where(has_score_K[:, None], f_KxC.astype(jnp.float32), 0.0)
  s_KxC = jnp.where(has_score_K[:, None], s_KxC.astype(jnp.float32), 0.0)
  # The terms of (i, j, c, c') and (j, i, c', c) are the same one.
  first_P, second_P = np.triu_indices(f_KxC.shape[0], 1)
  weights_PxCxC = s_KxC[first_P][:, :, None] * s_KxC[second_P][:, None, :]
  weights_PxCxC *= (1.0 - jnp.eye(f_KxC.shape[1]))[None]
  if group_ids_K is not None:
    differ_P = group_ids_K[first_P] != group_ids_K[second_P]
    weights_PxCxC *= differ_P[:, None, None].astype(jnp.float32)
  between_PxC = f_KxC[first_P] - f_KxC[second_P]
  z_PxCxC = between_PxC[:, :, None] - between_PxC[:, None, :]
  loss = (weights_PxCxC * jax.nn.softplus(-z_PxCxC)).sum()
  return loss, weights_PxCxC.sum()


def swapped_pairs_batch(
  f_NxC: jax.Array,
  scores_NxC: jax.Array,
  index_DxK: jax.Array,
  *,
  group_ids_N: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """`swapped_pairs` over all dialogues of a packed batch.

  Args:
    f_NxC: the student's logits, one row a segment.
    scores_NxC: scores in [0, 1]; NaN where there is none.
    index_DxK: int, the rows of each dialogue's segments; -1 for none.
    group_ids_N: as of `pairwise_batch`.

  Returns:
    float32 scalars: the sum, and the sum of weights.
  """
  rows_DxK = jnp.maximum(index_DxK, 0)
  ids_DxK = None if group_ids_N is None else group_ids_N[rows_DxK]

  def dialogue(f_KxC, s_KxC, valid_K, ids_K):
    return swapped_pairs(f_KxC, s_KxC, valid_K, group_ids_K=ids_K)

  sums, counts = jax.vmap(dialogue)(
    f_NxC[rows_DxK], scores_NxC[rows_DxK], index_DxK >= 0, ids_DxK
  )
  return sums.sum(), counts.sum()


def softmax_shares(
  f_NxC: jax.Array, scores_NxC: jax.Array, row_mask_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of a softmax against shares of votes (plain distillation).

  Sums -S_c log softmax_c(f): what `calibration.vote_cross_entropy` measures.

  Args:
    f_NxC: the student's logits.
    scores_NxC: scores in [0, 1]; a row with a NaN does not count. Votes for
      none of the classes make a row weigh less.
    row_mask_N: bool, False for rows of padding.

  Returns:
    float32 scalars: the sum, and the sum of S.
  """
  counts_N = row_mask_N & ~jnp.isnan(scores_NxC).any(axis=1)
  f_NxC = jnp.where(counts_N[:, None], f_NxC.astype(jnp.float32), 0.0)
  s_NxC = jnp.where(counts_N[:, None], scores_NxC.astype(jnp.float32), 0.0)
  return -(s_NxC * jax.nn.log_softmax(f_NxC, axis=1)).sum(), s_NxC.sum()


def plurality(
  f_NxC: jax.Array, scores_NxC: jax.Array, row_mask_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of a softmax against the class with the largest score.

  That is how a classifier is trained on LLM labels where there is no more than
  a label. The first of equal classes is taken; votes for none of the classes
  alone are no label.

  Args:
    f_NxC: the student's logits.
    scores_NxC: scores in [0, 1]; a row with a NaN does not count.
    row_mask_N: bool, False for rows of padding.

  Returns:
    float32 scalars: the sum, and the number of rows it is over.
  """
  known_N = row_mask_N & ~jnp.isnan(scores_NxC).any(axis=1)
  s_NxC = jnp.where(known_N[:, None], scores_NxC, 0.0)
  label_NxC = jax.nn.one_hot(s_NxC.argmax(axis=1), s_NxC.shape[1])
  named_N = known_N & (s_NxC.max(axis=1) > 0)
  return softmax_shares(f_NxC, label_NxC, named_N)


def pointwise(
  f_NxC: jax.Array, scores_NxC: jax.Array, row_mask_N: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """One-versus-rest cross-entropy against soft labels.

  Sums -S log sigmoid(f) - (1 - S) log sigmoid(-f): the paper's baseline
  without pairs (arXiv 2503.05620, table 1).

  Args:
    f_NxC: the student's logits.
    scores_NxC: scores in [0, 1]; NaN where there is none.
    row_mask_N: bool, False for rows of padding.

  Returns:
    float32 scalars: the sum, and the number of scores it is over.
  """
  has_score_NxC = row_mask_N[:, None] & ~jnp.isnan(scores_NxC)
  f_NxC = jnp.where(has_score_NxC, f_NxC.astype(jnp.float32), 0.0)
  scores_NxC = jnp.where(has_score_NxC, scores_NxC.astype(jnp.float32), 0.0)
  loss_NxC = _cross_entropy(f_NxC, scores_NxC)
  loss_NxC = jnp.where(has_score_NxC, loss_NxC, 0.0)
  return loss_NxC.sum(), has_score_NxC.astype(jnp.float32).sum()


def gold(
  f_NxC: jax.Array,
  gold_NxC: jax.Array,
  labelled_N: jax.Array,
  *,
  task: str,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy against gold labels.

  A softmax over the classes for a single-label task, one term a row; a
  sigmoid a class for a multi-label task or one class (intent detection), one
  term for each row and class.

  Args:
    f_NxC: the student's logits.
    gold_NxC: multi-hot, any type. Under a softmax, a row of no class, which a
      softmax cannot express, does not count; several classes share the row.
    labelled_N: bool, False for rows without gold and for padding.
    task: 'single_label' or 'multi_label'.

  Returns:
    float32 scalars: the sum, and the number of terms it is over.

  Raises:
    ValueError: another task.
  """
  if task not in ("single_label", "multi_label"):
    raise ValueError(
      f"A task must be 'single_label' or 'multi_label', got {task!r}. Set"
      " dataset.task to one of them."
    )
  gold_NxC = gold_NxC.astype(jnp.float32)
  if task == "multi_label" or f_NxC.shape[1] == 1:
    return pointwise(f_NxC, gold_NxC, labelled_N)
  classes_N = gold_NxC.sum(axis=1)
  counts_N = labelled_N & (classes_N > 0.0)
  f_NxC = jnp.where(counts_N[:, None], f_NxC.astype(jnp.float32), 0.0)
  log_p_NxC = jax.nn.log_softmax(f_NxC, axis=1)
  loss_N = -(gold_NxC * log_p_NxC).sum(axis=1) / jnp.maximum(classes_N, 1.0)
  loss_N = jnp.where(counts_N, loss_N, 0.0)
  return loss_N.sum(), counts_N.astype(jnp.float32).sum()


def mean(total: jax.Array, count: jax.Array) -> jax.Array:
  """Divides a sum by its count; 0, with a gradient of 0, if the count is 0."""
  none = count == 0
  return jnp.where(none, 0.0, total) / jnp.where(none, 1.0, count)


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """-t log sigmoid(z) - (1 - t) log sigmoid(-z), exact at any finite z."""
  return targets * jax.nn.softplus(-logits) + (1.0 - targets) * jax.nn.softplus(
    logits
  )
