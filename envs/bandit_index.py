"""What an arm of a Bernoulli bandit is worth: finite-horizon Gittins indices (Bradt, Johnson and Karlin 1956)."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from palimpsest.machine_code import njit

MOST_PULLS = 600
"""Longest horizon of a table: the time that it takes to make grows with the cube."""


class Indices:
    """The indices of all arms that may be met in episodes of `pulls` pulls, of means that are drawn uniformly.

    The index of an arm with W wins in N pulls, R pulls before the end, is the mean of a known arm which would be as
    good: to pull this arm at least once, and then to stay with it or to go over to the known arm for good. A player who
    pulls an arm of the largest index is close to optimal.

    Args:
        pulls: of an episode, 1 to 600.
    """

    def __init__(self, pulls: int) -> None:
        self.levels = int(np.clip(1.2e9 / pulls**3, 64, 512))
        """Number of steps from 0 to 1 in which indices are given."""
        self._fewest = np.zeros((pulls + 1, pulls + 1, self.levels), np.uint16)
        """[R, N, levels]: the fewest wins with which an arm is better than a known one."""
        _fill(pulls, self.levels, np.zeros((pulls + 2, pulls + 2), np.float32), self._fewest)

    def __call__(self, wins: np.ndarray, pulled: np.ndarray, left: np.ndarray) -> np.ndarray:
        """The indices, 0 to `levels`, of arms with `wins` in `pulled` pulls, `left` pulls before the end."""
        return (self._fewest[left, pulled] <= wins[..., None]).sum(-1)


@functools.lru_cache(maxsize=16)
def indices(pulls: int) -> Indices:
    """The table for a horizon, made on first use."""
    return Indices(pulls)


@njit(cache=True, error_model="numpy")
def _fill(pulls: int, levels: int, value: np.ndarray, fewest: np.ndarray) -> Any:
    """Count, for every state of an arm, the known means below which it is better to pull it."""
    for level in range(levels):
        known = np.float32(level / levels)
        value[:] = 0  # what pulling may gain over the known arm: value[N, W] with R pulls left
        for left in range(1, pulls + 1):
            for pulled in range(pulls - left + 1):
                # An arm gains nothing where it gained nothing with one win more, and its mean is the lower one.
                first = min(fewest[left - 1, pulled + 1, level] if left > 1 else pulled + 1, int(known * (pulled + 2)))
                first = max(first - 1, 0)
                now, lost = value[pulled, first : pulled + 1], value[pulled + 1, first : pulled + 1]
                won, share = value[pulled + 1, first + 1 : pulled + 2], np.float32(1 / (pulled + 2))
                for k in range(now.shape[0]):
                    mean = np.float32(first + 1 + k) * share
                    now[k] = max(mean - known + lost[k] + mean * (won[k] - lost[k]), np.float32(0))
                while first <= pulled and value[pulled, first] == 0:
                    first += 1
                fewest[left, pulled, level] = first
