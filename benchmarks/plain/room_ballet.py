"""Both tasks of Room Ballet as single environments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

TASKS = ("fifo", "lifo", "mvfo", "lvfo")
VIEWS = 18


class PlainRoomBallet(gym.Env):
    """Base class of both tasks: an episode is a list of (room, dance) and a question."""

    dances: int
    views: list[tuple[int, int]]
    asked: int

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.steps, self.over = 0, False
        self._draw()
        self.answer = dict(self.views)[self.asked]
        return self._observe(), {}

    def step(self, action: int) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        if self.steps < len(self.views):
            self.steps += 1
            return self._observe(), 0.0, False, False, {}
        self.over = True
        won = action == self.answer
        return self._observe(), float(won), True, False, {"success": won}

    def _draw(self) -> None:
        raise NotImplementedError

    def _observe(self) -> dict[str, Any]:
        seen = np.zeros(self.dances + 1, np.float32)
        if self.steps < len(self.views):
            place, dance = self.views[self.steps]
            seen[dance] = 1
            return {"place": place, "seen": seen}
        seen[self.dances] = not self.over
        return {"place": self.asked, "seen": seen}


class PlainRoomBalletShortStay(PlainRoomBallet):
    """The rules of `envs.room_ballet` (after SAT, arXiv 2402.15160)."""

    def __init__(self, views: int = 40, dances: int = 8, side: int = 5) -> None:
        self.length, self.dances, self.side = views, dances, side
        self.observation_space = spaces.Dict(
            place=spaces.Discrete(side**2), seen=spaces.Box(0, 1, (dances + 1,), np.float32)
        )
        self.action_space = spaces.Discrete(dances)

    def _draw(self) -> None:
        rng, side = self.np_random, self.side
        row, column = rng.integers(side, size=2).tolist()
        dance: dict[int, int] = {}
        self.views = []
        for t in range(self.length):
            if t > 0:
                doors = []
                if row > 0:
                    doors.append((row - 1, column))
                if row < side - 1:
                    doors.append((row + 1, column))
                if column > 0:
                    doors.append((row, column - 1))
                if column < side - 1:
                    doors.append((row, column + 1))
                row, column = doors[int(rng.integers(len(doors)))]
            room = row * side + column
            if room not in dance:
                dance[room] = int(rng.integers(self.dances))
            self.views.append((room, dance[room]))
        self.asked = list(dance)[int(rng.integers(len(dance)))]


class PlainRoomBalletMultiTask(PlainRoomBallet):
    """The rules of `envs.room_ballet_tasks` (after SAT, arXiv 2402.15160). Part 0 is the room of the question."""

    def __init__(self, dances: int = 8, task: str = "all") -> None:
        self.dances, self.fixed = dances, task
        self.observation_space = spaces.Dict(
            place=spaces.Discrete(8), seen=spaces.Box(0, 1, (dances + 1,), np.float32), task=spaces.Discrete(4)
        )
        self.action_space = spaces.Discrete(dances)

    def _draw(self) -> None:
        rng = self.np_random
        self.task = int(rng.integers(4)) if self.fixed == "all" else TASKS.index(self.fixed)
        rooms = rng.permutation(8).tolist()
        parts = getattr(self, "_" + TASKS[self.task])()
        self.asked = rooms[0]
        dances = rng.integers(self.dances, size=VIEWS).tolist()
        self.views = [(rooms[part], dance) for part, dance in zip(parts, dances)]

    def _observe(self) -> dict[str, Any]:
        return {**super()._observe(), "task": self.task}

    def _fifo(self) -> list[int]:
        first = self.np_random.permutation([0, 0, 0, 1, 1, 2, 3, 4, 5]).tolist()
        last = ([0, 7, 1], [7, 0, 1], [7, 1, 0])[int(self.np_random.integers(3))]
        return [*first, 6, *last, 1, 1, 1, 1, 1]

    def _lifo(self) -> list[int]:
        first = self.np_random.permutation([0, 0, 0, 1, 1, 2, 3, 0]).tolist()
        return [*first, *self.np_random.permutation([1, 4, 5, 6, 7]).tolist(), 1, 1, 1, 1, 1]

    def _mvfo(self) -> list[int]:
        return self._in_the_middle(1)

    def _lvfo(self) -> list[int]:
        return self._in_the_middle(4 + int(self.np_random.integers(3)))

    def _in_the_middle(self, visits: int) -> list[int]:
        rng, count = self.np_random, VIEWS - visits
        others = [*range(1, 8), *range(1, 8)][:count]
        others += [1 + k for k in rng.integers(7, size=count - len(others)).tolist()]
        parts = [0] * (visits - 1) + rng.permutation(others).tolist()
        parts[:8] = rng.permutation(parts[:8]).tolist()
        parts.insert(8 + int(rng.integers(2)), 0)
        return parts
