"""Agents with a memory, compatible with SB3. The only package that imports both `memory` and `envs`.

Modules that need torch are imported when they are first used, so `--help` on the command line is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palimpsest.agents.board.callback import TensorBoardCallback
    from palimpsest.agents.evaluation.masked import MaskableEvalCallback, evaluate_policy
    from palimpsest.agents.export.exporting import export_policy
    from palimpsest.agents.learn.ppo import MemoryPPO
    from palimpsest.agents.masks import get_action_masks, is_masking_supported
    from palimpsest.agents.off_policy.dqn import MemoryDQN
    from palimpsest.agents.off_policy.sac import MemorySAC
    from palimpsest.agents.policy.policies import (
        CnnMemoryPolicy,
        MemoryActorCriticPolicy,
        MlpMemoryPolicy,
        MultiInputMemoryPolicy,
    )
    from palimpsest.agents.run.experiment import preset
    from palimpsest.agents.run.grids import grid
    from palimpsest.agents.run.runs import evaluate

__all__ = [
    "CnnMemoryPolicy",
    "MaskableEvalCallback",
    "MemoryActorCriticPolicy",
    "MemoryDQN",
    "MemoryPPO",
    "MemorySAC",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "TensorBoardCallback",
    "evaluate",
    "evaluate_policy",
    "export_policy",
    "get_action_masks",
    "grid",
    "is_masking_supported",
    "preset",
]

_LAZY = {
    "evaluate": "palimpsest.agents.run.runs",
    "evaluate_policy": "palimpsest.agents.evaluation.masked",
    "export_policy": "palimpsest.agents.export.exporting",
    "get_action_masks": "palimpsest.agents.masks",
    "grid": "palimpsest.agents.run.grids",
    "is_masking_supported": "palimpsest.agents.masks",
    "preset": "palimpsest.agents.run.experiment",
    "MaskableEvalCallback": "palimpsest.agents.evaluation.masked",
    "MemoryDQN": "palimpsest.agents.off_policy.dqn",
    "MemoryPPO": "palimpsest.agents.learn.ppo",
    "MemorySAC": "palimpsest.agents.off_policy.sac",
    "TensorBoardCallback": "palimpsest.agents.board.callback",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(_LAZY.get(name, "palimpsest.agents.policy.policies")), name)
    raise AttributeError(f"module 'palimpsest.agents' has no attribute {name!r}")


if __name__ == "agents":
    # imported under its short name, from a clone's root
    from palimpsest.short_names import hand_over

    hand_over(__name__)
