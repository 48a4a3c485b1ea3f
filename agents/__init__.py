"""Who remembers: SB3-compatible recurrent agents. The only package that knows both memory/ and envs/.

What needs torch is imported when first used, so that the command line's `--help` answers at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.evaluation import evaluate
    from agents.grids import grid
    from agents.policies import CnnMemoryPolicy, MemoryActorCriticPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
    from agents.ppo import MemoryPPO

__all__ = [
    "CnnMemoryPolicy",
    "MemoryActorCriticPolicy",
    "MemoryPPO",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "evaluate",
    "grid",
]

_LAZY = {"evaluate": "agents.evaluation", "grid": "agents.grids", "MemoryPPO": "agents.ppo"}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_LAZY.get(name, "agents.policies")), name)
    raise AttributeError(f"module 'agents' has no attribute {name!r}")
