"""Chosen numbers of an observation: what is left of a task when the player sees only a part of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gymnasium import spaces

from palimpsest.refusals import check_integer


class Kept:
    """Which numbers of an observation are kept, in which order.

    Args:
        observation_space: of one environment, a Box of one dimension, F.
        indices: one or more of 0 to F - 1, each once.

    Raises:
        ValueError: another space, or indices that do not fit it.
    """

    def __init__(self, observation_space: spaces.Space, indices: Sequence[int]) -> None:
        if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
            raise ValueError(
                f"keep_observations chooses from a Box of one dimension; the observations are {observation_space}"
            )
        if not isinstance(indices, Sequence | np.ndarray) or isinstance(indices, str) or len(indices) == 0:
            raise ValueError(f"keep_observations must be one or more indices of observations; got {indices!r}")
        F = observation_space.shape[0]
        self.indices = [check_integer("each of keep_observations", index, 0, F - 1) for index in indices]
        if len(set(self.indices)) < len(self.indices):
            raise ValueError(f"keep_observations must be different indices; got {self.indices}")
        low, high = observation_space.low[self.indices], observation_space.high[self.indices]
        self.space = spaces.Box(low, high, dtype=observation_space.dtype.type)

    def part(self, obs: np.ndarray) -> np.ndarray:
        """The kept numbers of an observation [..., F], as a new array."""
        return obs[..., self.indices]
