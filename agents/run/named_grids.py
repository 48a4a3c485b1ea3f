"""Grids of test settings that have a name, for `palimpsest evaluate RUN --grid lengths` and for `agents.grid`.

Importing this module is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "lengths": {"length": (9, 30, 90, 150, 300, 600, 900, 1200, 2400, 4800, 9600)},
}
"""Name -> argument of the environment -> values.

"lengths": corridors after arXiv 2412.06531, which trains at each of the first seven lengths and tests up to 9,600. The
lengths from 1,200 on are our choice.
"""


def spelled_out(words: Iterable[str]) -> list[str]:
    """`words` of the command line, KEY=A,B,C, with the axes of a grid in place of its name."""
    return [
        pair
        for word in words
        for pair in (
            [f"{key}={','.join(map(str, values))}" for key, values in GRIDS[word].items()] if word in GRIDS else [word]
        )
    ]
