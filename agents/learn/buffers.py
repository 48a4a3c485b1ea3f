"""The rollout: whole columns of steps, the memory's state at the first of them, and advantages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from torch import Tensor

from palimpsest.agents.tree import tree_map
from palimpsest.machine_code import njit


class Minibatch(NamedTuple):
    """Whole columns of a rollout; sequences [T, b, ...], the state [b, ...] before their first step."""

    observations: Any
    actions: Tensor
    old_values: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    returns: Tensor
    memory_start: Tensor
    state: Any
    strategy: Tensor | None


@njit(cache=True)
def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    episode_start: np.ndarray,
    last_values: np.ndarray,
    last_done: np.ndarray,
    gamma: float,
    gae_lambda: float,
) -> np.ndarray:
    """GAE(λ): A_t = δ_t + γ λ A_{t+1}, δ_t = r_t + γ V_{t+1} - V_t, both cut where step t + 1 opens an episode.

    Args:
        rewards: [T, B] float32, with a truncated episode's γ V(final observation) already added.
        values: [T, B] float32.
        episode_start: [T, B] bool.
        last_values: [B] float32, of the observation after the last step.
        last_done: [B] bool, whether that observation opens an episode.
        gamma: discount per step.
        gae_lambda: λ.

    Returns:
        Advantages [T, B] float32.

    Source: eq. 16 of "High-Dimensional Continuous Control Using Generalized Advantage Estimation",
    arXiv 1506.02438.
    """
    T, B = rewards.shape
    advantages = np.empty_like(rewards)
    for b in range(B):
        advantage = 0.0
        next_value = last_values[b]
        next_start = last_done[b]
        for t in range(T - 1, -1, -1):
            if next_start:
                advantage = rewards[t, b] - values[t, b]
            else:
                delta = rewards[t, b] + gamma * next_value - values[t, b]
                advantage = delta + gamma * gae_lambda * advantage
            advantages[t, b] = advantage
            next_value = values[t, b]
            next_start = episode_start[t, b]
    return advantages


class MemoryRolloutBuffer:
    """A rollout of T steps in B environments, on the policy's device.

    Nothing of the memory is stored per step: the update scans each column again from `state`, the memory before
    its first step. `episode_start` bounds values and advantages, `memory_start` the memory; they differ where a
    memory is carried over an episode's end.

    Args:
        buffer_size: T.
        observation_space: a Box, Discrete, MultiDiscrete or MultiBinary space, or a Dict of them.
        action_space: any of SB3's.
        device: where the tensors are.
        gae_lambda: λ of GAE.
        gamma: discount per step.
        n_envs: B.
        strategies: whether the memory's allocation strategy is stored.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: torch.device | str = "auto",
        gae_lambda: float = 0.95,
        gamma: float = 0.99,
        n_envs: int = 1,
        strategies: bool = False,
    ) -> None:
        self.buffer_size = buffer_size
        self.n_envs = n_envs
        self.device = get_device(device)
        self.gae_lambda = gae_lambda
        self.gamma = gamma
        T, B = buffer_size, n_envs
        discrete = isinstance(action_space, spaces.Discrete | spaces.MultiDiscrete)
        assert action_space.shape is not None

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(T, B, *shape, dtype=dtype, device=self.device)

        if isinstance(observation_space, spaces.Dict):
            parts = observation_space.spaces.items()
            self.observations: Any = {key: empty(*_shape(s), dtype=_dtype(s)) for key, s in parts}
        else:
            self.observations = empty(*_shape(observation_space), dtype=_dtype(observation_space))
        self.actions = empty(*action_space.shape, dtype=torch.int64 if discrete else torch.float32)
        self.values = empty()
        self.log_prob = empty()
        self.advantages = empty()
        self.returns = empty()
        self.memory_start = empty(dtype=torch.bool)
        self.strategy = empty(dtype=torch.int64) if strategies else None
        self.rewards = np.zeros((T, B), np.float32)
        self.episode_start = np.zeros((T, B), bool)
        self.pos = 0
        self.state: Any = None

    @property
    def full(self) -> bool:
        """Whether every step is there."""
        return self.pos == self.buffer_size

    def begin(self, state: Any) -> None:
        """Begin a rollout from the memory's state (tree of [B, ...] without graph) before its first step."""
        self.pos = 0
        self.state = state

    def add(
        self,
        observations: Any,
        actions: Tensor,
        rewards: np.ndarray,
        episode_start: np.ndarray,
        memory_start: np.ndarray,
        values: Tensor,
        log_prob: Tensor,
        strategy: Tensor | None = None,
    ) -> None:
        """Store step `pos` of all environments; each argument [B, ...]."""
        t = self.pos
        assert t < self.buffer_size, "add was called on a full rollout"

        def put(into: Tensor, value: Tensor) -> None:
            into[t] = value.view_as(into[t])

        tree_map(put, self.observations, observations)
        put(self.actions, actions)
        self.values[t] = values
        self.log_prob[t] = log_prob
        self.memory_start[t] = torch.from_numpy(memory_start)
        if self.strategy is not None:
            assert strategy is not None
            self.strategy[t] = strategy
        self.rewards[t] = rewards
        self.episode_start[t] = episode_start
        self.pos += 1

    def compute_returns_and_advantage(self, last_values: Tensor, last_done: np.ndarray) -> None:
        """Advantages by GAE, and returns as their sum with the values.

        Args:
            last_values: [B], of the observation after the last step.
            last_done: [B] bool, whether that observation opens an episode.
        """
        advantages = generalized_advantages(
            self.rewards,
            self.values.cpu().numpy(),
            self.episode_start,
            last_values.cpu().numpy(),
            np.asarray(last_done, dtype=bool),
            self.gamma,
            self.gae_lambda,
        )
        self.advantages.copy_(torch.from_numpy(advantages))
        torch.add(self.advantages, self.values, out=self.returns)

    def get(self, columns: int, rng: np.random.Generator) -> Iterator[Minibatch]:
        """Every environment once, `columns` at a time, in an order drawn from `rng`."""
        assert self.full, "the rollout is not complete"
        order = torch.as_tensor(rng.permutation(self.n_envs), device=self.device)
        for rows in order.split(columns):

            def pick(sequence: Tensor, rows: Tensor = rows) -> Tensor:
                return sequence.index_select(1, rows)

            yield Minibatch(
                tree_map(pick, self.observations),
                pick(self.actions),
                pick(self.values),
                pick(self.log_prob),
                pick(self.advantages),
                pick(self.returns),
                pick(self.memory_start),
                tree_map(lambda leaf, rows=rows: leaf[rows], self.state),
                None if self.strategy is None else pick(self.strategy),
            )


def _shape(space: spaces.Space) -> tuple[int, ...]:
    assert space.shape is not None
    return space.shape


def _dtype(space: spaces.Space) -> torch.dtype:
    dtype = torch.as_tensor(np.zeros(0, space.dtype)).dtype
    return torch.float32 if dtype == torch.float64 else dtype
