"""The network of `MemoryDQN`: observation -> features -> encoder -> memory -> a value of every action."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor

from palimpsest.agents.off_policy.policy import ReplayPolicy
from palimpsest.agents.policy.extractors import DictExtractor, ImageExtractor, Observation
from palimpsest.agents.policy.heads import in_its_form
from palimpsest.agents.policy.memory_pair import Both, State


class MemoryQPolicy(ReplayPolicy):
    """Q(s, a) of every action, from the two heads of an actor-critic policy: its logits are advantages A.

    Q(a) = V + A(a) - mean A (dueling, arXiv 1511.06581, eq. 9), or Q = A. The action of the largest value is that of
    the largest logit, which is what `predict` takes.

    Args:
        observation_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them.
        action_space: Discrete.
        lr_schedule: learning rate by remaining progress (1 to 0).
        dueling: whether the values are a sum of the state's value and advantages.
        **kwargs: those of `ReplayPolicy`.
    """

    acts_by_values = True

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *,
        dueling: bool = True,
        **kwargs: Any,
    ) -> None:
        self.dueling = dueling
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | {"dueling": self.dueling}

    @in_its_form
    def q_step(self, obs: Observation, state: State, start: Tensor | None = None) -> tuple[Tensor, State]:
        """Values [B, A] of the actions after observations [B, ...] that follow `state`, and the state after them."""
        latent, state = self._step(obs, state, start, None)
        return self._q(latent), state

    @in_its_form
    def q_scan(self, obs: Observation, state: State, start: Tensor, burn_in: int = 0) -> Tensor:
        """Values [T - burn_in, B, A] of a sequence after its first `burn_in` entries; else as `state_after`."""
        latent, _ = self._scan(obs, state, start, None, None)
        return self._q(Both(*(each[burn_in:] for each in latent)))

    @in_its_form
    def q_scan_through(self, obs: Observation, state: State, start: Tensor, cut: int) -> tuple[Tensor, State]:
        """Values [T, B, A] of a sequence, and the state before its entry `cut`, see `_scan_through`."""
        latent, middle = self._scan_through(obs, state, start, cut)
        return self._q(latent), middle

    def _q(self, latent: Both) -> Tensor:
        """Values [..., A] of what the memories gave out, [..., D] each."""
        advantages = self.action_net(self.mlp_extractor.forward_actor(latent.actor))
        if not self.dueling:
            return advantages
        return self._critic(latent.critic).unsqueeze(-1) + advantages - advantages.mean(-1, keepdim=True)

    def _to_values(self, predicted: Tensor) -> Tensor:
        """As they are: values are learned from scaled rewards."""
        return predicted

    def _judge(self, latent: Both) -> Tensor:
        return super()._to_values(self._q(latent))

    def _value(self, latent: Both) -> Tensor:
        return self._judge(latent).amax(-1)

    def _drawn(self, latent: Both, deterministic: bool, action_masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """The actions of the largest values, whether `deterministic` or not: they are certain."""
        actions, log_prob = super()._drawn(latent, True, action_masks)
        return actions, torch.zeros_like(log_prob)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[Any, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, tuple[Any, ...] | None]:
        """The actions of the largest values, as SB3's, whether `deterministic` or not; else as the base class's."""
        return super().predict(observation, state, episode_start, True, action_masks)


class CnnMemoryQPolicy(MemoryQPolicy):
    """For images: NatureCNN, or categories where a side is below 36 pixels."""

    default_extractor: ClassVar[type[BaseFeaturesExtractor]] = ImageExtractor


class MultiInputMemoryQPolicy(MemoryQPolicy):
    """For Dict observations."""

    default_extractor: ClassVar[type[BaseFeaturesExtractor]] = DictExtractor
