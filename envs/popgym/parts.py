"""Observations of several parts, each one of a few choices, as one-hots in a Box or as the package's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from palimpsest.envs.actions import ActionSpace
from palimpsest.envs.core import World
from palimpsest.envs.kernels import compiled
from palimpsest.refusals import check_flag


@compiled
def clear(obs: np.ndarray, j: int, flat: bool) -> None:
    """Prepare obs[j] for `put`. numba compiles only the branch that fits the number of dimensions."""
    if obs.ndim == 2 and flat:
        for k in range(obs.shape[1]):
            obs[j, k] = 0


@compiled
def put(obs: np.ndarray, j: int, flat: bool, part: int, first: int, value: int) -> None:
    """Write one part of obs[j]: as a one-hot that begins at `first`, or as number `part`."""
    if obs.ndim == 1:
        obs[j] = value
    elif flat:
        # unsigned: a signed index would be checked for negative values
        obs[j, np.uint64(first + value)] = 1
    else:
        obs[j, part] = value


class PartsWorld(World):
    """A world whose observation has P parts, part p one of `parts[p]` choices.

    With `rules.flat` the observation space is a Box(0, 1, (sum of parts,), float32) of one-hots. Without, it is
    MultiDiscrete(parts), or Discrete if there is one part.

    Args:
        rules: as in `World`; it has the field `flat`.
        parts: numbers of choices.
        action_space: as in `World`.
        render_mode: "rgb_array", "ansi" or None.
    """

    def __init__(self, rules: Any, parts: Sequence[int], action_space: ActionSpace, render_mode: str | None) -> None:
        self.parts = tuple(parts)
        space: spaces.Space
        if rules.flat:
            space = spaces.Box(0, 1, (sum(parts),), np.float32)
        else:
            space = spaces.MultiDiscrete(list(parts)) if len(parts) > 1 else spaces.Discrete(parts[0])
        super().__init__(rules, space, action_space, render_mode)

    def numbers(self, obs: np.ndarray) -> np.ndarray:
        """The parts [..., P] int64 of observations [..., *shape]."""
        if not self.rules.flat:
            return np.asarray(obs)[..., None] if len(self.parts) == 1 else np.asarray(obs)
        ends = np.cumsum(self.parts)
        return np.stack([obs[..., end - n : end].argmax(-1) for n, end in zip(self.parts, ends.tolist())], -1)


def check_flat(flat: Any) -> bool:
    """`flat` as a bool; ValueError unless it is a truth value."""
    return check_flag("flat", flat)
