"""Key-Value Rewrite as a single environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

WRITE, ASK = 0, 1


class PlainKeyValueRewrite(gym.Env):
    """The rules of `envs.key_value`. `reset` draws the whole episode: a list of (WRITE or ASK, key, value)."""

    def __init__(self, keys: int = 4, values: int = 4, updates: int = 4, queries: int = 4) -> None:
        self.keys, self.values, self.updates, self.queries = keys, values, updates, queries
        self.observation_space = spaces.Box(0, 1, (keys + values + 2,), np.float32)
        self.action_space = spaces.Discrete(values)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps, self.wrong = 0, False
        self.events = self._draw()
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        kind, _, value = self.events[self.steps]
        self.steps += 1
        reward = 0.0
        if kind == ASK:
            right = action == value
            reward = (1.0 if right else -1.0) / (self.queries + self.keys)
            self.wrong |= not right
        over = self.steps == len(self.events)
        return self._observe(), reward, over, False, {"success": not self.wrong} if over else {}

    def _draw(self) -> list[tuple[int, int, int]]:
        rng, writes = self.np_random, self.keys * self.updates
        keys = iter(rng.permutation(np.repeat(np.arange(self.keys), self.updates)).tolist())
        others = iter(rng.integers(1, self.values, size=writes).tolist())
        kinds = rng.permutation([WRITE] * (writes - 1) + [ASK] * self.queries).astype(int).tolist()
        last: dict[int, int] = {}
        events = []
        for kind in [WRITE, *kinds]:
            if kind == WRITE:
                key, other = next(keys), next(others)
                last[key] = (last[key] + other) % self.values if key in last else int(rng.integers(self.values))
            else:
                key = list(last)[int(rng.integers(len(last)))]
            events.append((kind, key, last[key]))
        return events + [(ASK, key, last[key]) for key in rng.permutation(self.keys).tolist()]

    def _observe(self) -> np.ndarray:
        obs = np.zeros(self.keys + self.values + 2, np.float32)
        if self.steps < len(self.events):
            kind, key, value = self.events[self.steps]
            obs[key] = 1
            if kind == WRITE:
                obs[self.keys + value] = 1
            obs[self.keys + self.values + kind] = 1
        return obs
