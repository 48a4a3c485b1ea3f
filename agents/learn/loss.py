"""PPO's loss on whole columns of a rollout."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.agents.learn.buffers import Minibatch
from palimpsest.agents.policy.policies import Evaluation, MemoryActorCriticPolicy
from palimpsest.memory.base import State


class LossWeights(NamedTuple):
    """The numbers of PPO's loss at one moment of training."""

    clip_range: float
    clip_range_vf: float | None
    normalize_advantage: bool
    min_advantage_std: float
    ent_coef: float
    vf_coef: float
    memory_aux_coef: float


def evaluated(policy: MemoryActorCriticPolicy, batch: Minibatch) -> Evaluation:
    """What the policy says of a minibatch."""
    # a policy of a user's own need not know masks and carried memories where there are none
    more = {} if batch.action_masks is None else {"action_masks": batch.action_masks}
    if batch.episode_start is not None:
        more["episode_start"] = batch.episode_start
    half = torch.autocast(policy.device.type, torch.bfloat16) if policy.autocast else contextlib.nullcontext()
    with half:
        return policy.evaluate_actions(
            batch.observations, batch.actions, batch.state, batch.memory_start, batch.strategy, **more
        )


@torch.no_grad()
def state_after(policy: MemoryActorCriticPolicy, batch: Minibatch) -> State:
    """The memory's state, a tree of [b, ...], after the last step of a minibatch."""
    return policy.state_after(batch.observations, batch.state, batch.memory_start, batch.strategy, batch.episode_start)


def ppo_loss(
    policy: MemoryActorCriticPolicy, batch: Minibatch, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped surrogate, the value error and the entropy (arXiv 1707.06347, eq. 7 and 9), and what to log.

    Args:
        policy: scans the columns from the state before their first step.
        batch: whole columns, [T, b, ...].
        weights: clipping and the terms' weights.

    Returns:
        The loss [], with its graph, and detached scalars by name.
    """
    values, log_prob, entropy, reconstruction = evaluated(policy, batch)
    ratio = (log_prob - batch.old_log_prob).exp()
    clip, advantages = weights.clip_range, _normalized(batch, weights)
    policy_loss = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    if weights.clip_range_vf is not None:
        change = (values - batch.old_values).clamp(-weights.clip_range_vf, weights.clip_range_vf)
        values = batch.old_values + change
    value_loss = functional.mse_loss(values, batch.returns)
    # where the entropy has no closed form, the mean of -log_prob estimates it
    entropy_loss = log_prob.mean() if entropy is None else -entropy.mean()
    scaled = value_loss if policy.return_scale is None else value_loss / policy.return_scale.variance
    loss = policy_loss + weights.ent_coef * entropy_loss + weights.vf_coef * scaled
    record = {"policy_gradient_loss": policy_loss, "value_loss": value_loss, "entropy_loss": entropy_loss}
    if reconstruction is not None:
        record["reconstruction_loss"] = reconstruction.mean()
        loss = loss + weights.memory_aux_coef * record["reconstruction_loss"]
    record["loss"] = loss
    with torch.no_grad():
        record["approx_kl"] = ((ratio - 1) - (log_prob - batch.old_log_prob)).mean()
        record["clip_fraction"] = ((ratio - 1).abs() > clip).to(ratio.dtype).mean()
    return loss, {name: value.detach() for name, value in record.items()}


def _normalized(batch: Minibatch, weights: LossWeights) -> Tensor:
    """Advantages [T, b], where the minibatch's have mean 0 and standard deviation 1.

    They are left as they are if the minibatch has a single one, or if `weights` say so.
    """
    advantages = batch.advantages
    whole = advantages if batch.whole_advantages is None else batch.whole_advantages
    if not weights.normalize_advantage or whole.numel() == 1:
        return advantages
    return (advantages - whole.mean()) / (whole.std() + 1e-8).clamp(min=weights.min_advantage_std)
