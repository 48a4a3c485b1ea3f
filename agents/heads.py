"""The last layers of a policy with discrete actions, compiled for acting on the CPU.

Acting is many small operations, each of which takes longer to begin than to do. Where the heads are as SB3 builds
them, tanh, the two last linear layers and the draw of an action are one call here; elsewhere, and wherever a gradient
is wanted, they are torch's operations, to which this is equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numba import njit
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from agents.activations import Tanh
from agents.distributions import Categorical, check_drawn, invert_into
from memory.kernels.gated_cells import tanh

if TYPE_CHECKING:
    from agents.policies import MemoryActorCriticPolicy


def has_compiled_form(policy: MemoryActorCriticPolicy) -> bool:
    """Whether a policy's heads are those that `act` computes: Discrete actions, tanh before linear layers."""
    from agents.policies import MemoryActorCriticPolicy

    cls, nets, last = type(policy), policy.mlp_extractor, (policy.action_net, policy.value_net)
    return (
        isinstance(policy.action_dist, Categorical)
        and cls._get_action_dist_from_latent is ActorCriticPolicy._get_action_dist_from_latent
        and cls._actor is MemoryActorCriticPolicy._actor
        and cls._critic is MemoryActorCriticPolicy._critic
        and type(nets) is MlpExtractor
        and all(len(net) > 1 and type(net[-1]) in (Tanh, nn.Tanh) for net in (nets.policy_net, nets.value_net))
        and all(type(net) is nn.Linear and net.bias is not None for net in last)
    )


def act(policy: MemoryActorCriticPolicy, latent_pi: Tensor, latent_vf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw actions on the CPU, without gradients.

    Args:
        policy: one that `has_compiled_form`.
        latent_pi: [B, D] float32 or float64, what the actor reads.
        latent_vf: [B, D], what the critic reads.

    Returns:
        Actions [B] int64, values [B], log-probabilities [B].

    Raises:
        ValueError: logits from which nothing can be drawn.
    """
    nets = policy.mlp_extractor
    pi, vf = _all_but_last(nets.policy_net, latent_pi), _all_but_last(nets.value_net, latent_vf)
    B, actor, critic = len(pi), policy.action_net, policy.value_net
    assert isinstance(actor, nn.Linear)
    assert isinstance(critic, nn.Linear)
    logits, values, log_prob = pi.new_empty(B, len(actor.bias)), pi.new_empty(B), pi.new_empty(B)
    uniform, actions = torch.rand(B, dtype=torch.float64), torch.empty(B, dtype=torch.int64)
    weights = (tensor.detach() for tensor in (actor.weight, actor.bias, critic.weight, critic.bias))
    arrays = (pi, vf, *weights, uniform, logits, values, actions, log_prob)
    check_drawn(logits, _act(*(tensor.numpy() for tensor in arrays)))
    return actions, values, log_prob


def _all_but_last(net: Iterable[nn.Module], x: Tensor) -> Tensor:
    *layers, _ = net
    for layer in layers:
        x = layer(x)
    return x


@njit(cache=True)
def _act(
    pi: np.ndarray,
    vf: np.ndarray,
    actor: np.ndarray,
    actor_bias: np.ndarray,
    critic: np.ndarray,
    critic_bias: np.ndarray,
    uniform: np.ndarray,
    logits: np.ndarray,
    values: np.ndarray,
    actions: np.ndarray,
    log_prob: np.ndarray,
) -> int:
    """Fill the last four; `pi` and `vf` become their hyperbolic tangents. The result is that of `invert_into`."""
    for b in range(len(pi)):
        _tanh(pi[b])
        _tanh(vf[b])
        for a in range(len(actor)):
            logits[b, a] = _dot(pi[b], actor[a]) + actor_bias[a]
        values[b] = _dot(vf[b], critic[0]) + critic_bias[0]
    return invert_into(logits, uniform, actions, log_prob)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _tanh(x: np.ndarray) -> None:
    for i in range(x.size):
        x[i] = tanh(x[i])


# reassociation lets the sum be vectorised; tanh must not have it, see memory.kernels.gated_cells
@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _dot(a: np.ndarray, b: np.ndarray) -> float:
    total = a.dtype.type(0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total
