"""Refusals of the agent's arguments: what was given, what is allowed, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces

from agents.policies import MemoryActorCriticPolicy


def check_range(name: str, value: float, low: float, high: float | None) -> None:
    """Refuse a number outside `low` to `high` (None for no upper bound), and what is not a number."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and value >= low
    if not good or (high is not None and value > high):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise ValueError(f"{name} must be a number, {allowed}; got {value!r}")


def check_action_space(space: spaces.Space) -> None:
    """Refuse an action space that no distribution of SB3's covers."""
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
        raise ValueError(f"the action space must be Discrete, MultiDiscrete, MultiBinary or Box; got {space}")


def check_device(device: torch.device | str) -> torch.device | str:
    """Refuse a device that is not there; `auto` is left to SB3."""
    if device == "auto":
        return device
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device='cpu' or 'auto'"
        )
    return wanted


def check_policy(policy: Any, aliases: Mapping[str, type]) -> None:
    """Refuse what is neither a policy's name nor a `MemoryActorCriticPolicy`."""
    if isinstance(policy, str) and policy in aliases:
        return
    if isinstance(policy, type) and issubclass(policy, MemoryActorCriticPolicy):
        return
    raise ValueError(
        f"policy must be one of {', '.join(map(repr, aliases))} or a subclass of MemoryActorCriticPolicy; "
        f"got {policy!r}"
    )
