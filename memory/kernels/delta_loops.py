"""The gated delta rule of `memory.kernels.delta` in numba, forward and backward.

Queries, keys and values of a head come side by side, [T, B, H, 2 K + V or more], as flat memory with strides, so that
a slice of a projection is read in place; their gradients are written in the same way. What makes these loops fast:

- The sizes are constants, and a row of a table is a vector: see `memory.kernels.vectors`.
- A table passes once in a step: as a row is rewritten it is read, and by the key of the next step too.
- One table is taken through a segment of steps at a time, so that all that is needed stays in the first cache.
- Sums along rows, and of what each step leaves, are taken of many vectors at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import literally, njit

from memory.kernels.compiling import INLINED, OPTIONS
from memory.kernels.delta_read import gate_reads, gate_reads_backward
from memory.kernels.products import VECTOR_BYTES
from memory.kernels.vectors import aligned, fold, load, prefetch, root, store, sum_rows, zeros_like

SEGMENT = 16
"""Steps between the tables that the forward pass keeps; backward recomputes those in between."""

EPS = 1e-6
"""Added to the squared length where queries and keys are normalised."""


PAIRS = 2 * SEGMENT
"""Queries and keys of a segment."""


# Not inside of `compiled`: a kernel that is a variable of another has another name in each process, and numba would
# never find the machine code of the one that holds it again.
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
def read_by(K, V, row, at, table):  # type: ignore[no-untyped-def]
    """The sum of a table's rows, each times a number of row[at] and what follows."""
    literally(K)
    literally(V)
    even = zeros_like(load(table, 0, V))
    odd = even
    for i in range(0, K - K % 2, 2):
        even = even + row[at + i] * load(table, i * V, V)
        odd = odd + row[at + i + 1] * load(table, (i + 1) * V, V)
    if K % 2:
        even = even + row[at + K - 1] * load(table, (K - 1) * V, V)
    return even + odd


