"""The element-wise part of the gated recurrences in `memory.kernels.cells.gated`, forward and backward, in numba.

One call is one step of B rows. S is the width of `gates` [B, S]:

    LSTM  4 H: i f g o        RNN  H        GRU  4 H: n r z m, with m = W_hn h + b_hn

A forward kernel finds sums in `gates` and leaves what its backward kernel needs; only GRU's m stays. It moves h
[B, H] (and c) one step on, in place. A backward kernel writes the gradient of the sums to d [B, S]; dh [B, H] (and
dc) come with what later steps hand back, and leave with what this step hands back other than through the recurrent
matrix.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS

# No options but those of `OPTIONS`: reassociation would undo the rounding trick in `_exp32`.


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


# Each loop writes one stream and reads few: that is what the compiler can prove not to overlap, and vectorises.


@njit(**OPTIONS)
def open_gates(row):  # type: ignore[no-untyped-def]
    """Sigmoids in place."""
    for j in range(len(row)):
        row[j] = sigmoid(row[j])


@njit(**OPTIONS)
def _squash(row, out):  # type: ignore[no-untyped-def]
    """Hyperbolic tangents; out must not be row, for which the compiled loop would leave its vectors."""
    for j in range(len(row)):
        out[j] = tanh(row[j])


@njit(**OPTIONS)
def squash_in_place(row):  # type: ignore[no-untyped-def]
    """Hyperbolic tangents in place."""
    for j in range(len(row)):
        row[j] = tanh(row[j])


@njit(**OPTIONS)
def _through_gate(d, times, gate, out):  # type: ignore[no-untyped-def]
    """The gradient of a sigmoid's sum from d times what the gate is multiplied by."""
    for j in range(len(d)):
        out[j] = d[j] * times[j] * gate[j] * (1 - gate[j])


@njit(**INLINED)
def lstm_forward(gates, h, c):  # type: ignore[no-untyped-def]
    """i, f, o = sigmoid; g = tanh; c = f c + i g; h = o tanh(c)."""
    H = h.shape[1]
    for p in range(len(h)):
        row, cell, out = gates[p], c[p], h[p]
        i, f, g, o = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
        open_gates(row[: 2 * H])
        squash_in_place(g)
        open_gates(o)
        for j in range(H):
            cell[j] = f[j] * cell[j] + i[j] * g[j]
        _squash(cell, out)
        for j in range(H):
            out[j] *= o[j]


@njit(**OPTIONS)
def lstm_backward(gates, cells, c_before, dy, d, dh, dc):  # type: ignore[no-untyped-def]
    """Gradients of `lstm_forward`, with the new and the old c in `cells` and `c_before`."""
    H = dy.shape[1]
    squashed = np.empty(H, dy.dtype)
    for p in range(len(dy)):
        row, d_row, before, outside, d_h, d_c = gates[p], d[p], c_before[p], dy[p], dh[p], dc[p]
        i, f, g, o = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
        d_g = d_row[2 * H : 3 * H]
        _squash(cells[p], squashed)
        for j in range(H):
            d_h[j] += outside[j]
        for j in range(H):
            d_c[j] += d_h[j] * o[j] * (1 - squashed[j] * squashed[j])
        _through_gate(d_c, g, i, d_row[:H])
        _through_gate(d_c, before, f, d_row[H : 2 * H])
        for j in range(H):
            d_g[j] = d_c[j] * i[j] * (1 - g[j] * g[j])
        _through_gate(d_h, squashed, o, d_row[3 * H :])
        for j in range(H):
            d_c[j] *= f[j]
        d_h[:] = 0


@njit(**OPTIONS)
def gru_forward(gates, h):  # type: ignore[no-untyped-def]
    """r, z = sigmoid; n = tanh(input + r m); h = n + z (h - n)."""
    H = h.shape[1]
    for p in range(len(h)):
        row, out = gates[p], h[p]
        n, r, z, m = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
        open_gates(row[H : 3 * H])
        for j in range(H):
            n[j] += r[j] * m[j]
        squash_in_place(n)
        for j in range(H):
            out[j] = n[j] + z[j] * (out[j] - n[j])


@njit(**OPTIONS)
def gru_backward(gates, h_before, dy, d, dh):  # type: ignore[no-untyped-def]
    """Gradients of `gru_forward`."""
    H = dy.shape[1]
    for p in range(len(dy)):
        row, d_row, before, outside, d_h = gates[p], d[p], h_before[p], dy[p], dh[p]
        n, r, z, m = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
        d_n, d_z, d_m = d_row[:H], d_row[2 * H : 3 * H], d_row[3 * H :]
        for j in range(H):
            d_h[j] += outside[j]
        for j in range(H):
            d_n[j] = d_h[j] * (1 - z[j]) * (1 - n[j] * n[j])
        _through_gate(d_n, m, r, d_row[H : 2 * H])
        for j in range(H):
            d_z[j] = d_h[j] * (before[j] - n[j]) * z[j] * (1 - z[j])
        for j in range(H):
            d_m[j] = d_n[j] * r[j]
        for j in range(H):
            d_h[j] *= z[j]


@njit(**OPTIONS)
def rnn_forward(gates, h):  # type: ignore[no-untyped-def]
    """The new h = tanh."""
    for p in range(len(h)):
        _squash(gates[p], h[p])


@njit(**OPTIONS)
def rnn_backward(y, dy, d, dh):  # type: ignore[no-untyped-def]
    """Gradients of `rnn_forward`, with the new h in `y`."""
    H = dy.shape[1]
    for p in range(len(dy)):
        new, outside, d_row, d_h = y[p], dy[p], d[p], dh[p]
        for j in range(H):
            d_h[j] += outside[j]
        for j in range(H):
            d_row[j] = d_h[j] * (1 - new[j] * new[j])
        d_h[:] = 0
