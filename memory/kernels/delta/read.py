"""The gated read of a layer, y = sigmoid(g) tanh(read), for some steps of one head at a time.

Each loop writes one array and covers all steps at once, so that it vectorises.
"""

from __future__ import annotations

from numba import njit

from palimpsest.memory.kernels.arithmetic.compiling import INLINED
from palimpsest.memory.kernels.cells.elementwise import sigmoid, tanh


@njit(**INLINED)
def gate_reads(reads, gates):  # type: ignore[no-untyped-def]
    """Replace reads [n V] by sigmoid(gates) tanh(reads)."""
    for i in range(len(reads)):
        reads[i] = tanh(reads[i])
    for i in range(len(reads)):
        reads[i] *= sigmoid(gates[i])


@njit(**INLINED)
def gate_reads_backward(reads, gates, d, gated):  # type: ignore[no-untyped-def]
    """Turn d [n V], the gradient of the gated reads, into that of reads, and gates into their own gradient.

    `gated` [n V] is filled with the gated reads; `reads` is overwritten.
    """
    one = d.dtype.type(1)
    for i in range(len(reads)):
        reads[i] = tanh(reads[i])
    for i in range(len(gates)):
        gates[i] = sigmoid(gates[i])
    for i in range(len(gated)):
        gated[i] = gates[i] * reads[i]
    for i in range(len(d)):
        d[i] *= gates[i]
    for i in range(len(gates)):
        gates[i] = d[i] * reads[i] * (one - gates[i])
    for i in range(len(d)):
        d[i] *= one - reads[i] * reads[i]
