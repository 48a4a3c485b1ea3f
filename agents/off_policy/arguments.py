"""The arguments that `MemoryDQN` and `MemorySAC` share, and what they allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palimpsest.agents.device import check_device
from palimpsest.agents.learn.hyperparameters import ARGUMENTS
from palimpsest.agents.off_policy.replay import SequenceReplay
from palimpsest.refusals import FLAG, NAMED, Allowed, check, integer, is_integer, number, optional


def _is_frequency(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return len(value) == 2 and is_integer(value[0], 1) and value[1] in ("step", "episode")
    return is_integer(value, 1)


SHARED: dict[str, Allowed] = {
    **{
        name: ARGUMENTS[name]
        for name in (
            "learning_rate",
            "gamma",
            "stats_window_size",
            "tensorboard_log",
            "policy_kwargs",
            "verbose",
            "seed",
        )
    },
    "buffer_size": integer(1),
    "learning_starts": integer(0),
    "batch_size": integer(1),
    "tau": number(0, 1),
    "train_freq": Allowed('an integer, 1 or more, or a pair as (4, "step") or (1, "episode")', _is_frequency),
    "gradient_steps": integer(-1),
    "replay_buffer_class": optional(
        Allowed(
            "a subclass of SequenceReplay", lambda value: isinstance(value, type) and issubclass(value, SequenceReplay)
        )
    ),
    "replay_buffer_kwargs": optional(NAMED),
    "optimize_memory_usage": FLAG,
    "n_steps": integer(1),
    "n_step": optional(integer(1)),
    "target_update_interval": integer(1),
    "sequence_length": integer(1),
    "burn_in": integer(0),
    "prioritized": FLAG,
    "refresh_states": FLAG,
    "normalize_observations": FLAG,
    "normalize_returns": FLAG,
}
"""The values that each argument of both algorithms allows."""


def check_arguments(allowed: Mapping[str, Allowed], given: Mapping[str, Any]) -> None:
    """Refuse arguments that are not allowed, before anything is made. `given` may hold other names."""
    for name, what in allowed.items():
        check(name, given[name], what)
    check_device(given["device"])
    if given["n_step"] is not None and given["n_steps"] not in (1, given["n_step"]):
        raise ValueError(
            f"n_step and n_steps are one number; got {given['n_step']} and {given['n_steps']}: leave one out"
        )
    if given["refresh_states"] and given["burn_in"] > given["sequence_length"]:
        raise ValueError(
            f"refresh_states=True needs a burn_in of sequence_length, {given['sequence_length']}, at most; got "
            f"burn_in={given['burn_in']}: lower it, or set refresh_states=False"
        )
