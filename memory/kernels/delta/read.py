"""What a layer makes of what its tables give: sigmoid(g) bounded(read), for some steps of one head at a time.

    bounded(x) = tanh(x), or x / sqrt(mean x^2 + NORM_EPS)

Each loop writes one array and runs over all steps at once, so that it is vectorised.
"""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED
from palimpsest.memory.kernels.cells.elementwise import sigmoid, tanh

NORM_EPS = 0.1
"""Added to mean squares before roots are taken: what is much smaller than sqrt(NORM_EPS) stays small."""


@njit(**INLINED)
def _bound(reads, use_tanh, scales):  # type: ignore[no-untyped-def]
    """`bounded` in place, for reads [n V]; scales [n] gets what they were multiplied by, in the form without tanh."""
    if use_tanh:
        for i in range(len(reads)):
            reads[i] = tanh(reads[i])
        return
    one, eps, V = reads.dtype.type(1), reads.dtype.type(NORM_EPS), len(reads) // len(scales)
    for s in range(len(scales)):
        read = reads[s * V : (s + 1) * V]
        squares = reads.dtype.type(0)
        for j in range(V):
            squares += read[j] * read[j]
        scales[s] = one / np.sqrt(squares / reads.dtype.type(V) + eps)
        for j in range(V):
            read[j] *= scales[s]


@njit(**INLINED)
def gate_reads(reads, gates, use_tanh, scales):  # type: ignore[no-untyped-def]
    """sigmoid(gates) bounded(reads) in place of reads [n V]; scales [n] is memory."""
    _bound(reads, use_tanh, scales)
    for i in range(len(reads)):
        reads[i] *= sigmoid(gates[i])


@njit(**INLINED)
def gate_reads_backward(reads, gates, use_tanh, scales, d, gated):  # type: ignore[no-untyped-def]
    """The gradient of `gate_reads`, d [n V], becomes that of reads; gates becomes its own; reads is written over.

    `gated` [n V] gets what `gate_reads` makes.
    """
    one, zero = d.dtype.type(1), d.dtype.type(0)
    _bound(reads, use_tanh, scales)
    for i in range(len(gates)):
        gates[i] = sigmoid(gates[i])
    for i in range(len(gated)):
        gated[i] = gates[i] * reads[i]
    for i in range(len(d)):
        d[i] *= gates[i]
    for i in range(len(gates)):
        gates[i] = d[i] * reads[i] * (one - gates[i])
    if use_tanh:
        for i in range(len(d)):
            d[i] *= one - reads[i] * reads[i]
        return
    V = len(reads) // len(scales)
    for s in range(len(scales)):
        read, d_read = reads[s * V : (s + 1) * V], d[s * V : (s + 1) * V]
        along = zero
        for j in range(V):
            along += d_read[j] * read[j]
        along /= d.dtype.type(V)
        for j in range(V):
            d_read[j] = scales[s] * (d_read[j] - along * read[j])
