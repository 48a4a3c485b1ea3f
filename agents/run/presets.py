"""What `train.py` trains each memory with where nothing else is given: one word changed, and it still learns."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """Hyperparameters that memories differ in."""

    learning_rate: float
    num_minibatches: int
    share_memory: bool = True


PRESETS = {
    # a memory that a critic shapes counts corridors, and fails where there are more (docs/memories.md)
    "rewrite": Preset(7e-4, 4, share_memory=False),
    "lstm": Preset(2e-3, 16),
    "gru": Preset(2e-3, 16),
    "ffm": Preset(7e-4, 16),
    "hcam": Preset(5e-4, 16),
    "sat": Preset(3e-4, 16),
    "gtrxl": Preset(3e-4, 16),
}
"""Memory -> its own, by trial on the default job (docs/generalisation.md)."""

DEFAULT = Preset(7e-4, 4)
"""Of every memory that has none of its own."""


def preset(memory: str) -> Preset:
    """The preset of a registered memory."""
    return PRESETS.get(memory, DEFAULT)
