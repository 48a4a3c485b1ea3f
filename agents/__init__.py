"""Who remembers: SB3-compatible recurrent agents. The only package that knows both memory/ and envs/."""

from agents.evaluation import evaluate
from agents.policies import CnnMemoryPolicy, MemoryActorCriticPolicy, MlpMemoryPolicy, MultiInputMemoryPolicy
from agents.ppo import MemoryPPO

__all__ = [
    "CnnMemoryPolicy",
    "MemoryActorCriticPolicy",
    "MemoryPPO",
    "MlpMemoryPolicy",
    "MultiInputMemoryPolicy",
    "evaluate",
]
