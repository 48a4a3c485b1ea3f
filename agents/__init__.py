"""Agents with a memory, compatible with SB3. The only package that imports both `memory` and `envs`.

Modules that need torch are imported when they are first used, so `--help` on the command line is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.agents.learn.ppo import MemoryPPO
    from palimpsest.agents.policy.policies import (
        CnnMemoryPolicy,
        MemoryActorCriticPolicy,
        MlpMemoryPolicy,
        MultiInputMemoryPolicy,
    )
    from palimpsest.agents.run.grids import grid
    from palimpsest.agents.run.runs import evaluate

__all__ = [
    "CnnMemoryPolicy",
    "MemoryActorCriticPolicy",
    "MemoryPPO",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "evaluate",
    "grid",
]

_LAZY = {
    "evaluate": "palimpsest.agents.run.runs",
    "grid": "palimpsest.agents.run.grids",
    "MemoryPPO": "palimpsest.agents.learn.ppo",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_LAZY.get(name, "palimpsest.agents.policy.policies")), name)
    raise AttributeError(f"module 'palimpsest.agents' has no attribute {name!r}")


if __name__ == "agents":
    # imported under its short name, from a clone's root
    from palimpsest.short_names import hand_over

    hand_over(__name__)
