"""MiniGrid's player on a grid, as compiled code: how it moves and what it sees.

Families compile these functions into their kernels: after a change here, touch the families (see `envs.kernels`).

A state that these functions read has the fields `grid` [B, cells] uint8, `x`, `y` and `direction` [B] int64. A grid is
stored row by row with `PAD` cells of wall around it, so that a view never leaves it. A cell's byte is MiniGrid's object
index plus 16 times its colour index; none of the objects here has a state (doors would).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import compiled

VIEW = 7
"""Cells along a side of the view; the player is in the middle of its last row and looks along the first axis's rows."""
PAD = VIEW - 1
UNSEEN, EMPTY, WALL, KEY, BALL = 0, 1, 2 + 16 * 5, 5 + 16, 6 + 16
"""Cells: not in sight, floor, a grey wall, a green key, a green ball."""
LEFT, RIGHT, FORWARD = 0, 1, 2
"""Actions; 3 to 6 (pickup, drop, toggle, done) move nothing where nothing can be carried or opened."""
NUM_ACTIONS = 7
EAST, SOUTH, WEST, NORTH = range(4)
"""Directions."""


class Observation(NamedTuple):
    """What a player is shown, without MiniGrid's mission text."""

    image: np.ndarray
    """[B, 7, 7, 3] uint8"""
    direction: np.ndarray
    """[B] int64"""


def observation_space() -> spaces.Dict:
    """MiniGrid's, without the mission text."""
    image = spaces.Box(0, 255, (VIEW, VIEW, 3), np.uint8)
    return spaces.Dict({"image": image, "direction": spaces.Discrete(4)})


@compiled
def at(width: int, x: int, y: int) -> int:
    """Where the cell in column x, row y of a grid `width` cells wide is stored."""
    return (y + PAD) * (width + 2 * PAD) + x + PAD


@compiled
def walk(state: Any, i: int, width: int, action: int) -> None:
    """Turn, or go forward onto floor."""
    d = state.direction[i]
    if action == LEFT:
        state.direction[i] = (d + 3) & 3
    elif action == RIGHT:
        state.direction[i] = (d + 1) & 3
    elif action == FORWARD:
        x = state.x[i] + (d == EAST) - (d == WEST)
        y = state.y[i] + (d == SOUTH) - (d == NORTH)
        if state.grid[i, at(width, x, y)] == EMPTY:
            state.x[i] = x
            state.y[i] = y


@compiled
def look(state: Any, i: int, width: int, obs: Any, j: int) -> None:
    """Write the view of row i's player to entry j of `obs`, as MiniGrid's `gen_obs` encodes it.

    MiniGrid's `process_vis`, on seven bits per row of the view: from the player's row to the farthest, light runs
    along a row, first rightwards and then leftwards, from every lit cell that is clear into its neighbour, and out of
    the same cells, except the last in the direction of the run, into the next row, straight and diagonally.
    """
    d = state.direction[i]
    stride = width + 2 * PAD
    ahead = (d == EAST) - (d == WEST) + stride * ((d == SOUTH) - (d == NORTH))
    aside = (d == NORTH) - (d == SOUTH) + stride * ((d == EAST) - (d == WEST))
    first = at(width, state.x[i], state.y[i]) - (VIEW // 2) * aside
    obs.image[j] = UNSEEN
    lit = 1 << (VIEW // 2)
    row = VIEW - 1
    while lit and row >= 0:
        clear = 0
        for column in range(VIEW):
            clear |= (state.grid[i, np.uint64(first + column * aside)] != WALL) << column
        lit |= (clear + (lit & clear)) ^ clear  # the carry of the sum runs through the clear cells
        rightwards = lit & clear & 0b0111111
        pairs = clear & clear << 1  # a cell and the one to its left
        lit |= (lit & clear) >> 1
        lit |= (lit & pairs) >> 2
        lit |= (lit & pairs & pairs << 2) >> 4
        leftwards = lit & clear & 0b1111110
        for column in range(VIEW):
            if lit >> column & 1:
                cell = state.grid[i, np.uint64(first + column * aside)]
                obs.image[j, column, row, 0] = cell & 15
                obs.image[j, column, row, 1] = cell >> 4
        lit = (rightwards | rightwards << 1 | leftwards | leftwards >> 1) & 0b1111111
        first += ahead
        row -= 1
    obs.direction[j] = d


def towards(direction: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The action [B] int64 that turns `direction` towards `wanted`, or goes forward where they agree."""
    return np.array([FORWARD, RIGHT, RIGHT, LEFT])[(wanted - direction) % 4]
