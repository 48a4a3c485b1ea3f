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


TARGET_KL, TARGET_KL_OF_A_BOX = 0.02, 0.1
"""The KL divergence that an update may reach; that of normal distributions grows faster with a step than that of
choices."""

LOG_STD_INIT = -1.0
"""The logarithm of gSDE's weights at the start. Each of 64 units adds to the noise."""


def usual(memory: str) -> Preset:
    """The preset of a registered memory."""
    return PRESETS.get(memory, DEFAULT)
