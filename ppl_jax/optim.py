"""The optimiser: AdamW with warm-up, decay and clipping."""

import jax
import optax

_RATE = 0.08  # the encoder's learning rate, times its hidden size


def learning_rate(given: float | None, hidden_size: int) -> float:
  """Returns the encoder's learning rate: what is given, or by its width."""
  return _RATE / hidden_size if given is None else given


def schedule(
  learning_rate: float, steps: int, warmup_fraction: float
) -> optax.Schedule:
  """Linear warm-up from 0, then linear decay to 0 at `steps`."""
  warmup = max(1, round(warmup_fraction * steps))
  return optax.schedules.join_schedules(
    [
      optax.schedules.linear_schedule(0.0, learning_rate, warmup),
      optax.schedules.linear_schedule(learning_rate, 0.0, steps - warmup),
    ],
    [warmup],
  )


def adamw(
  learning_rate: optax.ScalarOrSchedule,
  *,
  weight_decay: float,
  clip_norm: float,
  scorer_scale: float = 1.0,
  trainable=None,
) -> optax.GradientTransformation:
  """AdamW on clipped gradients; matrices decay, biases and norms do not.

  Args:
    learning_rate: a step size or a schedule of the step.
    weight_decay: decoupled weight decay, times the learning rate.
    clip_norm: the global gradient norm is clipped to this.
    scorer_scale: the scorer's learning rate, in that of the encoder.
    trainable: None, or a function from a tree of parameters to a tree of
      bools; what is False keeps its value.

  Returns:
    The transformation.
  """
  chain = [
    optax.clip_by_global_norm(clip_norm),
    optax.adamw(
      learning_rate,
      weight_decay=weight_decay,
      mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
    ),
  ]
  if scorer_scale != 1:
    chain.append(optax.masked(optax.scale(scorer_scale), of_scorer))
  if trainable is not None:

    def frozen(params):
      return jax.tree.map(lambda t: not t, trainable(params))

    # Zeroed before the clip too: a frozen gradient must not shrink the others.
    chain = [
      optax.masked(optax.set_to_zero(), frozen),
      *chain,
      optax.masked(optax.set_to_zero(), frozen),
    ]
  return optax.chain(*chain)


def of_scorer(params):
  """Says which parameters are the scorer's, as a tree of bools."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: "scorer" in jax.tree_util.keystr(path), params
  )
