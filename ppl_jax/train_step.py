"""Pure, jitted steps on the student's parameters.

Shapes: S shards, N rows a shard, T tokens, C classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from ppl_jax import losses, sharding


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["step", "params", "opt_state"],
  meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a step changes.

  Attributes:
    step: int32, steps taken in this phase.
    params: the student's parameters.
    opt_state: the optimiser's state.
  """

  step: jax.Array
  params: nnx.State
  opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Objective:
  """The weighted terms of a phase's loss; a weight of 0 leaves a term out.

  Attributes:
    pairwise: weight of the pair loss on scores.
    pointwise: weight of the one-versus-rest cross-entropy on scores.
    gold: weight of the cross-entropy on gold labels.
    task: 'single_label' or 'multi_label'.
    alpha: the margin's share of the score difference, in [0, 1].
    targets: 'hard' or 'soft' pair targets.
    equal_labels: whether pairs of equal labels count, with target 0.
    cross: pairs are of different dialogues instead of one.
  """

  pairwise: float
  pointwise: float
  gold: float
  task: str
  alpha: float
  targets: str
  equal_labels: bool
  cross: bool

  def weights(self) -> dict[str, float]:
    """The terms that count, with their weights."""
    terms = ("pairwise", "pointwise", "gold")
    return {t: getattr(self, t) for t in terms if getattr(self, t)}


def loss_terms(
  logits_SxNxC: jax.Array, batch: Mapping[str, jax.Array], objective: Objective
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Returns each term's sum and count over all shards."""
  terms = {}
  if objective.pairwise:
    pairwise = functools.partial(
      losses.pairwise_batch,
      alpha=objective.alpha,
      targets=objective.targets,
      equal_labels=objective.equal_labels,
    )
    arguments = [logits_SxNxC, batch["scores"], batch["index"]]
    if objective.cross:
      terms["pairwise"] = jax.vmap(
        lambda f, s, index, ids: pairwise(f, s, index, group_ids_N=ids)
      )(*arguments, batch["dialogue"])
    else:
      terms["pairwise"] = jax.vmap(pairwise)(*arguments)
  if objective.pointwise:
    terms["pointwise"] = jax.vmap(losses.pointwise)(
      logits_SxNxC, batch["scores"], batch["row"]
    )
  if objective.gold:
    terms["gold"] = jax.vmap(
      functools.partial(losses.gold, task=objective.task)
    )(logits_SxNxC, batch["gold"], batch["labelled"])
  return {k: (s.sum(), n.sum()) for k, (s, n) in terms.items()}


def apply(graphdef, params, batch, dropout_key=None) -> jax.Array:
  """Runs the student over the rows of a batch; logits float32 [S, N, C]."""
  shards, rows, length = batch["tokens"].shape
  model = nnx.merge(graphdef, params)
  logits = model(
    batch["tokens"].reshape(shards * rows, length),
    batch["length"].reshape(-1),
    batch["context_length"].reshape(-1),
    dropout_key=dropout_key,
  )
  return logits.reshape(shards, rows, -1)


def make_train_step(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  mesh: Mesh,
) -> Callable[[TrainState, Mapping, jax.Array], tuple[TrainState, dict]]:
  """Returns a jitted step: (state, batch, key) -> (state, scalars).

  The state is donated. The dropout key of a step is fold_in(key, step).
  """
  weights = objective.weights()

  def loss_fn(params, batch, key):
    logits = apply(graphdef, params, batch, key)
    terms = loss_terms(logits, batch, objective)
    means = {name: losses.mean(*term) for name, term in terms.items()}
    return sum(weights[name] * means[name] for name in weights), means

  def step(state, batch, key):
    key = jax.random.fold_in(key, state.step)
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, means), gradients = gradient_fn(state.params, batch, key)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    scalars = {
      "loss": loss,
      **{f"loss_{name}": mean for name, mean in means.items()},
      "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, params, opt_state), scalars

  everywhere, spread = sharding.replicated(mesh), sharding.over_batch(mesh)
  return jax.jit(
    step,
    in_shardings=(everywhere, spread, everywhere),
    out_shardings=everywhere,
    donate_argnums=0,
  )


def make_logits_step(graphdef: nnx.GraphDef, mesh: Mesh):
  """Returns a jitted function: (params, batch) -> logits [S, N, C]."""
  everywhere, spread = sharding.replicated(mesh), sharding.over_batch(mesh)
  return jax.jit(
    lambda params, batch: apply(graphdef, params, batch),
    in_shardings=(everywhere, spread),
    out_shardings=everywhere,
  )


def init_state(
  params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Returns a fresh state on a mesh; the given parameters are copied."""
  everywhere = sharding.replicated(mesh)
  make = jax.jit(
    lambda p: TrainState(
      jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, p), optimizer.init(p)
    ),
    out_shardings=everywhere,
  )
  return make(params)
