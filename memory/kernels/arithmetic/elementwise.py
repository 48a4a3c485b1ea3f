"""Elementwise functions that several recurrences use, inside kernels: exp, sigmoid and tanh.

Loops over them vectorise, which the library's exp and tanh prevent.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS

# No other options than `OPTIONS`: reassociation would undo the rounding trick in `_exp32`.


@njit(inline="always", error_model="numpy", fastmath={"contract"})
def _exp32(x):
    """exp(x) in float32 to 2e-7, without a branch or a call, so that loops over it vectorise. NaN stays NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2. Adding 1.5 * 2^23 rounds x / ln 2 to n and leaves n in the low bits, which are
    shifted into the exponent. exp(r) is its Taylor polynomial.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    shifted = np.float32(x * np.float32(1.44269504) + np.float32(12582912.0))
    n = shifted - np.float32(12582912.0)
    # ln 2 in two parts; n times the first part is exact
    r = (x - n * np.float32(0.693145751953125)) - n * np.float32(1.42860677e-06)
    power = np.float32(1 / 720)
    power = power * r + np.float32(1 / 120)
    power = power * r + np.float32(1 / 24)
    power = power * r + np.float32(1 / 6)
    power = power * r + np.float32(1 / 2)
    power = power * r + np.float32(1)
    power = power * r + np.float32(1)
    scale = np.int32((shifted.view(np.int32) << np.int32(23)) + np.int32(0x3F800000))
    return power * scale.view(np.float32)


def exp(x: float) -> float:
    """E to the x inside a kernel: exact in float64; in float32 to 2e-7, and x is taken from -87 to 88."""
    raise NotImplementedError


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) inside a kernel: exact in float64, to 1e-7 in float32."""
    raise NotImplementedError


def tanh(x: float) -> float:
    """Tanh inside a kernel: exact in float64, to 4e-7 of the result in float32, in [-1, 1]."""
    raise NotImplementedError


@overload(exp, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _exp(x):
    if x == types.float32:
        return lambda x: _exp32(x)
    return lambda x: math.exp(x)


@overload(sigmoid, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _sigmoid(x):
    if x == types.float32:
        return lambda x: np.float32(1) / (np.float32(1) + _exp32(-x))
    return lambda x: 1.0 / (1.0 + math.exp(-x))


# tanh x = x P(x^2) / Q(x^2) for |x| <= 8.26, where it is 1 in float32. P and Q are fitted to the least relative error,
# 9e-9, and scaled so that rounding them and their values costs least.
_ONE, _BOUND = np.float32(1), np.float32(8.26)
_P0, _P1, _P2, _P3, _P4 = map(np.float32, (1.65, 0.22156827, 0.005861105, 3.5574114e-05, 2.4296305e-08))
_Q0, _Q1, _Q2, _Q3, _Q4 = map(np.float32, (1.65, 0.7715681, 0.043050688, 0.00055752805, 1.3736748e-06))


@overload(tanh, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _tanh(x):
    if x == types.float32:

        def rational(x):
            # NaN fails all comparisons and stays NaN
            x = _BOUND if x > _BOUND else x
            x = -_BOUND if x < -_BOUND else x
            y = x * x
            p = _P0 + y * (_P1 + y * (_P2 + y * (_P3 + y * _P4)))
            q = _Q0 + y * (_Q1 + y * (_Q2 + y * (_Q3 + y * _Q4)))
            x = x * p / q
            x = _ONE if x > _ONE else x
            return -_ONE if x < -_ONE else x

        return rational
    return lambda x: math.tanh(x)


@njit(**OPTIONS)
def sigmoid_in_place(row):
    """Replace every number of a row by its sigmoid."""
    for j in range(len(row)):
        row[j] = sigmoid(row[j])


@njit(**OPTIONS)
def write_tanh(row, out):
    """Fill out with the tanh of row. They must not overlap: the loop would then not run in vectors."""
    for j in range(len(row)):
        out[j] = tanh(row[j])


@njit(**OPTIONS)
def tanh_in_place(row):
    """Replace every number of a row by its tanh."""
    for j in range(len(row)):
        row[j] = tanh(row[j])
