"""Color-Cubes as a single environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PlainColorCubes(gym.Env):
    """The rules of `envs.color_cubes` (after arXiv 2601.15086)."""

    def __init__(
        self, grid: int = 5, cubes: int = 3, phases: int = 3, teleport: float = 0.05, hide_colours: bool = False
    ) -> None:
        self.grid, self.cubes, self.phases, self.teleport, self.hide = grid, cubes, phases, teleport, hide_colours
        self.size = 2 * grid + cubes + 2 + 2 * grid * cubes
        self.observation_space = spaces.Box(0, 1, (self.size,), np.float32)
        self.action_space = spaces.Discrete(5)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        *self.cells, self.agent = self.np_random.choice(self.grid**2, self.cubes + 1, replace=False).tolist()
        self.target = int(self.np_random.integers(self.cubes))
        self.passed = self.steps = 0
        return self._observe("start"), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward, shown, over = -0.01, "", False
        y, x = divmod(self.agent, self.grid)
        if action == 4:
            if self.agent == self.cells[self.target]:
                reward, shown = 1.0, "start"
                self.passed += 1
                over = self.passed == self.phases
                if not over:
                    self._teleport(self.target)
                    if self.cubes > 1:
                        self.target = self._other()
        elif action == 0:
            x = max(x - 1, 0)
        elif action == 1:
            x = min(x + 1, self.grid - 1)
        elif action == 2:
            y = max(y - 1, 0)
        else:
            y = min(y + 1, self.grid - 1)
        self.agent = self.grid * y + x
        if reward < 0 and self.cubes > 1 and self.teleport > 0 and self.np_random.random() < self.teleport:
            self._teleport(self._other())
            shown = "teleport"
        limit = self.steps >= 8 * self.grid * self.phases
        info = {"success": over} if over or limit else {}
        return self._observe("" if over else shown), reward, over, limit and not over, info

    def _other(self) -> int:
        cube = int(self.np_random.integers(self.cubes - 1))
        return cube + (cube >= self.target)

    def _teleport(self, cube: int) -> None:
        taken = {*self.cells, self.agent}
        free = [cell for cell in range(self.grid**2) if cell not in taken]
        self.cells[cube] = free[int(self.np_random.integers(len(free)))]

    def _observe(self, shown: str) -> np.ndarray:
        G, N = self.grid, self.cubes
        obs = np.zeros(self.size, np.float32)
        obs[self.agent % G] = obs[G + self.agent // G] = 1
        if not shown:
            return obs
        if shown == "start":
            obs[2 * G + self.target] = 1
        hidden = shown == "teleport" and self.hide
        obs[2 * G + N] = 1
        obs[2 * G + N + 1] = not hidden
        for slot, cell in enumerate(sorted(self.cells) if hidden else self.cells):
            at = 2 * G + N + 2 + 2 * G * slot
            obs[at + cell % G] = obs[at + G + cell // G] = 1
        return obs
