"""Memories of agents: recurrences from features to features. Knows nothing of reinforcement learning.

`names` and `entry` do not import torch. Modules that need torch are imported when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from palimpsest.memory.registry import Entry, entry, make, memory_class, names, register, register_from

if TYPE_CHECKING:
    from palimpsest.memory import kernels
    from palimpsest.memory.base import Context, Memory, State, reset

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
    "register_from",
    "reset",
]

_LAZY = {
    "Context": "palimpsest.memory.base",
    "Memory": "palimpsest.memory.base",
    "State": "palimpsest.memory.base",
    "reset": "palimpsest.memory.base",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if importlib.util.find_spec(f"palimpsest.memory.{name}") is not None:
        return importlib.import_module(f"palimpsest.memory.{name}")
    raise AttributeError(f"module 'palimpsest.memory' has no attribute {name!r}")


if __name__ == "memory":
    # imported under its short name, from a clone's root
    from palimpsest.short_names import hand_over

    hand_over(__name__)
