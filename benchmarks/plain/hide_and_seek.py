"""Hide and seek as a single environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PlainHideAndSeek(gym.Env):
    """The rules of `envs.hide_and_seek`. `reset` draws the whole episode.

    `objects` and `boxes` are permutations. The first boxes hold the objects; the others are empty. `moves` are pairs
    (index of an object, index of an empty box).
    """

    def __init__(self, rooms: int = 4, boxes: int = 4, objects: int = 6, moves: int = 8) -> None:
        self.rooms, self.width, self.n, self.count = rooms, boxes, objects, moves
        self.question = objects + 2 * moves
        self.observation_space = spaces.Dict(
            place=spaces.Discrete(rooms), seen=spaces.Box(0, 1, (objects + boxes + 3,), np.float32)
        )
        self.action_space = spaces.Discrete(rooms * boxes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        rng, n, total = self.np_random, self.n, self.rooms * self.width
        self.objects, self.boxes = rng.permutation(n).tolist(), rng.permutation(total).tolist()
        movers, targets = rng.integers(n, size=self.count), rng.integers(n, total, size=self.count)
        self.moves = list(zip(movers.tolist(), targets.tolist()))
        self.asked, self.asked_in = int(rng.integers(n)), int(rng.integers(self.rooms))
        self.steps = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps > self.question:
            won = action == self.boxes[self.asked]
            return self._observe(), float(won), True, False, {"success": won}
        move, putting = divmod(self.steps - self.n, 2)
        if putting and self.n < self.steps < self.question:
            k, empty = self.moves[move]
            self.boxes[k], self.boxes[empty] = self.boxes[empty], self.boxes[k]
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> dict[str, Any]:
        t, n, width = self.steps, self.n, self.width
        seen = np.zeros(n + width + 3, np.float32)
        if t >= self.question:
            if t == self.question:
                seen[self.objects[self.asked]] = seen[n + width + 2] = 1
            return {"place": self.asked_in, "seen": seen}
        move, putting = divmod(t - n, 2)
        k = t if t < n else self.moves[move][0]
        place, box = divmod(self.boxes[k], width)
        seen[self.objects[k]] = seen[n + box] = 1
        seen[n + width + (t >= n and not putting)] = 1
        return {"place": place, "seen": seen}
