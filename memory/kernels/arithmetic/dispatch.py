"""Which form of a kernel computes, numba's or torch's; and gradients written by hand, which refuse a second one."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from palimpsest.memory.kernels.arithmetic.self_test import check_intrinsics

decided: ContextVar[bool | None] = ContextVar("whether numba kernels may run", default=None)
"""True and False are answers that `kernels_may_run` gives; a policy sets it once for a whole step or sequence."""


def has_kernels(x: Tensor, *others: Tensor) -> bool:
    """Whether numba kernels compute from tensors: on the CPU, all float32 or all float64, where kernels may run."""
    if not kernels_may_run() or type(x) not in (Tensor, nn.Parameter):
        return False
    dtype = x.dtype
    # torch negates lazily; a kernel that reads memory would miss the sign
    if not (x.is_cpu and (dtype is torch.float32 or dtype is torch.float64)) or x.is_neg():
        return False
    return {other.dtype for other in others} <= {dtype}


def kernels_may_run() -> bool:
    """Whether numba kernels may take the place of torch's operations here.

    They may not within `torch_only`, where operations are watched, and under autocast, which chooses types by what the
    operation is. Nor may they where numba does not compile them: that is tried once per process and told in a warning.
    """
    if torch.compiler.is_compiling():
        return False  # asked first, as a compiler cannot read a context variable
    answer = decided.get()
    if answer is None:
        return not is_watched() and not torch.is_autocast_enabled("cpu") and _intrinsics_work()
    return answer


def is_watched() -> bool:
    """Whether torch records or changes the operations that run: what is done without them would be missed.

    So it is under `torch.compile`, `torch.export`, `torch.jit.trace`, the transforms of `torch.func`, forward-mode
    differentiation and dispatch modes.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or is_transformed()
    )


def is_transformed() -> bool:
    """Whether the transforms of `torch.func` or forward-mode differentiation change the operations that run."""
    if torch.compiler.is_compiling():
        return False  # asked first, as a compiler cannot read the others
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def by_steps_where_transformed(scan: Callable[..., Any], by_steps: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the fast scan of a module: where operations are transformed, the loop `by_steps` takes its place.

    Fast forms have gradients written by hand, read numbers and write in place, which transforms cannot follow. The
    module's `_told_of_steps` keeps that this was said.
    """

    @functools.wraps(scan)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_transformed():
            return scan(self, *args, **kwargs)
        if not self._told_of_steps:
            self._told_of_steps = True
            warnings.warn(
                f"{type(self).__name__} scans step by step under the transforms of torch.func and in forward mode, "
                "which is slower; torch.autograd.grad takes the fast form (said once)",
                stacklevel=2,
            )
        return by_steps(self, *args, **kwargs)

    return run


@functools.cache
def _intrinsics_work() -> bool:
    try:
        check_intrinsics()
    except Exception as error:  # of numba or of llvmlite, of any kind
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(
            f"numba {numba.__version__} does not compile the kernels of palimpsest.memory ({reason}); torch's "
            "operations take their place and are several times slower. Install a version that palimpsest-rl allows",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def refuse_tracing() -> None:
    """For code that decides by numbers what it computes: `torch.jit.trace` would keep one decision for all inputs.

    And `torch.func.vmap` would need one decision for a batch of inputs. `torch.compile` follows such code, and
    `torch.export` refuses it by itself.

    Raises:
        RuntimeError: under `torch.jit.trace` or `torch.func.vmap`.
    """
    if torch.jit.is_tracing():
        raise RuntimeError(
            "torch.jit.trace cannot record this memory: what it computes depends on the numbers in its inputs, and the "
            "trace would keep what those of the example ask for. Run it as it is, or by torch.compile"
        )
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    if any(each.key() == torch._C._functorch.TransformType.Vmap for each in transforms):
        raise RuntimeError(
            "torch.func.vmap cannot run this memory: what it computes depends on the numbers in its inputs, and these "
            "differ within a batch. Call it once for each of them"
        )


def as_array(numbers: Tensor) -> np.ndarray:
    """The numbers of a tensor on any device, without their gradient; those that `torch.func.grad` wraps, too."""
    if not torch._C._are_functorch_transforms_active():
        return numbers.numpy(force=True)
    while torch._C._functorch.is_gradtrackingtensor(numbers):
        numbers = torch._C._functorch.get_unwrapped(numbers)
    with torch._C._DisableFuncTorch():  # which would wrap what is made of them
        return numbers.numpy(force=True)


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Within it torch's operations compute what numba kernels do otherwise: slower, and equal but for rounding.

    To compare the two, to differentiate twice, or to find out whether a kernel is to blame.
    """
    token = decided.set(False)
    try:
        yield
    finally:
        decided.reset(token)


def in_full_precision(recurrence: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a recurrence: none computes in half precision, as thousands of steps add to its state.

    Under autocast, which makes what surrounds it in half precision, it computes in the widest of its types, which is
    that of its state. Where all are of half precision, as in a module made so, a function computes in float32 and
    rounds what it returns.
    """

    @functools.wraps(recurrence)
    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = [each for arg in args for each in (arg if isinstance(arg, tuple) else (arg,)) if _has_floats(each)]
        device, given = tensors[0].device.type, tensors[0].dtype
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            # a module's own step multiplies by its parameters, which are of half precision too
            if given not in (torch.bfloat16, torch.float16) or isinstance(args[0], nn.Module):
                return recurrence(*args, **kwargs)
            return _in(given, recurrence(*_in(torch.float32, args), **kwargs))
        widest = functools.reduce(torch.promote_types, (each.dtype for each in tensors))
        with torch.autocast(device, enabled=False):
            return recurrence(*_in(widest, args), **kwargs)

    return run


def _in(dtype: torch.dtype, value: Any) -> Any:
    """A value with its floats in the type `dtype`, those in tuples too."""
    if type(value) is tuple:
        return tuple(_in(dtype, each) for each in value)
    return value.to(dtype) if _has_floats(value) else value


def _has_floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


_TORCH_CAN = "compute the forward pass within `with memory.kernels.torch_only():`, whose operations can"
_OF_BATCHES = "Batching rule not implemented", "Cannot access data pointer"
"""What torch says where numbers of a batch are read that `vmap` made, which has no sign of its own."""


def differentiable_once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate the `backward` of an autograd function: the gradients that it returns refuse to be differentiated.

    Torch's `once_differentiable` refuses only where the incoming gradient requires one itself. The second derivative of
    a sum would then silently lack everything that passes through the kernel.
    """

    @functools.wraps(backward)
    def once(ctx: Any, *grads: torch.Tensor) -> Any:
        try:
            with torch.no_grad():
                found = backward(ctx, *grads)
        except RuntimeError as error:
            if not any(words in str(error) for words in _OF_BATCHES):
                raise
            raise RuntimeError(
                "a gradient written by hand takes one gradient at a time, not a batch of them (is_grads_batched, "
                f"torch.func.vmap); {_TORCH_CAN}"
            ) from error
        if not torch.is_grad_enabled():
            return found
        every = found if isinstance(found, tuple) else (found,)
        refusing = iter(_Refusing.apply(torch.ones((), requires_grad=True), *(g for g in every if g is not None)))
        return tuple(None if g is None else next(refusing) for g in every)

    return once


class _Refusing(torch.autograd.Function):
    """The tensors after the first, unchanged; their derivative is an error."""

    @staticmethod
    def forward(ctx: Any, requires_grad: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise RuntimeError(f"a gradient written by hand cannot be differentiated; {_TORCH_CAN}")
