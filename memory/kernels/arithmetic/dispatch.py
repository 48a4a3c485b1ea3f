"""Which form of a kernel computes, numba's or torch's, and what only torch's can: differentiate twice."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

decided: ContextVar[bool | None] = ContextVar("whether numba kernels may run", default=None)
"""True and False are answers that `kernels_may_run` gives; a policy sets it once for a whole step or sequence."""


def has_kernels(x: Tensor, *others: Tensor) -> bool:
    """Whether numba kernels compute from tensors: on the CPU, all float32 or all float64, where kernels may run."""
    if not kernels_may_run() or type(x) not in (Tensor, nn.Parameter):
        return False
    dtype = x.dtype
    # a kernel that is handed an address would not see that signs are to be turned
    if not (x.is_cpu and (dtype is torch.float32 or dtype is torch.float64)) or x.is_neg():
        return False
    for other in others:
        if other.dtype is not dtype:
            return False
    return True


def kernels_may_run() -> bool:
    """Whether numba kernels may take the place of torch's operations here.

    They may not within `torch_only`, where operations are watched, and under autocast, which chooses types by operation.
    """
    answer = decided.get()
    return not is_watched() and not torch.is_autocast_enabled("cpu") if answer is None else answer


def is_watched() -> bool:
    """Whether torch records or changes the operations that run: what is done without them would be missed.

    So it is under `torch.compile`, `torch.export`, `torch.jit.trace`, the transforms of `torch.func`, forward-mode
    differentiation and dispatch modes.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Within it torch's operations compute what numba kernels do elsewhere: slower, and equal but for rounding.

    To compare the two, to differentiate twice, or to find out whether a kernel is to blame. The gradient of
    `decay_scan` (and so of `ffm`) is written by hand there too, and cannot be differentiated.
    """
    token = decided.set(False)
    try:
        yield
    finally:
        decided.reset(token)


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
