"""The T-Mazes as single environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

LEFT, RIGHT = 0, 1


class PlainEndlessTMaze(gym.Env):
    """The rules of `envs.endless_tmaze` (arXiv 2601.15086)."""

    def __init__(self, corridors: int = 5, length: int = 10, regime: str = "fixed", position: str = "shown") -> None:
        self.corridors, self.longest, self.uniform = corridors, length, regime == "uniform"
        self.hidden = position == "none"
        self.observation_space = spaces.Box(0, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.passed = self.steps = 0
        self._enter()
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward, over = -0.01, False
        if self.x < self.length:
            self.x += action == 0
        elif action == 1 + self.cue:
            reward = 1.0
            self.passed += 1
            over = self.passed == self.corridors
            if not over:
                self._enter()
        else:
            reward, over = -1.0, True
        late = self.steps >= 6 * (self.longest + 1) * self.corridors
        info = {"success": self.passed == self.corridors} if over or late else {}
        return self._observe(), reward, over, late and not over, info

    def _enter(self) -> None:
        self.x = 0
        self.cue = int(self.np_random.integers(2))
        self.length = int(self.np_random.integers(self.longest)) + 1 if self.uniform else self.longest

    def _observe(self) -> np.ndarray:
        start, place = self.x == 0, self.x == self.length if self.hidden else self.x / self.longest
        return np.array([start and self.cue == LEFT, start and self.cue == RIGHT, place], np.float32)


class PlainActiveTMaze(gym.Env):
    """The rules of `envs.tmaze` (after arXiv 2307.03864)."""

    def __init__(self, length: int = 10) -> None:
        self.length = length
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.x = self.steps = 0
        self.cue = int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward, over, won = -0.01, False, False
        if action == 3:
            self.x = max(self.x - 1, -1)
        elif self.x < self.length:
            self.x += action == 0
        else:
            over, won = True, action == 1 + self.cue
            reward = 1.0 if won else -1.0
        late = self.steps >= 6 * (self.length + 3)
        return self._observe(), reward, over, late and not over, {"success": won} if over or late else {}

    def _observe(self) -> np.ndarray:
        oracle = self.x == -1
        return np.array([oracle and self.cue == LEFT, oracle and self.cue == RIGHT, self.x / self.length], np.float32)
