"""Recurrences over time as plain functions with their own gradients, a folder per class.

Each takes sequences [T, B, ...] and `start` [T, B] bool, where the state is reset to zeros. In a folder,

    naive.py             the equations as a plain loop over time, which tests compare everything with
    torch_*, chunked.py  the same by torch's operations, parallel in time, on any device
    *loops.py            the same in numba, for the CPU

and the other files choose between the last two. `arithmetic` is what all of them are made of.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.memory.kernels.arithmetic.dispatch import torch_only
    from palimpsest.memory.kernels.cells.gated import gru_scan, lstm_scan
    from palimpsest.memory.kernels.delta.scan import gated_delta_scan
    from palimpsest.memory.kernels.diagonal.decay import decay_scan
    from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
    from palimpsest.memory.kernels.outer.scan import outer_scan

__all__ = ["decay_scan", "diagonal_scan", "gated_delta_scan", "gru_scan", "lstm_scan", "outer_scan", "torch_only"]

_LAZY = {
    "decay_scan": "palimpsest.memory.kernels.diagonal.decay",
    "diagonal_scan": "palimpsest.memory.kernels.diagonal.diagonal",
    "gated_delta_scan": "palimpsest.memory.kernels.delta.scan",
    "gru_scan": "palimpsest.memory.kernels.cells.gated",
    "lstm_scan": "palimpsest.memory.kernels.cells.gated",
    "outer_scan": "palimpsest.memory.kernels.outer.scan",
    "torch_only": "palimpsest.memory.kernels.arithmetic.dispatch",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'palimpsest.memory.kernels' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)
