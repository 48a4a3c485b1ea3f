"""Few rows through linear maps, inside a kernel, by the products of `memory.kernels.arithmetic.products`."""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.elementwise import tanh
from palimpsest.memory.kernels.arithmetic.products import multiply, pack, transpose, whole_vectors


@njit(**OPTIONS)
def map_packed(x, weights, biases, out):
    """Fill out [N, D] from few rows by linear maps with tanh between them.

    The rows come packed and transposed: weights are then read as torch lays them out. The result of a row does not
    depend on how many rows there are.
    """
    N, last = len(out), len(weights) - 1
    for number in range(len(weights)):
        bias = biases[number]
        y = np.empty((len(bias), whole_vectors(N, out.itemsize)), out.dtype)
        multiply(weights[number], x, y, False)
        for unit in range(len(bias)):
            _add_number(y[unit], bias[unit], number < last)
        if number < last:
            x = pack(y)
        else:
            transpose(y[:, :N], out)


@njit(**OPTIONS)
def _add_number(row, number, with_tanh):
    """Add a number to a row, and take its tanh `with_tanh`."""
    if with_tanh:
        for j in range(len(row)):
            row[j] = tanh(row[j] + number)
    else:
        for j in range(len(row)):
            row[j] += number
