"""One idea: which form of a kernel computes, numba's or torch's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

_numba = ContextVar("numba kernels may compute", default=True)


def has_kernels(x: Tensor, *others: Tensor) -> bool:
    """Whether numba kernels compute from tensors: on the CPU, all float32 or all float64, outside `torch_only`."""
    known = x.is_cpu and x.dtype in (torch.float32, torch.float64) and _numba.get()
    return known and all(other.dtype is x.dtype for other in others)


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Within it torch's operations compute what numba kernels do elsewhere: slower, and equal but for rounding.

    To compare the two, to differentiate twice, or to find out whether a kernel is to blame.
    """
    token = _numba.set(False)
    try:
        yield
    finally:
        _numba.reset(token)
