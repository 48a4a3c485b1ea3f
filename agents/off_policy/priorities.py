"""Draw sequences with a probability in proportion to a priority: a sum tree (arXiv 1511.05952, appendix B)."""

from __future__ import annotations

import numpy as np


class SumTree:
    """Priorities of `size` items, their sum, and draws in proportion to them.

    A node holds the sum of its two children, so a change and a draw take log2(size) operations.

    Args:
        size: number of items, 1 or more. All priorities are 0 at first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.depth = max(size - 1, 1).bit_length()
        self._first_leaf = 1 << self.depth
        # node i has the children 2 i and 2 i + 1; node 1 is the root
        self._sums = np.zeros(2 * self._first_leaf)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._sums[1])

    @property
    def priorities(self) -> np.ndarray:
        """[size] float64, those of all items; a view."""
        return self._sums[self._first_leaf : self._first_leaf + self.size]

    def set(self, items: np.ndarray, priorities: np.ndarray | float) -> None:
        """Change the priorities, 0 or more, of items [N]; where an item comes twice its last priority counts."""
        nodes = self._first_leaf + np.asarray(items, np.int64)
        self._sums[nodes] = priorities
        for _ in range(self.depth):
            nodes = nodes >> 1
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def draw(self, uniform: np.ndarray) -> np.ndarray:
        """Items [N] int64 for numbers [N] in [0, 1): the item under which uniform x total falls, from left to right."""
        left = uniform * self.total
        nodes = np.ones(len(uniform), np.int64)
        for _ in range(self.depth):
            nodes = 2 * nodes
            here = self._sums[nodes]
            # rounding must not lead into a branch that holds nothing
            right = (left >= here) & (self._sums[nodes + 1] > 0)
            left = np.where(right, left - here, left)
            nodes = nodes + right
        return nodes - self._first_leaf


def sequence_priorities(errors: np.ndarray, counted: np.ndarray, eta: float) -> np.ndarray:
    """Priorities [b] of sequences: eta x the largest absolute TD error + (1 - eta) x their mean (R2D2, section 2.3).

    Args:
        errors: [T, b], TD errors.
        counted: [T, b] bool, the steps that are learned from.
        eta: 0 to 1.
    """
    absolute = np.where(counted, np.abs(errors), 0.0)
    mean = absolute.sum(0) / np.maximum(counted.sum(0), 1)
    return eta * absolute.max(0) + (1 - eta) * mean
