"""Ballet with the view in numbers, as a single environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from palimpsest.envs.ballet_view import DANCES

TURNS = ((0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1))
"""The eight directions, (x, y)."""


class PlainBallet(gym.Env):
    """The rules of `envs.ballet` (after HCAM, arXiv 2105.14039), without pixels."""

    def __init__(self, dancers: int = 2, delay: int = 16) -> None:
        self.n, self.turn = dancers, 16 + delay
        self.choice = 1 + dancers * self.turn
        self.limit = 320 if delay <= 16 else 8 * self.turn + 512
        self.dances = DANCES.tolist()
        self.observation_space = spaces.Dict(
            told=spaces.Box(0, 1, (17,), np.float32), seen=spaces.Box(-1, 1, (154,), np.float32)
        )
        self.action_space = spaces.Discrete(8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        cards = [self.np_random.choice(n, self.n, replace=False).tolist() for n in (8, 16, 8, 8)]
        self.dancers = list(zip(*cards))
        """(place, dance, shape, colour) of each dancer, in the order of the performances."""
        self.target, self.asked, *_ = self.dancers[int(self.np_random.integers(self.n))]
        self.centres = {(3 * TURNS[place][0], 3 * TURNS[place][1]): place for place in cards[0]}
        self.steps = self.x = self.y = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        met = None
        if self.steps >= self.choice:
            x, y = self.x + TURNS[action][0], self.y + TURNS[action][1]
            if -4 <= x <= 4 and -4 <= y <= 4:
                self.x, self.y = x, y
                met = self.centres.get((x, y))
        self.steps += 1
        over, won = met is not None, met == self.target
        late = self.steps >= self.limit
        return self._observe(), float(won), over, late and not over, {"success": won} if over or late else {}

    def _observe(self) -> dict[str, np.ndarray]:
        told, seen = np.zeros(17, np.float32), np.zeros(154, np.float32)
        t = self.steps - 1
        told[0 if self.steps < self.choice else 1 + self.asked] = 1
        seen[0], seen[1] = -self.x / 4, -self.y / 4
        performer, m = divmod(t, self.turn) if 0 <= t < self.choice - 1 else (-1, 0)
        for k, (place, dance, shape, colour) in enumerate(self.dancers):
            x, y = TURNS[place]
            x, y = 3 * x - self.x, 3 * y - self.y
            if k == performer and m < 16:
                dx, dy = TURNS[self.dances[dance][m]]
                x, y = x + dx, y + dy
            at = 2 + 19 * place
            seen[at : at + 3] = 1, x / 8, y / 8
            seen[at + 3 + shape] = seen[at + 11 + colour] = 1
        return {"told": told, "seen": seen}
