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
from ppl_jax.models import compiling
from ppl_jax.objective import Objective


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


def apply(graphdef, params, batch, dropout_keys_S=None) -> jax.Array:
  """Runs the student over the rows of a batch; logits float32 [S, N, C]."""
  shards, rows, length = batch["tokens"].shape
  place = batch.get("place")
  if place is not None:  # from places in a shard to places in all
    starts_S = jnp.arange(shards, dtype=place.dtype) * (rows * length)
    place = jnp.where(place < 0, -1, place + starts_S[:, None]).reshape(-1)
  model = nnx.merge(graphdef, params)
  logits = model(
    batch["tokens"].reshape(shards * rows, length),
    batch["length"].reshape(-1),
    batch["context_length"].reshape(-1),
    place_M=place,
    dropout_key=dropout_keys_S,
  )
  return logits.reshape(shards, rows, -1)


def make_loss_and_gradients(
  graphdef: nnx.GraphDef,
  params: nnx.State,
  objective: Objective,
  mesh: Mesh,
  accumulation: int = 1,
) -> Callable:
  """Returns a function: (params, batch, key) -> (losses, gradients).

  Sums over micro-batches and devices are divided by the counts of the whole
  batch, so that the result is that of one batch on one device, but for
  rounding. A shard's dropout depends on the key and the shard's number.

  Args:
    graphdef: the student's structure.
    params: its parameters, or their shapes.
    objective: what to minimise.
    mesh: where all this happens.
    accumulation: parts of a device's shards that run one after another.

  Returns:
    The function; its losses are scalars, 'loss' and 'loss_' + each term, its
    gradients are cut as the parameters are.
  """
  weights = dict(objective.weights)

  def loss_fn(params, batch, keys_S, counts):
    terms = objective.terms(apply(graphdef, params, batch, keys_S), batch)
    sums = {name: value for name, (value, _) in terms.items()}
    means = {name: losses.mean(sums[name], counts[name]) for name in weights}
    return sum(weights[name] * means[name] for name in weights), means

  def local(params, batch, key):
    shards = batch["row"].shape[0]
    keys_S = key[None]  # of a lone shard
    if shards * mesh.size > 1:
      numbers_S = sharding.first_shard(mesh, shards) + jnp.arange(shards)
      keys_S = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers_S)
    # Counts are known without logits. A count that added some up would be NaN,
    # and so the loss: training would stop, and not go on with a wrong mean.
    logits = jnp.full_like(batch["scores"], jnp.nan)
    terms = objective.terms(logits, batch)
    counts = sharding.add_up({name: n for name, (_, n) in terms.items()})
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def take(part):
      (_, means), gradients = gradient_fn(params, *part, counts)
      return means, gradients

    if accumulation == 1:
      means, gradients = take((batch, keys_S))
    else:
      parts = jax.tree.map(
        lambda x: x.reshape(accumulation, -1, *x.shape[1:]), (batch, keys_S)
      )

      def add(total, part):
        return jax.tree.map(jnp.add, total, take(part)), None

      zero = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(take, jax.tree.map(lambda x: x[0], parts)),
      )
      (means, gradients), _ = jax.lax.scan(add, zero, parts)
    means = sharding.add_up(means)
    loss = sum(weights[name] * means[name] for name in weights)
    named = {f"loss_{name}": mean for name, mean in means.items()}
    return {"loss": loss, **named}, gradients

  return sharding.on_each_device(mesh, params, local, reduces=True)


def make_train_step(
  graphdef: nnx.GraphDef,
  params: nnx.State,
  optimizer: optax.GradientTransformation,
  objective: Objective,
  mesh: Mesh,
  accumulation: int = 1,
) -> Callable[[TrainState, Mapping, jax.Array], tuple[TrainState, dict]]:
  """Returns a jitted step: (state, batch, key) -> (state, scalars).

  The state is donated. The dropout key of a step is fold_in(key, step). For the
  arguments see `make_loss_and_gradients`.
  """
  loss_and_gradients = make_loss_and_gradients(
    graphdef, params, objective, mesh, accumulation
  )

  def step(state, batch, key):
    key = jax.random.fold_in(key, state.step)
    means, gradients = loss_and_gradients(state.params, batch, key)
    updates, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    scalars = {**means, "gradient_norm": optax.tree.norm(gradients)}
    return TrainState(state.step + 1, params, opt_state), scalars

  everywhere, spread = sharding.replicated(mesh), sharding.over_batch(mesh)
  placed = _placed(params, optimizer, mesh)
  return jax.jit(
    step,
    in_shardings=(placed, spread, everywhere),
    out_shardings=(placed, everywhere),
    donate_argnums=0,
    compiler_options=compiling.options(sharding.platform(mesh)),
  )


def make_logits_step(graphdef: nnx.GraphDef, params: nnx.State, mesh: Mesh):
  """Returns a jitted function: (params, batch) -> logits [S, N, C].

  Args:
    graphdef: the student's structure.
    params: its parameters, or their shapes.
    mesh: where the batch lies.
  """
  return _forward(lambda p, batch, _: apply(graphdef, p, batch), params, mesh)


def make_poolings_step(graphdef: nnx.GraphDef, params: nnx.State, mesh: Mesh):
  """Returns a jitted function: (params, batch) -> poolings [S, N, H] by name.

  Arguments as of `make_logits_step`; the poolings are `bert.Bert.poolings`.
  """

  def poolings(params, batch, _):
    shards, rows, length = batch["tokens"].shape
    pooled = nnx.merge(graphdef, params).bert.poolings(
      batch["tokens"].reshape(shards * rows, length),
      batch["length"].reshape(-1),
      batch["context_length"].reshape(-1),
    )
    return jax.tree.map(lambda x: x.reshape(shards, rows, -1), pooled)

  return _forward(poolings, params, mesh)


def _forward(function, params, mesh: Mesh):
  """Compiles a function of parameters and a batch, without gradients."""
  run = sharding.on_each_device(mesh, params, function, reduces=False)
  return jax.jit(
    lambda params, batch: run(params, batch, ()),
    in_shardings=(
      sharding.over_parameters(mesh, params),
      sharding.over_batch(mesh),
    ),
    out_shardings=sharding.replicated(mesh),
    compiler_options=compiling.options(sharding.platform(mesh)),
  )


def init_state(
  params: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
  """Returns a fresh state on a mesh; the given parameters are copied."""
  make = jax.jit(
    functools.partial(_new_state, optimizer=optimizer),
    out_shardings=_placed(params, optimizer, mesh),
  )
  return make(params)


def _new_state(params, optimizer) -> TrainState:
  return TrainState(
    jnp.zeros((), jnp.int32),
    jax.tree.map(jnp.copy, params),
    optimizer.init(params),
  )


def _placed(params, optimizer, mesh):
  """Returns the sharding of each leaf of a state."""
  state = jax.eval_shape(
    functools.partial(_new_state, optimizer=optimizer), params
  )
  return sharding.over_parameters(mesh, state)
