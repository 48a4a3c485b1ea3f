"""MiniGrid's player on a grid, as compiled code: how it moves and what it sees.

Families compile these functions into their kernels.

The functions read these fields of a state: `grid` [B, cells] uint8, `x`, `y` and `direction` [B] int64. A grid is
stored line by line, with `PAD` cells of wall around it, so that a view never leaves the array. The byte of a cell is
MiniGrid's object index plus 16 times its colour index. No object here has a state (a door would have one).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import compiled

VIEW = 7
"""Cells along a side of the view. `image[i, j]` is i from left to right and j from far to near; the player is at
`image[VIEW // 2, VIEW - 1]`."""
PAD = VIEW - 1
UNSEEN, EMPTY, WALL, KEY, BALL = 0, 1, 2 + 16 * 5, 5 + 16, 6 + 16
"""Cells: not in sight, floor, grey wall, green key, green ball."""
LEFT, RIGHT, FORWARD = 0, 1, 2
"""Actions. 3 to 6 (pickup, drop, toggle, done) do nothing, because nothing can be carried or opened."""
NUM_ACTIONS = 7
EAST, SOUTH, WEST, NORTH = range(4)
"""Directions."""


class Observation(NamedTuple):
    """A player's observation, without MiniGrid's mission text."""

    image: np.ndarray
    """[B, 7, 7, 3] uint8"""
    direction: np.ndarray
    """[B] int64"""


def observation_space() -> spaces.Dict:
    """MiniGrid's observation space, without the mission text."""
    image = spaces.Box(0, 255, (VIEW, VIEW, 3), np.uint8)
    return spaces.Dict({"image": image, "direction": spaces.Discrete(4)})


@compiled
def at(width: int, x: int, y: int) -> int:
    """The index of cell (x, y) in the stored grid; the grid is `width` cells wide."""
    return (y + PAD) * (width + 2 * PAD) + x + PAD


@compiled
def walk(state: Any, i: int, width: int, action: int) -> None:
    """Turn, or go forward if there is floor."""
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
    """Write the view of the player in row i to entry j of `obs`, encoded like MiniGrid's `gen_obs`.

    This is MiniGrid's `process_vis` with seven bits per line of the view. It goes from the player's line to the
    farthest. In a line, light spreads from every clear lit cell to its neighbour, first to the right and then to the
    left. From the same cells it reaches the next line, straight ahead and diagonally; the last cell in the direction of
    spreading is left out.
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
        lit |= (clear + (lit & clear)) ^ clear  # the carry of the sum spreads through the clear cells
        rightwards = lit & clear & 0b0111111
        pairs = clear & clear << 1  # a cell and its left neighbour are both clear
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
    """The action [B] int64 that turns `direction` towards `wanted`, or goes forward if they are equal."""
    return np.array([FORWARD, RIGHT, RIGHT, LEFT])[(wanted - direction) % 4]
