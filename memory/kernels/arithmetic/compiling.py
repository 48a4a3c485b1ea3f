"""How kernels are compiled."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

OPTIONS: dict[str, Any] = dict(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
"""Division by zero raises nothing, so that divisions vectorise; a * b + c may be one instruction."""

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
