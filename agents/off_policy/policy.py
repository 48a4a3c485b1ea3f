"""What the networks of `MemoryDQN` and `MemorySAC` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from palimpsest.agents.policy.extractors import Observation
from palimpsest.agents.policy.memory_pair import Both, State
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.agents.policy.scales import ReturnScale, RewardScale
from palimpsest.agents.tree import halves


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
