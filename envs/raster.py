"""Pictures of grids: cells, discs, arrows and small capital letters on a numpy canvas."""

from __future__ import annotations

import numpy as np

Colour = tuple[int, int, int]

WALL: Colour = (58, 62, 74)
FLOOR: Colour = (236, 236, 230)
INK: Colour = (250, 250, 250)
AGENT: Colour = (214, 64, 52)
CUE: Colour = (36, 105, 190)
GOAL: Colour = (44, 148, 84)
PALETTE: tuple[Colour, ...] = (
    (214, 64, 52),
    (36, 105, 190),
    (44, 148, 84),
    (230, 171, 36),
    (132, 78, 170),
    (226, 120, 38),
    (60, 170, 180),
    (206, 90, 150),
    (120, 86, 60),
    (120, 128, 140),
)
"""Colours for objects that differ only in colour."""

# Each glyph is three pixels wide and five pixels high. One octal digit encodes one line.
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ/-?:+.=<> "
_LINES = (
    "7555726227717477171755711747177475771111757577571725755656563444365556746477464434553557557222711152556554444757755"
    "6555525552656442557365655342167222255557555525577555255552227124711244007006120202020027200000207070124214212400000"
)
_GLYPHS = {letter: _LINES[5 * k : 5 * k + 5] for k, letter in enumerate(_LETTERS)}


def faded(colour: Colour, ground: Colour = FLOOR) -> Colour:
    """The faded form of `colour`, for what the player cannot see."""
    return tuple(round(0.3 * c + 0.7 * g) for c, g in zip(colour, ground))  # type: ignore[return-value]


class Canvas:
    """A picture of `height` × `width` cells. Positions are (row, column) in cells and may be fractions.

    Args:
        height: number of cells from top to bottom.
        width: number of cells from left to right.
        cell: pixels along the side of a cell.
        ground: background colour.
    """

    def __init__(self, height: int, width: int, cell: int = 24, ground: Colour = WALL) -> None:
        self.cell = cell
        self.pixels = np.empty((height * cell, width * cell, 3), np.uint8)
        self.pixels[:] = ground
        self._y = (np.arange(height * cell)[:, None] + 0.5) / cell
        self._x = (np.arange(width * cell)[None, :] + 0.5) / cell

    def box(
        self, row: float, column: float, colour: Colour, height: float = 1, width: float = 1, margin: float = 0.04
    ) -> None:
        """A box with its upper left cell at (row, column)."""
        inside_y = (self._y >= row + margin) & (self._y < row + height - margin)
        self.pixels[inside_y & (self._x >= column + margin) & (self._x < column + width - margin)] = colour

    def disc(self, row: float, column: float, colour: Colour, radius: float = 0.32) -> None:
        """A disc in the middle of a cell; `radius` in cells."""
        self.pixels[(self._y - row - 0.5) ** 2 + (self._x - column - 0.5) ** 2 < radius**2] = colour

    def arrow(self, row: float, column: float, towards: str, colour: Colour, size: float = 0.32) -> None:
        """A triangle in the middle of a cell. It points "up", "down", "left" or "right"."""
        y, x = self._y - row - 0.5, self._x - column - 0.5
        along, across = {"up": (-y, x), "down": (y, x), "left": (-x, y), "right": (x, y)}[towards]
        self.pixels[(along > -size) & (2 * np.abs(across) < size - along)] = colour

    def label(self, row: float, column: float, text: str, colour: Colour = INK) -> None:
        """`text` in capitals from (row, column) to the right, one cell high with margins. The edge cuts it off."""
        scale = max(1, self.cell // 8)
        top, left = round(row * self.cell) + (self.cell - 5 * scale) // 2, round(column * self.cell) + scale
        for glyph in (_GLYPHS.get(letter, _GLYPHS["?"]) for letter in text.upper()):
            lines = np.array([[int(line) >> bit & 1 for bit in (2, 1, 0)] for line in glyph], bool)
            large = lines.repeat(scale, 0).repeat(scale, 1)
            area = self.pixels[top : top + 5 * scale, left : left + 3 * scale]
            area[large[: area.shape[0], : area.shape[1]]] = colour
            left += 4 * scale
