"""Draw the moments of an episode as frames: the world, the memory beside it, the actions and the value under them.

Every frame is drawn by numpy and Pillow on a copy of one background. Colours are matplotlib's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from palimpsest.agents.drawing import (
    FAINT,
    FRAME,
    GROUND,
    LINE_COLOUR,
    MARKED,
    colour_table,
    coloured,
    stretch,
    write,
)
from palimpsest.agents.watch.player import Moment
from palimpsest.memory.base import Panel

WIDTH, MARGIN, HEAD = 1040, 12, 34
LEFT = 384
"""Pixels of the world's column."""
NAMES, SCALE = 118, 52
"""Pixels for names to the left of a panel and for its colours to the right."""
COLUMNS = 50
"""Steps that a panel shows."""
CELL = (WIDTH - 4 * MARGIN - LEFT - NAMES - SCALE) // COLUMNS
TITLE, LINE = 18, 17
"""Pixels of a title and of a line of text."""
UNDER = 150
"""Pixels of the part under world and memory."""
MOST_BARS = 7

EMPTY, OTHER = (244, 244, 244), (150, 170, 200)


class Box(NamedTuple):
    """A rectangle in pixels."""

    x: int
    y: int
    width: int
    height: int


class Track:
    """What one panel has shown in this episode.

    Args:
        panel: its first state.
    """

    def __init__(self, panel: Panel) -> None:
        self.panel = panel
        self.low, self.high = panel.span or (0.0, 0.0)
        self.image = self._blank(panel)

    def _blank(self, panel: Panel) -> np.ndarray:
        values = panel.values.numpy()
        return values if values.ndim == 2 else np.full((len(values), COLUMNS), np.nan, np.float32)

    def add(self, panel: Panel, step: int) -> None:
        """Take the panel of the next step; at step 0 an episode begins."""
        values = panel.values.numpy()
        if step == 0:
            self.image = self._blank(panel)
        if panel.span is None and np.isfinite(values).any():
            self.low = min(self.low, float(np.nanmin(values)))
            self.high = max(self.high, float(np.nanmax(values)))
        if values.ndim == 2:
            self.image = values
            return
        if step >= COLUMNS:
            self.image = np.roll(self.image, -1, axis=1)
        self.image[:, min(step, COLUMNS - 1)] = values

    @property
    def limits(self) -> tuple[float, float]:
        """What the first and the last colour stand for."""
        if self.panel.span is None and self.low < 0:
            most = max(-self.low, self.high)
            return -most, most
        return self.low, self.high if self.high > self.low else self.low + 1

    def pixels(self) -> np.ndarray:
        """The colours [N, columns, 3] uint8."""
        return coloured(self.image, *self.limits, EMPTY if self.panel.values.ndim == 1 else FRAME)


