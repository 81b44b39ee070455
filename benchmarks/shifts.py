"""What an annotator that is off over a whole dialogue does to each loss.

python -m benchmarks.shifts

The annotator's logits are the truth W x and a shift b_dc, one for each dialogue
and class, of standard deviation sigma; its scores are their softmax, or their
sigmoid for one class. A linear student is fitted to these scores with each of
the losses, and W is known: the error is |V - W| / |W|, of a softmax up to what
it leaves free. Prints Markdown: the errors by sigma, with exact shares and with
those of 20 votes; and where pairs are not the best, without a shift and with
few votes and utterances. Half a minute.

Shapes: D dialogues, K utterances a dialogue, N = D K, C classes, X features.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl import app
from scipy import optimize, special

from ppl_jax import losses

SIGMAS = (0.0, 1.0, 2.0, 4.0)
_X = 4
_LENGTH = 1.8  # of each class's weights, the standard deviation of its logits


def _rows(function):
  return lambda f, s, index: function(f, s, jnp.ones(len(f), bool))


LOSSES = {
  "pairs": functools.partial(losses.pairwise_batch, alpha=0.0, targets="soft"),
  "hard pairs": functools.partial(losses.pairwise_batch, alpha=0.5),
  "swapped pairs": losses.swapped_pairs_batch,
  "one versus rest": _rows(losses.pointwise),
  "softmax": _rows(losses.softmax_shares),
  "plurality": _rows(losses.plurality),
}


@dataclasses.dataclass(frozen=True)
class Annotated:
  """Dialogues, what is true of them and how an annotator scored them.

  Attributes:
    classes: C; 1 has a sigmoid, more have a softmax.
    sigma: standard deviation of the shift.
    dialogues: D.
    utterances: K.
    votes: scores are shares of so many; 0: of infinitely many.
    topic: how much the shift goes with the dialogue's mean features.
    seed: of all of it but W.
  """

  classes: int
  sigma: float = 0.0
  dialogues: int = 300
  utterances: int = 8
  votes: int = 0
  topic: float = 0.0
  seed: int = 0

  @property
  def W_XxC(self) -> np.ndarray:
    """The truth, float64."""
    W_XxC = np.random.default_rng(7).normal(size=(_X, self.classes))
    return _LENGTH * W_XxC / np.linalg.norm(W_XxC, axis=0)

  def draw(self):
    """Returns features [N, X], scores [N, C] and the dialogues' rows [D, K]."""
    rng = np.random.default_rng(self.seed)
    D, K, C = self.dialogues, self.utterances, self.classes
    x_DxKxX = rng.normal(size=(D, K, _X))
    shift_DxC = self.sigma * rng.normal(size=(D, C))
    U_XxC = np.random.default_rng(8).normal(size=(_X, C))
    shift_DxC += self.topic * np.sqrt(K) * x_DxKxX.mean(axis=1) @ U_XxC
    z = (x_DxKxX @ self.W_XxC + shift_DxC[:, None]).reshape(-1, C)
    s = special.expit(z) if C == 1 else special.softmax(z, axis=1)
    if self.votes:
      draw = rng.binomial if C == 1 else rng.multinomial
      s = draw(self.votes, s) / self.votes
    x = x_DxKxX.reshape(-1, _X).astype(np.float32)
    return x, s.astype(np.float32), np.arange(D * K).reshape(D, K)


@dataclasses.dataclass(frozen=True)
class Fit:
  """What a student's V is to the truth W, up to what a softmax leaves free.

  Attributes:
    error: |V - W| / |W|.
    scale: V on W, 1 if all is well.
    direction: |t V - W| / |W| for the best t.
  """

  error: float
  scale: float
  direction: float


@functools.cache
def _value_and_gradient(names):
  def loss(parameters, x, s, index):
    f = x @ parameters[:-1] + parameters[-1]
    return sum(losses.mean(*LOSSES[name](f, s, index)) for name in names)

  return jax.jit(jax.value_and_grad(loss))


@functools.cache
def fit(name: str, annotated: Annotated) -> Fit:
  """Fits a linear student by a loss, or by a sum of means with + between."""
  x, s, index = annotated.draw()
  loss = _value_and_gradient(tuple(name.split(" + ")))
  shape = (_X + 1, annotated.classes)

  def value_and_gradient(flat):
    parameters = flat.reshape(shape).astype(np.float32)
    value, gradient = loss(parameters, x, s, index)
    return float(value), np.asarray(gradient, np.float64).ravel()

  found = optimize.minimize(
    value_and_gradient,
    np.zeros(shape[0] * shape[1]),
    jac=True,
    method="L-BFGS-B",
    options={"maxiter": 200, "gtol": 1e-6, "ftol": 1e-12},
  )
  V, W = found.x.reshape(shape)[:-1], annotated.W_XxC
  if annotated.classes > 1:
    V, W = (M - M.mean(axis=1, keepdims=True) for M in (V, W))
  best = (V * W).sum() / (V * V).sum()
  norm = np.linalg.norm(W)
  return Fit(
    error=float(np.linalg.norm(V - W) / norm),
    scale=float((V * W).sum() / norm**2),
    direction=float(np.linalg.norm(best * V - W) / norm),
  )


def _text(error: float) -> str:
  return f"{error:.2f}" if error < 100 else "diverges"


def _mean_error(name: str, seeds: int, **annotated) -> float:
  fits = [fit(name, Annotated(seed=seed, **annotated)) for seed in range(seeds)]
  return float(np.mean([found.error for found in fits]))


_TERMS = (
  ("sigmoid", 1, ("pairs", "one versus rest", "pairs + one versus rest")),
  ("sigmoid", 1, ("hard pairs",)),
  ("softmax", 3, ("swapped pairs", "softmax", "swapped pairs + softmax")),
  ("softmax", 3, ("pairs", "plurality")),
)


def main(argv):
  """Prints the tables."""
  del argv
  print("| truth | term | " + " | ".join(f"sigma {s:g}" for s in SIGMAS) + " |")
  print("|---|---|" + "---|" * len(SIGMAS))
  for truth, classes, names in _TERMS:
    for name in names:
      cells = [
        " / ".join(
          _text(_mean_error(name, 5, classes=classes, sigma=sigma, votes=votes))
          for votes in (0, 20)
        )
        for sigma in SIGMAS
      ]
      print(f"| {truth} | {name} | {' | '.join(cells)} |", flush=True)
  names = ("swapped pairs", "softmax", "swapped pairs + softmax")
  print("\n| utterances a dialogue | votes | " + " | ".join(names) + " |")
  print("|---|---|" + "---|" * len(names))
  for utterances, dialogues in ((2, 150), (8, 38)):
    for votes in (1, 2, 10):
      cells = [
        _text(
          _mean_error(
            name,
            16,
            classes=3,
            dialogues=dialogues,
            utterances=utterances,
            votes=votes,
          )
        )
        for name in names
      ]
      print(f"| {utterances} | {votes} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
  app.run(main)
