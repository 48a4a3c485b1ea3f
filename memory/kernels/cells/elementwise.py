"""The elementwise part of the gated recurrences of `memory.kernels.cells.gated` in numba, forward and backward.

One call is one step of B rows. S is the width of `gates` [B, S]:

    LSTM  4 H: i f g o        RNN  H        GRU  4 H: n r z m, with m = W_hn h + b_hn

A forward kernel replaces the sums in `gates` by what its backward kernel needs (GRU's m stays as it is) and h [B, H],
and c, by those of the next step. A backward kernel fills d [B, S] with the gradient of the sums. dh [B, H], and dc,
hold the gradient from later steps; it is replaced by that of the step before, without the part through the recurrent
matrix.

Each loop writes one array and reads few: the compiler can then prove that they do not overlap, and vectorises it.
"""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
from palimpsest.memory.kernels.arithmetic.elementwise import sigmoid_in_place, tanh_in_place, write_tanh


@njit(**OPTIONS)
def _through_gate(d, times, gate, out):
    """Fill out with the gradient of the sum in a gate, a sigmoid: d is that of gate * times."""
    for j in range(len(d)):
        out[j] = d[j] * times[j] * gate[j] * (1 - gate[j])


@njit(**INLINED)
def lstm_forward(gates, h, c):
    """i, f, o = sigmoid; g = tanh; c = f c + i g; h = o tanh(c)."""
    H = h.shape[1]
    for p in range(len(h)):
        row, cell, out = gates[p], c[p], h[p]
        i, f, g, o = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
        sigmoid_in_place(row[: 2 * H])
        tanh_in_place(g)
        sigmoid_in_place(o)
        for j in range(H):
            cell[j] = f[j] * cell[j] + i[j] * g[j]
        write_tanh(cell, out)
        for j in range(H):
            out[j] *= o[j]


@njit(**OPTIONS)
def lstm_backward(gates, cells, c_before, dy, d, dh, dc):
    """Gradients of `lstm_forward`, with the new and the old c in `cells` and `c_before`."""
    H = dy.shape[1]
    squashed = np.empty(H, dy.dtype)
    for p in range(len(dy)):
        row, d_row, before, outside, d_h, d_c = gates[p], d[p], c_before[p], dy[p], dh[p], dc[p]
        i, f, g, o = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
        d_g = d_row[2 * H : 3 * H]
        write_tanh(cells[p], squashed)
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
def gru_forward(gates, h):
    """r, z = sigmoid; n = tanh(input + r m); h = n + z (h - n)."""
    H = h.shape[1]
    for p in range(len(h)):
        row, out = gates[p], h[p]
        n, r, z, m = row[:H], row[H : 2 * H], row[2 * H : 3 * H], row[3 * H :]
        sigmoid_in_place(row[H : 3 * H])
        for j in range(H):
            n[j] += r[j] * m[j]
        tanh_in_place(n)
        for j in range(H):
            out[j] = n[j] + z[j] * (out[j] - n[j])


@njit(**OPTIONS)
def gru_backward(gates, h_before, dy, d, dh):
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
def rnn_forward(gates, h):
    """The new h = tanh."""
    for p in range(len(h)):
        write_tanh(gates[p], h[p])


@njit(**OPTIONS)
def rnn_backward(y, dy, d, dh):
    """Gradients of `rnn_forward`, with the new h in `y`."""
    H = dy.shape[1]
    for p in range(len(dy)):
        new, outside, d_row, d_h = y[p], dy[p], d[p], dh[p]
        for j in range(H):
            d_h[j] += outside[j]
        for j in range(H):
            d_row[j] = d_h[j] * (1 - new[j] * new[j])
        d_h[:] = 0
