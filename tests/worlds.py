"""Tiny environments whose numbers can be followed by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Counter(gym.Env):
    """Observation [row, steps so far]; row r ends at step 3 + r, by truncation if `truncate`. Reward 1 a step."""

    def __init__(self, row: int = 0, truncate: bool = False) -> None:
        self.row, self.truncate = row, truncate
        self.observation_space = spaces.Box(0, 100, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any):
        self.steps += 1
        over = self.steps == 3 + self.row
        return self._observe(), 1.0, over and not self.truncate, over and self.truncate, {}

    def _observe(self) -> np.ndarray:
        return np.array([self.row, self.steps], np.float32)


class Spaces(gym.Env):
    """Any spaces: observations are samples, episodes end after five steps."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any):
        assert self.action_space.contains(action), action
        self.steps += 1
        return self.observation_space.sample(), float(self.steps), self.steps == 5, False, {}


ALWAYS = 0


class Broken(Counter):
    """A Counter of which one number is replaced at one step of its life, or `ALWAYS`."""

    def __init__(self, row: int, at: int, what: str, value: float, truncate: bool = False) -> None:
        super().__init__(row, truncate)
        self.at, self.what, self.value = at, what, value
        self.lived = 0

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        self.lived += 1
        if self.at in (self.lived, ALWAYS):
            if self.what == "observation":
                obs[1] = self.value
            else:
                reward = self.value
        return obs, reward, terminated, truncated, info
