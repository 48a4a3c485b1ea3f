"""Pictures and text of a MiniGrid maze. What the player does not see is faded."""

from __future__ import annotations

from typing import Any

import numpy as np

from palimpsest.envs.minigrid_view import (
    BALL,
    EAST,
    EMPTY,
    KEY,
    NORTH,
    PAD,
    SOUTH,
    UNSEEN,
    WALL,
    WEST,
    Observation,
    look,
)
from palimpsest.envs.raster import AGENT, CUE, FLOOR, GOAL, Canvas, Colour, faded
from palimpsest.envs.raster import WALL as WALL_COLOUR

MOST_COLUMNS = 40
"""The most columns that a picture or a text shows."""
DARK: Colour = faded(FLOOR, WALL_COLOUR)
"""Floor out of sight."""
OTHER: Colour = (230, 171, 36)
"""Objects that are not the cue."""


def grid(state: Any, width: int) -> np.ndarray:
    """[height, width] uint8: the cells of the first row of the batch, without the padding of walls."""
    return state.grid[0].reshape(-1, width + 2 * PAD)[PAD:-PAD, PAD:-PAD]


def sight(state: Any, width: int, size: int) -> np.ndarray:
    """[height, width] bool: the cells that the player of the first row sees in a view of `size` × `size` cells."""
    view = Observation(np.zeros((1, size, size, 3), np.uint8), np.zeros(1, np.int64))
    look(state, 0, width, view, 0)
    x, y, d = (int(array[0]) for array in (state.x, state.y, state.direction))
    ahead = {EAST: (1, 0), SOUTH: (0, 1), WEST: (-1, 0), NORTH: (0, -1)}[d]
    aside = (-ahead[1], ahead[0])
    seen = np.zeros_like(grid(state, width), bool)
    for column, row in np.argwhere(view.image[0, ..., 0] != UNSEEN).tolist():
        forward, right = size - 1 - row, column - size // 2
        to_x, to_y = x + forward * ahead[0] + right * aside[0], y + forward * ahead[1] + right * aside[1]
        if 0 <= to_x < seen.shape[1] and 0 <= to_y < seen.shape[0]:
            seen[to_y, to_x] = True
    return seen


def paint(state: Any, width: int, size: int, cue: tuple[int, int], goal: tuple[int, int]) -> np.ndarray:
    """The first row of the batch as [H, W, 3] uint8.

    Args:
        state: the batch's state.
        width: number of columns of the grid.
        size: cells along a side of the view.
        cue: (x, y) of the cue, which is blue; other objects are yellow.
        goal: (x, y) of the cell to go to, which is green.
    """
    cells, seen = grid(state, width), sight(state, width, size)
    columns = _columns(state, width)
    canvas = Canvas(len(cells), len(columns))
    ground = np.where(seen[..., None], FLOOR, DARK)
    ground[~_inside(state, cells)] = WALL_COLOUR
    ground[goal[::-1]] = GOAL if seen[goal[::-1]] else faded(GOAL, DARK)
    canvas.pixels[:] = ground[:, columns].repeat(canvas.cell, 0).repeat(canvas.cell, 1)
    canvas.pixels[:: canvas.cell] = canvas.pixels[:, :: canvas.cell] = WALL_COLOUR
    for y, x in np.argwhere((cells == KEY) | (cells == BALL)).tolist():
        if x in columns:
            colour = CUE if (x, y) == cue else OTHER
            colour, under = (colour, FLOOR) if seen[y, x] else (faded(colour, DARK), DARK)
            _object(canvas, y, x - columns[0], cells[y, x] == BALL, colour, under)
    pointing = ("right", "down", "left", "up")[state.direction[0]]
    canvas.arrow(state.y[0], state.x[0] - columns[0], pointing, AGENT, size=0.36)
    return canvas.pixels


def spell(state: Any, width: int, size: int) -> str:
    """The first row of the batch in characters, `size` as for `paint`: `#` wall, `.` floor, `K` key, `B` ball.

    Out of sight, floor is blank and the letters are small.
    """
    cells, seen = grid(state, width), sight(state, width, size)
    columns = _columns(state, width)
    inside = _inside(state, cells)
    lines = []
    for y, row in enumerate(cells):
        line = "".join(_letter(row[x], seen[y, x]) if inside[y, x] else "#" for x in columns)
        if y == state.y[0]:
            here = int(state.x[0]) - columns[0]
            line = line[:here] + ">v<^"[state.direction[0]] + line[here + 1 :]
        lines.append(line)
    return "\n".join(lines)


def _inside(state: Any, cells: np.ndarray) -> np.ndarray:
    """[height, width] bool: the open cells that are connected to the player's cell."""
    inside = np.zeros_like(cells, bool)
    inside[state.y[0], state.x[0]] = True
    while True:
        wider = inside.copy()
        wider[1:] |= inside[:-1]
        wider[:-1] |= inside[1:]
        wider[:, 1:] |= inside[:, :-1]
        wider[:, :-1] |= inside[:, 1:]
        wider &= cells != WALL
        if (wider == inside).all():
            return inside
        inside = wider


def _columns(state: Any, width: int) -> range:
    shown = min(width, MOST_COLUMNS)
    first = min(max(0, int(state.x[0]) - MOST_COLUMNS // 2), width - shown)
    return range(first, first + shown)


def _letter(cell: int, seen: bool) -> str:
    letter = {EMPTY: ".", KEY: "K", BALL: "B"}[int(cell)]
    return letter if seen else letter.lower().replace(".", " ")


def _object(canvas: Canvas, row: int, column: int, ball: bool, colour: Colour, ground: Colour) -> None:
    if ball:
        canvas.disc(row, column, colour)
        return
    canvas.disc(row - 0.18, column, colour, radius=0.2)
    canvas.disc(row - 0.18, column, ground, radius=0.09)
    canvas.box(row + 0.42, column + 0.44, colour, height=0.44, width=0.12, margin=0)
    canvas.box(row + 0.56, column + 0.5, colour, height=0.1, width=0.2, margin=0)
    canvas.box(row + 0.74, column + 0.5, colour, height=0.1, width=0.2, margin=0)
