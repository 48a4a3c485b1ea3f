"""The gated recurrences of `memory.kernels.cells.gated` in numba, matrix products included, forward and backward.

`gates` [T, B, S] holds the sums of a step, then what the cell made of them. The product of the input fills the first G
columns, that of h the last G. G equals S for LSTM and RNN; GRU adds two of the products only after its reset gate.
"""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.products import (
    copy,
    fill_columns,
    multiply,
    multiply_onto,
    pack,
    pack_into,
    packed_size,
    transpose,
    whole_vectors,
)
from palimpsest.memory.kernels.cells.elementwise import (
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
)

LSTM, GRU, RNN = 0, 1, 2

BLOCK_ROWS = 128
"""Rows of a block of steps."""


@njit(**OPTIONS)
def block_steps(T, B):
    """Steps whose products with x are one matrix product: many for speed, few enough to stay in the cache."""
    return min(T, max(1, BLOCK_ROWS // B))


@njit(**OPTIONS)
def forward(kind, x, start, to_gates, to_h, bias, h, c, gates, y, cells):
    """Fill y [T, B, H], gates and, for LSTM, cells [T, B, H].

    Args:
        kind: LSTM, GRU or RNN.
        x: [T, B, F], contiguous.
        start: [T, B] bool.
        to_gates: [F, G], packed.
        to_h: [H, G], packed.
        bias: [S].
        h: [B, H], the state before the sequence; replaced by the last one.
        c: [B, H], the same for the cells; empty for GRU and RNN.
        gates: [T, B, S] to keep for `backward`; or memory for `block_steps` of it, which every block reuses.
        y: to fill.
        cells: to fill; or empty where nothing is kept.
    """
    T, B, F = x.shape
    H, S = y.shape[2], len(bias)
    G = S if kind != GRU else 3 * H
    steps = block_steps(T, B)
    inputs, sums = x.reshape(T * B, F), gates.reshape(len(gates) * B, S)
    for begin in range(0, T, steps):
        end = min(begin + steps, T)
        first = begin if len(gates) == T else 0
        block = sums[first * B : (first + end - begin) * B]
        multiply_onto(bias[:G], inputs[begin * B : end * B], to_gates, block[:, :G])
        for row in range(len(block) if S > G else 0):
            copy(bias[G:], block[row, G:])
        for t in range(begin, end):
            at = gates[first + t - begin]
            for b in range(B):
                if start[t, b]:
                    h[b] = 0
                    if kind == LSTM:
                        c[b] = 0
            multiply(h, to_h, at[:, S - G :], True)
            if kind == LSTM:
                lstm_forward(at, h, c)
                if len(cells) > 0:
                    copy(c.ravel(), cells[t].ravel())
            elif kind == GRU:
                gru_forward(at, h)
            else:
                rnn_forward(at, h)
            copy(h.ravel(), y[t].ravel())


@njit(**OPTIONS)
def backward(kind, x, start, from_gates, from_h, h, c, gates, y, cells, dy, dh, dc, dx, d_ih, d_hh, d_bias):
    """Gradients of `forward`, added to d_ih [G, F], d_hh [G, H] and d_bias [S].

    `from_gates` [G, F] and `from_h` [G, H] are packed. `h` and `c` [B, H] are the state before the sequence. `dh` and
    `dc` hold the gradient of the last state; it is replaced by that of the first. `dx` [T, B, F] is filled unless it is
    empty. The rest is as in `forward`.
    """
    T, B, F = x.shape
    H, S = y.shape[2], len(d_bias)
    G = len(d_hh)
    steps = block_steps(T, B)
    inputs, d_inputs = x.reshape(T * B, F), dx.reshape(len(dx) * B, F)
    d, before, c_before = np.empty((steps * B, S), y.dtype), np.empty((steps * B, H), y.dtype), np.zeros_like(c)
    packed_x = np.empty(packed_size(steps * B, F, y.itemsize), y.dtype)
    packed_h = np.empty(packed_size(steps * B, H, y.itemsize), y.dtype)
    totals = np.empty(S, y.dtype)
    for begin in range((T - 1) // steps * steps, -1, -steps):
        end = min(begin + steps, T)
        rows = (end - begin) * B
        for t in range(end - 1, begin - 1, -1):
            place = slice((t - begin) * B, (t - begin + 1) * B)
            at, h_before = d[place], before[place]
            for b in range(B):
                if start[t, b]:
                    h_before[b] = 0
                else:
                    copy(y[t - 1, b] if t > 0 else h[b], h_before[b])
            if kind == LSTM:
                for b in range(B):
                    if start[t, b]:
                        c_before[b] = 0
                    else:
                        copy(cells[t - 1, b] if t > 0 else c[b], c_before[b])
                lstm_backward(gates[t], cells[t], c_before, dy[t], at, dh, dc)
            elif kind == GRU:
                gru_backward(gates[t], h_before, dy[t], at, dh)
            else:
                rnn_backward(y[t], dy[t], at, dh)
            multiply(at[:, S - G :], from_h, dh, True)
            for b in range(B):
                if start[t, b]:
                    dh[b] = 0
                    if kind == LSTM:
                        dc[b] = 0
        block, block_x = d[:rows], inputs[begin * B : end * B]
        multiply(block[:, :G].T, pack_into(block_x, packed_x), d_ih, True)
        multiply(block[:, S - G :].T, pack_into(before[:rows], packed_h), d_hh, True)
        totals[:] = 0
        for row in range(rows):
            for j in range(S):
                totals[j] += block[row, j]
        d_bias += totals
        if len(dx) > 0:
            multiply(block[:, :G], from_gates, d_inputs[begin * B : end * B], False)


@njit(**OPTIONS)
def step(kind, layer, x_at, w_ih, w_hh, b_ih, b_hh, h_at, c_at, new_h, new_c, y):
    """One step of a layer, nothing kept: fill y [B, H] and the layer's part of new_h and new_c [B, L, H].

    x [B, F], h and c [B, L, H] are given by their addresses; weights and biases are laid out as torch has them.
    Everything is transposed, [units, rows]: then the weights are the left factor and need no packing, and only the few
    rows of x and h are packed.
    """
    B, H = y.shape
    x = array_at(x_at, (B, w_ih.shape[1]), y)
    old_h, old_c = array_at(h_at, new_h.shape, y), array_at(c_at, new_c.shape, y)
    # padded to whole vectors: the same instructions then compute a row, whatever the number of rows
    N = whole_vectors(B, y.itemsize)
    sums = np.empty((4 * H if kind == GRU else len(b_hh), N), y.dtype)
    h, c = np.empty((H, N), y.dtype), np.empty((H if kind == LSTM else 0, N), y.dtype)
    h[:, B:], c[:, B:] = 0, 0
    transpose(old_h[:, layer], h[:, :B])
    inputs, before = pack(x.T), pack(h)
    if kind == GRU:
        # from torch's order, r z n, to the cell's, n r z m
        fill_columns(sums[:H], b_ih[2 * H :])
        fill_columns(sums[H : 3 * H], b_ih[: 2 * H] + b_hh[: 2 * H])
        fill_columns(sums[3 * H :], b_hh[2 * H :])
        multiply(w_ih[2 * H :], inputs, sums[:H], True)
        multiply(w_ih[: 2 * H], inputs, sums[H : 3 * H], True)
    else:
        fill_columns(sums, b_ih + b_hh)
        multiply(w_ih, inputs, sums, True)
    multiply(w_hh, before, sums[len(sums) - len(b_hh) :], True)
    gates, units = sums.reshape(1, -1), h.reshape(1, -1)
    if kind == LSTM:
        transpose(old_c[:, layer], c[:, :B])
        lstm_forward(gates, units, c.reshape(1, -1))
        transpose(c[:, :B], new_c[:, layer])
    elif kind == GRU:
        gru_forward(gates, units)
    else:
        rnn_forward(gates, units)
    transpose(h[:, :B], y)
    for b in range(B):
        copy(y[b], new_h[b, layer])
