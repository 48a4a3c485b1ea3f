"""A Bernoulli bandit as a single environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PlainBandit(gym.Env):
    """The rules of `envs.bandit`."""

    def __init__(self, num_arms: int = 5, pulls: int = 100) -> None:
        self.arms, self.pulls = num_arms, pulls
        self.observation_space = spaces.Box(0, 1, (num_arms + 1,), np.float32)
        self.action_space = spaces.Discrete(num_arms)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.means = [float(np.float32(self.np_random.random())) for _ in range(self.arms)]
        self.steps, self.regret = 0, 0.0
        return np.zeros(self.arms + 1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.regret += max(self.means) - self.means[action]
        paid = float(np.float32(self.np_random.random())) < self.means[action]
        obs = np.zeros(self.arms + 1, np.float32)
        obs[action], obs[-1] = 1, paid
        late = self.steps == self.pulls
        info = {"success": self.means[action] == max(self.means), "regret": self.regret} if late else {}
        return obs, float(paid), False, late, info
