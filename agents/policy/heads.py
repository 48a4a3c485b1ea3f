"""The heads of a policy, and acting by them in one compiled call.

Acting is many small operations, each of which takes longer to begin than to do. Where the actions are discrete and the
heads are as SB3 builds them, linear maps with tanh between them, one call on the CPU computes all their layers and
draws an action. Elsewhere SB3's modules and torch's operations do, and this is equal to them.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from palimpsest.agents.policy.distributions import Categorical, check_drawn, invert_into
from palimpsest.agents.policy.extractors import ObservingPolicy, only_flattens
from palimpsest.agents.policy.layers import Tanh
from palimpsest.agents.policy.memory_pair import Both
from palimpsest.agents.policy.scales import ReturnScale
from palimpsest.agents.workers.draws import uniform
from palimpsest.machine_code import njit
from palimpsest.memory.base import Memory
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.as_built import Arrays, AsBuilt
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.dispatch import decided, kernels_may_run
from palimpsest.memory.kernels.arithmetic.linear import map_packed
from palimpsest.memory.kernels.arithmetic.products import pack

ResultT = TypeVar("ResultT")


class Heads(NamedTuple):
    """The parameters of both heads, layer by layer: weights [out, in] and biases [out]."""

    weights_pi: Arrays
    biases_pi: Arrays
    weights_vf: Arrays
    biases_vf: Arrays


def in_its_form(method: Callable[..., ResultT]) -> Callable[..., ResultT]:
    """A policy's method by kernels where the policy is compiled and as it was built, else by torch's operations."""

    @functools.wraps(method)
    def run(self: HeadedPolicy, *args: Any, **kwargs: Any) -> ResultT:
        if not kernels_may_run():
            return method(self, *args, **kwargs)
        token = decided.set(self.compiled and (self._built.holds(self) or self._built.warn()))
        try:
            return method(self, *args, **kwargs)
        finally:
            decided.reset(token)

    return run


class _Noted(ABCMeta):
    """A policy is built once its constructor is through, a subclass's included: then it notes what it is."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        policy = super().__call__(*args, **kwargs)
        policy._note_build()
        return policy

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of the constructor, which `__call__` would hide."""
        _self, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        return inspect.Signature(parameters)


class HeadedPolicy(ObservingPolicy, metaclass=_Noted):
    """SB3's policy, whose heads read a memory instead of features; its subclass makes the memory."""

    memory: Memory
    return_scale: ReturnScale | None
    compiled: bool = True
    autocast: bool = False
    """Whether an update evaluates actions under autocast in bfloat16."""

    def _note_build(self) -> None:
        """Note how the policy is built, and what kernels may do for it."""
        self._heads_compile, self._flattens = has_compiled_heads(self), only_flattens(self)
        parts = ("features_extractor", "mlp_extractor", "action_net", "value_net")
        self._built = AsBuilt(self, parts, "policy.compiled = False chooses this")

    def look_for_changes(self) -> None:
        """Look at every module: whether all are as they were built. Done before each rollout, update and sequence.

        Hooks and replaced or moved parameters are noticed at any step without this.
        """
        if self.compiled:
            self._built.look(self)

    @property
    def latent_size(self) -> int:
        """Numbers that each head reads."""
        return self.memory.output_size

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = MlpExtractor(
            self.latent_size, net_arch=self.net_arch, activation_fn=self.activation_fn, device=self.device
        )

    def _actor(self, latent: Tensor) -> Distribution:
        hidden = self.mlp_extractor.forward_actor(latent)
        with self._last_layer():
            return self._get_action_dist_from_latent(self._widened(hidden))

    def _critic(self, latent: Tensor) -> Tensor:
        hidden = self.mlp_extractor.forward_critic(latent)
        with self._last_layer():
            return self._to_values(self.value_net(self._widened(hidden)).squeeze(-1))

    def _last_layer(self) -> contextlib.AbstractContextManager[Any]:
        """Within it, what distributions and values are made of keeps the parameters' type."""
        return torch.autocast(self.device.type, enabled=False) if self.autocast else contextlib.nullcontext()

    def _widened(self, hidden: Tensor) -> Tensor:
        return hidden.to(self.value_net.weight.dtype) if self.autocast else hidden

    def _to_values(self, predicted: Tensor) -> Tensor:
        """Values of what the critic's last layer predicts."""
        return predicted if self.return_scale is None else self.return_scale(predicted)

    def _compiled_heads(self, latent: Both) -> Heads | None:
        """What `act` computes from; None where SB3's modules act."""
        if not self._heads_compile or type(self.action_dist) is not Categorical:
            return None
        if torch.is_grad_enabled() or not kernels_may_run() or not latent.actor.is_cpu:
            return None
        return self._built.arrays(self, heads_of)


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


def act(
    heads: Heads, latent_pi: Tensor, latent_vf: Tensor, action_masks: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw actions on the CPU, without gradients.

    Args:
        heads: of a policy, as they are now.
        latent_pi: [B, D] float32 or float64, what the actor reads.
        latent_vf: [B, D], what the critic reads.
        action_masks: [B, n] bool, the actions that are allowed; None for all.

    Returns:
        Actions [B] int64, values [B], log-probabilities [B].

    Raises:
        ValueError: logits from which nothing can be drawn.
    """
    B, n, real = len(latent_pi), len(heads.biases_pi[-1]), heads.biases_vf[-1].dtype
    latent_pi, latent_vf = latent_pi.contiguous(), latent_vf.contiguous()
    numbers, actions = uniform(B), np.empty(B, np.int64)
    logits, values, log_prob = np.empty((B, n), real), np.empty(B, real), np.empty(B, real)
    # as the kernel reads them, whatever was given
    masks = None if action_masks is None else action_masks.bool().expand(B, n).contiguous()
    read = latent_pi.data_ptr(), latent_vf.data_ptr(), numbers.data_ptr(), 0 if masks is None else masks.data_ptr()
    undrawable = _act(*read, *heads, logits, values, actions, log_prob)
    if undrawable >= 0:
        check_drawn(torch.from_numpy(logits), undrawable)
    return torch.from_numpy(actions), torch.from_numpy(values), torch.from_numpy(log_prob)


@njit(**OPTIONS)
def _act(
    pi_at, vf_at, uniform_at, masks_at, weights_pi, biases_pi, weights_vf, biases_vf, logits, values, actions, log_prob
):
    """Fill logits [B, n], values, actions and log_prob [B] from what lies at the addresses (0: no masks); see `act`."""
    B = len(actions)
    actor = pack(array_at(pi_at, (B, weights_pi[0].shape[1]), values).T)
    critic = actor if vf_at == pi_at else pack(array_at(vf_at, (B, weights_vf[0].shape[1]), values).T)
    map_packed(actor, weights_pi, biases_pi, logits)
    map_packed(critic, weights_vf, biases_vf, values.reshape(-1, 1))
    if masks_at != 0:
        allowed = array_at(masks_at, logits.shape, np.empty(0, np.uint8))
        for row in range(B):
            for a in range(logits.shape[1]):
                if not allowed[row, a]:
                    logits[row, a] = -np.inf
    # the result is that of `invert_into`
    return invert_into(logits, array_at(uniform_at, (B,), np.empty(0)), actions, log_prob)
