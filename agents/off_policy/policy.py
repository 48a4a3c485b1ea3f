"""What the networks of `MemoryDQN` and `MemorySAC` share, and the target networks that follow them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from palimpsest.agents.learn.numerics import ADVICE, NotFinite
from palimpsest.agents.policy.extractors import Observation
from palimpsest.agents.policy.heads import Heads
from palimpsest.agents.policy.memory_pair import Both, State
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.policy.scales import ReturnScale, RewardScale
from palimpsest.agents.tree import halves
from palimpsest.refusals import FLAG, Allowed

PolicyT = TypeVar("PolicyT", bound="ReplayPolicy")


class ReplayPolicy(MemoryActorCriticPolicy):
    """A policy that learns from a replay, by rewards that are scaled, and whose heads may see past the memory.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them.
        action_space: of the subclass.
        lr_schedule: learning rate by remaining progress (1 to 0).
        shortcut: whether the heads read what the memory reads, beside what it gives out (arXiv 2110.05038). They then
            know the present from the first update on, and the memory is left the past.
        **kwargs: those of `MemoryActorCriticPolicy`.
    """

    return_scale_class: ClassVar[type[ReturnScale]] = RewardScale
    refused_arguments: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("use_sde", "log_std_init", "full_std", "use_expln", "squash_output"),
            "it belongs to MemoryPPO's actions and gSDE, whose noise a replay does not store",
        ),
        "reconstruct": "it follows from memory_aux_coef, which MemoryPPO alone has",
        "mark_starts": "it follows from memory_carry_over, which MemoryPPO alone has",
    }
    allowed_arguments: ClassVar[Mapping[str, Allowed]] = {"shortcut": FLAG}
    followers: tuple[ReplayPolicy, ...] = ()
    """Its target networks. They are no modules of it, so that its parameters and files are its own."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        *,
        shortcut: bool = True,
        **kwargs: Any,
    ) -> None:
        self.shortcut = shortcut
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"shortcut": self.shortcut}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch. The target networks become equal to this one: else values would be learned from random ones."""
        found = super().load_state_dict(state_dict, strict, assign)
        for target in self.followers:
            target.load_state_dict(self.state_dict())
        return found

    def evaluate_actions(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it is of policies that learn on-policy.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"{type(self).__name__} has no evaluate_actions, which is MemoryPPO's, to learn from its own actions; a "
            "replay is learned from by values: predict_values, or q_step of MemoryDQN's policy"
        )

    def _compiled_heads(self, latent: Both) -> Heads | None:
        """None: they are those of an actor and a critic of single values."""
        return None

    def _value(self, latent: Both) -> Tensor:
        """Values [B] of the likeliest actions, of unscaled rewards; with `value_rescaling` they are on that scale."""
        raise NotImplementedError

    @property
    def latent_size(self) -> int:
        """Numbers that each head reads."""
        return self.memory.output_size + (self.memory.input_size if self.shortcut else 0)

    def _read(self, latent: Both, features: Both) -> Both:
        actor = self._beside(latent.actor, features.actor)
        return Both(actor, actor if self.shares_memory else self._beside(latent.critic, features.critic))

    def _scan_through(self, obs: Observation, state: State, start: Tensor, cut: int) -> tuple[Both, State]:
        """What the heads read of a sequence [T, B, ...], [T, B, D] each, and the state before entry `cut`.

        It is scanned in two parts, which give what one gives. With a `cut` of 0 or less the state is the first.
        """
        if cut <= 0:
            return self._scan(obs, state, start, None, None)[0], state
        (obs_before, obs_after), (start_before, start_after) = halves(obs, cut), halves(start, cut)
        before, middle = self._scan(obs_before, state, start_before, None, None)
        after, _ = self._scan(obs_after, middle, start_after, None, None)
        return Both(*(torch.cat(parts) for parts in zip(before, after))), middle

    def _beside(self, y: Tensor, features: Tensor) -> Tensor:
        """What a head reads of what its memory gave out, [..., D], and read, [..., F]."""
        return torch.cat([y, features], -1) if self.shortcut else y


def target_of(network: PolicyT) -> PolicyT:
    """A target network: a copy for which no gradient is computed. It scales observations as the network does.

    Weights that the network is given later are its own too (`ReplayPolicy.load_state_dict`).
    """
    network.followers = ()
    target = copy.deepcopy(network)
    network.followers = (target,)
    target.observation_scales = network.observation_scales
    target.requires_grad_(False)
    target.train(False)
    return target


def follow(target: nn.Module, network: nn.Module, tau: float) -> None:
    """Move a target network towards its network by `tau`; running statistics are copied, as in SB3."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), tau)
        for (name, its), own in zip(target.named_buffers(), network.buffers()):
            if "running_" in name:
                its.copy_(own)


def clip_and_step(
    parameters: Iterable[Tensor], loss: Tensor, optimizer: Any, max_grad_norm: float, step: int
) -> Tensor:
    """One step down the gradient of a loss, which is there already, clipped to a norm; returns that norm before.

    Raises:
        NotFinite: the loss or the norm is not finite; no parameter has changed.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not torch.isfinite(loss.detach() + norm):
        raise NotFinite(
            f"the loss is {loss.item()} and the norm of its gradient {norm.item()} at step {step}; {ADVICE}",
            "off-policy update",
            {"step": step},
        )
    optimizer.step()
    return norm
