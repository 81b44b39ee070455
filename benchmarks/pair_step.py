"""One training step on the pair loss, ours and PyTorch's, on a fixed batch."""

from collections.abc import Callable, Iterable

ALPHA, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 0.5, 1e-4, 0.01, 1.0


def ours(graphdef, params, mesh) -> tuple[Callable, object]:
  """Returns the project's jitted step, and the state that it starts from."""
  from ppl_jax import objective, optim, train_step

  optimizer = optim.adamw(
    LEARNING_RATE, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
  )
  pairs = objective.Objective(
    weights=(("pairs", 1.0),),
    task="single_label",
    pairs=objective.PairSettings(targets="hard", alpha=ALPHA),
  )
  step = train_step.make_train_step(graphdef, params, optimizer, pairs, mesh)
  return step, train_step.init_state(params, optimizer, mesh)


def torch_adamw(
  parameters: Iterable,
  *,
  learning_rate: float = LEARNING_RATE,
  weight_decay: float = WEIGHT_DECAY,
  fused: bool | None = True,
):
  """Returns PyTorch's AdamW, which decays what ours does."""
  import torch

  parameters = list(parameters)
  groups = [
    {
      "params": [p for p in parameters if (p.ndim > 1) == decays],
      "weight_decay": weight_decay * decays,
    }
    for decays in (True, False)
  ]
  return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)


def torch_loss(scores_NxC, index_DxK) -> Callable:
  """Returns the pair loss in PyTorch: logits [N, C] to a scalar.

  Args:
    scores_NxC: a tensor, none missing.
    index_DxK: a tensor, the rows of each group; all are full.
  """
  import torch

  scores = scores_NxC[index_DxK]  # [D, K, C]
  margin = ALPHA * (scores[:, :, None] - scores[:, None])
  above = scores > 0.5
  pair = (above[:, :, None] & ~above[:, None]).float()

  def loss(logits_NxC):
    f = logits_NxC[index_DxK]
    difference = f[:, :, None] - f[:, None] - margin
    losses = torch.nn.functional.softplus(-difference)  # KL(1 || sigmoid)
    return (losses * pair).sum() / pair.sum()

  return loss
