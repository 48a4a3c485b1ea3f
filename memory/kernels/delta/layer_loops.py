"""A layer of the rewrite-aware memory over a sequence in numba: see `memory.kernels.delta.layer`.

A block of tokens, a segment of steps of a few columns, stays in the cache until everything is done to it: its maps, its
tables' steps and reads, and the map that leaves. So each product and each segment finds what it needs there.

Tokens of a block are rows of z, one per step and column, [q, k, v, g of every head, then alpha, then beta]. Backward
takes the blocks from the last to the first, and puts gradients in the place of all of these.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import njit

from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
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
from palimpsest.memory.kernels.cells.elementwise import open_gates
from palimpsest.memory.kernels.delta.loops import (
    SEGMENT,
    backward_memory,
    forward_memory,
    segment_backward,
    segment_forward,
)

COLUMNS = 16
"""Columns of a block."""


@njit(**OPTIONS)
def _tokens(x, t0, t1, b0, b1, memory):  # type: ignore[no-untyped-def]
    """Steps t0 to t1 of columns b0 to b1 of x [T, B, F] as rows: x itself if these are all columns, else a copy."""
    n = b1 - b0
    if n == x.shape[1]:
        return x[t0:t1].reshape(-1, x.shape[2])
    for t in range(t0, t1):
        for b in range(n):
            copy(x[t, b0 + b], memory[(t - t0) * n + b])
    return memory[: (t1 - t0) * n]


@njit(**OPTIONS)
def _put(rows, x, t0, t1, b0, b1):  # type: ignore[no-untyped-def]
    """What was made of the rows of `_tokens` back to x, if they are a copy."""
    n = b1 - b0
    if n < x.shape[1]:
        for t in range(t0, t1):
            for b in range(n):
                copy(rows[(t - t0) * n + b], x[t, b0 + b])


@njit(**INLINED)
def _open(z, H):  # type: ignore[no-untyped-def]
    """Turn a and b, the last 2 H columns of z [n, W], into alpha = sigmoid(a) and beta = 2 sigmoid(b), in place.

    Returns a copy of them [n, 2 H].
    """
    n, W = z.shape
    two = z.dtype.type(2)
    gates = np.empty((n, 2 * H), z.dtype)
    for row in range(n):
        for h in range(2 * H):
            gates[row, h] = z[row, W - 2 * H + h]
    open_gates(gates.reshape(-1))
    for row in range(n):
        for h in range(2 * H):
            each = gates[row, h]
            gates[row, h] = two * each if h >= H else each
            z[row, W - 2 * H + h] = gates[row, h]
    return gates


@njit(**INLINED)
def _open_backward(z, dz, H):  # type: ignore[no-untyped-def]
    """The gradient of `_open` in place, in the last 2 H columns of dz [n, W]; z holds alpha and beta."""
    n, W = z.shape
    one, two = z.dtype.type(1), z.dtype.type(2)
    for row in range(n):
        for h in range(2 * H):
            times = two if h >= H else one
            each = z[row, W - 2 * H + h] / times
            slope = each * (one - each)
            dz[row, W - 2 * H + h] *= times * slope


@functools.cache
def compiled(K: int, V: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward for tables [K, V]."""
    KV, HEAD = K * V, 2 * K + 2 * V

    @njit(**OPTIONS)
    def forward(  # type: ignore[no-untyped-def]
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
        borders,
        z,
        gates,
        y,
    ):
        """Fill columns first to last of y [T, B, D], of gates [T, B, 2 H] with alpha and beta, and of borders.

        Args:
            first: column.
            last: column.
            x: [T, B, F], what the layer reads.
            stream: [T, B, D], what it adds to; empty where it adds to a map of x.
            enter: [D, F], that map; as its bias [D] not read where there is a stream.
            enter_bias: [D].
            project: [W, F], W = H (2 K + 2 V + 2).
            project_bias: [W].
            leave: [D, H V].
            start: [T, B] bool.
            borders: [N + 1, B, H, K V] for N segments, comes with the tables before the sequence in front; filled with
                the tables after every segment. Or [1, ...], where only the last tables are wanted.
            z: [T B, W], filled for `backward`, block after block; or empty.
            gates: to fill.
            y: to fill.
        """
        (T, _, F), D, W, H = x.shape, len(leave), len(project), borders.shape[2]
        to_stream, to_z, to_y = pack(enter.T), pack(project.T), pack(leave.T)
        most = min(SEGMENT, T) * min(COLUMNS, last - first)
        inputs, outputs, reads = (
            np.empty((most, F), x.dtype),
            np.empty((most, D), x.dtype),
            np.empty((most, H * V), x.dtype),
        )
        block = np.empty((most if len(z) == 0 else 0, W), x.dtype)
        S, memory = aligned(KV, x), forward_memory(K, V, x)
        flat_reads = reads.reshape(-1)
        for b0 in range(first, last, COLUMNS):
            b1 = min(b0 + COLUMNS, last)
            columns = b1 - b0
            for t0 in range(0, T, SEGMENT):
                t1 = min(t0 + SEGMENT, T)
                n, number = (t1 - t0) * columns, t0 // SEGMENT
                rows, at = _tokens(x, t0, t1, b0, b1, inputs), b0 * T + t0 * columns
                maps = z[at : at + n] if len(z) > 0 else block[:n]
                multiply_onto(project_bias, rows, to_z, maps)
                opened = _open(maps, H)
                for row in range(n):
                    copy(opened[row], gates[t0 + row // columns, b0 + row % columns])
                before, after = (number, number + 1) if len(borders) > 1 else (0, 0)
                numbers = maps.reshape(-1)
                for b in range(columns):
                    for h in range(H):
                        copy(borders[before, b0 + b, h], S)
                        segment_forward(
                            K, V, True, True, numbers, b * W + h * HEAD, columns * W, b * W + H * HEAD + h,
                            H, start[t0:t1, b0 + b], S, flat_reads, (b * H + h) * V, columns * H * V, memory,
                        )  # fmt: skip
                        copy(S, borders[after, b0 + b, h])
                into = _tokens(y, t0, t1, b0, b1, outputs)
                if len(stream) > 0:
                    for row in range(n):
                        copy(stream[t0 + row // columns, b0 + row % columns], into[row])
                else:
                    multiply_onto(enter_bias, rows, to_stream, into)
                multiply(reads[:n], to_y, into, True)
                _put(into, y, t0, t1, b0, b1)

    @njit(**OPTIONS)
    def backward(  # type: ignore[no-untyped-def]
        first, last, x, enter, project, leave, start, borders, z, dy, d_table, dx,
        d_enter, d_enter_bias, d_project, d_project_bias, d_leave,
    ):  # fmt: skip
        """Gradients of `forward` for columns first to last, added to those of the maps and filled into dx [T, B, F].

        `d_table` [B, H, K V] comes with the gradient of the last tables and leaves with that of the first ones; `dx`
        may be empty, as `enter` and what belongs to it where there is a stream.
        """
        (T, _, F), D, W, H = x.shape, len(leave), len(project), borders.shape[2]
        from_y, from_z, from_stream = pack(leave), pack(project), pack(enter)
        most = min(SEGMENT, T) * min(COLUMNS, last - first)
        inputs, outside, d_inputs = (
            np.empty((most, F), x.dtype),
            np.empty((most, D), x.dtype),
            np.empty((most, F), x.dtype),
        )
        d_maps, reads = np.empty((most, W), x.dtype), np.empty((most, H * V), x.dtype)
        packed = np.empty(packed_size(most, max(F, H * V), x.itemsize), x.dtype)
        G, memory = aligned(KV, x), backward_memory(K, V, x)
        numbers, flat_reads = d_maps.reshape(-1), reads.reshape(-1)
        for b0 in range(first, last, COLUMNS):
            b1 = min(b0 + COLUMNS, last)
            columns = b1 - b0
            for t0 in range((T - 1) // SEGMENT * SEGMENT, -1, -SEGMENT):
                t1 = min(t0 + SEGMENT, T)
                n, number = (t1 - t0) * columns, t0 // SEGMENT
                rows, at = _tokens(x, t0, t1, b0, b1, inputs), b0 * T + t0 * columns
                d_rows, maps, dz = _tokens(dy, t0, t1, b0, b1, outside), z[at : at + n], d_maps[:n]
                multiply(d_rows, from_y, reads[:n], False)
                for row in range(n):
                    copy(maps[row], dz[row])
                for b in range(columns):
                    for h in range(H):
                        copy(d_table[b0 + b, h], G)
                        segment_backward(
                            K, V, True, True, numbers, b * W + h * HEAD, columns * W,
                            b * W + H * HEAD + h, H, start[t0:t1, b0 + b], borders[number, b0 + b, h], G,
                            flat_reads, (b * H + h) * V, columns * H * V, memory,
                        )  # fmt: skip
                        copy(G, d_table[b0 + b, h])
                _open_backward(maps, dz, H)
                multiply(d_rows.T, pack_into(reads[:n], packed), d_leave, True)
                pack_into(rows, packed)
                multiply(dz.T, packed, d_project, True)
                add_rows(dz, d_project_bias)
                if len(enter) > 0:
                    multiply(d_rows.T, packed, d_enter, True)
                    add_rows(d_rows, d_enter_bias)
                if len(dx) > 0:
                    into = _tokens(dx, t0, t1, b0, b1, d_inputs)
                    multiply(dz, from_z, into, False)
                    if len(enter) > 0:
                        multiply(d_rows, from_stream, into, True)
                    _put(into, dx, t0, t1, b0, b1)

    return forward, backward
