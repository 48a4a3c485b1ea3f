"""The element-wise part of the gated recurrences in `memory.kernels.gated`, forward and backward, in numba.

One call is one step of n pieces. Its rows lie together, from `row` on, in the packed arrays gates [R, S] and
y [R, H]; those of the step before from `row_before` on in `h_before` (and `c_before`). S is the width of `gates`:

    LSTM  4 H: i f g o        RNN  H        GRU  4 H: n r z m, with m = W_hn h + b_hn

A forward kernel finds sums in `gates` and leaves what its backward kernel needs; only GRU's m stays. A backward
kernel writes the gradient of the sums to d [*, S] and h_{t-1} to previous [*, H], from row `at` on. `dh` [N, H] (and
`dc`) hold what later steps hand back, and leave with what this step hands back other than through the recurrent
matrix.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, types
from numba.extending import overload

# Every kernel has error_model="numpy", since a division that may raise is not vectorised, and fastmath={"contract"}, so
# that a * b + c is one instruction; reassociation would undo the rounding trick in `_exp32`.


@njit(inline="always", error_model="numpy", fastmath={"contract"})
def _exp32(x):  # type: ignore[no-untyped-def]
    """exp(x) in float32 to 2e-7, without a branch or a call, so that loops over it are vectorised; NaN stays NaN.

    x = n ln 2 + r, |r| <= ln 2 / 2; adding 1.5 * 2^23 rounds x / ln 2 to n and leaves n in the low bits, from where
    it goes to the exponent; exp(r) is its Taylor polynomial.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    shifted = np.float32(x * np.float32(1.44269504) + np.float32(12582912.0))
    n = shifted - np.float32(12582912.0)
    # ln 2 in two parts: n times the first is exact
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


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)) inside a kernel: exact in float64, to 1e-7 in float32."""
    raise NotImplementedError


def tanh(x: float) -> float:
    """Hyperbolic tangent inside a kernel: exact in float64, to 2e-7 in float32."""
    raise NotImplementedError


@overload(sigmoid, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _sigmoid(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: np.float32(1) / (np.float32(1) + _exp32(-x))
    return lambda x: 1.0 / (1.0 + math.exp(-x))


@overload(tanh, jit_options={"error_model": "numpy", "fastmath": {"contract"}})
def _tanh(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: np.float32(2) / (np.float32(1) + _exp32(np.float32(-2) * x)) - np.float32(1)
    return lambda x: math.tanh(x)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def lstm_forward(n, row, row_before, gates, y, cells, h_before, c_before):  # type: ignore[no-untyped-def]
    """i, f, o = sigmoid; g = tanh; c = f c_before + i g; h = o tanh(c)."""
    H = y.shape[1]
    for p in range(n):
        # two loops over range(H): LLVM vectorises neither one loop over all arrays nor one from 2 H to 3 H
        for j in range(H):
            gates[row + p, j] = sigmoid(gates[row + p, j])
            gates[row + p, H + j] = sigmoid(gates[row + p, H + j])
            gates[row + p, 2 * H + j] = tanh(gates[row + p, 2 * H + j])
            gates[row + p, 3 * H + j] = sigmoid(gates[row + p, 3 * H + j])
        for j in range(H):
            kept = gates[row + p, H + j] * c_before[row_before + p, j]
            c = kept + gates[row + p, j] * gates[row + p, 2 * H + j]
            cells[row + p, j] = c
            y[row + p, j] = gates[row + p, 3 * H + j] * tanh(c)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def lstm_backward(  # type: ignore[no-untyped-def]
    n, row, row_before, at, gates, y, cells, h_before, c_before, dy, d, previous, dh, dc
):
    """Gradients of `lstm_forward`."""
    H = y.shape[1]
    for p in range(n):
        for j in range(H):
            i = gates[row + p, j]
            f = gates[row + p, H + j]
            g = gates[row + p, 2 * H + j]
            o = gates[row + p, 3 * H + j]
            squashed = tanh(cells[row + p, j])
            d_h = dh[p, j] + dy[row + p, j]
            d_c = dc[p, j] + d_h * o * (1 - squashed * squashed)
            d[at + p, j] = d_c * g * i * (1 - i)
            d[at + p, H + j] = d_c * c_before[row_before + p, j] * f * (1 - f)
            d[at + p, 2 * H + j] = d_c * i * (1 - g * g)
            d[at + p, 3 * H + j] = d_h * squashed * o * (1 - o)
            dc[p, j] = d_c * f
        dh[p] = 0
        previous[at + p] = h_before[row_before + p]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def gru_forward(n, row, row_before, gates, y, h_before):  # type: ignore[no-untyped-def]
    """r, z = sigmoid; n = tanh(input + r m); h = n + z (h_before - n)."""
    H = y.shape[1]
    for p in range(n):
        for j in range(H):
            gates[row + p, H + j] = sigmoid(gates[row + p, H + j])
            gates[row + p, 2 * H + j] = sigmoid(gates[row + p, 2 * H + j])
        for j in range(H):
            new = tanh(gates[row + p, j] + gates[row + p, H + j] * gates[row + p, 3 * H + j])
            gates[row + p, j] = new
            y[row + p, j] = new + gates[row + p, 2 * H + j] * (h_before[row_before + p, j] - new)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def gru_backward(n, row, row_before, at, gates, y, h_before, dy, d, previous, dh):  # type: ignore[no-untyped-def]
    """Gradients of `gru_forward`."""
    H = y.shape[1]
    for p in range(n):
        for j in range(H):
            new = gates[row + p, j]
            r = gates[row + p, H + j]
            z = gates[row + p, 2 * H + j]
            d_h = dh[p, j] + dy[row + p, j]
            d_new = d_h * (1 - z) * (1 - new * new)
            d[at + p, j] = d_new
            d[at + p, H + j] = d_new * gates[row + p, 3 * H + j] * r * (1 - r)
            d[at + p, 2 * H + j] = d_h * (h_before[row_before + p, j] - new) * z * (1 - z)
            d[at + p, 3 * H + j] = d_new * r
            dh[p, j] = d_h * z
        previous[at + p] = h_before[row_before + p]


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def rnn_forward(n, row, row_before, gates, y, h_before):  # type: ignore[no-untyped-def]
    """H = tanh."""
    for p in range(n):
        for j in range(y.shape[1]):
            y[row + p, j] = tanh(gates[row + p, j])


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def rnn_backward(n, row, row_before, at, gates, y, h_before, dy, d, previous, dh):  # type: ignore[no-untyped-def]
    """Gradients of `rnn_forward`."""
    for p in range(n):
        for j in range(y.shape[1]):
            d[at + p, j] = (dh[p, j] + dy[row + p, j]) * (1 - y[row + p, j] * y[row + p, j])
        dh[p] = 0
        previous[at + p] = h_before[row_before + p]
