"""The output gate of a layer in numba, y = sigmoid(g) tanh(read), for some steps of one head at a time.

Each loop writes one array and covers all steps at once, so that it vectorises.
"""

from __future__ import annotations

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED
from palimpsest.memory.kernels.arithmetic.elementwise import sigmoid, tanh


@njit(**INLINED)
def output_gate(reads, gates):
    """Replace reads [n V] by sigmoid(gates) tanh(reads)."""
    for i in range(len(reads)):
        reads[i] = tanh(reads[i])
    for i in range(len(reads)):
        reads[i] *= sigmoid(gates[i])


@njit(**INLINED)
def output_gate_backward(reads, gates, d, y):
    """The gradient of `output_gate`: turn d [n V], that of y, into that of reads, and gates into their own.

    `y` [n V] is filled with the gated reads; `reads` is overwritten.
    """
    one = d.dtype.type(1)
    for i in range(len(reads)):
        reads[i] = tanh(reads[i])
    for i in range(len(gates)):
        gates[i] = sigmoid(gates[i])
    for i in range(len(y)):
        y[i] = gates[i] * reads[i]
    for i in range(len(d)):
        d[i] *= gates[i]
    for i in range(len(gates)):
        gates[i] = d[i] * reads[i] * (one - gates[i])
    for i in range(len(d)):
        d[i] *= one - reads[i] * reads[i]
