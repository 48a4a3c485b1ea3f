"""How kernels are compiled."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

OPTIONS: dict[str, Any] = dict(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
"""Division by zero raises nothing, so that divisions vectorise; a * b + c may be one instruction. No
wrapper for C is made, which nobody calls."""

SUMS: dict[str, Any] = {**OPTIONS, "fastmath": {"contract", "reassoc"}}
"""For loops that sum a row: the order of additions may change, so that they vectorise. NaN and infinity are kept."""

INLINED: dict[str, Any] = {**OPTIONS, "forceinline": True}
"""For kernels that add several products and are called by other kernels.

The compiler chooses which of two products becomes one instruction with the sum; the code around it decides. A kernel
that is called and not inlined exists twice in the process that compiles it, alone and in the machine code of its
caller. A process that compiles may then run another copy than one that loads the cache, and results would differ in
the last bit between a first and a later run.
"""

as_intrinsic: Any = intrinsic
"""`numba.extending.intrinsic` without its type, by which mypy would ask for the context argument in every call."""


def call(kernel: Any, *given: types.Type) -> tuple[Any, Callable[..., Any]] | None:
    """What an intrinsic returns that calls a kernel of a module, whose machine code stands once in a process.

    numba copies the code of a kernel into every kernel that calls it, to optimise and translate it there once more.
    That is right for a few lines inside a loop. Matrix products are long and called rarely: copies of them took a third
    of the time that compiling a memory takes. So they are compiled once for each type of numbers, and called by name.

    The kernel returns nothing. It is compiled for matrices of any strides, contiguous lines and one type of numbers;
    None where the arguments are others.
    """
    arrays = [each for each in given if isinstance(each, types.Array)]
    if len({each.dtype for each in arrays}) != 1 or any(each.ndim == 1 and each.layout != "C" for each in arrays):
        return None
    common = tuple(_common(each) for each in given)
    make = _maker(kernel.__module__, kernel.__name__, common)
    name = make()

    def generate(context, builder, signature, args):
        # a process that loads the caller's code from a file calls `make` first
        context.active_code_library._reload_init.add(make)
        kind = context.call_conv.get_function_type(types.none, common)
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        status, _ = context.call_conv.call_function(builder, function, types.none, common, args)
        with cgutils.if_unlikely(builder, status.is_error):
            context.call_conv.return_status_propagate(builder, status)
        return context.get_dummy_value()

    return types.void(*given), generate


def _common(given: types.Type) -> types.Type:
    if isinstance(given, types.Array):
        return types.Array(given.dtype, given.ndim, "A" if given.ndim > 1 else "C")
    return types.unliteral(given)


@functools.cache
def _maker(module: str, kernel: str, common: tuple[types.Type, ...]) -> Callable[[], str]:
    """One object for each name, as a set of them is kept with the code of a caller."""
    return functools.partial(_make, module, kernel, common)


@functools.cache
def _make(module: str, kernel: str, common: tuple[types.Type, ...]) -> str:
    """Compile a kernel, or load it; return the name under which machine code finds it."""
    found = getattr(importlib.import_module(module), kernel)
    found.compile(common)
    compiled = found.overloads[common]
    name = f"{module}.{kernel}{common}"
    llvm.add_symbol(name, compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))
    return name
