"""Text and colours of small pictures, drawn by numpy and Pillow. Colours and letters are matplotlib's."""

from __future__ import annotations

import functools
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK, FAINT, GROUND, FRAME = (25, 25, 25), (110, 110, 110), (255, 255, 255), (170, 170, 170)
MARKED, LINE_COLOUR = (214, 96, 32), (36, 105, 190)


@functools.cache
def colour_table(diverging: bool) -> np.ndarray:
    """[256, 3] uint8: from light to dark, or blue over white to red."""
    colours = matplotlib.colormaps["RdBu_r" if diverging else "YlGnBu"](np.arange(256))
    return (colours[:, :3] * 255).round().astype(np.uint8)


def coloured(values: np.ndarray, low: float, high: float, empty: Colour) -> np.ndarray:
    """Values [R, C] as colours [R, C, 3] uint8: a diverging table where `low` is below 0, `empty` for NaN."""
    share = np.nan_to_num((values - low) / (high - low))
    picture = colour_table(low < 0)[np.clip(share * 255, 0, 255).astype(np.uint8)]
    picture[~np.isfinite(values)] = empty
    return picture


def write(
    pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: int, colour: Colour = INK, anchor: str = "la"
) -> None:
    """Write a text; `anchor` is Pillow's."""
    pen.text((x, y), text, colour, _font(size), anchor)


def stretch(image: Image.Image, pixels: np.ndarray, x: int, y: int, width: int, height: int) -> None:
    """Stretch pixels to a box: lines stay sharp; where there are more of them than room, neighbours are averaged."""
    way = Image.Resampling.BOX if len(pixels) > height else Image.Resampling.NEAREST
    image.paste(Image.fromarray(pixels).resize((width, height), way), (x, y))


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)
