"""Common mistakes with a policy that has a memory, refused with a clear message."""

from __future__ import annotations

import sys
from typing import Any


def refuse_other_algorithms() -> None:
    """Refuse an algorithm of SB3 that makes a policy with a memory but keeps no memory state. Other callers may.

    This is called while the policy is made. SB3 does not tell a policy its algorithm, so this searches the call stack
    for it.
    """
    from stable_baselines3.common.base_class import BaseAlgorithm

    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_setup_model":
        frame = frame.f_back  # type: ignore[assignment]
    algorithm = None if frame is None else frame.f_locals.get("self")
    if isinstance(algorithm, BaseAlgorithm) and not getattr(algorithm, "remembers", False):
        name = type(algorithm).__name__
        raise ValueError(
            f"{name} cannot train a policy with a memory, as it keeps no memory state between steps; use "
            f"palimpsest.agents.MemoryPPO in place of {name}, or a policy of SB3's"
        )


def refuse_pair(observation: Any) -> None:
    """Refuse what gymnasium's `reset` and `step` return in place of an observation."""
    if isinstance(observation, tuple):
        raise ValueError(
            f"observation must be an array or a dict of arrays; got a tuple of {len(observation)}, as gymnasium's "
            "env.reset() and env.step() return: unpack it, obs, info = env.reset(), and give obs. A VecEnv returns "
            "the observations alone"
        )


def refuse_steps(observations: Any, actions: Any, start: Any) -> None:
    """Refuse single steps [B, ...] where sequences [T, B, ...] are needed."""
    parts = observations if isinstance(observations, dict) else {"observations": observations}
    shapes = {name: list(part.shape) for name, part in {**parts, "actions": actions, "start": start}.items()}
    if len(shapes["start"]) != 2 or any(shape[:2] != shapes["start"] for shape in shapes.values()):
        told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(
            f"observations and actions must be sequences [T, B, ...] and start [T, B]; got {told}. For a single step "
            "add the time: x.unsqueeze(0), T = 1"
        )
