"""Which form of a kernel computes, numba's or torch's, and what only torch's can: differentiate twice."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numba
import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.self_test import check_intrinsics

_numba = ContextVar("numba kernels may compute", default=True)


def has_kernels(x: Tensor, *others: Tensor) -> bool:
    """Whether numba kernels compute from tensors: on the CPU, all float32 or all float64, outside `torch_only`.

    Never where numba does not compile them, which is found out once and said in a warning.
    """
    dtype = x.dtype
    # a kernel that is handed an address would not see that signs are to be turned
    if not (x.is_cpu and (dtype is torch.float32 or dtype is torch.float64) and _numba.get()) or x.is_neg():
        return False
    return {other.dtype for other in others} <= {dtype} and _intrinsics_work()


@functools.cache
def _intrinsics_work() -> bool:
    try:
        check_intrinsics()
    except Exception as error:  # numba's own errors, or llvmlite's, of whatever kind
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"numba {numba.__version__} does not compile the kernels of palimpsest.memory ({reason}); torch's "
            "operations take their place and are several times slower. Install a version that palimpsest-rl allows",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Within it torch's operations compute what numba kernels do elsewhere: slower, and equal but for rounding.

    To compare the two, to differentiate twice, or to find out whether a kernel is to blame. The gradient of
    `decay_scan` (and so of `ffm`) is written by hand there too, and cannot be differentiated.
    """
    token = _numba.set(False)
    try:
        yield
    finally:
        _numba.reset(token)


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """For the `backward` of an autograd function, written by hand: what it returns refuses to be differentiated.

    Torch's `once_differentiable` refuses only where the gradient that comes in can be differentiated itself: the second
    derivative of a sum would silently lack everything that passes through the kernel.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: torch.Tensor) -> Any:
        with torch.no_grad():
            found = backward(ctx, *grads)
        if not torch.is_grad_enabled():
            return found
        every = found if isinstance(found, tuple) else (found,)
        refusing = iter(_Refusing.apply(torch.ones((), requires_grad=True), *(g for g in every if g is not None)))
        return tuple(None if g is None else next(refusing) for g in every)

    return once


class _Refusing(torch.autograd.Function):
    """The tensors after the first, as they are, with a derivative that is an error."""

    @staticmethod
    def forward(ctx: Any, requires_grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(
            "a gradient written by hand cannot be differentiated; compute the forward pass within "
            "`with memory.kernels.torch_only():`, whose operations can (all but ffm's decay_scan)"
        )
