"""Time recurrences as plain functions with their own gradients: numba on the CPU, torch on other devices.

Each takes sequences [T, B, ...] with `start` [T, B] bool, resets to zeros where it is true, and equals the loop
that its docstring writes down.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory.kernels.compiling import drop_stale

if TYPE_CHECKING:
    from memory.kernels.decay import decay_scan
    from memory.kernels.delta import gated_delta_scan
    from memory.kernels.forms import torch_only
    from memory.kernels.gated import gru_scan, lstm_scan

__all__ = ["decay_scan", "gated_delta_scan", "gru_scan", "lstm_scan", "torch_only"]

_LAZY = {
    "decay_scan": "memory.kernels.decay",
    "gated_delta_scan": "memory.kernels.delta",
    "gru_scan": "memory.kernels.gated",
    "lstm_scan": "memory.kernels.gated",
    "torch_only": "memory.kernels.forms",
}


drop_stale(drop_stale, Path(__file__).parent.glob("*.py"))


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'memory.kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
