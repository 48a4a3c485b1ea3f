"""Observations joined with the hidden state: the fully observed twin of a task, in which nothing must be remembered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

HIDDEN, OBSERVATION = "hidden_state", "observation"

UNSEEN = ("rng", "over")
"""Fields of a hidden state that are not shown: the generator is no part of the task, and an episode's end is known."""


class Observed:
    """How a world's hidden state is joined to its observation.

    The state is shown as float32 numbers, field by field. A field of uint64 holds bits, each of which becomes a number.

    | observation space | joined space |
    |---|---|
    | Box of one dimension, F | Box of F + S float32: the observation, the hidden state |
    | Dict | the Dict with one more key, "hidden_state" [S] |
    | any other, images included | a Dict with the observation under "observation", and this key |

    Args:
        observation_space: of one environment.
        hidden_state: what `World.hidden_state()` returns, for any number of rows.

    Raises:
        ValueError: a Dict that already has the key.
    """

    def __init__(self, observation_space: spaces.Space, hidden_state: Mapping[str, np.ndarray]) -> None:
        self.inner = observation_space
        size = numbers(hidden_state).shape[1]
        hidden = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        self.space: spaces.Space
        if isinstance(observation_space, spaces.Box) and len(observation_space.shape) == 1:
            low = np.concatenate([observation_space.low, hidden.low]).astype(np.float32)
            high = np.concatenate([observation_space.high, hidden.high]).astype(np.float32)
            self.space = spaces.Box(low, high, dtype=np.float32)
            return
        inner_is_dict = isinstance(observation_space, spaces.Dict)
        parts = dict(observation_space.spaces) if inner_is_dict else {OBSERVATION: observation_space}  # type: ignore[attr-defined]
        if HIDDEN in parts:
            raise ValueError(f"the observation must not have the key {HIDDEN!r} yet; it has {sorted(parts)}")
        self.space = spaces.Dict({**parts, HIDDEN: hidden})

    def join(self, obs: Any, hidden: np.ndarray) -> Any:
        """Join the hidden state [..., S] to an observation or a batch of them. The inputs do not change."""
        if isinstance(self.space, spaces.Dict):
            return {**(obs if isinstance(self.inner, spaces.Dict) else {OBSERVATION: obs}), HIDDEN: hidden}
        return np.concatenate([obs, hidden], axis=-1, dtype=np.float32)


def numbers(hidden_state: Mapping[str, np.ndarray]) -> np.ndarray:
    """A hidden state as numbers, [B, S] float32."""
    parts = []
    for name, field in hidden_state.items():
        if name in UNSEEN:
            continue
        shown = field.reshape(len(field), -1)
        if shown.dtype == np.uint64:
            shown = np.unpackbits(np.ascontiguousarray(shown).view(np.uint8), axis=1, bitorder="little")
        parts.append(shown.astype(np.float32))
    return np.concatenate(parts, axis=1)
