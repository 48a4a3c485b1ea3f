"""Which kind of memory a test tests, from how far back a memory reads and a task reaches (arXiv 2412.06531)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

from palimpsest.memory import Context, Memory

SHORT_TERM = "short-term memory"
LONG_TERM = "long-term memory"
MIXTURE = "a mixture of short-term and long-term memory, not to be interpreted"
OUT_OF_REACH = "nothing: the task reaches further back than the memory"


def kind_of_test(context: Context, horizons: Sequence[int]) -> str:
    """What success on a task shows.

    Args:
        context: K, inputs that the memory reads directly, and K_eff, inputs that it reaches.
        horizons: Ξ of the task, in inputs, the current one included; one or more.

    Returns:
        `SHORT_TERM` where K ≥ max Ξ, `OUT_OF_REACH` where K_eff < max Ξ, `LONG_TERM` where K < min Ξ, else `MIXTURE`.
    """
    direct, reachable = context
    nearest, furthest = min(horizons), max(horizons)
    if direct >= furthest:
        return SHORT_TERM
    if reachable < furthest:
        return OUT_OF_REACH
    return LONG_TERM if direct < nearest else MIXTURE


def describe_test(model: Any, env: VecEnv) -> dict[str, Any] | None:
    """What evaluating `model` in `env` tests, ready for JSON; None where either does not say how far back it reaches.

    Returns:
        K, K_eff (None where nothing bounds it), horizon_min, horizon_max (Ξ), tests (`kind_of_test`).
    """
    memory = getattr(getattr(model, "policy", None), "memory", None)
    if not isinstance(memory, Memory) or not env.has_attr("memory_horizons"):
        return None
    context, horizons = memory.context(), env.env_method("memory_horizons", indices=[0])[0]
    return {
        "K": context.K,
        "K_eff": context.K_eff if math.isfinite(context.K_eff) else None,
        "horizon_min": min(horizons),
        "horizon_max": max(horizons),
        "tests": kind_of_test(context, horizons),
    }