@functools.cache
def compiled(K: int, V: int, read: str | None = None) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward loops for tables [K, V].

    With `read`, "tanh" or "norm", gates stand behind the values, what is read is bounded and gated as in
    `memory.kernels.delta_read`, and this is what is returned; with None it is the read itself.
    """
    KV, EVEN = K * V, K - K % 2
    gated, use_tanh = read is not None, read == "tanh"
    WIDTH = 2 * K + 2 * V if gated else 2 * K + V

    @njit(**OPTIONS)
    def forward(  # type: ignore[no-untyped-def]
        first, last, z, zs, alpha, beta, start, normalise, y, errors, kept, table, ts
    ):
        """Advance rows first to last of `table` [B, H, K, V] in place; fill `y` [T, B, H, V], `errors` and `kept`.

        `errors` [T, B, H, V] gets v - alpha S^T k, with S before the step; `kept` [segments, B, H, K V] gets the table
        at the first step of each segment, after a reset there. Both are for backward; an empty `kept` asks for none.
        """
        T, B, H = alpha.shape
        lanes = VECTOR_BYTES // table.itemsize
        S, unit = aligned(KV, table), aligned(2 * (SEGMENT + 1) * K, table)
        parts, sums, scale = aligned(PAIRS * lanes, table), aligned(PAIRS, table), aligned(PAIRS, table)
        reads, gates = aligned(SEGMENT * V, table), aligned(SEGMENT * V, table)
        for b in range(first, last):
            for h in range(H):
                home = b * ts[0] + h * ts[1]
                for i in range(K):
                    store(load(table, home + i * V, V), S, i * V)
                for t0 in range(0, T, SEGMENT):
                    steps = min(SEGMENT, T - t0)
                    z0 = t0 * zs[0] + b * zs[1] + h * zs[2]
                    directions(K, z, z0, zs[0], steps, normalise, unit, scale, parts, sums)
                    if start[t0, b]:
                        S[:] = 0
                    if len(kept) > 0:
                        kept[t0 // SEGMENT, b, h] = S
                    found = read_by(K, V, unit, K, S)
                    for s in range(steps):
                        t = t0 + s
                        if s > 0 and start[t, b]:
                            S[:] = 0
                            found = zeros_like(found)
                        prefetch(z, z0 + (s + SEGMENT) * zs[0], WIDTH)
                        a = alpha[t, b, h]
                        error = load(z, z0 + s * zs[0] + 2 * K, V) - a * found
                        write = beta[t, b, h] * error
                        even = zeros_like(found)
                        odd, next_even, next_odd = even, even, even
                        q, k, k_next = unit[2 * s * K :], unit[(2 * s + 1) * K :], unit[(2 * s + 3) * K :]
                        for i in range(0, EVEN, 2):
                            row = a * load(S, i * V, V) + k[i] * write
                            store(row, S, i * V)
                            even = even + q[i] * row
                            next_even = next_even + k_next[i] * row
                            row = a * load(S, (i + 1) * V, V) + k[i + 1] * write
                            store(row, S, (i + 1) * V)
                            odd = odd + q[i + 1] * row
                            next_odd = next_odd + k_next[i + 1] * row
                        if EVEN < K:
                            row = a * load(S, EVEN * V, V) + k[EVEN] * write
                            store(row, S, EVEN * V)
                            even = even + q[EVEN] * row
                            next_even = next_even + k_next[EVEN] * row
                        found = next_even + next_odd
                        store(error, errors, ((t * B + b) * H + h) * V)
                        store(even + odd, reads, s * V)
                        if gated:
                            store(load(z, z0 + s * zs[0] + 2 * K + V, V), gates, s * V)
                    if gated:
                        gate_reads(reads[: steps * V], gates, use_tanh, sums[:steps])
                    for s in range(steps):
                        store(load(reads, s * V, V), y, (((t0 + s) * B + b) * H + h) * V)
                for i in range(K):
                    store(load(S, i * V, V), table, home + i * V)

    @njit(**OPTIONS)
    def backward(  # type: ignore[no-untyped-def]
        first, last, z, zs, alpha, beta, start, normalise, errors, kept, dy, ds, dz, dzs, d_alpha, d_beta, d_table
    ):
        """Gradients of rows first to last of a scan.

        `d_table` [B, H, K V] comes with the gradient of the last tables and leaves with that of the first ones. With
        A = alpha S_{t-1}, e = v - A^T k, u = beta e, S = A + k u^T, read = S^T q, and dS what later steps want, G
        without this step's read,

            dS = G + q d_read^T    dq = A d_read + (u . d_read) k    du = G^T k + (q . k) d_read
            d_beta = du . e        de = dv = beta du                 dk = G u + (u . d_read) q - A de
            dA = dS - k de^T       d_alpha = dA . S_{t-1}

        and G = alpha dA for the step before, or zero at a start. Through q = x / |x|, dx = (dq - (q . dq) q) / |x|.
        """
        T, B, H = alpha.shape
        lanes = VECTOR_BYTES // dz.itemsize
        wide = -(-K // lanes) * lanes
        G, tables = aligned(KV, dz), aligned((SEGMENT + 1) * KV, dz)
        unit, d_unit = aligned(2 * (SEGMENT + 1) * K, dz), aligned(PAIRS * wide, dz)
        parts, sums, scale = aligned(PAIRS * lanes, dz), aligned(PAIRS, dz), aligned(PAIRS, dz)
        reads, gates, d_read = aligned(SEGMENT * V, dz), aligned(SEGMENT * V, dz), aligned(SEGMENT * V, dz)
        # per step and table: q . k, u . d_read, d_beta, d_alpha
        along, totals = aligned(4 * SEGMENT * lanes, dz).reshape(4, -1), aligned(4 * SEGMENT, dz).reshape(4, -1)
        by_query, by_key = aligned(K * lanes, dz), aligned(K * lanes, dz)
        for b in range(first, last):
            for h in range(H):
                G[:] = d_table[b, h]
                for t0 in range((len(kept) - 1) * SEGMENT, -1, -SEGMENT):
                    steps = min(SEGMENT, T - t0)
                    z0 = t0 * zs[0] + b * zs[1] + h * zs[2]
                    directions(K, z, z0, zs[0], steps, normalise, unit, scale, parts, sums)
                    tables[:KV] = kept[t0 // SEGMENT, b, h]
                    for s in range(steps):
                        t = t0 + s
                        store(load(dy, t * ds[0] + b * ds[1] + h * ds[2], V), d_read, s * V)
                        if s + 1 == steps and not gated:
                            continue
                        a, q, k = alpha[t, b, h], unit[2 * s * K :], unit[(2 * s + 1) * K :]
                        write = beta[t, b, h] * load(errors, ((t * B + b) * H + h) * V, V)
                        found = zeros_like(write)
                        for i in range(K):
                            row = a * load(tables, s * KV + i * V, V) + k[i] * write
                            store(row, tables, (s + 1) * KV + i * V)
                            found = found + q[i] * row
                        if gated:
                            store(found, reads, s * V)
                            store(load(z, z0 + s * zs[0] + 2 * K + V, V), gates, s * V)
                        if s + 1 < steps and start[t + 1, b]:
                            tables[(s + 1) * KV : (s + 2) * KV] = 0
                    if gated:
                        gate_reads_backward(
                            reads[: steps * V], gates[: steps * V], use_tanh, sums[:steps], d_read[: steps * V]
                        )
                    for s in range(steps):
                        t = t0 + s
                        if gated:
                            store(load(gates, s * V, V), dz, t * dzs[0] + b * dzs[1] + h * dzs[2] + 2 * K + V)
                        store(fold(load(unit, 2 * s * K, K) * load(unit, (2 * s + 1) * K, K)), along[0], s * lanes)
                        write = beta[t, b, h] * load(errors, ((t * B + b) * H + h) * V, V)
                        store(fold(write * load(d_read, s * V, V)), along[1], s * lanes)
                    sum_rows(along[0], SEGMENT, totals[0], 0)
                    sum_rows(along[1], SEGMENT, totals[1], 0)
                    wanted = read_by(K, V, unit, (2 * steps - 1) * K, G)
                    for s in range(steps - 1, -1, -1):
                        t = t0 + s
                        u = 2 * s * K
                        q, k, k_before = unit[u : u + K], unit[u + K : u + 2 * K], unit[max(u - K, 0) :]
                        a, rate = alpha[t, b, h], beta[t, b, h]
                        prefetch(z, z0 + (s - SEGMENT) * zs[0], WIDTH)
                        prefetch(errors, (((t - SEGMENT) * B + b) * H + h) * V, V)
                        prefetch(dy, (t - SEGMENT) * ds[0] + b * ds[1] + h * ds[2], V)
                        error, d = load(errors, ((t * B + b) * H + h) * V, V), load(d_read, s * V, V)
                        d_write = wanted + totals[0, s] * d
                        store(fold(d_write * error), along[2], s * lanes)
                        write, d_error = rate * error, rate * d_write
                        store(d_error, dz, t * dzs[0] + b * dzs[1] + h * dzs[2] + 2 * K)
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
                        if start[t, b]:
                            G[:] = 0
                            wanted = zeros_like(wanted)
                    sum_rows(along[2], SEGMENT, totals[2], 0)
                    sum_rows(along[3], SEGMENT, totals[3], 0)
                    for s in range(steps):
                        t = t0 + s
                        d_beta[t, b, h] = totals[2, s]
                        d_alpha[t, b, h] = totals[3, s]
                        query, key = load(unit, 2 * s * K, K), load(unit, (2 * s + 1) * K, K)
                        dq = alpha[t, b, h] * load(d_unit, 2 * s * wide, K) + totals[1, s] * key
                        dk = load(d_unit, (2 * s + 1) * wide, K) + totals[1, s] * query
                        store(dq, d_unit, 2 * s * wide)
                        store(dk, d_unit, (2 * s + 1) * wide)
                        store(fold(query * dq), parts, 2 * s * lanes)
                        store(fold(key * dk), parts, (2 * s + 1) * lanes)
                    if normalise:
                        sum_rows(parts, PAIRS, sums, 0)
                    for i in range(2 * steps):
                        d = load(d_unit, i * wide, K)
                        if normalise:
                            d = scale[i] * (d - sums[i] * load(unit, i * K, K))
                        store(d, dz, (t0 + i // 2) * dzs[0] + b * dzs[1] + h * dzs[2] + i % 2 * K)
                d_table[b, h] = G

    return forward, backward
