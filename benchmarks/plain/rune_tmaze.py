"""Rune T-Maze and Rune Multi-Corridor as single environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

KINDS = ("invert", "cancel", "reset", "repeat")
INVERT, CANCEL, RESET, REPEAT = range(4)
MIXED = ("invert", "invert", "reset", "repeat", "repeat", "cancel", "cancel")


class PlainRuneTMaze(gym.Env):
    """The rules of `envs.rune_tmaze` (after arXiv 2610.00592)."""

    branches, names = 2, KINDS

    def __init__(self, length: int = 20, runes: int = 8, kinds: Sequence[str] = MIXED, corridors: int = 1) -> None:
        self.length, self.most, self.corridors = length, runes, corridors
        self.kinds = np.array([self.names.index(kind) for kind in kinds])
        self.observation_space = spaces.Box(0, 1, (self.branches + 5,), np.float32)
        self.action_space = spaces.Discrete(self.branches + 1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.passed = self.steps = 0
        self._enter()
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        reward, over = -0.01, False
        if self.x < self.length:
            if action == 0:
                self.x += 1
                if self.x in self.runes:
                    self._meet(*self.runes[self.x])
        elif action == 1 + self.cue:
            reward = 1.0
            self.passed += 1
            over = self.passed == self.corridors
            if not over:
                self._enter()
        else:
            reward, over = -1.0, True
        late = self.steps >= 6 * (self.length + 1) * self.corridors
        info = {"success": self.passed == self.corridors} if over or late else {}
        return self._observe(), reward, over, late and not over, info

    def _enter(self) -> None:
        rng = self.np_random
        total = int(rng.integers(1, self.most + 1))
        cells = rng.choice(np.arange(1, self.length), total, replace=False, shuffle=False).tolist()
        kinds, values = rng.choice(self.kinds, total).tolist(), rng.integers(self.branches, size=total).tolist()
        self.runes = dict(zip(cells, zip(kinds, values)))
        self.x, self.cue = 0, int(rng.integers(self.branches))
        self.done: list[tuple[int, int, int]] = []

    def _meet(self, kind: int, value: int) -> None:
        """Apply a rune. `done` is the stack of operations, as (kind, value, cue before it)."""
        if kind == CANCEL:
            if self.done:
                self.cue = self.done.pop()[2]
            return
        if kind == REPEAT:
            if not self.done:
                return
            kind, value, _ = self.done[-1]
        self.done.append((kind, value, self.cue))
        self.cue = (self.cue + 1) % self.branches if kind == INVERT else value

    def _observe(self) -> np.ndarray:
        obs = np.zeros(self.branches + 5, np.float32)
        kind = self.runes[self.x][0] if self.x in self.runes else -1
        if kind >= 0:
            obs[self.branches + 1 + kind] = 1
        if self.x == 0 or kind == RESET:
            obs[self.cue] = 1
        obs[self.branches] = self.x / self.length
        return obs


class PlainRuneMultiCorridor(PlainRuneTMaze):
    """The rules of `envs.rune_corridors` (after arXiv 2610.00592)."""

    branches, names = 4, ("rotate", *KINDS[1:])

    def __init__(
        self,
        length: int = 20,
        runes: int = 8,
        kinds: Sequence[str] = ("rotate", *MIXED[2:], "rotate"),
        corridors: int = 1,
    ) -> None:
        super().__init__(length, runes, kinds, corridors)