class Frames:
    """Draws frames of one size.

    Args:
        first: the first moment; all others have its panels.
        title: the headline.
        note: a line in the world's place where the environment does not render.
    """

    def __init__(self, first: Moment, title: str, note: str = "This environment does not render.") -> None:
        self.title, self.note = title, note
        self.tracks = [Track(panel) for panel in first.panels]
        panel = 112 if len(first.panels) <= 4 else 96
        body = max(panel * len(first.panels), 300)
        self.height = HEAD + body + UNDER + MARGIN
        self.height += self.height % 2  # video formats want even sizes
        x = 2 * MARGIN + LEFT
        self.boxes = [
            Box(x + NAMES, HEAD + i * panel + TITLE, COLUMNS * CELL, panel - TITLE - 10)
            for i in range(len(self.tracks))
        ]
        self.world = Box(MARGIN, HEAD, LEFT, body - 4 * LINE - 14)
        self.under = Box(MARGIN, HEAD + body + 6, LEFT, UNDER - 6)
        self.values = Box(x + NAMES, self.under.y + TITLE, COLUMNS * CELL, UNDER - TITLE - 38)
        self.history: list[float] = []
        self.events: list[int] = []
        self.background = self._background()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels; both are even."""
        return WIDTH, self.height

    def draw(self, moment: Moment) -> np.ndarray:
        """The frame of the next moment, [height, width, 3] uint8."""
        image = self.background.copy()
        pen = ImageDraw.Draw(image)
        write(pen, WIDTH - MARGIN, 8, f"episode {moment.episode}, step {moment.step}", 14, anchor="ra")
        self._world(image, pen, moment)
        for track, panel, box in zip(self.tracks, moment.panels, self.boxes):
            track.add(panel, moment.step)
            low, high = track.limits
            stretch(image, track.pixels(), *box)
            stretch(image, colour_table(low < 0)[np.arange(255, -1, -1)[:, None]], *_scale(box))
            write(pen, box.x + box.width + 22, box.y - 2, f"{high:.3g}", 11)
            write(pen, box.x + box.width + 22, box.y + box.height - 11, f"{low:.3g}", 11)
        self._actions(pen, moment)
        self._values(pen, moment)
        self._events(pen, moment.step)
        return np.asarray(image)

    def _background(self) -> Image.Image:
        image = Image.new("RGB", self.size, GROUND)
        pen = ImageDraw.Draw(image)
        write(pen, MARGIN, 7, self.title, 15)
        for track, box in zip(self.tracks, self.boxes):
            over_time = track.panel.values.ndim == 1
            write(pen, box.x, box.y - TITLE + 1, track.panel.title + ("" if over_time else ", at this step"), 13)
            _frame(pen, box)
            self._row_names(pen, track.panel, box)
            _frame(pen, _scale(box))
        write(pen, self.values.x, self.under.y + 1, "value: what the critic expects from here on", 13)
        _frame(pen, self.values)
        return image

    @staticmethod
    def _row_names(pen: ImageDraw.ImageDraw, panel: Panel, box: Box) -> None:
        """Names of as many rows as have room, evenly spread from the first to the last."""
        rows = len(panel.values)
        if not panel.names:
            if panel.values.ndim == 1 and rows > 1:
                write(pen, box.x - 6, box.y + box.height // 2 - 7, f"{rows} numbers", 11, FAINT, "ra")
            return
        room = max(2, int(box.height / 10.5))
        for row in range(rows) if rows <= room else np.linspace(0, rows - 1, room).round().astype(int).tolist():
            middle = box.y + (row + 0.5) * box.height / rows
            write(pen, box.x - 6, round(middle), panel.names[row], 10, FAINT, "rm")

    def _world(self, image: Image.Image, pen: ImageDraw.ImageDraw, moment: Moment) -> None:
        box = self.world
        if isinstance(moment.world, np.ndarray):
            _fit(image, moment.world, box)
        else:
            write(pen, box.x + box.width // 2, box.y + box.height // 2, self.note, 13, FAINT, "mm")
        y = box.y + box.height + 10
        names = [name for name, taken in zip(moment.scores.names, moment.scores.chosen) if taken]
        action = ", ".join(names) or " ".join(f"{number:.3g}" for number in np.ravel(moment.action))
        end = f"   the episode ends{'' if moment.end == 'end' else f': {moment.end}'}" if moment.end else ""
        write(pen, box.x, y, f"action    {action}", 14)
        write(pen, box.x, y + LINE + 2, f"reward   {moment.reward:+.3g}", 14)
        write(pen, box.x, y + 2 * LINE + 4, f"return    {moment.total:+.3g}{end}", 14)

    def _actions(self, pen: ImageDraw.ImageDraw, moment: Moment) -> None:
        """A bar per choice, from 0: the largest ones and what was taken where there are many."""
        scores, box = moment.scores, self.under
        write(pen, box.x, box.y + 1, scores.title, 13)
        order = np.arange(len(scores.values))
        if len(order) > MOST_BARS:
            best = np.argsort(-np.abs(scores.values) - 1e9 * scores.chosen)[:MOST_BARS]
            order = np.sort(best)
        bars = Box(box.x + 96, box.y + TITLE + 2, box.width - 96 - 56, LINE)
        lowest, highest = min(0.0, float(scores.values.min())), max(1.0, float(scores.values.max()))
        zero = bars.x + round(bars.width * -lowest / (highest - lowest))
        for line, i in enumerate(order):
            y, value = bars.y + line * LINE, float(scores.values[i])
            end = bars.x + round(bars.width * (value - lowest) / (highest - lowest))
            colour = MARKED if scores.chosen[i] else OTHER
            pen.rectangle((min(zero, end), y + 2, max(zero, end), y + LINE - 3), fill=colour)
            write(pen, bars.x - 6, y + LINE // 2, scores.names[i][:13], 12, anchor="rm")
            write(pen, bars.x + bars.width + 6, y + LINE // 2, f"{value:.2f}", 12, anchor="lm")

    def _values(self, pen: ImageDraw.ImageDraw, moment: Moment) -> None:
        """The value over the same steps as the panels, and the steps' numbers."""
        if moment.step == 0:
            self.history, self.events = [], []
        self.history.append(moment.value)
        if moment.event:
            self.events.append(moment.step)
        shown, box = self.history[-COLUMNS:], self.values
        first = moment.step + 1 - len(shown)
        low, high = min(0.0, *self.history), max(0.0, *self.history)
        high = high if high > low else low + 1
        points = [
            (box.x + (i + 0.5) * CELL, box.y + 4 + (box.height - 8) * (high - value) / (high - low))
            for i, value in enumerate(shown)
        ]
        zero = box.y + 4 + (box.height - 8) * high / (high - low)
        pen.line((box.x, zero, box.x + box.width, zero), fill=FRAME)
        if len(points) > 1:
            pen.line(points, fill=LINE_COLOUR, width=2)
        x, y = points[-1]
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=MARKED)
        write(pen, box.x + box.width + 6, box.y - 2, f"{high:.3g}", 11)
        write(pen, box.x + box.width + 6, box.y + box.height - 11, f"{low:.3g}", 11)
        write(pen, box.x - 6, box.y + box.height // 2, f"now {moment.value:.3g}", 12, anchor="rm")
        for column in range(COLUMNS):
            if (first + column) % 5 == 0:
                write(
                    pen,
                    box.x + round((column + 0.5) * CELL),
                    box.y + box.height + 4,
                    f"{first + column}",
                    11,
                    FAINT,
                    "ma",
                )
        write(pen, box.x - 6, box.y + box.height + 4, "step", 11, FAINT, "ra")

    def _events(self, pen: ImageDraw.ImageDraw, step: int) -> None:
        """Mark the steps that showed an event, under every panel that goes over time."""
        over_time = [box for track, box in zip(self.tracks, self.boxes) if track.panel.values.ndim == 1]
        first = max(0, step + 1 - COLUMNS)
        if self.events:
            write(pen, self.values.x + self.values.width, self.under.y + 2, "▲ an event is seen", 11, MARKED, "ra")
        for event in self.events:
            x = over_time[0].x + round((event - first + 0.5) * CELL)
            for box in over_time if event >= first else ():
                y = box.y + box.height + 2
                pen.polygon([(x - 3, y + 5), (x + 3, y + 5), (x, y)], fill=MARKED)


def _frame(pen: ImageDraw.ImageDraw, box: Box) -> None:
    pen.rectangle((box.x - 1, box.y - 1, box.x + box.width, box.y + box.height), outline=FRAME)


def _scale(box: Box) -> Box:
    """Where the colours of a panel are explained."""
    return Box(box.x + box.width + 6, box.y, 12, box.height)


def _fit(image: Image.Image, pixels: np.ndarray, box: Box) -> None:
    """Put a picture into the middle of a box, as large as fits; small ones grow by whole factors."""
    height, width = pixels.shape[:2]
    factor = min(box.width / width, box.height / height)
    factor = math.floor(factor) if factor >= 1 else factor
    size = max(1, round(width * factor)), max(1, round(height * factor))
    way = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, way)
    image.paste(picture, (box.x + (box.width - size[0]) // 2, box.y + (box.height - size[1]) // 2))
