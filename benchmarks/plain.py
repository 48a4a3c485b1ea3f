"""Endless T-Maze as people write environments: one world, plain Python. What our kernels are measured against."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PlainEndlessTMaze(gym.Env):
    """The rules of `Palimpsest/EndlessTMaze-v0` (arXiv 2601.15086) without numba.

    Args:
        corridors: n.
        length: l, the longest corridor.
        uniform: draw each corridor's length from 1 to `length`.
    """

    def __init__(self, corridors: int = 5, length: int = 10, uniform: bool = False) -> None:
        self.corridors, self.longest, self.uniform = corridors, length, uniform
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
        elif action == self.cue:
            reward = 1.0
            self.passed += 1
            over = self.passed == self.corridors
            if not over:
                self._enter()
        else:
            reward, over = -1.0, True
        limit = self.steps >= 6 * (self.longest + 1) * self.corridors
        info = {"is_success": self.passed == self.corridors} if over or limit else {}
        return self._observe(hidden=over), reward, over, limit and not over, info

    def _enter(self) -> None:
        self.x = 0
        self.cue = int(self.np_random.integers(1, 3))
        self.length = int(self.np_random.integers(1, self.longest + 1)) if self.uniform else self.longest

    def _observe(self, hidden: bool = False) -> np.ndarray:
        shown = self.x == 0 and not hidden
        return np.array([shown and self.cue == 1, shown and self.cue == 2, self.x / self.longest], np.float32)
