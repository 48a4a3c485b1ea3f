"""The heads of a policy, and acting by them in one compiled call.

Acting is many small operations, each of which takes longer to begin than to do. Where the actions are discrete and the
heads are as SB3 builds them, linear maps with tanh between them, all their layers and the draw of an action are one
call on the CPU. Elsewhere they are SB3's modules and torch's operations, to which this is equal.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from palimpsest.agents.policy.distributions import Categorical, check_drawn, invert_into
from palimpsest.agents.policy.extractors import ObservingPolicy
from palimpsest.agents.policy.layers import Tanh
from palimpsest.machine_code import njit
from palimpsest.memory.base import Memory
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.as_built import Arrays
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.linear import map_packed
from palimpsest.memory.kernels.arithmetic.products import pack


class Heads(NamedTuple):
    """The parameters of both heads, layer by layer: weights [out, in] and biases [out]."""

    weights_pi: Arrays
    biases_pi: Arrays
    weights_vf: Arrays
    biases_vf: Arrays


class HeadedPolicy(ObservingPolicy):
    """SB3's policy, whose heads read a memory instead of features; its subclass makes the memory."""

    memory: Memory

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MlpExtractor(
            self.memory.output_size, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )

    def _actor(self, latent: Tensor) -> Distribution:
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))

    def _critic(self, latent: Tensor) -> Tensor:
        return self.value_net(self.mlp_extractor.forward_critic(latent)).squeeze(-1)


def has_compiled_heads(policy: HeadedPolicy) -> bool:
    """Whether a policy's heads are those that `act` computes: Discrete actions, tanh between linear layers."""
    cls = type(policy)
    return (
        type(policy.action_dist) is Categorical
        and cls._get_action_dist_from_latent is ActorCriticPolicy._get_action_dist_from_latent
        and cls._actor is HeadedPolicy._actor
        and cls._critic is HeadedPolicy._critic
        and type(policy.mlp_extractor) is MlpExtractor
        and _are_known(policy.mlp_extractor.policy_net, policy.action_net)
        and _are_known(policy.mlp_extractor.value_net, policy.value_net)
    )


def _are_known(net: nn.Module, last: nn.Module) -> bool:
    """Whether the layers are linear maps with biases, with tanh between them."""
    if type(net) is not nn.Sequential:
        return False
    layers = [*net, last]
    linear, between = layers[::2], layers[1::2]
    return (
        all(type(layer) is nn.Linear and layer.bias is not None for layer in linear)
        and all(type(layer) in (nn.Tanh, Tanh) for layer in between)
        and len(linear) == len(between) + 1
    )


def heads_of(arrays: dict[str, np.ndarray]) -> Heads:
    """The heads' parameters among those of a policy that `has_compiled_heads`."""

    def of(kind: str, *modules: str) -> Arrays:
        return tuple(each for name, each in arrays.items() if name.startswith(modules) and name.endswith(kind))

    actor, critic = ("mlp_extractor.policy_net.", "action_net."), ("mlp_extractor.value_net.", "value_net.")
    return Heads(of("weight", *actor), of("bias", *actor), of("weight", *critic), of("bias", *critic))


def act(heads: Heads, latent_pi: Tensor, latent_vf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw actions on the CPU, without gradients.

    Args:
        heads: of a policy, as they are now.
        latent_pi: [B, D] float32 or float64, what the actor reads.
        latent_vf: [B, D], what the critic reads.

    Returns:
        Actions [B] int64, values [B], log-probabilities [B].

    Raises:
        ValueError: logits from which nothing can be drawn.
    """
    B, real = len(latent_pi), heads.biases_vf[-1].dtype
    latent_pi, latent_vf = latent_pi.contiguous(), latent_vf.contiguous()
    uniform, actions = torch.rand(B, dtype=torch.float64), np.empty(B, np.int64)
    logits, values, log_prob = np.empty((B, len(heads.biases_pi[-1])), real), np.empty(B, real), np.empty(B, real)
    read = latent_pi.data_ptr(), latent_vf.data_ptr(), uniform.data_ptr()
    undrawable = _act(*read, *heads, logits, values, actions, log_prob)
    if undrawable >= 0:
        check_drawn(torch.from_numpy(logits), undrawable)
    return torch.from_numpy(actions), torch.from_numpy(values), torch.from_numpy(log_prob)


@njit(**OPTIONS)
def _act(pi_at, vf_at, uniform_at, weights_pi, biases_pi, weights_vf, biases_vf, logits, values, actions, log_prob):
    """Fill logits [B, n], values, actions and log_prob [B] from what lies at the addresses; see `act`."""
    B = len(actions)
    actor = pack(array_at(pi_at, (B, weights_pi[0].shape[1]), values).T)
    critic = actor if vf_at == pi_at else pack(array_at(vf_at, (B, weights_vf[0].shape[1]), values).T)
    map_packed(actor, weights_pi, biases_pi, logits)
    map_packed(critic, weights_vf, biases_vf, values.reshape(-1, 1))
    # the result is that of `invert_into`
    return invert_into(logits, array_at(uniform_at, (B,), np.empty(0)), actions, log_prob)
