"""The smallest family with a Dict observation: an item is shown once and must be named some steps later."""

from __future__ import annotations

from typing import Any, NamedTuple

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


@compiled
def move_pair(rules: Rules, state: State, i: int, action: np.ndarray) -> tuple[float, bool, bool]:
    answer = np.int64(ITEMS) if (action[1] == 0) & (state.steps[i] >= state.asked_at[i]) else action[0]
    return move(rules, state, i, answer)


@compiled
def kernel_pair(rules: Rules, state: State, io: IO, mode: int) -> int:
    return run_rows(begin, move_pair, observe, rules, state, io, mode)


@compiled
def move_push(rules: Rules, state: State, i: int, action: np.ndarray) -> tuple[float, bool, bool]:
    push = min(max(action[0], -1.0), 1.0) + 0.25 * min(max(action[1], -1.0), 1.0)
    return move(rules, state, i, np.int64(np.round(push)) + 1)


@compiled
def kernel_push(rules: Rules, state: State, io: IO, mode: int) -> int:
    return run_rows(begin, move_push, observe, rules, state, io, mode)


class Tiny(World):
    """Named items."""

    kernel = kernel
    observed = Observation
    actions: Any = spaces.Discrete(ITEMS)

    def __init__(self, limit: int = 10, render_mode: str | None = None) -> None:
        space = spaces.Dict({"seen": spaces.Box(0, 1, (2, ITEMS), np.uint8), "place": spaces.Discrete(PLACES)})
        super().__init__(Rules(limit), space, self.actions, render_mode)

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


class TinyPair(Tiny):
    """The item, and beside it a 1 without which the answer is wrong."""

    kernel = kernel_pair
    actions = spaces.MultiDiscrete([ITEMS, 2])

    def expert(self) -> np.ndarray:
        return np.stack([self.state.item, np.ones_like(self.state.item)], 1)


class TinyPush(Tiny):
    """The item as a number from -1 to 1, with a little on top; each is clipped to its bounds."""

    kernel = kernel_push
    actions = spaces.Box(-1, 1, (2,), np.float32)

    def expert(self) -> np.ndarray:
        return np.stack([self.state.item - 1, np.zeros_like(self.state.item)], 1).astype(np.float32)


class Masked(Tiny):
    """The item after the right one is forbidden."""

    def action_masks(self) -> np.ndarray:
        return np.arange(ITEMS) != (self.state.item[0] + 1) % ITEMS
