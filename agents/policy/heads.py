"""The heads of a policy: which of them kernels know, and acting by them on the CPU.

Acting is many small operations, each of which takes longer to begin than to do. Where the actions are discrete and
the heads as SB3 builds them, all their layers and the draw of an action are one call here (with their gradient:
`agents.policy.head_gradients`); elsewhere they are torch's operations, to which this is equal.
"""

from __future__ import annotations

from functools import cached_property
from itertools import chain
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from palimpsest.agents.policy.distributions import Categorical, check_drawn, invert_into
from palimpsest.agents.policy.layers import Layers, Tanh, through
from palimpsest.machine_code import njit
from palimpsest.memory.base import Memory
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels
from palimpsest.memory.kernels.arithmetic.linear import Linear, map_packed
from palimpsest.memory.kernels.arithmetic.products import pack
from palimpsest.memory.kernels.arithmetic.views import Arrays, Views


class Heads(NamedTuple):
    """The parameters of both heads, layer by layer: weights [out, in] and biases [out]."""

    weights_pi: Arrays
    biases_pi: Arrays
    weights_vf: Arrays
    biases_vf: Arrays


class HeadedPolicy(ActorCriticPolicy):
    """SB3's policy, whose heads read a memory instead of features; its subclass makes the memory."""

    memory: Memory

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MlpExtractor(
            self.memory.output_size, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )
        self.mlp_extractor.policy_net = Layers(*self.mlp_extractor.policy_net)
        self.mlp_extractor.value_net = Layers(*self.mlp_extractor.value_net)

    def _actor(self, latent: Tensor) -> Distribution:
        return self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(latent))

    def _critic(self, latent: Tensor) -> Tensor:
        return through([self.value_net], self.mlp_extractor.forward_critic(latent)).squeeze(-1)

    def _compiled_heads(self, latent_pi: Tensor, latent_vf: Tensor) -> Heads | None:
        if torch.is_grad_enabled() or not self._heads_compile or not has_kernels(latent_pi, latent_vf):
            return None
        return compiled_heads(self, latent_pi) if latent_vf.shape == latent_pi.shape else None

    # found out on first use, as a subclass may replace modules once they are built
    @cached_property
    def _heads_compile(self) -> bool:
        return has_compiled_form(self)

    @cached_property
    def head_views(self) -> Views:
        """The heads' parameters as arrays."""
        return Views()


def has_compiled_form(policy: HeadedPolicy) -> bool:
    """Whether a policy's heads are those that kernels know: Discrete actions, tanh between linear layers."""
    cls = type(policy)
    return (
        isinstance(policy.action_dist, Categorical)
        and cls._get_action_dist_from_latent is ActorCriticPolicy._get_action_dist_from_latent
        and cls._actor is HeadedPolicy._actor
        and cls._critic is HeadedPolicy._critic
        and _is_as_built(policy, policy.memory.output_size)
    )


def compiled_heads(policy: HeadedPolicy, latent: Tensor) -> Heads | None:
    """What kernels compute from; None where they may not, now: something is not as built, or a hook would be left out.

    Args:
        policy: one that `has_compiled_form`.
        latent: [B, D], for which there are kernels.
    """
    # one of another class, or derived, may be put there at any time
    if type(policy.action_dist) is not Categorical:
        return None
    nets: Any = policy._modules["mlp_extractor"]
    actor, critic = head_layers(policy)
    modules = [*actor, *critic, nets, *nets._modules.values()]
    own: list[Any] = [layer._parameters for layer in (*actor[::2], *critic[::2])]
    try:
        parameters = [*chain.from_iterable(map(_WEIGHT_AND_BIAS, own))]
    except KeyError:  # one is computed from others
        return None
    return policy.head_views(
        latent,
        modules,
        parameters,
        lambda: _is_as_built(policy, latent.shape[1]),
        lambda arrays: _as_heads(arrays, len(actor) + 1),
    )


_WEIGHT_AND_BIAS = itemgetter("weight", "bias")


def _as_heads(arrays: Arrays, split: int) -> Heads:
    """From weight and bias of each layer, the actor's first, of which there are `split`."""
    actor, critic = arrays[:split], arrays[split:]
    return Heads(actor[::2], actor[1::2], critic[::2], critic[1::2])


def _is_as_built(policy: HeadedPolicy, width: int) -> bool:
    """Whether the heads' modules are those that `act` computes from latents of `width` features."""
    nets: Any = policy._modules["mlp_extractor"]
    if type(nets) is not MlpExtractor or not {type(net) for net in nets._modules.values()} <= {nn.Sequential, Layers}:
        return False
    actor, critic = head_layers(policy)
    actions: Any = policy.action_space
    return _is_known(actor, width, actions.n) and _is_known(critic, width, 1)


def head_layers(policy: HeadedPolicy) -> tuple[list[nn.Module], list[nn.Module]]:
    """The layers of the actor and those of the critic, found without the long search for a module's attributes."""
    own: dict[str, Any] = policy._modules
    nets = own["mlp_extractor"]._modules
    actor = [*nets["policy_net"]._modules.values(), own["action_net"]]
    return actor, [*nets["value_net"]._modules.values(), own["value_net"]]


def _is_known(layers: list[nn.Module], width: int, outputs: int) -> bool:
    """Whether layers are linear, with biases, and tangents by turns, from `width` features to `outputs`."""
    for layer in layers[::2]:
        own: dict[str, Any] = layer._parameters
        if type(layer) not in (nn.Linear, Linear) or own.get("weight") is None or own.get("bias") is None:
            return False
        if own["weight"].shape != (len(own["bias"]), width):
            return False
        width = len(own["bias"])
    for layer in layers[1::2]:
        if type(layer) not in (nn.Tanh, Tanh):
            return False
    return len(layers) % 2 == 1 and width == outputs


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
    map_packed(actor, weights_pi, biases_pi, False, logits)
    map_packed(critic, weights_vf, biases_vf, False, values.reshape(-1, 1))
    # the result is that of `invert_into`
    return invert_into(logits, array_at(uniform_at, (B,), np.empty(0)), actions, log_prob)
