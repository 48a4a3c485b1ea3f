"""The element-wise part of the gated recurrences in `memory.kernels.gated`: gates, their gradients, in numba.

Step s of the first n pieces; input row = `first[p] + s * B` of the flattened [T * B, ...] arrays. G is the number of
gates times H. All write in place. Each forward kernel takes

    s, n, first [N], B, inputs [T*B, G], recurrent [N, G], bias [G], saved [T*B, *], y [T*B, H], carried h [N, H] ...

and each backward kernel, whose `dh` (and `dc`) hold what later steps want and leave with what earlier steps get other
than through the recurrent matrix,

    s, n, first, B, saved, y, opening h [N, H] ..., previous [T*B, H], dy [T*B, H], through [N, G], dh [N, H] ...,
    gradients of inputs [T*B, G] ...

`through` is the gradient of the recurrent product, to be multiplied with the recurrent matrix; `previous` is filled
with h_{t-1} as the cell saw it.
"""

from __future__ import annotations

import math


import numpy as np
from numba import njit, types
from numba.extending import overload

# error_model: a division that may raise is not vectorised. "contract" lets a * b + c be one instruction; nothing may
# be reassociated, which would undo the rounding trick in `_exp32` and the handling of NaN.
_OPTIONS = dict(error_model="numpy", fastmath={"contract"})


@njit(inline="always", **_OPTIONS)
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
    """tanh(x) inside a kernel: exact in float64, to 2e-7 in float32."""
    raise NotImplementedError


