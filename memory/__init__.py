"""What an agent remembers with. Knows nothing of reinforcement learning.

`names` and `entry` cost no torch import; everything that needs torch is imported when first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from memory.registry import Entry, entry, make, memory_class, names, register

if TYPE_CHECKING:
    from memory import kernels
    from memory.base import Context, Memory, State, reset

__all__ = [
    "Context",
    "Entry",
    "Memory",
    "State",
    "entry",
    "kernels",
    "make",
    "memory_class",
    "names",
    "register",
    "reset",
]

_LAZY = {"Context": "memory.base", "Memory": "memory.base", "State": "memory.base", "reset": "memory.base"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if importlib.util.find_spec(f"memory.{name}") is not None:
        return importlib.import_module(f"memory.{name}")
    raise AttributeError(f"module 'memory' has no attribute {name!r}")
