"""Presets: the hyperparameters of `train.py` that depend on the memory, used unless a flag gives others."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """Hyperparameters whose best values differ between memories."""

    learning_rate: float
    num_minibatches: int
    share_memory: bool = True


PRESETS = {
    # The critic teaches a shared memory to count corridors, and then it fails on longer episodes (docs/memories.md).
    "rewrite": Preset(7e-4, 4, share_memory=False),
    "lstm": Preset(2e-3, 16),
    "gru": Preset(2e-3, 16),
    "ffm": Preset(7e-4, 16),
    "hcam": Preset(5e-4, 16),
    "sat": Preset(3e-4, 16),
    "gtrxl": Preset(3e-4, 16),
}
"""Memory -> its preset, found by trial on the default job (docs/generalisation.md)."""

DEFAULT = Preset(7e-4, 4)
"""The preset of every other memory."""


def preset(memory: str) -> Preset:
    """The preset of a registered memory."""
    return PRESETS.get(memory, DEFAULT)
