"""The gated delta rule of `memory.kernels.delta` in numba, forward and backward.

Queries, keys and values of a head come side by side, [T, B, H, 2 K + V or more], as flat memory with strides, so that
a slice of a projection is read in place; their gradients are written in the same way. What makes these loops fast:

- The sizes are constants: the loop over one axis of a table unrolls, the loop over the other fills vector registers.
- A column of a table never meets another one in a step, so one loop over columns does the whole step.
- No sum over a row is taken: backward keeps the gradient twice, as [K, V] and as [V, K], and takes in each the sums
  that run across its lanes.
- Each loop touches few arrays, at constant places: the compiler checks once that they do not overlap, and gives up
  where there is too much to check. That is why what belongs together lies in one array.
- Some rows advance together, since neighbouring rows are neighbours in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

SEGMENT = 16
"""Steps between the tables that the forward pass keeps; backward recomputes those in between."""

EPS = 1e-6
"""Added to the squared length where queries and keys are normalised."""

ROWS = 4
"""Rows of the batch that advance together."""

# error_model: a division that may raise is not vectorised
OPTIONS: dict[str, Any] = dict(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})


@functools.cache
def compiled(K: int, V: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward loops for tables [K, V]."""
    KV, QKV = K * V, 2 * K + V
    # as many rows or columns as the compiler unrolls
    BK, BV = (max(n for n in range(1, 17) if size % n == 0) for size in (K, V))

    @njit(**OPTIONS)
    def forward(first, last, z, zs, alpha, beta, start, normalise, out, kept, table, ts):  # type: ignore[no-untyped-def]
        """Advance rows first to last of `table` [B, H, K V] in place; fill `out` [T, B, H, 2 V] and `kept`.

        `out` gets read and error = v - alpha S^T k, with S before the step; `kept` [segments, B, H, K V] gets the table
        at the first step of each segment, after a reset there. Both are for backward; an empty `kept` asks for none.
        """
        T, _, H = alpha.shape
        zero, one, eps = table.dtype.type(0), table.dtype.type(1), table.dtype.type(EPS)
        scale = np.ones((H, 2), table.dtype)
        for b0 in range(first, last, ROWS):
            for t in range(T):
                for b in range(b0, min(b0 + ROWS, last)):
                    if normalise:
                        for h in range(H):
                            z0 = t * zs[0] + b * zs[1] + h * zs[2]
                            row = z[z0 : z0 + QKV]
                            q_length, k_length = eps, eps
                            for i in range(K):
                                q_length += row[i] * row[i]
                                k_length += row[K + i] * row[K + i]
                            scale[h, 0] = one / np.sqrt(q_length)
                            scale[h, 1] = one / np.sqrt(k_length)
                    fresh = start[t, b]
                    for h in range(H):
                        s0 = b * ts[0] + h * ts[1]
                        S = table[s0 : s0 + KV]
                        if fresh:
                            for i in range(KV):
                                S[i] = 0
                        if len(kept) > 0 and t % SEGMENT == 0:
                            for i in range(KV):
                                kept[t // SEGMENT, b, h, i] = S[i]
                        z0 = t * zs[0] + b * zs[1] + h * zs[2]
                        row, result = z[z0 : z0 + QKV], out[t, b, h]
                        a, rate, q_scale, k_scale = alpha[t, b, h], beta[t, b, h], scale[h, 0], scale[h, 1]
                        for c in range(0, K, BK):
                            part, uniform = S[c * V : (c + BK) * V], row[c : c + K + BK]
                            for j in range(V):
                                # two sums: one alone would wait for each of its additions
                                even, odd = zero, zero
                                for i in range(0, BK, 2):
                                    even += uniform[K + i] * part[i * V + j]
                                for i in range(1, BK, 2):
                                    odd += uniform[K + i] * part[i * V + j]
                                result[V + j] = even + odd + (result[V + j] if c > 0 else zero)
                        for c in range(0, K, BK):
                            part, uniform = S[c * V : (c + BK) * V], row[c:]
                            for j in range(V):
                                error = row[2 * K + j] - a * k_scale * result[V + j] if c == 0 else result[V + j]
                                write = rate * k_scale * error
                                even, odd = zero, zero
                                for i in range(0, BK, 2):
                                    new = a * part[i * V + j] + uniform[K + i] * write
                                    part[i * V + j] = new
                                    even += uniform[i] * new
                                for i in range(1, BK, 2):
                                    new = a * part[i * V + j] + uniform[K + i] * write
                                    part[i * V + j] = new
                                    odd += uniform[i] * new
                                result[V + j] = error
                                result[j] = q_scale * (even + odd) + (result[j] if c > 0 else zero)

    @njit(**OPTIONS)
    def backward(  # type: ignore[no-untyped-def]
        first, last, z, zs, alpha, beta, start, normalise, out, kept, d_read, ds, dz, dzs, d_alpha, d_beta, d_table
    ):
        """Gradients of rows first to last of a scan.

        `d_table` [B, H, K V] comes with the gradient of the last tables and leaves with that of the first ones. With
        A = alpha S_{t-1}, e = v - A^T k, u = beta e, S = A + k u^T, read = S^T q, and dS what later steps want:

            dS += q d_read^T       dq = S d_read        du = dS^T k        dk = dS u - A de
            d_beta = du . e        de = dv = beta du    dA = dS - k de^T   d_alpha = dA . S_{t-1}

        and dS = alpha dA for the step before, or zero at a start. Through q = x / |x|, dx = (dq - (q . dq) q) / |x|,
        where q . dq = read . d_read and k . dk = u . du - (v - e) . de.
        """
        T, _, H = alpha.shape
        zero, one, eps = d_alpha.dtype.type(0), d_alpha.dtype.type(1), d_alpha.dtype.type(EPS)
        scale = np.ones((ROWS, SEGMENT, H, 2), d_alpha.dtype)
        tables = np.empty((ROWS, H, SEGMENT * KV), d_alpha.dtype)  # [V, K] each
        turned = np.empty((ROWS, H, KV), d_alpha.dtype)  # dS as [V, K]
        straight = np.empty((ROWS, H, KV + 3 * V), d_alpha.dtype)  # dS as [K, V], then d_read, u, de
        for b0 in range(first, last, ROWS):
            rows = min(ROWS, last - b0)
            for r in range(rows):
                for h in range(H):
                    for i in range(K):
                        for j in range(V):
                            straight[r, h, i * V + j] = d_table[b0 + r, h, i * V + j]
                            turned[r, h, j * K + i] = d_table[b0 + r, h, i * V + j]
            for segment in range(len(kept) - 1, -1, -1):
                t0 = segment * SEGMENT
                steps = min(SEGMENT, T - t0)
                for s in range(steps):
                    t = t0 + s
                    for r in range(rows):
                        b = b0 + r
                        for h in range(H):
                            z0 = t * zs[0] + b * zs[1] + h * zs[2]
                            row = z[z0 : z0 + QKV]
                            if normalise:
                                q_length, k_length = eps, eps
                                for i in range(K):
                                    q_length += row[i] * row[i]
                                    k_length += row[K + i] * row[K + i]
                                scale[r, s, h, 0] = one / np.sqrt(q_length)
                                scale[r, s, h, 1] = one / np.sqrt(k_length)
                            if s == 0:
                                for i in range(K):
                                    for j in range(V):
                                        tables[r, h, j * K + i] = kept[segment, b, h, i * V + j]
                            if s + 1 == steps:
                                continue
                            pair = tables[r, h, s * KV : (s + 2) * KV]
                            if start[t + 1, b]:
                                for i in range(KV):
                                    pair[KV + i] = 0
                                continue
                            a, rate = alpha[t, b, h], beta[t, b, h] * scale[r, s, h, 1]
                            for c in range(0, V, BV):
                                part, error = pair[c * K :], out[t, b, h, V + c : V + c + BV]
                                for i in range(K):
                                    key = rate * row[K + i]
                                    for j in range(BV):
                                        part[KV + j * K + i] = a * part[j * K + i] + error[j] * key
                for back in range(steps):
                    s = steps - 1 - back
                    t = t0 + s
                    for r in range(rows):
                        b = b0 + r
                        fresh = start[t, b]
                        for h in range(H):
                            z0 = t * zs[0] + b * zs[1] + h * zs[2]
                            g0 = t * ds[0] + b * ds[1] + h * ds[2]
                            o0 = t * dzs[0] + b * dzs[1] + h * dzs[2]
                            row, grad, result = z[z0 : z0 + QKV], d_read[g0 : g0 + V], out[t, b, h]
                            into = dz[o0 : o0 + QKV]
                            q_scale, k_scale = scale[r, s, h, 0], scale[r, s, h, 1]
                            a, rate = alpha[t, b, h], beta[t, b, h]
                            dS, dT = straight[r, h], turned[r, h]
                            for c in range(0, K, BK):
                                part, uniform = dS[c * V :], row[c:]
                                sums = dS[KV:]
                                for j in range(V):
                                    d = q_scale * grad[j]
                                    even, odd = zero, zero
                                    for i in range(0, BK, 2):
                                        even += uniform[K + i] * (part[i * V + j] + uniform[i] * d)
                                    for i in range(1, BK, 2):
                                        odd += uniform[K + i] * (part[i * V + j] + uniform[i] * d)
                                    sums[j] = even + odd + (sums[j] if c > 0 else zero)
                            through, d_rate, along_q, along_k = zero, zero, zero, zero
                            for j in range(V):
                                du = k_scale * dS[KV + j]
                                de = rate * du
                                e = result[V + j]
                                d_rate += du * e
                                through += grad[j] * rate * e
                                along_q += grad[j] * result[j]
                                along_k += du * rate * e - (row[2 * K + j] - e) * de
                                dS[KV + j] = grad[j]
                                dS[KV + V + j] = rate * e
                                dS[KV + 2 * V + j] = de
                            d_beta[t, b, h] = d_rate
                            if not normalise:
                                along_q, along_k = zero, zero
                            for c in range(0, K, BK):
                                part, uniform = dS[c * V :], row[c:]
                                sums = dS[KV:]
                                for j in range(V):
                                    d = q_scale * sums[j]
                                    de = k_scale * sums[2 * V + j]
                                    for i in range(BK):
                                        part[i * V + j] = a * (part[i * V + j] + uniform[i] * d - uniform[K + i] * de)
                            d_a = zero
                            for c in range(0, V, BV):
                                old, new, sums = tables[r, h, s * KV + c * K :], dT[c * K :], dS[KV + c :]
                                for i in range(K):
                                    query, key = q_scale * row[i], k_scale * row[K + i]
                                    dq, dk, lost, da = zero, zero, zero, zero
                                    for j in range(0, BV, 2):
                                        x = new[j * K + i] + sums[j] * query
                                        dq += sums[j] * old[j * K + i]
                                        dk += sums[V + j] * x
                                        lost += sums[2 * V + j] * old[j * K + i]
                                        x -= sums[2 * V + j] * key
                                        da += x * old[j * K + i]
                                        new[j * K + i] = a * x
                                    dq_odd, dk_odd, lost_odd, da_odd = zero, zero, zero, zero
                                    for j in range(1, BV, 2):
                                        x = new[j * K + i] + sums[j] * query
                                        dq_odd += sums[j] * old[j * K + i]
                                        dk_odd += sums[V + j] * x
                                        lost_odd += sums[2 * V + j] * old[j * K + i]
                                        x -= sums[2 * V + j] * key
                                        da_odd += x * old[j * K + i]
                                        new[j * K + i] = a * x
                                    d_a += da + da_odd
                                    dq = a * (dq + dq_odd) + (into[i] if c > 0 else zero)
                                    dk = dk + dk_odd - a * (lost + lost_odd) + (into[K + i] if c > 0 else zero)
                                    if c + BV == V:
                                        dq = q_scale * (dq + through * key - along_q * query)
                                        dk = k_scale * (dk - along_k * key)
                                    into[i] = dq
                                    into[K + i] = dk
                            d_alpha[t, b, h] = d_a
                            for j in range(V):
                                into[2 * K + j] = dS[KV + 2 * V + j]
                            if fresh:
                                for i in range(KV):
                                    dS[i] = 0
                                    dT[i] = 0
            for r in range(rows):
                for h in range(H):
                    for i in range(KV):
                        d_table[b0 + r, h, i] = straight[r, h, i]

    return forward, backward
