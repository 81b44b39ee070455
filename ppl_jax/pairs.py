"""Which ordered pairs of a dialogue count, and what each should say.

Shapes: K segments of one dialogue.
"""

import jax
import jax.numpy as jnp


def pair_weights(
  scores_K: jax.Array,
  valid_K: jax.Array,
  *,
  targets: str = "hard",
  equal_labels: bool = False,
  group_ids_K: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Weighs the ordered pairs (i, j), i != j, of one dialogue and one class.

  The hard label is y = S > 1/2 (arXiv 2503.05620, section 3.4).

  | targets | equal_labels | weight               | target               |
  |---------|--------------|----------------------|----------------------|
  | hard    | False        | 1[y_i = 1, y_j = 0]  | 1                    |
  | hard    | True         | 1                    | 1[y_i = 1, y_j = 0]  |
  | soft    | False        | S_i (1 - S_j)        | 1                    |
  | soft    | True         | 1                    | S_i (1 - S_j)        |

  The first row is the paper's loss as we read it, the second its formula
  taken literally over every ordered pair. S_i (1 - S_j) is the chance that
  y_i = 1 and y_j = 0 if S are the chances of independent labels.

  Args:
    scores_K: the scores S in [0, 1], any float type; NaN where there is none.
    valid_K: bool, False where there is no segment.
    targets: 'hard' or 'soft'.
    equal_labels: whether pairs count whose labels are equal or reversed.
    group_ids_K: int, the dialogue of each segment; if given, only pairs of
      different dialogues count.

  Returns:
    weights and targets, both float32 [K, K] with i first. The weight is 0
    where a segment has no score; the target is in [0, 1] even there.

  Raises:
    ValueError: `targets` is neither 'hard' nor 'soft'.
  """
  if targets not in ("hard", "soft"):
    raise ValueError(
      f"Pair targets must be 'hard' or 'soft', got {targets!r}. Set"
      " pairs.targets to one of them."
    )
  has_score_K = valid_K & ~jnp.isnan(scores_K)
  counts_KxK = has_score_K[:, None] & has_score_K[None, :]
  counts_KxK &= ~jnp.eye(scores_K.shape[0], dtype=bool)
  if group_ids_K is not None:
    counts_KxK &= group_ids_K[:, None] != group_ids_K[None, :]
  counts_KxK = counts_KxK.astype(jnp.float32)

  positive_K = jnp.where(has_score_K, scores_K.astype(jnp.float32), 0.0)
  if targets == "hard":
    positive_K = (positive_K > 0.5).astype(jnp.float32)
  ranked_KxK = positive_K[:, None] * (1.0 - positive_K)[None, :]
  if equal_labels:
    return counts_KxK, ranked_KxK
  return counts_KxK * ranked_KxK, jnp.ones_like(ranked_KxK)
