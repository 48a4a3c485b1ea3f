"""Pictures for TensorBoard, [H, W, 3] uint8 each: maps and bars drawn in milliseconds, and curves of success."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.agents.drawing import FAINT, FRAME, GROUND, LINE_COLOUR, MARKED, colour_table, coloured, stretch, write

WIDTH, MARGIN, TITLE, SCALE = 480, 12, 20, 64
"""Pixels of a picture's width, of its margin, of a title's height, and of what is right of a map. TensorBoard shows a
picture some 350 pixels wide."""
INNER = WIDTH - 2 * MARGIN - SCALE


class Map(NamedTuple):
    """Numbers as colours."""

    title: str
    values: np.ndarray
    """[R, C], NaN where there is none."""
    across: str
    """What the columns are."""
    marks: np.ndarray | None = None
    """[C] bool, columns to mark."""


class Bars(NamedTuple):
    """Numbers as bars."""

    title: str
    values: np.ndarray
    """[N]"""


def drawn(parts: Sequence[Map | Bars]) -> np.ndarray:
    """The parts under each other."""
    heights = [_height(part) for part in parts]
    image = Image.new("RGB", (WIDTH, MARGIN + sum(heights)), GROUND)
    pen, y = ImageDraw.Draw(image), MARGIN
    for part, height in zip(parts, heights):
        write(pen, MARGIN, y, part.title, 13)
        low, high = limits(part.values)
        body = height - 2 * TITLE - MARGIN
        if isinstance(part, Map):
            _map(image, pen, part, (low, high), y + TITLE, body)
        else:
            low, high = min(low, 0.0), max(high, 0.0)
            _bars(pen, part.values, (low, high), y + TITLE, body)
        write(pen, MARGIN + INNER + 24, y + TITLE - 2, f"{high:.3g}", 11)
        write(pen, MARGIN + INNER + 24, y + TITLE + body - 11, f"{low:.3g}", 11)
        y += height
    return np.asarray(image)


def limits(values: np.ndarray) -> tuple[float, float]:
    """What the first and the last colour stand for: symmetric about 0 where there is less than 0."""
    known = values[np.isfinite(values)]
    if not known.size:
        return 0.0, 1.0
    low, high = float(known.min()), float(known.max())
    if low < 0:
        return -max(-low, high), max(-low, high)
    return (0.0, high or 1.0) if low < 0.5 * high else (low, high if high > low else low + 1.0)


def _height(part: Map | Bars) -> int:
    body = 90 if isinstance(part, Bars) else int(np.clip(10 * len(part.values), 60, 240))
    return body + 2 * TITLE + MARGIN


def _map(
    image: Image.Image, pen: ImageDraw.ImageDraw, part: Map, span: tuple[float, float], y: int, height: int
) -> None:
    stretch(image, coloured(part.values, *span, FRAME), MARGIN, y, INNER, height)
    stretch(image, colour_table(span[0] < 0)[np.arange(255, -1, -1)[:, None]], MARGIN + INNER + 6, y, 12, height)
    pen.rectangle((MARGIN - 1, y - 1, MARGIN + INNER, y + height), outline=FRAME)
    columns = part.values.shape[1]
    write(pen, MARGIN, y + height + 4, f"{part.across}: {columns}", 11, FAINT)
    marked = np.flatnonzero(part.marks) if part.marks is not None else ()
    for column in marked:
        x = MARGIN + (column + 0.5) * INNER / columns
        pen.polygon([(x - 3, y - 6), (x + 3, y - 6), (x, y - 1)], fill=MARKED)
    if len(marked):
        write(pen, MARGIN + INNER, y + height + 4, "▼ an event is seen", 11, MARKED, "ra")


def _bars(pen: ImageDraw.ImageDraw, values: np.ndarray, span: tuple[float, float], y: int, height: int) -> None:
    (low, high), width = span, INNER / len(values)

    def level(value: float) -> float:
        return y + height * (high - value) / (high - low or 1.0)

    for i, value in enumerate(values):
        if math.isfinite(value):
            x, ends = MARGIN + i * width, sorted((level(0.0), level(float(value))))
            pen.rectangle((x, ends[0], x + max(width - 1 - (width > 4), 0), ends[1]), fill=LINE_COLOUR)
    pen.rectangle((MARGIN - 1, y - 1, MARGIN + INNER, y + height), outline=FRAME)
    write(pen, MARGIN, y + height + 4, f"by index, 0 to {len(values) - 1}", 11, FAINT)


def heads(weights: np.ndarray, marks: np.ndarray, steps: str, size: int = 106) -> np.ndarray:
    """A map [T, T] for each head of `weights` [N, T, T], in shares of the head's largest; four to a line.

    Args:
        weights: of the write of a step (column) in the read of another (row), 0 above the diagonal.
        marks: [T] bool, columns to mark.
        steps: what rows and columns are.
        size: pixels of a map.
    """
    N, T, _ = weights.shape
    lines = -(-N // 4)
    image = Image.new("RGB", (WIDTH, 2 * MARGIN + 2 * TITLE + lines * (size + TITLE + 8)), GROUND)
    pen = ImageDraw.Draw(image)
    write(pen, MARGIN, MARGIN, "What was written at a step (column), read at a later one (row)", 13)
    below = np.tri(T, dtype=bool)
    for i, head in enumerate(weights):
        x, y = MARGIN + i % 4 * (size + 8), MARGIN + 2 * TITLE + i // 4 * (size + TITLE + 8)
        most = float(np.abs(head).max()) or 1.0
        stretch(image, coloured(np.where(below, head / most, np.nan), -1.0, 1.0, FRAME), x, y, size, size)
        write(pen, x, y - 16, f"head {i + 1}, 1 = {most:.2g}", 11, FAINT)
        for column in np.flatnonzero(marks):
            middle = x + (column + 0.5) * size / T
            pen.polygon([(middle - 2, y - 4), (middle + 2, y - 4), (middle, y)], fill=MARKED)
    under = f"{steps}{'   ▼ an event is seen' if marks.any() else ''}"
    write(pen, MARGIN, image.height - TITLE, under, 11, FAINT)
    return np.asarray(image)


def curve(name: str, found: Sequence[tuple[int, Mapping[str, Any]]]) -> np.ndarray:
    """Success by kind of answer, of several evaluations: the last one in colour with its standard errors.

    Args:
        name: what the kinds are.
        found: (environment steps, kind -> success and success_se, `agents.evaluation.success.success_by`), in order.
    """
    height, y = 300, MARGIN + TITLE
    image = Image.new("RGB", (WIDTH, height), GROUND)
    pen, body = ImageDraw.Draw(image), height - y - 3 * TITLE
    labels = list(found[-1][1])
    left, width = MARGIN + 30, WIDTH - 2 * MARGIN - 30

    def at(i: int, success: float) -> tuple[float, float]:
        return left + (i + 0.5) * width / len(labels), y + body * (1 - success)

    write(pen, MARGIN, MARGIN - 4, f"right answers by {name.replace('_', ' ')}, step {found[-1][0]:,}", 13)
    for tick in (0.0, 0.5, 1.0):
        pen.line((left, at(0, tick)[1], left + width, at(0, tick)[1]), fill=FRAME)
        write(pen, left - 6, at(0, tick)[1], f"{tick:.1f}", 11, FAINT, "rm")
    for age, (_, kinds) in enumerate(reversed(found)):
        points = [at(i, kinds[label]["success"]) for i, label in enumerate(labels) if label in kinds]
        shade = min(150 + 20 * age, 235)
        colour = LINE_COLOUR if age == 0 else (shade, shade, shade)
        if len(points) > 1:
            pen.line(points, fill=colour, width=2 if age else 3)
        for x, level in points if age == 0 else ():
            pen.ellipse((x - 4, level - 4, x + 4, level + 4), fill=colour)
    for i, label in enumerate(labels):
        kind = found[-1][1][label]
        (x, low), (_, high) = (at(i, kind["success"] + sign * kind["success_se"]) for sign in (-1, 1))
        pen.line((x, low, x, high), fill=LINE_COLOUR, width=2)
        if len(labels) <= 24 or i % (len(labels) // 12) == 0:
            write(pen, x, y + body + 6, label, 11, FAINT, "ma")
    write(pen, MARGIN, height - TITLE - 2, "grey: earlier evaluations", 11, FAINT)
    return np.asarray(image)
