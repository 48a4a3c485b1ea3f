"""PPO's loss on whole columns of a rollout."""

from __future__ import annotations

from torch import Tensor

from palimpsest.agents.learn.buffers import Minibatch
from palimpsest.agents.learn.objective import LossWeights, objective
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy


def ppo_loss(
    policy: MemoryActorCriticPolicy, batch: Minibatch, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate, the value error and the entropy (arXiv 1707.06347, eq. 7 and 9), and what to log.

    Args:
        policy: scans the columns from the state before their first step.
        batch: whole columns, [T, b, ...].
        weights: clipping and the terms' weights.

    Returns:
        The loss, with its graph, and detached scalars by name.
    """
    values, log_prob, entropy, reconstruction = policy.evaluate_actions(
        batch.observations, batch.actions, batch.state, batch.memory_start, batch.strategy
    )
    loss, record = objective(values, log_prob, entropy, batch, weights)
    if reconstruction is not None:
        loss = loss + weights.memory_aux_coef * reconstruction.mean()
        record["reconstruction_loss"] = reconstruction.detach().mean()
    record["loss"] = loss.detach()
    return loss, record
