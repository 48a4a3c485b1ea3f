"""The gated delta rule of `memory.kernels.delta` in numba, forward and backward.

Sequences come as flat memory with strides, so that slices of a projection are read in place, and gradients are written
in the same way. What makes these loops fast:

- The table's sizes are constants: the loop over one axis unrolls, the loop over the other fills vector registers.
- A column of the table never meets another one in a step, so one loop over columns does the whole step.
- Numbers that all columns share (`shared`), numbers per column (`lanes`) and tables lie in different arrays: the
  compiler can then prove, or check once per loop, that nothing overlaps.
- Some rows advance together, since neighbouring rows are neighbours in memory.

No sum over a row of the table is taken: backward keeps the gradient twice, as [K, V] and as [V, K], and takes in each
the sums that run across its lanes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numba import njit

SEGMENT = 16
"""Steps between the tables that the forward pass keeps; backward recomputes those in between."""

EPS = 1e-6
"""Added to the squared length where queries and keys are normalised."""

ROWS = 4
"""Rows of the batch that advance together."""

# error_model: a division that may raise is not vectorised
OPTIONS = dict(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})


@njit(**OPTIONS)
def inverse_lengths(x, strides, t, b, K, out):  # type: ignore[no-untyped-def]
    """out[h] = 1 / sqrt(|x[t, b, h]|^2 + EPS)."""
    one = out.dtype.type(1)
    for h in range(len(out)):
        first = t * strides[0] + b * strides[1] + h * strides[2]
        row = x[first : first + K]
        length = out.dtype.type(EPS)
        for i in range(K):
            length += row[i] * row[i]
        out[h] = one / np.sqrt(length)


@functools.cache
def compiled(K: int, V: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Forward and backward loops for tables [K, V]."""
    KV = K * V
    # a row of `turned`: q, k, dq, dk, then [V, K] each: the table before the step, its gradient
    OLD, NEW, WIDE = 4 * K, 4 * K + KV, 4 * K + 2 * KV

    @njit(**OPTIONS)
    def forward(  # type: ignore[no-untyped-def]
        q, qs, k, ks, v, vs, alpha, beta, start, normalise, read, error, kept, table
    ):
        """Advance `table` [B, H, K * V] in place; fill read, error [T, B, H, V] and kept [segments, B, H, K * V].

        error = v - alpha S^T k before the step and kept, the tables at the first step of each segment after a reset,
        are for backward; empty arrays ask for neither.
        """
        T, B, H = alpha.shape
        keep = len(error) > 0
        zero = read.dtype.type(0)
        scale = np.ones((2, H), read.dtype)
        shared = np.empty(2 * K, read.dtype)
        lanes = np.empty(3 * V, read.dtype)
        for b0 in range(0, B, ROWS):
            for t in range(T):
                for b in range(b0, min(b0 + ROWS, B)):
                    if normalise:
                        inverse_lengths(q, qs, t, b, K, scale[0])
                        inverse_lengths(k, ks, t, b, K, scale[1])
                    fresh = start[t, b]
                    for h in range(H):
                        if fresh:
                            for i in range(KV):
                                table[b, h, i] = 0
                        if keep and t % SEGMENT == 0:
                            for i in range(KV):
                                kept[t // SEGMENT, b, h, i] = table[b, h, i]
                        q0 = t * qs[0] + b * qs[1] + h * qs[2]
                        k0 = t * ks[0] + b * ks[1] + h * ks[2]
                        v0 = t * vs[0] + b * vs[1] + h * vs[2]
                        query, key, value = q[q0 : q0 + K], k[k0 : k0 + K], v[v0 : v0 + V]
                        for i in range(K):
                            shared[i] = query[i] * scale[0, h]
                        for i in range(K):
                            shared[K + i] = key[i] * scale[1, h]
                        for j in range(V):
                            lanes[j] = value[j]
                        a, rate = alpha[t, b, h], beta[t, b, h]
                        for j in range(V):
                            # two sums: one alone would wait for each of its additions
                            even, odd = zero, zero
                            for i in range(0, K, 2):
                                even += shared[K + i] * table[b, h, i * V + j]
                            for i in range(1, K, 2):
                                odd += shared[K + i] * table[b, h, i * V + j]
                            e = lanes[j] - a * (even + odd)
                            u = rate * e
                            even, odd = zero, zero
                            for i in range(0, K, 2):
                                new = a * table[b, h, i * V + j] + shared[K + i] * u
                                table[b, h, i * V + j] = new
                                even += shared[i] * new
                            for i in range(1, K, 2):
                                new = a * table[b, h, i * V + j] + shared[K + i] * u
                                table[b, h, i * V + j] = new
                                odd += shared[i] * new
                            lanes[V + j] = even + odd
                            lanes[2 * V + j] = e
                        for j in range(V):
                            read[t, b, h, j] = lanes[V + j]
                        if keep:
                            for j in range(V):
                                error[t, b, h, j] = lanes[2 * V + j]

    @njit(**OPTIONS)
    def backward(  # type: ignore[no-untyped-def]
        q, qs, k, ks, alpha, beta, start, normalise, error, kept, d_read, ds,
        dq, dqs, dk, dks, dv, dvs, d_alpha, d_beta, d_table,
    ):  # fmt: skip
        """Gradients of a scan; `d_table` [B, H, K * V] comes with the last tables' and leaves with the first ones'.

        With A = alpha S_{t-1}, e = v - A^T k, u = beta e, S = A + k u^T, read = S^T q, and dS what later steps want:
            dS += q d_read^T       dq = S d_read        du = dS^T k        dk = dS u - A de
            d_beta = du . e        de = dv = beta du    dA = dS - k de^T   d_alpha = dA . S_{t-1}
        and dS = alpha dA for the step before, or zero at a start.
        """
        T, B, H = alpha.shape
        zero, one, eps = d_alpha.dtype.type(0), d_alpha.dtype.type(1), d_alpha.dtype.type(EPS)
        scale = np.ones((ROWS, SEGMENT, H, 2), d_alpha.dtype)
        tables = np.empty((ROWS, SEGMENT, H, KV), d_alpha.dtype)
        turned = np.empty((ROWS, H, WIDE), d_alpha.dtype)
        shared_k = np.empty(2 * K, d_alpha.dtype)
        shared_v = np.empty(3 * V, d_alpha.dtype)
        lanes = np.empty(3 * V, d_alpha.dtype)
        for b0 in range(0, B, ROWS):
            rows = min(ROWS, B - b0)
            for r in range(rows):
                for h in range(H):
                    for i in range(K):
                        for j in range(V):
                            turned[r, h, NEW + j * K + i] = d_table[b0 + r, h, i * V + j]
            for segment in range(len(kept) - 1, -1, -1):
                t0 = segment * SEGMENT
                steps = min(SEGMENT, T - t0)
                for s in range(steps):
                    t = t0 + s
                    for r in range(rows):
                        b = b0 + r
                        for h in range(H):
                            q0 = t * qs[0] + b * qs[1] + h * qs[2]
                            k0 = t * ks[0] + b * ks[1] + h * ks[2]
                            query, key = q[q0 : q0 + K], k[k0 : k0 + K]
                            if normalise:
                                q_length, k_length = eps, eps
                                for i in range(K):
                                    q_length += query[i] * query[i]
                                    k_length += key[i] * key[i]
                                scale[r, s, h, 0] = one / np.sqrt(q_length)
                                scale[r, s, h, 1] = one / np.sqrt(k_length)
                            if s == 0:
                                for i in range(K):
                                    for j in range(V):
                                        tables[r, 0, h, j * K + i] = kept[segment, b, h, i * V + j]
                            if s + 1 == steps:
                                continue
                            old, new = tables[r, s, h], tables[r, s + 1, h]
                            if start[t + 1, b]:
                                for i in range(KV):
                                    new[i] = 0
                            else:
                                for i in range(K):
                                    turned[r, h, i] = key[i] * scale[r, s, h, 1]
                                a, rate = alpha[t, b, h], beta[t, b, h]
                                for j in range(V):
                                    shared_v[j] = rate * error[t, b, h, j]
                                for i in range(K):
                                    for j in range(V):
                                        new[j * K + i] = a * old[j * K + i] + shared_v[j] * turned[r, h, i]
                for back in range(steps):
                    s = steps - 1 - back
                    t = t0 + s
                    for r in range(rows):
                        b = b0 + r
                        for h in range(H):
                            q0 = t * qs[0] + b * qs[1] + h * qs[2]
                            k0 = t * ks[0] + b * ks[1] + h * ks[2]
                            d0 = t * ds[0] + b * ds[1] + h * ds[2]
                            query, key, grad = q[q0 : q0 + K], k[k0 : k0 + K], d_read[d0 : d0 + V]
                            q_scale, k_scale = scale[r, s, h, 0], scale[r, s, h, 1]
                            for i in range(K):
                                turned[r, h, i] = query[i] * q_scale
                            for i in range(K):
                                turned[r, h, K + i] = key[i] * k_scale
                            for i in range(2 * K):
                                shared_k[i] = turned[r, h, i]
                            for j in range(V):
                                lanes[j] = grad[j]
                            for i in range(KV):
                                turned[r, h, OLD + i] = tables[r, s, h, i]
                            a, rate = alpha[t, b, h], beta[t, b, h]
                            for j in range(V):
                                even, odd = zero, zero
                                for i in range(0, K, 2):
                                    even += shared_k[K + i] * (d_table[b, h, i * V + j] + shared_k[i] * lanes[j])
                                for i in range(1, K, 2):
                                    odd += shared_k[K + i] * (d_table[b, h, i * V + j] + shared_k[i] * lanes[j])
                                du = even + odd
                                de = rate * du
                                for i in range(K):
                                    d_table[b, h, i * V + j] = a * (
                                        d_table[b, h, i * V + j] + shared_k[i] * lanes[j] - shared_k[K + i] * de
                                    )
                                lanes[V + j] = du
                                lanes[2 * V + j] = de
                            dot, d_rate = zero, zero
                            for j in range(V):
                                e = error[t, b, h, j]
                                shared_v[j] = lanes[j]
                                shared_v[V + j] = rate * e
                                shared_v[2 * V + j] = lanes[2 * V + j]
                                dot += lanes[j] * rate * e
                                d_rate += lanes[V + j] * e
                            d_beta[t, b, h] = d_rate
                            for i in range(K):
                                even, odd, lost, lost_too = zero, zero, zero, zero
                                for j in range(0, V, 2):
                                    even += shared_v[j] * turned[r, h, OLD + j * K + i]
                                    lost += shared_v[2 * V + j] * turned[r, h, OLD + j * K + i]
                                for j in range(1, V, 2):
                                    odd += shared_v[j] * turned[r, h, OLD + j * K + i]
                                    lost_too += shared_v[2 * V + j] * turned[r, h, OLD + j * K + i]
                                turned[r, h, 2 * K + i] = a * (even + odd) + dot * turned[r, h, K + i]
                                turned[r, h, 3 * K + i] = -a * (lost + lost_too)
                            d_a = zero
                            for i in range(K):
                                even, odd, into_a, into_a_too = zero, zero, zero, zero
                                for j in range(0, V, 2):
                                    new_ = turned[r, h, NEW + j * K + i] + shared_v[j] * turned[r, h, i]
                                    even += shared_v[V + j] * new_
                                    new_ -= shared_v[2 * V + j] * turned[r, h, K + i]
                                    into_a += new_ * turned[r, h, OLD + j * K + i]
                                    turned[r, h, NEW + j * K + i] = a * new_
                                for j in range(1, V, 2):
                                    new_ = turned[r, h, NEW + j * K + i] + shared_v[j] * turned[r, h, i]
                                    odd += shared_v[V + j] * new_
                                    new_ -= shared_v[2 * V + j] * turned[r, h, K + i]
                                    into_a_too += new_ * turned[r, h, OLD + j * K + i]
                                    turned[r, h, NEW + j * K + i] = a * new_
                                turned[r, h, 3 * K + i] += even + odd
                                d_a += into_a + into_a_too
                            d_alpha[t, b, h] = d_a
                            if start[t, b]:
                                for i in range(KV):
                                    d_table[b, h, i] = 0
                                for i in range(KV):
                                    turned[r, h, NEW + i] = 0
                            along_q, along_k = zero, zero
                            if normalise:
                                for i in range(K):
                                    along_q += turned[r, h, i] * turned[r, h, 2 * K + i]
                                    along_k += turned[r, h, K + i] * turned[r, h, 3 * K + i]
                            q0 = t * dqs[0] + b * dqs[1] + h * dqs[2]
                            k0 = t * dks[0] + b * dks[1] + h * dks[2]
                            v0 = t * dvs[0] + b * dvs[1] + h * dvs[2]
                            query, key, value = dq[q0 : q0 + K], dk[k0 : k0 + K], dv[v0 : v0 + V]
                            for i in range(K):
                                query[i] = q_scale * (turned[r, h, 2 * K + i] - along_q * turned[r, h, i])
                            for i in range(K):
                                key[i] = k_scale * (turned[r, h, 3 * K + i] - along_k * turned[r, h, K + i])
                            for j in range(V):
                                value[j] = lanes[2 * V + j]

    return forward, backward
