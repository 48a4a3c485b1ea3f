"""The loops of `memory.kernels.delta.layer` in numba: a layer of the rewrite-aware memory over a sequence.

A token is one step of one row of the batch. The sequence is cut into blocks, a segment of steps of a few rows each, and
a block stays in the cache until everything is done to it: the map into z, the recurrence, the map to the stream.

z has a line per token, [q, k, v, g of every head, then alpha, then beta of all heads], where q and k have been turned.
Backward goes through the blocks from last to first and writes gradients over a copy of their z.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import literally

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
from palimpsest.memory.kernels.arithmetic.elementwise import sigmoid_in_place
from palimpsest.memory.kernels.arithmetic.products import (
    add_rows,
    copy,
    multiply,
    multiply_onto,
    pack,
    pack_into,
    packed_size,
)
from palimpsest.memory.kernels.arithmetic.vectors import aligned
from palimpsest.memory.kernels.delta.loops import (
    SEGMENT,
    backward_scratch,
    forward_scratch,
    segment_backward,
    segment_forward,
)
from palimpsest.memory.kernels.delta.turning import turn_in_place

BLOCK_ROWS = 16
"""Rows of the batch in a block."""


@njit(**OPTIONS)
def _tokens(x, t0, t1, b0, b1, scratch):
    """Steps t0 to t1 of rows b0 to b1 of x [T, B, F] as [tokens, F]: a view if that is all rows, else a copy."""
    n = b1 - b0
    if n == x.shape[1]:
        return x[t0:t1].reshape(-1, x.shape[2])
    for t in range(t0, t1):
        for b in range(n):
            copy(x[t, b0 + b], scratch[(t - t0) * n + b])
    return scratch[: (t1 - t0) * n]


@njit(**OPTIONS)
def _put_back(tokens, x, t0, t1, b0, b1):
    """Write the tokens of `_tokens` back to x, if they are a copy."""
    n = b1 - b0
    if n < x.shape[1]:
        for t in range(t0, t1):
            for b in range(n):
                copy(tokens[(t - t0) * n + b], x[t, b0 + b])


@njit(**INLINED)
def _open(z, H):
    """Replace a and b, the last 2 H columns of z [n, W], by alpha = sigmoid(a) and beta = 2 sigmoid(b).

    Returns a copy of alpha and beta, [n, 2 H].
    """
    n, W = z.shape
    two = z.dtype.type(2)
    gates = np.empty((n, 2 * H), z.dtype)
    for token in range(n):
        for h in range(2 * H):
            gates[token, h] = z[token, W - 2 * H + h]
    sigmoid_in_place(gates.reshape(-1))
    for token in range(n):
        for h in range(2 * H):
            gate = gates[token, h]
            gates[token, h] = two * gate if h >= H else gate
            z[token, W - 2 * H + h] = gates[token, h]
    return gates


@njit(**INLINED)
def _open_backward(z, dz, H):
    """The gradient of `_open`, in place, in the last 2 H columns of dz [n, W]; z holds alpha and beta."""
    n, W = z.shape
    one, two = z.dtype.type(1), z.dtype.type(2)
    for token in range(n):
        for h in range(2 * H):
            times = two if h >= H else one
            gate = z[token, W - 2 * H + h] / times
            slope = gate * (one - gate)
            dz[token, W - 2 * H + h] *= times * slope


@njit(**INLINED)
def _turn(K, V, R, back, z, H, times, turns):
    """Turn queries and keys in z [steps * rows, W], those of `times` [steps, rows], or their gradients back."""
    literally(K)
    literally(R)
    steps, rows = times.shape
    numbers, W = z.reshape(-1), z.shape[1]
    for t in range(steps):
        for b in range(rows):
            for h in range(H):
                at = (t * rows + b) * W + h * (2 * K + 2 * V)
                turn_in_place(K, R, back, numbers, at, turns, times[t, b])


@functools.cache
def compiled(K: int, V: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward for tables [K, V]."""
    KV, HEAD, TURNING = K * V, 2 * K + 2 * V, K // 4

    @njit(**OPTIONS)
    def forward(
        first,
        last,
        x,
        stream,
        enter,
        enter_bias,
        project,
        project_bias,
        leave,
        start,
        times,
        turns,
        tables,
        z,
        gates,
        y,
    ):
        """Compute rows first to last of a layer.

        Args:
            first: row of the batch.
            last: row of the batch.
            x: [T, B, F], what the layer reads.
            stream: [T, B, D], what it adds to; empty for the first layer, which adds to a map of x.
            enter: [D, F], that map; it and its bias are not read where there is a stream.
            enter_bias: [D].
            project: [W, F], W = H (2 K + 2 V + 2).
            project_bias: [W].
            leave: [D, H V].
            start: [T, B] bool.
            times: [T, B] int64, steps since the memory began.
            turns: the table of `memory.kernels.delta.turning`.
            tables: [N + 1, B, H, K V] for N segments, with the initial tables at index 0; those after each segment are
                filled in. Or [1, B, H, K V], where the last tables replace the initial ones.
            z: [T B, W], filled for `backward`, block after block; or empty.
            gates: [T, B, 2 H], filled with alpha and beta.
            y: [T, B, D], filled with the new stream.
        """
        (T, _, F), D, W, H = x.shape, len(leave), len(project), tables.shape[2]
        to_stream, to_z, to_y = pack(enter.T), pack(project.T), pack(leave.T)
        most = min(SEGMENT, T) * min(BLOCK_ROWS, last - first)
        inputs, outputs, reads = (
            np.empty((most, F), x.dtype),
            np.empty((most, D), x.dtype),
            np.empty((most, H * V), x.dtype),
        )
        block = np.empty((most if len(z) == 0 else 0, W), x.dtype)
        S, scratch = aligned(KV, x), forward_scratch(K, V, x)
        flat_reads = reads.reshape(-1)
        for b0 in range(first, last, BLOCK_ROWS):
            b1 = min(b0 + BLOCK_ROWS, last)
            rows = b1 - b0
            for t0 in range(0, T, SEGMENT):
                t1 = min(t0 + SEGMENT, T)
                n, segment = (t1 - t0) * rows, t0 // SEGMENT
                tokens, at = _tokens(x, t0, t1, b0, b1, inputs), b0 * T + t0 * rows
                projected = z[at : at + n] if len(z) > 0 else block[:n]
                multiply_onto(project_bias, tokens, to_z, projected)
                opened = _open(projected, H)
                for token in range(n):
                    copy(opened[token], gates[t0 + token // rows, b0 + token % rows])
                before, after = (segment, segment + 1) if len(tables) > 1 else (0, 0)
                numbers = projected.reshape(-1)
                if TURNING:
                    _turn(K, V, TURNING, False, projected, H, times[t0:t1, b0:b1], turns)
                for b in range(rows):
                    for h in range(H):
                        copy(tables[before, b0 + b, h], S)
                        segment_forward(
                            K, V, True, True, True, numbers, b * W + h * HEAD, rows * W, b * W + H * HEAD + h,
                            H, start[t0:t1, b0 + b], S, flat_reads, (b * H + h) * V, rows * H * V, scratch,
                        )  # fmt: skip
                        copy(S, tables[after, b0 + b, h])
                into = _tokens(y, t0, t1, b0, b1, outputs)
                if len(stream) > 0:
                    for token in range(n):
                        copy(stream[t0 + token // rows, b0 + token % rows], into[token])
                else:
                    multiply_onto(enter_bias, tokens, to_stream, into)
                multiply(reads[:n], to_y, into, True)
                _put_back(into, y, t0, t1, b0, b1)

    @njit(**OPTIONS)
    def backward(
        first, last, x, enter, project, leave, start, times, turns, tables, z, dy, d_table, dx,
        d_enter, d_enter_bias, d_project, d_project_bias, d_leave,
    ):  # fmt: skip
        """The gradient of `forward` for rows first to last: fill dx [T, B, F], add to the gradients of the maps.

        `d_table` [B, H, K V] enters as the gradient of the last tables and leaves as that of the initial ones. `dx` may
        be empty; so are `enter` and its gradients where there is a stream.
        """
        (T, _, F), D, W, H = x.shape, len(leave), len(project), tables.shape[2]
        from_y, from_z, from_stream = pack(leave), pack(project), pack(enter)
        most = min(SEGMENT, T) * min(BLOCK_ROWS, last - first)
        inputs, outputs, d_inputs = (
            np.empty((most, F), x.dtype),
            np.empty((most, D), x.dtype),
            np.empty((most, F), x.dtype),
        )
        d_projected, reads = np.empty((most, W), x.dtype), np.empty((most, H * V), x.dtype)
        packed = np.empty(packed_size(most, max(F, H * V), x.itemsize), x.dtype)
        G, scratch = aligned(KV, x), backward_scratch(K, V, x)
        numbers, flat_reads = d_projected.reshape(-1), reads.reshape(-1)
        for b0 in range(first, last, BLOCK_ROWS):
            b1 = min(b0 + BLOCK_ROWS, last)
            rows = b1 - b0
            for t0 in range((T - 1) // SEGMENT * SEGMENT, -1, -SEGMENT):
                t1 = min(t0 + SEGMENT, T)
                n, segment = (t1 - t0) * rows, t0 // SEGMENT
                tokens, at = _tokens(x, t0, t1, b0, b1, inputs), b0 * T + t0 * rows
                d_stream, projected, dz = _tokens(dy, t0, t1, b0, b1, outputs), z[at : at + n], d_projected[:n]
                multiply(d_stream, from_y, reads[:n], False)
                for token in range(n):
                    copy(projected[token], dz[token])
                for b in range(rows):
                    for h in range(H):
                        copy(d_table[b0 + b, h], G)
                        segment_backward(
                            K, V, True, True, True, numbers, b * W + h * HEAD, rows * W, b * W + H * HEAD + h,
                            H, start[t0:t1, b0 + b], tables[segment, b0 + b, h], G, flat_reads, (b * H + h) * V,
                            rows * H * V, scratch,
                        )  # fmt: skip
                        copy(G, d_table[b0 + b, h])
                if TURNING:
                    _turn(K, V, TURNING, True, dz, H, times[t0:t1, b0:b1], turns)
                _open_backward(projected, dz, H)
                multiply(d_stream.T, pack_into(reads[:n], packed), d_leave, True)
                pack_into(tokens, packed)
                multiply(dz.T, packed, d_project, True)
                add_rows(dz, d_project_bias)
                if len(enter) > 0:
                    multiply(d_stream.T, packed, d_enter, True)
                    add_rows(d_stream, d_enter_bias)
                if len(dx) > 0:
                    into = _tokens(dx, t0, t1, b0, b1, d_inputs)
                    multiply(dz, from_z, into, False)
                    if len(enter) > 0:
                        multiply(d_stream, from_stream, into, True)
                    _put_back(into, dx, t0, t1, b0, b1)

    return forward, backward