@overload(sigmoid, jit_options=_OPTIONS)
def _sigmoid(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: np.float32(1) / (np.float32(1) + _exp32(-x))
    return lambda x: 1.0 / (1.0 + math.exp(-x))


@overload(tanh, jit_options=_OPTIONS)
def _tanh(x):  # type: ignore[no-untyped-def]
    if x == types.float32:
        return lambda x: np.float32(2) / (np.float32(1) + _exp32(np.float32(-2) * x)) - np.float32(1)
    return lambda x: math.tanh(x)


@njit(cache=True, **_OPTIONS)
def lstm_forward(s, n, first, B, inputs, recurrent, bias, saved, y, h, c):  # type: ignore[no-untyped-def]
    """i, f, o = sigmoid, g = tanh; c' = f c + i g; h' = o tanh(c'). Saves i, f, g, o, c', tanh(c')."""
    H = y.shape[1]
    for p in range(n):
        row = first[p] + s * B
        for j in range(H):
            i = sigmoid(inputs[row, j] + recurrent[p, j] + bias[j])
            f = sigmoid(inputs[row, H + j] + recurrent[p, H + j] + bias[H + j])
            g = tanh(inputs[row, 2 * H + j] + recurrent[p, 2 * H + j] + bias[2 * H + j])
            o = sigmoid(inputs[row, 3 * H + j] + recurrent[p, 3 * H + j] + bias[3 * H + j])
            cell = f * c[p, j] + i * g
            squashed = tanh(cell)
            saved[row, j] = i
            saved[row, H + j] = f
            saved[row, 2 * H + j] = g
            saved[row, 3 * H + j] = o
            saved[row, 4 * H + j] = cell
            saved[row, 5 * H + j] = squashed
            c[p, j] = cell
            h[p, j] = o * squashed
            y[row, j] = o * squashed


@njit(cache=True, **_OPTIONS)
def lstm_backward(s, n, first, B, saved, y, h0, c0, previous, dy, through, dh, dc, d_inputs):  # type: ignore[no-untyped-def]
    """Gradients of one LSTM step."""
    H = y.shape[1]
    for p in range(n):
        row = first[p] + s * B
        h_before = h0[p] if s == 0 else y[row - B]
        c_before = c0[p] if s == 0 else saved[row - B, 4 * H : 5 * H]
        previous[row] = h_before
        for j in range(H):
            i = saved[row, j]
            f = saved[row, H + j]
            g = saved[row, 2 * H + j]
            o = saved[row, 3 * H + j]
            squashed = saved[row, 5 * H + j]
            d_h = dh[p, j] + dy[row, j]
            d_c = dc[p, j] + d_h * o * (1 - squashed * squashed)
            d_i = d_c * g * i * (1 - i)
            d_f = d_c * c_before[j] * f * (1 - f)
            d_g = d_c * i * (1 - g * g)
            d_o = d_h * squashed * o * (1 - o)
            through[p, j] = d_i
            through[p, H + j] = d_f
            through[p, 2 * H + j] = d_g
            through[p, 3 * H + j] = d_o
            d_inputs[row, j] = d_i
            d_inputs[row, H + j] = d_f
            d_inputs[row, 2 * H + j] = d_g
            d_inputs[row, 3 * H + j] = d_o
            dc[p, j] = d_c * f
            dh[p, j] = 0


@njit(cache=True, **_OPTIONS)
def gru_forward(s, n, first, B, inputs, recurrent, bias, saved, y, h):  # type: ignore[no-untyped-def]
    """r, z = sigmoid; m = recurrent + bias; n = tanh(input + r m); h' = n + z (h - n). Saves r, z, n, m."""
    H = y.shape[1]
    for p in range(n):
        row = first[p] + s * B
        for j in range(H):
            r = sigmoid(inputs[row, j] + recurrent[p, j] + bias[j])
            z = sigmoid(inputs[row, H + j] + recurrent[p, H + j] + bias[H + j])
            m = recurrent[p, 2 * H + j] + bias[2 * H + j]
            new = tanh(inputs[row, 2 * H + j] + r * m)
            after = new + z * (h[p, j] - new)
            saved[row, j] = r
            saved[row, H + j] = z
            saved[row, 2 * H + j] = new
            saved[row, 3 * H + j] = m
            h[p, j] = after
            y[row, j] = after


@njit(cache=True, **_OPTIONS)
def gru_backward(s, n, first, B, saved, y, h0, previous, dy, through, dh, d_inputs, d_recurrent):  # type: ignore[no-untyped-def]
    """Gradients of one GRU step; input and recurrent product differ by r in the third gate."""
    H = y.shape[1]
    for p in range(n):
        row = first[p] + s * B
        h_before = h0[p] if s == 0 else y[row - B]
        previous[row] = h_before
        for j in range(H):
            r = saved[row, j]
            z = saved[row, H + j]
            new = saved[row, 2 * H + j]
            d_h = dh[p, j] + dy[row, j]
            d_new = d_h * (1 - z) * (1 - new * new)
            d_r = d_new * saved[row, 3 * H + j] * r * (1 - r)
            d_z = d_h * (h_before[j] - new) * z * (1 - z)
            through[p, j] = d_r
            through[p, H + j] = d_z
            through[p, 2 * H + j] = d_new * r
            d_inputs[row, j] = d_r
            d_inputs[row, H + j] = d_z
            d_inputs[row, 2 * H + j] = d_new
            d_recurrent[row, j] = d_r
            d_recurrent[row, H + j] = d_z
            d_recurrent[row, 2 * H + j] = d_new * r
            dh[p, j] = d_h * z


@njit(cache=True, **_OPTIONS)
def rnn_forward(s, n, first, B, inputs, recurrent, bias, saved, y, h):  # type: ignore[no-untyped-def]
    """h' = tanh(input + recurrent + bias). Saves nothing."""
    for p in range(n):
        row = first[p] + s * B
        for j in range(y.shape[1]):
            after = tanh(inputs[row, j] + recurrent[p, j] + bias[j])
            h[p, j] = after
            y[row, j] = after


@njit(cache=True, **_OPTIONS)
def rnn_backward(s, n, first, B, saved, y, h0, previous, dy, through, dh, d_inputs):  # type: ignore[no-untyped-def]
    """Gradients of one step of Elman's network."""
    for p in range(n):
        row = first[p] + s * B
        previous[row] = h0[p] if s == 0 else y[row - B]
        for j in range(y.shape[1]):
            d = (dh[p, j] + dy[row, j]) * (1 - y[row, j] * y[row, j])
            through[p, j] = d
            d_inputs[row, j] = d
            dh[p, j] = 0
