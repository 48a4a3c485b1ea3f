"""MiniGrid's Memory environment (minigrid's `MemoryEnv`): an object seen in a room says which way to turn at the end."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from envs.arguments import check_bool, check_int
from envs.core import World
from envs.kernels import IO, compiled, draw, run_rows
from envs.minigrid_picture import MazePicture
from envs.minigrid_view import (
    BALL,
    EAST,
    EMPTY,
    FORWARD,
    KEY,
    LEFT,
    NORTH,
    NUM_ACTIONS,
    PAD,
    RIGHT,
    SOUTH,
    VIEW,
    WALL,
    WEST,
    Observation,
    at,
    look,
    observation_space,
    towards,
    walk,
)

REACH = VIEW
"""The easternmost column from which the cue, in column 1, can be seen."""


class Rules(NamedTuple):
    """What stays the same in all episodes."""

    limit: int
    size: int
    random_length: bool


class State(NamedTuple):
    """What changes, one entry per row. The cue lies at (1, size // 2 - 1)."""

    rng: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    """int64, column of the player"""
    y: np.ndarray
    """int64, its row, downwards"""
    direction: np.ndarray
    """int64, 0 east, 1 south, 2 west, 3 north"""
    end: np.ndarray
    """int64, column of the hallway's last cell; the next one is the junction's"""
    cue: np.ndarray
    """int64, 0 key, 1 ball"""
    upper: np.ndarray
    """int64, the object at the junction's northern end, 0 key, 1 ball; the other one is at its southern end"""
    seen: np.ndarray
    """bool, whether the cue has been in sight; only the expert reads it"""
    grid: np.ndarray
    """[B, cells] uint8, see `envs.minigrid_view`"""


@compiled
def cue_in_sight(state: State, i: int, middle: int) -> bool:
    """Whether row i's player sees the cue."""
    x, d = state.x[i], state.direction[i]
    if d == WEST:
        return x <= REACH
    if d == NORTH:
        return x <= 1 + VIEW // 2
    return x == 1 if d == EAST else state.y[i] < middle and x < REACH


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """A new maze, with the player somewhere between the room's western wall and the hallway's end."""
    size, middle = rules.size, rules.size // 2
    end = 4 + draw(state.rng, i, size - 6) if rules.random_length else size - 3
    state.end[i] = end
    state.x[i], state.y[i], state.direction[i] = 1 + draw(state.rng, i, end), middle, EAST
    state.cue[i] = draw(state.rng, i, 2)
    state.upper[i] = draw(state.rng, i, 2)
    state.seen[i] = cue_in_sight(state, i, middle)
    build(rules, state, i)


@compiled
def build(rules: Rules, state: State, i: int) -> None:
    """Lay out walls and objects as minigrid does, cells that nobody can reach included."""
    size, middle, end, grid = rules.size, rules.size // 2, state.end[i], state.grid
    for cell in range(grid.shape[1]):
        grid[i, cell] = WALL
    for y in range(1, size - 1):
        for x in range(1, size - 1):
            grid[i, at(size, x, y)] = EMPTY
    for x in range(1, 5):
        grid[i, at(size, x, middle - 2)] = WALL
        grid[i, at(size, x, middle + 2)] = WALL
    for x in range(4, end):
        grid[i, at(size, x, middle - 1)] = WALL
        grid[i, at(size, x, middle + 1)] = WALL
    for y in range(1, size - 1):
        if y != middle:
            grid[i, at(size, end, y)] = WALL
        grid[i, at(size, end + 2, y)] = WALL
    grid[i, at(size, 1, middle - 1)] = KEY + state.cue[i]
    grid[i, at(size, end + 1, middle - 2)] = KEY + state.upper[i]
    grid[i, at(size, end + 1, middle + 2)] = BALL - state.upper[i]


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """An episode ends one cell before either object."""
    middle = rules.size // 2
    walk(state, i, rules.size, action)
    state.seen[i] |= cue_in_sight(state, i, middle)
    if state.x[i] <= state.end[i] or state.y[i] == middle:
        return 0.0, False, False
    won = (state.y[i] < middle) == (state.cue[i] == state.upper[i])
    return 1.0 - 0.9 * ((state.steps[i] + 1) / rules.limit) if won else 0.0, True, won


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """What MiniGrid shows."""
    look(state, i, rules.size, obs, j)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """All rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)
