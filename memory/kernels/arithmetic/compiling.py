"""How kernels are compiled."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

OPTIONS: dict[str, Any] = dict(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
"""A division that may raise would not be vectorised; a * b + c may be one instruction, and nothing else changes."""

# mypy would take it for a function of all its arguments, the context too
as_intrinsic: Any = intrinsic

SUMS: dict[str, Any] = {**OPTIONS, "fastmath": {"contract", "reassoc"}}
"""For loops that add up a row: in any order, so that they are vectorised. NaN and infinity keep their meaning."""

INLINED: dict[str, Any] = {**OPTIONS, "forceinline": True}
"""For kernels with sums of several products that other kernels call.

Which of two products is joined with the sum depends on what the compiler sees around it. A kernel that is called, not
compiled in, exists twice in the process that compiles it, once in its caller's machine code, and another copy may be
run there than where the machine code is loaded: results would differ in the last bit between first and later runs.
"""
