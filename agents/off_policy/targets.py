"""What the values of a sequence are trained towards, and the state from which it is scanned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.agents.policy.memory_pair import State
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy

EPSILON = 1e-3
"""The weight of the linear part of `rescale`, which makes it invertible (R2D2, section 2.3)."""


def refreshed(policy: MemoryActorCriticPolicy, obs: Any, state: State, start: Tensor) -> State:
    """The state after the entries [T, b, ...] of a burn-in, of which there may be none."""
    return policy.state_after(obs, state, start) if len(start) else state


def lookahead(
    values: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    acted: Tensor,
    gamma: float,
    n_steps: int,
    greedy: Tensor | None = None,
) -> Tensor:
    """n-step returns U(t), which look ahead no further than the end of an episode.

    U_0 = V, and U_k(t) = r(t) + gamma (1 - terminated(t)) U_{k-1}(t + 1); where an episode was truncated, U_k = V of
    its final observation, an entry without an action. With `greedy` a return also looks no further than the next action
    that the policy would not take now (Watkins' Q(λ)), as what that brings is not the policy's: U_k(t) = V(t) there,
    for k < n.

    Args:
        values: [T + n, b], V of every entry.
        rewards: [T + n, b].
        terminated: [T + n, b] bool, whether the action ended the episode.
        acted: [T + n, b] bool, false for final observations.
        gamma: discount per step.
        n_steps: n, 1 or more.
        greedy: [T + n, b] bool, whether the action is the policy's; None to look past all others.

    Returns:
        [T, b].
    """
    returns = values
    for k in range(1, n_steps + 1):
        T = len(returns) - 1
        ahead = rewards[:T] + gamma * torch.where(terminated[:T], 0.0, returns[1:])
        looks = acted[:T] if greedy is None or k == n_steps else acted[:T] & greedy[:T]
        returns = torch.where(looks, ahead, values[:T])
    return returns


def rescale(x: Tensor) -> Tensor:
    """h(x) = sign(x) (sqrt(|x| + 1) - 1) + ε x: values of any size on a scale that a network learns (R2D2)."""
    return x.sign() * ((x.abs() + 1).sqrt() - 1) + EPSILON * x


def unscale(y: Tensor) -> Tensor:
    """The inverse of `rescale`."""
    root = (1 + 4 * EPSILON * (y.abs() + 1 + EPSILON)).sqrt()
    return y.sign() * (((root - 1) / (2 * EPSILON)).square() - 1)


def same(x: Tensor) -> Tensor:
    """The scale of values where none is wanted."""
    return x
