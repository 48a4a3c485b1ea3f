"""Presets: defaults of `train.py` that depend on the memory. A flag replaces them."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """The hyperparameters whose best values differ between memories."""

    learning_rate: float
    share_memory: bool = True


PRESETS = {
    # With a shared memory, the critic makes it count corridors, and the agent fails on longer episodes
    # (docs/memories.md).
    "rewrite": Preset(1e-3, share_memory=False),
    "lstm": Preset(1e-3),
    "gru": Preset(2e-3),
    "ffm": Preset(7e-4),
    "hcam": Preset(5e-4),
    "sat": Preset(3e-4),
    "gtrxl": Preset(3e-4),
}
"""Memory -> its preset, found by trial on the default job (docs/generalisation.md)."""

DEFAULT = Preset(7e-4)
"""The preset of every other memory."""


def usual(memory: str) -> Preset:
    """The preset of a registered memory."""
    return PRESETS.get(memory, DEFAULT)
