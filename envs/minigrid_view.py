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
from palimpsest.refusals import is_integer, refuse

VIEW = 7
"""Cells along a side of the largest view. In a view of v × v cells, `image[i, j]` is i from left to right and j from
far to near; the player is at `image[v // 2, v - 1]`."""
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
    """[B, v, v, 3] uint8"""
    direction: np.ndarray
    """[B] int64"""


def check_view_size(view_size: int) -> int:
    """The argument `view_size` of a family; ValueError if it is not 3, 5 or 7."""
    if not is_integer(view_size, 3, VIEW) or view_size % 2 == 0:
        refuse("view_size", "3, 5 or 7, the cells along a side of the view", view_size)
    return int(view_size)


def observation_space(view_size: int) -> spaces.Dict:
    """MiniGrid's observation space, without the mission text."""
    image = spaces.Box(0, 255, (view_size, view_size, 3), np.uint8)
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
def shine(state: Any, i: int, width: int, obs: Any, j: int, view: int) -> None:
    """Write a view of `view` × `view` cells.

    This is MiniGrid's `process_vis` with one bit per cell of a line of the view. It goes from the player's line to the
    farthest. In a line, light spreads from every clear lit cell to its neighbour, first to the right and then to the
    left. From the same cells it reaches the next line, straight ahead and diagonally; the last cell in the direction of
    spreading is left out.
    """
    line = (1 << view) - 1
    d = state.direction[i]
    stride = width + 2 * PAD
    ahead = (d == EAST) - (d == WEST) + stride * ((d == SOUTH) - (d == NORTH))
    aside = (d == NORTH) - (d == SOUTH) + stride * ((d == EAST) - (d == WEST))
    first = at(width, state.x[i], state.y[i]) - (view // 2) * aside
    obs.image[j] = UNSEEN
    lit = 1 << (view // 2)
    row = view - 1
    while lit and row >= 0:
        clear = 0
        for column in range(view):
            clear |= (state.grid[i, np.uint64(first + column * aside)] != WALL) << column
        lit |= (clear + (lit & clear)) ^ clear  # the carry of the sum spreads through the clear cells
        rightwards = lit & clear & line >> 1
        pairs = clear & clear << 1  # a cell and its left neighbour are both clear
        lit |= (lit & clear) >> 1
        lit |= (lit & pairs) >> 2
        lit |= (lit & pairs & pairs << 2) >> 4
        leftwards = lit & clear & ~1
        for column in range(view):
            if lit >> column & 1:
                cell = state.grid[i, np.uint64(first + column * aside)]
                obs.image[j, column, row, 0] = cell & 15
                obs.image[j, column, row, 1] = cell >> 4
        lit = (rightwards | rightwards << 1 | leftwards | leftwards >> 1) & line
        first += ahead
        row -= 1
    obs.direction[j] = d


@compiled
def look(state: Any, i: int, width: int, obs: Any, j: int) -> None:
    """Write the view of the player in row i to entry j of `obs`, encoded like MiniGrid's `gen_obs`.

    The size of the view, 3, 5 or 7, is that of `obs`.
    """
    if obs.image.shape[1] == VIEW:
        shine(state, i, width, obs, j, VIEW)  # a constant: its loops unroll, which makes a step twice as fast
    else:
        shine(state, i, width, obs, j, obs.image.shape[1])


def towards(direction: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The action [B] int64 that turns `direction` towards `wanted`, or goes forward if they are equal."""
    return np.array([FORWARD, RIGHT, RIGHT, LEFT])[(wanted - direction) % 4]


def choose_side(direction: np.ndarray, side: np.ndarray, view_size: int) -> np.ndarray:
    """The action [B] int64 at a junction with an object two cells to either side, to go to that on `side` [B].

    A view of 5 or 7 cells shows both objects from the side. In a view of 3 cells the player must look at one: it turns
    left until the right one is ahead.
    """
    return towards(direction, side) if view_size > 3 else np.where(direction == side, FORWARD, LEFT)
