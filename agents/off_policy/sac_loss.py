"""The losses of `MemorySAC`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from torch import Tensor

from palimpsest.agents.off_policy.replay import Sequences
from palimpsest.agents.off_policy.sac_policy import MemorySACPolicy
from palimpsest.agents.off_policy.targets import lookahead, refreshed
from palimpsest.agents.policy.distributions import log_prob_of
from palimpsest.agents.tree import halves


class Losses(NamedTuple):
    """What `sac_losses` computes."""

    critic: Tensor
    """[], for the critics and their memory."""
    actor: Tensor
    """[], for the actor and its memory."""
    entropy: Tensor
    """[], mean entropy of the actions, without gradient."""
    values: Tensor
    """[L, b], the first critic's, without gradient."""
    errors: Tensor
    """[L, b], without gradient."""
    counted: Tensor
    """[L, b] bool, false for final observations, which no action follows."""
    state: Any
    """Tree of [b, ...]: the memories before the entry after the first L, see `SequenceReplay.refresh`."""


def sac_losses(
    policy: MemorySACPolicy,
    target: MemorySACPolicy,
    batch: Sequences,
    ent_coef: Tensor,
    burn_in: int,
    n_steps: int,
    gamma: float,
) -> Losses:
    """The losses of SAC, means over the actions that were taken; that of the critics is weighted by sequence.

    Q_i(t, a) is trained towards r(t) + ... + γ^n V(t + n), see `targets.lookahead`, with V = min Q' - α log π of an
    action of the actor's; the actor towards large V by the critics. Each loss has gradients for its own side alone.

    Args:
        policy: actor and critics.
        target: the target network of the critics.
        batch: from the replay.
        ent_coef: [1], α.
        burn_in: entries that refresh the stored states.
        n_steps: steps that returns look ahead.
        gamma: discount per step.
    """
    before, obs = halves(batch.observations, burn_in)
    start_before, start = halves(batch.memory_start, burn_in)
    rewards, terminated, acted = (each[burn_in:] for each in (batch.rewards, batch.terminated, batch.acted))
    with torch.no_grad():
        state = refreshed(policy, before, batch.state, start_before)
        ahead = target.critic_latent(batch.observations, batch.state, batch.memory_start, burn_in)
    L = len(start) - n_steps
    latent, later = policy.latent(obs, state, start, L - burn_in)
    counted = acted[:L]
    distribution = policy.distribution(latent.actor)
    discrete = isinstance(policy.action_space, spaces.Discrete)
    taken = batch.actions[burn_in:][:L]

    def softened(critics: MemorySACPolicy, reads: Tensor) -> Tensor:
        """V of every entry [T, b], for a policy whose gradient is kept."""
        if discrete:
            q = critics.q_values(reads).amin(0)
            return (probs * (q - ent_coef * log_probs)).sum(-1)
        return critics.q_values(reads, actions).amin(0) - ent_coef * log_prob

    if discrete:
        log_probs = distribution.distribution.logits.log_softmax(-1)  # type: ignore[union-attr]
        log_probs = log_probs.unflatten(0, start.shape)
        probs = log_probs.exp()
        entropy = -(probs * log_probs).sum(-1)
        current = policy.q_values(latent.critic[:L])
        current = current.gather(-1, taken.expand(len(current), *taken.shape).unsqueeze(-1)).squeeze(-1)
    else:
        flat = distribution.get_actions()
        log_prob = log_prob_of(distribution, flat).unflatten(0, start.shape)
        actions, entropy = flat.unflatten(0, start.shape), -log_prob
        current = policy.q_values(latent.critic[:L], taken.reshape(*taken.shape[:2], -1))
    with torch.no_grad():
        goals = lookahead(softened(target, ahead), rewards, terminated, acted, gamma, n_steps)
    errors = current - goals
    number = counted.sum().clamp(min=1)
    squares = 0.5 * errors.square().sum(0) * batch.weights
    policy.value_net.requires_grad_(False)
    soft_values = softened(policy, latent.critic.detach())[:L]
    policy.value_net.requires_grad_(True)
    return Losses(
        torch.where(counted, squares, 0.0).sum() / number,
        -torch.where(counted, soft_values, 0.0).sum() / number,
        torch.where(counted, entropy[:L].detach(), 0.0).sum() / number,
        current[0].detach(),
        errors.detach().abs().mean(0),
        counted,
        later,
    )
