"""The gated delta rule in numba: a segment of steps of one table, forward and backward.

The numbers of a step of a batch's row are a row of memory: queries, keys and values of each head, and more where reads
are gated, then alpha of all heads and beta of all heads. What makes these loops fast:

- The sizes are constants, and a row of a table is a vector: see `memory.kernels.arithmetic.vectors`.
- A table passes once in a step: as a row is rewritten it is read, and by the key of the next step too.
- One table is taken through a segment of steps at a time, so that all that is needed stays in the first cache.
- Sums along rows, and of what each step leaves, are taken of many vectors at once.
- Nothing is kept but the tables between segments, and errors, in the place of values; gradients replace both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import literally, njit

from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
from palimpsest.memory.kernels.arithmetic.products import VECTOR_BYTES, copy
from palimpsest.memory.kernels.arithmetic.vectors import aligned, fold, load, root, store, sum_rows, zeros_like
from palimpsest.memory.kernels.delta.read import gate_reads, gate_reads_backward

SEGMENT = 16
"""Steps between the tables that the forward pass keeps; backward recomputes those in between."""

EPS = 1e-6
"""Added to the squared length where queries and keys are normalised."""


PAIRS = 2 * SEGMENT
"""Queries and keys of a segment."""


# These are not inside of `compiled`: a kernel that is a variable of another has another name in each process, and numba
# would never find the machine code of the one that holds it again.
@njit(**INLINED)
def directions(K, z, z0, step, steps, normalise, unit, scale, parts, sums):  # type: ignore[no-untyped-def]
    """Fill unit [SEGMENT + 1, 2, K] with queries and keys, of unit length if `normalise`, from z[z0] on.

    scale [SEGMENT, 2] gets what they were multiplied by. parts and sums are memory for sums.
    """
    literally(K)
    lanes = VECTOR_BYTES // z.itemsize
    for s in range(steps):
        q, k = load(z, z0 + s * step, K), load(z, z0 + s * step + K, K)
        store(q, unit, 2 * s * K)
        store(k, unit, (2 * s + 1) * K)
        store(fold(q * q), parts, 2 * s * lanes)
        store(fold(k * k), parts, (2 * s + 1) * lanes)
    if normalise:
        sum_rows(parts, PAIRS, sums, 0)
        store(z.dtype.type(1) / root(load(sums, 0, PAIRS) + z.dtype.type(EPS)), scale, 0)
        for i in range(2 * steps):
            store(scale[i] * load(unit, i * K, K), unit, i * K)


@njit(**INLINED)
def read_by(K, V, row, at, table, first):  # type: ignore[no-untyped-def]
    """The sum of the rows of the table at table[first], each times a number of row[at] and what follows."""
    literally(K)
    literally(V)
    even = zeros_like(load(table, first, V))
    odd = even
    for i in range(0, K - K % 2, 2):
        even = even + row[at + i] * load(table, first + i * V, V)
        odd = odd + row[at + i + 1] * load(table, first + (i + 1) * V, V)
    if K % 2:
        even = even + row[at + K - 1] * load(table, first + (K - 1) * V, V)
    return even + odd


@njit(**INLINED)
def forward_memory(K, V, like):  # type: ignore[no-untyped-def]
    """Memory for `segment_forward`."""
    lanes = VECTOR_BYTES // like.itemsize
    unit, parts, sums = aligned(2 * (SEGMENT + 1) * K, like), aligned(PAIRS * lanes, like), aligned(PAIRS, like)
    return unit, parts, sums, aligned(PAIRS, like), aligned(SEGMENT * V, like), aligned(SEGMENT * V, like)


@njit(**INLINED)
def segment_forward(  # type: ignore[no-untyped-def]
    K, V, gated, normalise, z, z0, step, gate, H, opens, S, y, y0, y_step, memory
):
    """Advance the table S [K V] by the steps of `opens`; fill `y` from y[y0] on.

    Values and gates stand in z from z[z0] on, alpha in z[gate], beta H numbers behind, and in every following step
    `step` numbers on. v - alpha S^T k, with S before the step, takes the place of v. With `gated` gates stand behind
    the values, and what is read is gated as in `memory.kernels.delta.read`.
    """
    literally(K)
    literally(V)
    unit, parts, sums, scale, reads, gates = memory
    steps, even_K = len(opens), K - K % 2
    directions(K, z, z0, step, steps, normalise, unit, scale, parts, sums)
    if opens[0]:
        S[:] = 0
    found = read_by(K, V, unit, K, S, 0)
    for s in range(steps):
        if s > 0 and opens[s]:
            S[:] = 0
            found = zeros_like(found)
        a, rate, value = z[gate + s * step], z[gate + s * step + H], z0 + s * step + 2 * K
        error = load(z, value, V) - a * found
        store(error, z, value)
        write = rate * error
        even = zeros_like(found)
        odd, next_even, next_odd = even, even, even
        q, k, k_next = unit[2 * s * K :], unit[(2 * s + 1) * K :], unit[(2 * s + 3) * K :]
        for i in range(0, even_K, 2):
            row = a * load(S, i * V, V) + k[i] * write
            store(row, S, i * V)
            even = even + q[i] * row
            next_even = next_even + k_next[i] * row
            row = a * load(S, (i + 1) * V, V) + k[i + 1] * write
            store(row, S, (i + 1) * V)
            odd = odd + q[i + 1] * row
            next_odd = next_odd + k_next[i + 1] * row
        if even_K < K:
            row = a * load(S, even_K * V, V) + k[even_K] * write
            store(row, S, even_K * V)
            even = even + q[even_K] * row
            next_even = next_even + k_next[even_K] * row
        found = next_even + next_odd
        store(even + odd, reads, s * V)
        if gated:
            store(load(z, value + V, V), gates, s * V)
    if gated:
        gate_reads(reads[: steps * V], gates)
    for s in range(steps):
        store(load(reads, s * V, V), y, y0 + s * y_step)


@njit(**INLINED)
def backward_memory(K, V, like):  # type: ignore[no-untyped-def]
    """Memory for `segment_backward`."""
    lanes = VECTOR_BYTES // like.itemsize
    wide = -(-K // lanes) * lanes
    tables, unit = aligned((SEGMENT + 1) * K * V, like), aligned(2 * (SEGMENT + 1) * K, like)
    d_unit, parts, sums = aligned(PAIRS * wide, like), aligned(PAIRS * lanes, like), aligned(PAIRS, like)
    # reads, gates, gated reads, gradients of reads
    each = aligned(4 * SEGMENT * V, like).reshape(4, -1)
    # per step: q . k, u . d_read, d_beta, d_alpha
    along, totals = aligned(4 * SEGMENT * lanes, like).reshape(4, -1), aligned(4 * SEGMENT, like).reshape(4, -1)
    by_query, by_key = aligned(K * lanes, like), aligned(K * lanes, like)
    return tables, unit, d_unit, parts, sums, aligned(PAIRS, like), each, along, totals, by_query, by_key


@njit(**INLINED)
def segment_backward(  # type: ignore[no-untyped-def]
    K, V, gated, normalise, z, z0, step, gate, H, opens, before, G, dy, y0, y_step, memory
):
    """Gradients of `segment_forward`, in the place of what it left in z, from the table [K V] before the segment.

    `G` [K V] comes with the gradient of the table after the segment and leaves with that of the table before it. With
    A = alpha S_{t-1}, e = v - A^T k, u = beta e, S = A + k u^T, read = S^T q, and dS what later steps want, G
    without this step's read,

        dS = G + q d_read^T    dq = A d_read + (u . d_read) k    du = G^T k + (q . k) d_read
        d_beta = du . e        de = dv = beta du                 dk = G u + (u . d_read) q - A de
        dA = dS - k de^T       d_alpha = dA . S_{t-1}

    and G = alpha dA for the step before, or zero at a start. Through q = x / |x|, dx = (dq - (q . dq) q) / |x|. With
    `gated`, y takes the place of `dy`.
    """
    literally(K)
    literally(V)
    tables, unit, d_unit, parts, sums, scale, each, along, totals, by_query, by_key = memory
    reads, gates, gated_reads, d_read = each[0], each[1], each[2], each[3]
    steps, lanes, KV = len(opens), VECTOR_BYTES // z.itemsize, K * V
    wide = -(-K // lanes) * lanes
    directions(K, z, z0, step, steps, normalise, unit, scale, parts, sums)
    if opens[0]:
        tables[:KV] = 0
    else:
        copy(before, tables)
    for s in range(steps):
        store(load(dy, y0 + s * y_step, V), d_read, s * V)
        if s + 1 == steps and not gated:
            continue
        a, rate, value = z[gate + s * step], z[gate + s * step + H], z0 + s * step + 2 * K
        q, k = unit[2 * s * K :], unit[(2 * s + 1) * K :]
        write = rate * load(z, value, V)
        even = zeros_like(write)
        for i in range(K):
            row = a * load(tables, s * KV + i * V, V) + k[i] * write
            store(row, tables, (s + 1) * KV + i * V)
            even = even + q[i] * row
        if gated:
            store(even, reads, s * V)
            store(load(z, value + V, V), gates, s * V)
        if s + 1 < steps and opens[s + 1]:
            tables[(s + 1) * KV : (s + 2) * KV] = 0
    if gated:
        n = steps * V
        gate_reads_backward(reads[:n], gates[:n], d_read[:n], gated_reads[:n])
    for s in range(steps):
        value = z0 + s * step + 2 * K
        if gated:
            store(load(gates, s * V, V), z, value + V)
            store(load(gated_reads, s * V, V), dy, y0 + s * y_step)
        store(fold(load(unit, 2 * s * K, K) * load(unit, (2 * s + 1) * K, K)), along[0], s * lanes)
        write = z[gate + s * step + H] * load(z, value, V)
        store(fold(write * load(d_read, s * V, V)), along[1], s * lanes)
    sum_rows(along[0], SEGMENT, totals[0], 0)
    sum_rows(along[1], SEGMENT, totals[1], 0)
    wanted = read_by(K, V, unit, (2 * steps - 1) * K, G, 0)
    for s in range(steps - 1, -1, -1):
        u = 2 * s * K
        q, k, k_before = unit[u : u + K], unit[u + K : u + 2 * K], unit[max(u - K, 0) :]
        a, rate, value = z[gate + s * step], z[gate + s * step + H], z0 + s * step + 2 * K
        error, d = load(z, value, V), load(d_read, s * V, V)
        d_write = wanted + totals[0, s] * d
        store(fold(d_write * error), along[2], s * lanes)
        write, d_error = rate * error, rate * d_write
        store(d_error, z, value)
        lost = a * d_error
        d_a = zeros_like(d)
        wanted = d_a
        for i in range(K):
            old, new = load(tables, s * KV + i * V, V), load(G, i * V, V)
            store(fold(old * d), by_query, i * lanes)
            store(fold(new * write - old * lost), by_key, i * lanes)
            new = new + q[i] * d - k[i] * d_error
            d_a = d_a + new * old
            new = a * new
            store(new, G, i * V)
            wanted = wanted + k_before[i] * new
        store(fold(d_a), along[3], s * lanes)
        sum_rows(by_query, K, d_unit, 2 * s * wide)
        sum_rows(by_key, K, d_unit, (2 * s + 1) * wide)
        if opens[s]:
            G[:] = 0
            wanted = zeros_like(wanted)
    sum_rows(along[2], SEGMENT, totals[2], 0)
    sum_rows(along[3], SEGMENT, totals[3], 0)
    for s in range(steps):
        query, key = load(unit, 2 * s * K, K), load(unit, (2 * s + 1) * K, K)
        dq = z[gate + s * step] * load(d_unit, 2 * s * wide, K) + totals[1, s] * key
        dk = load(d_unit, (2 * s + 1) * wide, K) + totals[1, s] * query
        store(dq, d_unit, 2 * s * wide)
        store(dk, d_unit, (2 * s + 1) * wide)
        store(fold(query * dq), parts, 2 * s * lanes)
        store(fold(key * dk), parts, (2 * s + 1) * lanes)
        z[gate + s * step], z[gate + s * step + H] = totals[3, s], totals[2, s]
    if normalise:
        sum_rows(parts, PAIRS, sums, 0)
    for i in range(2 * steps):
        d = load(d_unit, i * wide, K)
        if normalise:
            d = scale[i] * (d - sums[i] * load(unit, i * K, K))
        store(d, z, z0 + i // 2 * step + i % 2 * K)


@functools.cache
def compiled(K: int, V: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Loops over segments for tables [K, V]: forward and backward."""
    KV, HEAD = K * V, 2 * K + V

    @njit(**OPTIONS)
    def forward(first, last, z, start, normalise, borders, read):  # type: ignore[no-untyped-def]
        """Scan rows first to last of z [T, B, H (2 K + V + 2)], filling read [T, B, H, V] and borders.

        borders [N + 1, B, H, K V] for N segments comes with the tables before the sequence in front, and is filled with
        the tables after every segment.
        """
        T, B, H, _ = read.shape
        numbers, reads, width = z.reshape(-1), read.reshape(-1), z.shape[2]
        S, memory = aligned(KV, z), forward_memory(K, V, z)
        for b in range(first, last):
            for h in range(H):
                copy(borders[0, b, h], S)
                for t in range(0, T, SEGMENT):
                    row = t * B + b
                    segment_forward(
                        K, V, False, normalise, numbers, row * width + h * HEAD, B * width,
                        row * width + H * HEAD + h, H, start[t : t + SEGMENT, b], S, reads, (row * H + h) * V,
                        B * H * V, memory,
                    )  # fmt: skip
                    copy(S, borders[t // SEGMENT + 1, b, h])

    @njit(**OPTIONS)
    def backward(first, last, z, start, normalise, borders, d_read, d_table):  # type: ignore[no-untyped-def]
        """Gradients of rows first to last of a scan, in the place of z.

        `d_table` [B, H, K V] comes with the gradient of the last tables and leaves with that of the first ones.
        """
        T, B, H, _ = d_read.shape
        numbers, d_reads, width = z.reshape(-1), d_read.reshape(-1), z.shape[2]
        G, memory = aligned(KV, z), backward_memory(K, V, z)
        for b in range(first, last):
            for h in range(H):
                copy(d_table[b, h], G)
                for t in range((T - 1) // SEGMENT * SEGMENT, -1, -SEGMENT):
                    row = t * B + b
                    segment_backward(
                        K, V, False, normalise, numbers, row * width + h * HEAD, B * width,
                        row * width + H * HEAD + h, H, start[t : t + SEGMENT, b], borders[t // SEGMENT, b, h], G,
                        d_reads, (row * H + h) * V, B * H * V, memory,
                    )  # fmt: skip
                copy(G, d_table[b, h])

    return forward, backward
