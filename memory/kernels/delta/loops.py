"""The gated delta rule in numba: a segment of steps of one table, forward and backward.

For each step and row of the batch, z holds queries, keys and values of each head (and output gates, for a layer), then
alpha of all heads, then beta of all heads. What makes these loops fast:

- K and V are compile-time constants, and a row of a table is one vector: see `memory.kernels.arithmetic.vectors`.
- A step reads and writes the table once: while a row is rewritten, it is read by the query and by the next step's key.
- One table goes through a whole segment of steps before the next table, so that its data stays in the L1 cache.
- Sums across vectors are taken of many vectors at once.
- Forward stores only the tables between segments, and the errors, in place of the values; backward recomputes the
  other tables, and writes gradients in place of its inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import literally

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
from palimpsest.memory.kernels.arithmetic.products import VECTOR_BYTES, copy
from palimpsest.memory.kernels.arithmetic.vectors import aligned, fold, load, root, store, sum_rows, zeros_like
from palimpsest.memory.kernels.delta.naive import EPS
from palimpsest.memory.kernels.delta.output_gate import output_gate, output_gate_backward

SEGMENT = 16
"""Steps between the tables that the forward pass keeps."""

PAIRS = 2 * SEGMENT
"""Queries and keys of a segment."""


# These functions stand outside of `compiled`: a kernel that is a closure variable of another gets a new name in every
# process, so numba would never find the cached machine code of the kernel that holds it.
@njit(**INLINED)
def directions(K, z, at, stride, steps, normalise, unit, scale, parts, sums):
    """Fill unit [SEGMENT + 1, 2, K] with the queries and keys of z, scaled to unit length if `normalise`.

    The first query is at z[at], that of each next step `stride` numbers on. scale [SEGMENT, 2] is filled with the
    factors; parts and sums are scratch memory.
    """
    literally(K)
    lanes = VECTOR_BYTES // z.itemsize
    for s in range(steps):
        q, k = load(z, at + s * stride, K), load(z, at + s * stride + K, K)
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
def read_by(K, V, vector, table):
    """S^T k, with the table S [K V] and the vector k, the first K numbers of `vector`."""
    literally(K)
    literally(V)
    even = zeros_like(load(table, 0, V))
    odd = even
    for i in range(0, K - K % 2, 2):
        even = even + vector[i] * load(table, i * V, V)
        odd = odd + vector[i + 1] * load(table, (i + 1) * V, V)
    if K % 2:
        even = even + vector[K - 1] * load(table, (K - 1) * V, V)
    return even + odd


@njit(**INLINED)
def forward_scratch(K, V, like):
    """Scratch memory for `segment_forward`."""
    lanes = VECTOR_BYTES // like.itemsize
    unit, parts, sums = aligned(2 * (SEGMENT + 1) * K, like), aligned(PAIRS * lanes, like), aligned(PAIRS, like)
    return unit, parts, sums, aligned(PAIRS, like), aligned((SEGMENT + 1) * V, like), aligned(SEGMENT * V, like)


@njit(**INLINED)
def segment_forward(
    K, V, gated, first, normalise, z, at, stride, alpha_at, H, start, S, y, y_at, y_stride, scratch,
):  # fmt: skip
    """Advance the table S [K V] by the steps of `start`; fill y with what they read.

    The first step's query, key and value are at z[at], its alpha at z[alpha_at], its beta H numbers after that, and its
    read at y[y_at]; those of each next step `stride` (in y, `y_stride`) numbers on. The error v - alpha S^T k, with S
    before the step, replaces v. If `first`, it is S before the step that is read. If `gated`, an output gate follows
    each value, and y is gated by it: see `memory.kernels.delta.output_gate`.
    """
    literally(K)
    literally(V)
    unit, parts, sums, scale, reads, gates = scratch
    steps, even_K = len(start), K - K % 2
    directions(K, z, at, stride, steps, normalise, unit, scale, parts, sums)
    if start[0]:
        S[:] = 0
    found = read_by(K, V, unit[K:], S)
    if first:
        store(read_by(K, V, unit, S), reads, 0)
    for s in range(steps):
        if s > 0 and start[s]:
            S[:] = 0
            found = zeros_like(found)
            if first:
                store(found, reads, s * V)
        alpha, beta, value = z[alpha_at + s * stride], z[alpha_at + s * stride + H], at + s * stride + 2 * K
        error = load(z, value, V) - alpha * found
        store(error, z, value)
        write = beta * error
        even = zeros_like(found)
        odd, next_even, next_odd = even, even, even
        # the query that reads the table after this step: its own, or the next one's
        reader = s + 1 if first else s
        q, k, k_next = unit[2 * reader * K :], unit[(2 * s + 1) * K :], unit[(2 * s + 3) * K :]
        for i in range(0, even_K, 2):
            row = alpha * load(S, i * V, V) + k[i] * write
            store(row, S, i * V)
            even = even + q[i] * row
            next_even = next_even + k_next[i] * row
            row = alpha * load(S, (i + 1) * V, V) + k[i + 1] * write
            store(row, S, (i + 1) * V)
            odd = odd + q[i + 1] * row
            next_odd = next_odd + k_next[i + 1] * row
        if even_K < K:
            row = alpha * load(S, even_K * V, V) + k[even_K] * write
            store(row, S, even_K * V)
            even = even + q[even_K] * row
            next_even = next_even + k_next[even_K] * row
        found = next_even + next_odd
        store(even + odd, reads, reader * V)
        if gated:
            store(load(z, value + V, V), gates, s * V)
    if gated:
        output_gate(reads[: steps * V], gates)
    for s in range(steps):
        store(load(reads, s * V, V), y, y_at + s * y_stride)


@njit(**INLINED)
def backward_scratch(K, V, like):
    """Scratch memory for `segment_backward`."""
    lanes = VECTOR_BYTES // like.itemsize
    wide = -(-K // lanes) * lanes
    tables, unit = aligned((SEGMENT + 1) * K * V, like), aligned(2 * (SEGMENT + 1) * K, like)
    d_unit, parts, sums = aligned(PAIRS * wide, like), aligned(PAIRS * lanes, like), aligned(PAIRS, like)
    # reads, output gates, gated reads, gradients of reads
    by_step = aligned(4 * SEGMENT * V, like).reshape(4, -1)
    # per step: q . k, u . d_read, d_beta, d_alpha
    along, totals = aligned(4 * SEGMENT * lanes, like).reshape(4, -1), aligned(4 * SEGMENT, like).reshape(4, -1)
    by_query, by_key = aligned(K * lanes, like), aligned(K * lanes, like)
    return tables, unit, d_unit, parts, sums, aligned(PAIRS, like), by_step, along, totals, by_query, by_key


@njit(**INLINED)
def segment_backward(
    K, V, gated, first, normalise, z, at, stride, alpha_at, H, start, before, G, dy, y_at, y_stride, scratch,
):  # fmt: skip
    """The gradient of `segment_forward`, written over what that left in z; `before` is the table before the segment.

    `G` [K V] enters as the gradient of the table after the segment and leaves as that of the table before it. If
    `gated`, the gated reads replace `dy`. With A = alpha S_{t-1}, e = v - A^T k, u = beta e, S = A + k u^T,
    read = S^T q, and G the gradient of S without this step's read,

        dS = G + q d_read^T    dq = A d_read + (u . d_read) k    du = G^T k + (q . k) d_read
        d_beta = du . e        de = dv = beta du                 dk = G u + (u . d_read) q - A de
        dA = dS - k de^T       d_alpha = dA . S_{t-1}

    and G = alpha dA for the step before, or zero at a start. If `first`, read = S_{t-1}^T q, and

        dS = G    dq = S_{t-1} d_read    du = G^T k    dk = G u - A de    G = alpha dA + q d_read^T

    with the rest as before. Through q = x / |x|, dx = (dq - (q . dq) q) / |x|.
    """
    literally(K)
    literally(V)
    tables, unit, d_unit, parts, sums, scale, by_step, along, totals, by_query, by_key = scratch
    reads, gates, gated_reads, d_read = by_step[0], by_step[1], by_step[2], by_step[3]
    steps, lanes, KV = len(start), VECTOR_BYTES // z.itemsize, K * V
    wide = -(-K // lanes) * lanes
    directions(K, z, at, stride, steps, normalise, unit, scale, parts, sums)
    if start[0]:
        tables[:KV] = 0
    else:
        copy(before, tables)
    for s in range(steps):
        store(load(dy, y_at + s * y_stride, V), d_read, s * V)
        if s + 1 == steps and not gated:
            continue
        alpha, beta, value = z[alpha_at + s * stride], z[alpha_at + s * stride + H], at + s * stride + 2 * K
        q, k = unit[2 * s * K :], unit[(2 * s + 1) * K :]
        write = beta * load(z, value, V)
        even = zeros_like(write)
        for i in range(K):
            old = load(tables, s * KV + i * V, V)
            row = alpha * old + k[i] * write
            store(row, tables, (s + 1) * KV + i * V)
            even = even + q[i] * (old if first else row)
        if gated:
            store(even, reads, s * V)
            store(load(z, value + V, V), gates, s * V)
        if s + 1 < steps and start[s + 1]:
            tables[(s + 1) * KV : (s + 2) * KV] = 0
    if gated:
        n = steps * V
        output_gate_backward(reads[:n], gates[:n], d_read[:n], gated_reads[:n])
    for s in range(steps):
        value = at + s * stride + 2 * K
        if gated:
            store(load(gates, s * V, V), z, value + V)
            store(load(gated_reads, s * V, V), dy, y_at + s * y_stride)
        if not first:
            store(fold(load(unit, 2 * s * K, K) * load(unit, (2 * s + 1) * K, K)), along[0], s * lanes)
            write = z[alpha_at + s * stride + H] * load(z, value, V)
            store(fold(write * load(d_read, s * V, V)), along[1], s * lanes)
    if not first:
        sum_rows(along[0], SEGMENT, totals[0], 0)
        sum_rows(along[1], SEGMENT, totals[1], 0)
    from_later = read_by(K, V, unit[(2 * steps - 1) * K :], G)
    for s in range(steps - 1, -1, -1):
        u = 2 * s * K
        q, k, k_before = unit[u : u + K], unit[u + K : u + 2 * K], unit[max(u - K, 0) :]
        alpha, beta, value = z[alpha_at + s * stride], z[alpha_at + s * stride + H], at + s * stride + 2 * K
        error, d = load(z, value, V), load(d_read, s * V, V)
        d_write = from_later if first else from_later + totals[0, s] * d
        store(fold(d_write * error), along[2], s * lanes)
        write, d_error = beta * error, beta * d_write
        store(d_error, z, value)
        lost = alpha * d_error
        d_alpha = zeros_like(d)
        from_later = d_alpha
        for i in range(K):
            old, new = load(tables, s * KV + i * V, V), load(G, i * V, V)
            store(fold(old * d), by_query, i * lanes)
            store(fold(new * write - old * lost), by_key, i * lanes)
            if not first:
                new = new + q[i] * d
            new = new - k[i] * d_error
            d_alpha = d_alpha + new * old
            new = alpha * new
            if first:
                new = new + q[i] * d
            store(new, G, i * V)
            from_later = from_later + k_before[i] * new
        store(fold(d_alpha), along[3], s * lanes)
        sum_rows(by_query, K, d_unit, 2 * s * wide)
        sum_rows(by_key, K, d_unit, (2 * s + 1) * wide)
        if start[s]:
            G[:] = 0
            from_later = zeros_like(from_later)
    sum_rows(along[2], SEGMENT, totals[2], 0)
    sum_rows(along[3], SEGMENT, totals[3], 0)
    for s in range(steps):
        q, k = load(unit, 2 * s * K, K), load(unit, (2 * s + 1) * K, K)
        dq, dk = load(d_unit, 2 * s * wide, K), load(d_unit, (2 * s + 1) * wide, K)
        if not first:
            dq, dk = z[alpha_at + s * stride] * dq + totals[1, s] * k, dk + totals[1, s] * q
        store(dq, d_unit, 2 * s * wide)
        store(dk, d_unit, (2 * s + 1) * wide)
        store(fold(q * dq), parts, 2 * s * lanes)
        store(fold(k * dk), parts, (2 * s + 1) * lanes)
        z[alpha_at + s * stride], z[alpha_at + s * stride + H] = totals[3, s], totals[2, s]
    if normalise:
        sum_rows(parts, PAIRS, sums, 0)
    for i in range(2 * steps):
        d = load(d_unit, i * wide, K)
        if normalise:
            d = scale[i] * (d - sums[i] * load(unit, i * K, K))
        store(d, z, at + i // 2 * stride + i % 2 * K)


@functools.cache
def compiled(K: int, V: int, read_first: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward over whole sequences for tables [K, V]."""
    KV, HEAD = K * V, 2 * K + V

    @njit(**OPTIONS)
    def forward(first, last, z, start, normalise, tables, read):
        """Scan rows first to last of z [T, B, H (2 K + V + 2)]; fill read [T, B, H, V] and tables.

        tables [N + 1, B, H, K V], for N segments, enters with the initial tables at index 0; those after each segment
        are filled in.
        """
        T, B, H, _ = read.shape
        numbers, reads, width = z.reshape(-1), read.reshape(-1), z.shape[2]
        S, scratch = aligned(KV, z), forward_scratch(K, V, z)
        for b in range(first, last):
            for h in range(H):
                copy(tables[0, b, h], S)
                for t in range(0, T, SEGMENT):
                    token = t * B + b
                    segment_forward(
                        K, V, False, read_first, normalise, numbers, token * width + h * HEAD, B * width,
                        token * width + H * HEAD + h, H, start[t : t + SEGMENT, b], S, reads, (token * H + h) * V,
                        B * H * V, scratch,
                    )  # fmt: skip
                    copy(S, tables[t // SEGMENT + 1, b, h])

    @njit(**OPTIONS)
    def backward(first, last, z, start, normalise, tables, d_read, d_table):
        """The gradient of `forward` for rows first to last, written over z.

        `d_table` [B, H, K V] enters as the gradient of the last tables and leaves as that of the initial ones.
        """
        T, B, H, _ = d_read.shape
        numbers, d_reads, width = z.reshape(-1), d_read.reshape(-1), z.shape[2]
        G, scratch = aligned(KV, z), backward_scratch(K, V, z)
        for b in range(first, last):
            for h in range(H):
                copy(d_table[b, h], G)
                for t in range((T - 1) // SEGMENT * SEGMENT, -1, -SEGMENT):
                    token = t * B + b
                    segment_backward(
                        K, V, False, read_first, normalise, numbers, token * width + h * HEAD, B * width,
                        token * width + H * HEAD + h, H, start[t : t + SEGMENT, b], tables[t // SEGMENT, b, h], G,
                        d_reads, (token * H + h) * V, B * H * V, scratch,
                    )  # fmt: skip
                copy(G, d_table[b, h])

    return forward, backward
