"""The smallest family with a Dict observation: an item is shown once and must be named some steps later."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, compiled, draw, run_rows

ITEMS, PLACES = 3, 4


class Rules(NamedTuple):
    limit: int


class State(NamedTuple):
    rng: np.ndarray
    steps: np.ndarray
    item: np.ndarray
    asked_at: np.ndarray


class Observation(NamedTuple):
    seen: np.ndarray
    place: np.ndarray


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    state.item[i] = draw(state.rng, i, ITEMS)
    state.asked_at[i] = 3 + draw(state.rng, i, 7)


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    right = action == state.item[i]
    if state.steps[i] < state.asked_at[i]:
        return 0.0, False, False
    return 1.0 if right else 0.0, True, right


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    for item in range(ITEMS):
        obs.seen[j, 0, item] = state.steps[i] == 0 and state.item[i] == item
        obs.seen[j, 1, item] = state.steps[i] == state.asked_at[i]
    obs.place[j] = state.steps[i] % PLACES


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    return run_rows(begin, move, observe, rules, state, io, mode)


class Tiny(World):
    """Named items."""

    kernel = kernel
    observed = Observation

    def __init__(self, limit: int = 10, render_mode: str | None = None) -> None:
        space = spaces.Dict({"seen": spaces.Box(0, 1, (2, ITEMS), np.uint8), "place": spaces.Discrete(PLACES)})
        super().__init__(Rules(limit), space, ITEMS, render_mode)

    def new_state(self, rows: int) -> State:
        return State(np.zeros(rows, np.uint64), *(np.zeros(rows, np.int64) for _ in range(3)))

    def expert(self) -> np.ndarray:
        return self.state.item.copy()

    def memory_horizons(self) -> tuple[int, ...]:
        return tuple(range(4, 11))

    def chance_level(self) -> float:
        return 1 / ITEMS

    def event_mask(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        return obs["seen"][..., 0, :].any(-1)

    def picture(self) -> np.ndarray:
        return np.full((4, 4, 3), self.state.steps[0], np.uint8)

    def text(self) -> str:
        return f"step {self.state.steps[0]}"


class Masked(Tiny):
    """The item after the right one is forbidden."""

    def action_masks(self) -> np.ndarray:
        return np.arange(ITEMS) != (self.state.item[0] + 1) % ITEMS
