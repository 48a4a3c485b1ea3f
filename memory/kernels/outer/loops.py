"""The outer-product recurrence S <- decay * S + k v^T, read as S^T q, in numba, forward and backward.

K and the number of columns taken at a time are compile-time constants, and a row of a table is one vector: see
`memory.kernels.arithmetic.vectors`. The columns of a table do not depend on each other, so a wide table is taken in
blocks of columns that fit into registers. Forward keeps only the tables between segments of steps; backward recomputes
those inside a segment, while they stay in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from numba import literally

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
from palimpsest.memory.kernels.arithmetic.products import VECTOR_BYTES
from palimpsest.memory.kernels.arithmetic.vectors import aligned, fold, load, store, sum_rows, zeros_like

SEGMENT = 16
"""Steps between the tables that the forward pass keeps."""

MOST_COLUMNS = 64
"""Columns of a table that are taken at a time."""


def columns_at_a_time(V: int) -> int:
    """The widest block of columns into which a table of V columns can be cut evenly."""
    return max(n for n in range(1, min(V, MOST_COLUMNS) + 1) if V % n == 0)


# Outside of `compiled`, for the reason given in `memory.kernels.delta.loops`.
@njit(**INLINED)
def _load_block(K, W, table, at, V, block):
    """Fill block [K W] with W columns of the table [K, V] whose first number is at table[at]."""
    literally(K)
    literally(W)
    for i in range(K):
        store(load(table, at + i * V, W), block, i * W)


@njit(**INLINED)
def _store_block(K, W, block, table, at, V):
    """Write block [K W] back to where `_load_block` takes it from."""
    literally(K)
    literally(W)
    for i in range(K):
        store(load(block, i * W, W), table, at + i * V)


@functools.cache
def compiled(K: int, V: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward over whole sequences for tables [K, V]."""
    W = columns_at_a_time(V)
    KW, KV, ONE_MORE = K * W, K * V, K + 1

    @njit(**OPTIONS)
    def forward(first, last, k, v, decay, q, start, tables, read):
        """Scan rows first to last of k, decay, q [T, B, H, K] and v [T, B, H, V]; fill read [T, B, H, V] and tables.

        tables [N + 1, B, H, K V], for N segments, enters with the initial tables at index 0; those after each segment
        are filled in. Or [1, B, H, K V], where the last tables replace the initial ones.
        """
        T, B, H, _ = k.shape
        ks, vs, decays, qs, reads, kept = (
            k.reshape(-1), v.reshape(-1), decay.reshape(-1), q.reshape(-1), read.reshape(-1), tables.reshape(-1)
        )  # fmt: skip
        every, S = len(tables) > 1, aligned(KW, k)
        for b in range(first, last):
            for h in range(H):
                for column in range(0, V, W):
                    table = (b * H + h) * KV + column
                    _load_block(K, W, kept, table, V, S)
                    for t in range(T):
                        at = (t * B + b) * H + h
                        if start[t, b]:
                            S[:] = 0
                        value = load(vs, at * V + column, W)
                        even = zeros_like(value)
                        odd = even
                        for i in range(0, K - K % 2, 2):
                            row = decays[at * K + i] * load(S, i * W, W) + ks[at * K + i] * value
                            store(row, S, i * W)
                            even = even + qs[at * K + i] * row
                            row = decays[at * K + i + 1] * load(S, (i + 1) * W, W) + ks[at * K + i + 1] * value
                            store(row, S, (i + 1) * W)
                            odd = odd + qs[at * K + i + 1] * row
                        if K % 2:
                            row = decays[at * K + K - 1] * load(S, (K - 1) * W, W) + ks[at * K + K - 1] * value
                            store(row, S, (K - 1) * W)
                            even = even + qs[at * K + K - 1] * row
                        store(even + odd, reads, at * V + column)
                        if every and ((t + 1) % SEGMENT == 0 or t + 1 == T):
                            _store_block(K, W, S, kept, table + (t // SEGMENT + 1) * B * H * KV, V)
                    if not every:
                        _store_block(K, W, S, kept, table, V)

    @njit(**OPTIONS)
    def backward(first, last, k, v, decay, q, start, tables, d_read, d_table, dk, dv, d_decay, dq):
        """The gradient of `forward` for rows first to last, added to dk, d_decay, dq and filled into dv.

        `d_table` [B, H, K V] enters as the gradient of the last tables and leaves as that of the initial ones. With G
        the gradient of S without this step's read, and S_{t-1} zero at a start,

            dS = G + q d_read^T    dk = dS v            dv = dS^T k
            dq = S d_read          d_decay = the sums of the rows of dS * S_{t-1}

        and G = decay * dS for the step before, or zero at a start.
        """
        T, B, H, _ = k.shape
        ks, vs, decays, qs, d_reads, kept = (
            k.reshape(-1), v.reshape(-1), decay.reshape(-1), q.reshape(-1), d_read.reshape(-1), tables.reshape(-1)
        )  # fmt: skip
        dks, dvs, d_decays, dqs, d_tables = (
            dk.reshape(-1), dv.reshape(-1), d_decay.reshape(-1), dq.reshape(-1), d_table.reshape(-1)
        )  # fmt: skip
        lanes = VECTOR_BYTES // k.itemsize
        wide = -(-ONE_MORE // lanes) * lanes
        S, G = aligned((SEGMENT + 1) * KW, k), aligned(KW, k)
        # sums of K products to be, one register each; the last one of `by_query` is v . d_read
        by_query, by_key, by_decay = aligned(ONE_MORE * lanes, k), aligned(K * lanes, k), aligned(K * lanes, k)
        sums, sums_key, sums_decay = aligned(wide, k), aligned(wide, k), aligned(wide, k)
        for b in range(first, last):
            for h in range(H):
                for column in range(0, V, W):
                    table = (b * H + h) * KV + column
                    _load_block(K, W, d_tables, table, V, G)
                    for t0 in range((T - 1) // SEGMENT * SEGMENT, -1, -SEGMENT):
                        steps = min(SEGMENT, T - t0)
                        _load_block(K, W, kept, table + t0 // SEGMENT * B * H * KV, V, S)
                        for s in range(steps):
                            if start[t0 + s, b]:
                                S[s * KW : (s + 1) * KW] = 0
                            at = ((t0 + s) * B + b) * H + h
                            value = load(vs, at * V + column, W)
                            for i in range(K if s + 1 < steps else 0):
                                row = decays[at * K + i] * load(S, s * KW + i * W, W) + ks[at * K + i] * value
                                store(row, S, (s + 1) * KW + i * W)
                        for s in range(steps - 1, -1, -1):
                            at = ((t0 + s) * B + b) * H + h
                            value, d = load(vs, at * V + column, W), load(d_reads, at * V + column, W)
                            d_value = zeros_like(value)
                            for i in range(K):
                                old = load(S, s * KW + i * W, W)
                                new = load(G, i * W, W) + qs[at * K + i] * d
                                store(fold(old * d), by_query, i * lanes)
                                store(fold(new * value), by_key, i * lanes)
                                store(fold(new * old), by_decay, i * lanes)
                                d_value = d_value + ks[at * K + i] * new
                                store(decays[at * K + i] * new, G, i * W)
                            store(fold(value * d), by_query, K * lanes)
                            sum_rows(by_query, ONE_MORE, sums, 0)
                            sum_rows(by_key, K, sums_key, 0)
                            sum_rows(by_decay, K, sums_decay, 0)
                            store(d_value, dvs, at * V + column)
                            key, kept_part = load(ks, at * K, K), load(decays, at * K, K) * load(sums, 0, K)
                            store(load(dqs, at * K, K) + kept_part + sums[K] * key, dqs, at * K)
                            store(load(dks, at * K, K) + load(sums_key, 0, K), dks, at * K)
                            store(load(d_decays, at * K, K) + load(sums_decay, 0, K), d_decays, at * K)
                            if start[t0 + s, b]:
                                G[:] = 0
                    _store_block(K, W, G, d_tables, table, V)

    return forward, backward
