"""The look of Ballet: the dances, the shapes and colours of dancers, and the view of 99 × 99 pixels."""

from __future__ import annotations

import numpy as np

from palimpsest.envs.kernels import compiled
from palimpsest.envs.raster import PALETTE, Colour

ROOM = 11
"""Cells along a side of the room, walls included; also squares along a side of the view."""
SQUARE = 9
"""Pixels along a side of a square."""
MOVES = 16
"""Steps of a dance."""
LOOKS = 8
"""Number of shapes, and of colours."""

DX = np.array([0, 1, 1, 1, 0, -1, -1, -1])
DY = np.array([-1, -1, 0, 1, 1, 1, 0, -1])
"""The eight directions clockwise from north; x grows to the east and y to the south."""

_FIGURES = (
    ("circle", "01234567"),
    ("circle back", "07654321"),
    ("slow circle", "0011223344556677"),
    ("slow circle back", "0077665544332211"),
    ("star", "03614725"),
    ("star back", "05274163"),
    ("diamond", "0246"),
    ("diamond back", "0642"),
    ("square", "1357"),
    ("square back", "1753"),
    ("up and down", "04"),
    ("left and right", "62"),
    ("rising diagonal", "15"),
    ("falling diagonal", "73"),
    ("plus", "0462"),
    ("times", "1573"),
)
DANCE_NAMES = tuple(name for name, _ in _FIGURES)
DANCES = np.array([[int(figure[m % len(figure)]) for m in range(MOVES)] for _, figure in _FIGURES])
"""[16 dances, 16 moves] int64: after each move, the direction from the centre of the place to the dancer.

A figure is repeated until it has sixteen moves. Any two dances differ in eight moves or more.
"""

_Y, _X = np.mgrid[-4:5, -4:5]
_SHAPES = (
    ("disc", _X**2 + _Y**2 <= 16),
    ("ring", (_X**2 + _Y**2 <= 17) & (_X**2 + _Y**2 >= 8)),
    ("square", np.maximum(abs(_X), abs(_Y)) <= 3),
    ("frame", (np.maximum(abs(_X), abs(_Y)) <= 4) & (np.maximum(abs(_X), abs(_Y)) >= 3)),
    ("diamond", abs(_X) + abs(_Y) <= 4),
    ("plus", (abs(_X) <= 1) | (abs(_Y) <= 1)),
    ("times", abs(abs(_X) - abs(_Y)) <= 1),
    ("triangle", 2 * abs(_X) <= _Y + 4),
    ("the player", (abs(_X) <= abs(_Y)) & (abs(_Y) <= 4)),
)
SHAPES = np.array([shape for _, shape in _SHAPES])
"""[9, 9, 9] bool: the eight shapes of dancers, then that of the player."""
WHITE: Colour = (255, 255, 255)
GREY: Colour = (120, 124, 134)
COLOURS = np.array([*PALETTE[:LOOKS], WHITE], np.uint8)
"""[9, 3] uint8: the eight colours of dancers, then that of the player."""
_WALL = np.array(GREY, np.uint8)


@compiled
def paint_wall(view: np.ndarray, j: int, row: int, column: int) -> None:
    """Paint a wall in square (row, column) of a view [B, 99, 99, 3]. A square outside the view is skipped."""
    if 0 <= row < ROOM and 0 <= column < ROOM:
        for y in range(row * SQUARE, (row + 1) * SQUARE):
            for x in range(column * SQUARE, (column + 1) * SQUARE):
                for c in range(3):
                    view[j, y, x, c] = _WALL[c]


@compiled
def paint_figure(view: np.ndarray, j: int, row: int, column: int, shape: int, colour: int) -> None:
    """Paint a dancer or the player in square (row, column). A square outside the view is skipped."""
    if 0 <= row < ROOM and 0 <= column < ROOM:
        for y in range(SQUARE):
            for x in range(SQUARE):
                if SHAPES[shape, y, x]:
                    for c in range(3):
                        view[j, row * SQUARE + y, column * SQUARE + x, c] = COLOURS[colour, c]


@compiled
def paint_room(view: np.ndarray, j: int, x: int, y: int) -> None:
    """Paint a black floor, the walls, and the player in the middle of the view; it is at (x, y) in the room."""
    view[j] = 0
    left, top = ROOM // 2 - x, ROOM // 2 - y
    for k in range(ROOM):
        paint_wall(view, j, top, left + k)
        paint_wall(view, j, top + ROOM - 1, left + k)
        paint_wall(view, j, top + k, left)
        paint_wall(view, j, top + k, left + ROOM - 1)
    paint_figure(view, j, ROOM // 2, ROOM // 2, LOOKS, LOOKS)


def somebody_off_centre(view: np.ndarray) -> np.ndarray:
    """[...] bool: whether a dancer is off the centre of its place, in views [..., 99, 99, 3] from the room's middle."""
    inside = view[..., SQUARE:-SQUARE, SQUARE:-SQUARE, :]
    cells = inside.reshape(*view.shape[:-3], ROOM - 2, SQUARE, ROOM - 2, SQUARE * 3).any((-1, -3))
    centre = np.arange(ROOM - 2) % 3 == 1
    return (cells & ~(centre[:, None] & centre)).any((-1, -2))
