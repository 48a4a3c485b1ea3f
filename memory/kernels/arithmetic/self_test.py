"""Whether numba compiles the intrinsics of this folder to what they should compute."""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.products import multiply_tile, transpose_square
from palimpsest.memory.kernels.arithmetic.vectors import fold, lanes_of, load, root, store, sum_rows, zeros_like

_LANES = lanes_of(4)
_TWO_COLUMNS = 2 * _LANES


def check_intrinsics() -> None:
    """Use every intrinsic once. Raises whatever numba raises, or ArithmeticError where a number is wrong."""
    x = np.arange(_LANES**2, dtype=np.float32).reshape(_LANES, _LANES)
    transposed, sums, product = np.zeros_like(x), np.zeros_like(x[0]), np.zeros_like(x)
    _use(x.ctypes.data, transposed, sums, product)
    if not (x == transposed.T).all() or sums[0] != x[:, :2].sum() or (product[0] != x[0] @ x.T).any():
        raise ArithmeticError("an intrinsic computes a wrong number")


@njit(**OPTIONS)
def _use(address, transposed, sums, product):
    """Transpose the array at the address; sum its first two columns; multiply its first row by the transpose."""
    x = array_at(address, transposed.shape, transposed)
    transpose_square(x, 0, _LANES, transposed, 0, _LANES)
    columns = load(transposed, 0, _TWO_COLUMNS)
    rows = np.empty(_LANES, x.dtype)
    store(fold(root(columns * columns) + zeros_like(columns)), rows, 0)
    sum_rows(rows, 1, sums, 0)
    multiply_tile(x, _LANES, 1, transposed, 0, x, 0, False, product, 0, 0, _LANES, _LANES, 1, 1)
