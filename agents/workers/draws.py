"""Random numbers for a part of a batch: the part of those that the whole batch would get.

Workers hold one generator in the same state. Each draws the numbers of all rows and takes its own, so that a row gets
the same numbers whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_part: ContextVar[tuple[slice, int] | None] = ContextVar("_part", default=None)


@contextmanager
def part_of(rows: slice, whole: int) -> Iterator[None]:
    """Within it, batches are the `rows` of a batch of `whole` rows."""
    token = _part.set((rows, whole))
    try:
        yield
    finally:
        _part.reset(token)


def uniform(rows: int, device: torch.device | str = "cpu") -> Tensor:
    """[rows] float64 in [0, 1)."""
    part = _part.get()
    if part is None:
        return torch.rand(rows, dtype=torch.float64, device=device)
    return torch.rand(part[1], dtype=torch.float64, device=device)[part[0]]


def normal_like(x: Tensor) -> Tensor:
    """Standard normal numbers of the shape of x [N, ...]."""
    part = _part.get()
    if part is None:
        return torch.randn_like(x)
    return torch.randn(part[1], *x.shape[1:], dtype=x.dtype, device=x.device)[part[0]]


def switched(probabilities: Tensor) -> Tensor:
    """0.0 or 1.0 by `probabilities` [N, n]."""
    part = _part.get()
    if part is None:
        return probabilities.bernoulli()
    # each number takes one draw, whatever its probability
    whole = probabilities.new_zeros(part[1], *probabilities.shape[1:])
    whole[part[0]] = probabilities
    return whole.bernoulli()[part[0]]
