"""The heads of a policy with discrete actions, compiled for acting on the CPU.

Acting is many small operations, each of which takes longer to begin than to do. Where the heads are as SB3 builds
them, all their layers and the draw of an action are one call here; elsewhere, and wherever a gradient is wanted, they
are torch's operations, to which this is equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numba import njit
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from agents.distributions import Categorical, check_drawn, invert_into
from agents.layers import Tanh
from memory.kernels.compiling import OPTIONS
from memory.kernels.gated_cells import squash_in_place
from memory.kernels.linear import Linear, is_hooked
from memory.kernels.products import multiply_turned

if TYPE_CHECKING:
    from agents.policies import MemoryActorCriticPolicy


def has_compiled_form(policy: MemoryActorCriticPolicy) -> bool:
    """Whether a policy's heads are those that `act` computes: Discrete actions, tanh between linear layers."""
    from agents.policies import MemoryActorCriticPolicy

    cls, nets = type(policy), policy.mlp_extractor
    return (
        isinstance(policy.action_dist, Categorical)
        and cls._get_action_dist_from_latent is ActorCriticPolicy._get_action_dist_from_latent
        and cls._actor is MemoryActorCriticPolicy._actor
        and cls._critic is MemoryActorCriticPolicy._critic
        and type(nets) is MlpExtractor
        and _is_known([*nets.policy_net, policy.action_net])
        and _is_known([*nets.value_net, policy.value_net])
    )


def _is_known(layers: list[nn.Module]) -> bool:
    """Whether layers are linear, with biases, and the hyperbolic tangent by turns."""
    maps, tangents = layers[::2], layers[1::2]
    return (
        len(maps) == len(tangents) + 1
        and all(type(layer) in (nn.Linear, Linear) and layer.bias is not None for layer in maps)
        and all(type(layer) in (nn.Tanh, Tanh) for layer in tangents)
    )


def is_watched(policy: MemoryActorCriticPolicy) -> bool:
    """Whether a module of the heads has a hook, now: such are called, not computed by `act`."""
    nets = policy.mlp_extractor
    actor, critic = nets.policy_net, nets.value_net
    return any(map(is_hooked, (nets, actor, critic, *actor, *critic, policy.action_net, policy.value_net)))


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
    nets, B = policy.mlp_extractor, len(latent_pi)
    pi = tuple(_parameters([*nets.policy_net, policy.action_net]))
    vf = tuple(_parameters([*nets.value_net, policy.value_net]))
    logits, values = latent_pi.new_empty(B, len(pi[-1][1])), latent_pi.new_empty(B, 1)
    log_prob = latent_pi.new_empty(B)
    uniform, actions = torch.rand(B, dtype=torch.float64), torch.empty(B, dtype=torch.int64)
    arrays = (tensor.numpy() for tensor in (uniform, logits, values, actions, log_prob))
    latents = (latent.contiguous().numpy() for latent in (latent_pi, latent_vf))
    check_drawn(logits, _act(*latents, pi, vf, *arrays))
    return actions, values.view(B), log_prob


def _parameters(layers: list[Any]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Weight [D, F] and bias [D] of the linear layers."""
    for layer in layers[::2]:
        yield layer.weight.detach().contiguous().numpy(), layer.bias.detach().contiguous().numpy()


@njit(**OPTIONS)
def _act(latent_pi, latent_vf, pi, vf, uniform, logits, values, actions, log_prob):  # type: ignore[no-untyped-def]
    """Fill logits [B, n], values [B, 1], actions [B] and log_prob [B]; the result is that of `invert_into`."""
    _through(latent_pi, pi, logits)
    _through(latent_vf, vf, values)
    return invert_into(logits, uniform, actions, log_prob)


@njit(**OPTIONS)
def _through(x, layers, out):  # type: ignore[no-untyped-def]
    """Fill out from x [B, F] by linear layers, (weight, bias) each, with tangents between them."""
    for number, (weight, bias) in enumerate(layers):
        y = np.empty((len(x), len(bias)), x.dtype)
        for row in range(len(x)):
            y[row] = bias
        multiply_turned(x, weight, y, True)
        if number < len(layers) - 1:
            squash_in_place(y.reshape(-1))
        x = y
    out[:] = x
