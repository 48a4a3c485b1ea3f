"""Time recurrences as plain functions with their own gradients: numba on the CPU, torch on other devices.

Each takes sequences [T, B, ...] with `start` [T, B] bool, resets to zeros where it is true, and equals the loop
that its docstring writes down.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.memory.kernels.arithmetic.dispatch import torch_only
    from palimpsest.memory.kernels.cells.gated import gru_scan, lstm_scan
    from palimpsest.memory.kernels.delta.scan import gated_delta_scan
    from palimpsest.memory.kernels.diagonal.decay import decay_scan

__all__ = ["decay_scan", "gated_delta_scan", "gru_scan", "lstm_scan", "torch_only"]

_LAZY = {
    "decay_scan": "palimpsest.memory.kernels.diagonal.decay",
    "gated_delta_scan": "palimpsest.memory.kernels.delta.scan",
    "gru_scan": "palimpsest.memory.kernels.cells.gated",
    "lstm_scan": "palimpsest.memory.kernels.cells.gated",
    "torch_only": "palimpsest.memory.kernels.arithmetic.dispatch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'palimpsest.memory.kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
