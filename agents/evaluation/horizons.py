"""The kind of memory that an evaluation tests: a memory's reach against a task's horizons (arXiv 2412.06531)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from palimpsest.agents.environments import declares
from palimpsest.memory import Context, Memory

SHORT_TERM = "short-term memory"
LONG_TERM = "long-term memory"
MIXTURE = "a mixture of short-term and long-term memory, not to be interpreted"
OUT_OF_REACH = "nothing: the task reaches further back than the memory"


def kind_of_test(context: Context, horizons: Sequence[int]) -> str:
    """The kind of memory that success on a task shows.

    Args:
        context: K, the inputs that the memory reads directly, and K_eff, the inputs that it can reach.
        horizons: Ξ of the task, in inputs, the current one included; one or more.

    Returns:
        `SHORT_TERM` if K ≥ max Ξ, `OUT_OF_REACH` if K_eff < max Ξ, `LONG_TERM` if K < min Ξ, else `MIXTURE`.
    """
    direct, reachable = context
    nearest, furthest = min(horizons), max(horizons)
    if direct >= furthest:
        return SHORT_TERM
    if reachable < furthest:
        return OUT_OF_REACH
    return LONG_TERM if direct < nearest else MIXTURE


def describe_test(model: Any, env: VecEnv) -> dict[str, Any] | None:
    """What an evaluation of `model` in `env` tests, ready for JSON; None if one of them does not declare its reach.

    Returns:
        K, K_eff (None if nothing bounds it), horizon_min, horizon_max (Ξ), tests (`kind_of_test`).
    """
    memory = getattr(getattr(model, "policy", None), "memory", None)
    if not isinstance(memory, Memory) or not declares(env, "memory_horizons"):
        return None
    context, horizons = memory.context(), env.env_method("memory_horizons", indices=[0])[0]
    return {
        "K": context.K,
        "K_eff": context.K_eff if math.isfinite(context.K_eff) else None,
        "horizon_min": min(horizons),
        "horizon_max": max(horizons),
        "tests": kind_of_test(context, horizons),
    }
