"""The functions of `memory.kernels.attention.slices` in numba, forward and backward."""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import SUMS
from palimpsest.memory.kernels.attention.top_k import insert


@njit(**SUMS)
def attend(query, key, value, first, length, weight, read, prob, scale):
    """Fill read [N, H, E] and prob [N, J, H, longest] with the softmax weights, undefined beyond the slice's length."""
    real = query.dtype.type
    N, H, E = query.shape
    for n in range(N):
        read[n] = 0
        for j in range(first.shape[1]):
            begin, size = first[n, j], length[n, j]
            if size <= 0:
                continue
            for h in range(H):
                q, p, r = query[n, h], prob[n, j, h], read[n, h]
                top = real(-np.inf)
                for i in range(size):
                    k = key[begin + i, h]
                    s = real(0)
                    for e in range(E):
                        s += q[e] * k[e]
                    s *= real(scale)
                    p[i] = s
                    top = max(top, s)
                total = real(0)
                for i in range(size):
                    p[i] = np.exp(p[i] - top)
                    total += p[i]
                for i in range(size):
                    p[i] /= total
                    v = value[begin + i, h]
                    counts = weight[n, j] * p[i]
                    for e in range(E):
                        r[e] += counts * v[e]


@njit(**SUMS)
def attend_backward(query, key, value, first, length, weight, prob, grad, d_query, d_key, d_value, d_weight, scale):
    """Add the gradients of `attend` to d_query, d_key, d_value and d_weight; grad [N, H, E] is that of read."""
    real = query.dtype.type
    N, H, E = query.shape
    d_prob = np.empty(prob.shape[3], dtype=query.dtype)
    for n in range(N):
        for j in range(first.shape[1]):
            begin, size = first[n, j], length[n, j]
            for h in range(H):
                q, p, g, dq = query[n, h], prob[n, j, h], grad[n, h], d_query[n, h]
                mean = real(0)
                for i in range(size):
                    v = value[begin + i, h]
                    s = real(0)
                    for e in range(E):
                        s += g[e] * v[e]
                    d_prob[i] = s
                    mean += p[i] * s
                d_weight[n, j] += mean
                for i in range(size):
                    counts = weight[n, j] * p[i]
                    d_score = counts * (d_prob[i] - mean) * real(scale)
                    k, dk, dv = key[begin + i, h], d_key[begin + i, h], d_value[begin + i, h]
                    for e in range(E):  # three loops over two arrays each vectorise better than one over six
                        dq[e] += d_score * k[e]
                    for e in range(E):
                        dk[e] += d_score * q[e]
                    for e in range(E):
                        dv[e] += counts * g[e]


@njit(**SUMS)
def choose(query, key, first, length, index, score, scale):
    """Fill index and score [N, K] with the best of each range, by insertion from the end of the range."""
    real = query.dtype.type
    N, D = query.shape
    for n in range(N):
        index[n] = -1
        score[n] = 0
        found = 0
        q = query[n]
        for r in range(first[n] + length[n] - 1, first[n] - 1, -1):
            k = key[r]
            s = real(0)
            for d in range(D):
                s += q[d] * k[d]
            s *= real(scale)
            found = insert(score[n], index[n], found, s, r)


@njit(**SUMS)
def choose_backward(query, key, index, grad, d_query, d_key, scale):
    """Add the gradients of the scores to d_query, d_key; grad [N, K] is that of score."""
    real = query.dtype.type
    N, D = query.shape
    for n in range(N):
        for j in range(index.shape[1]):
            r = index[n, j]
            if r < 0:
                continue
            g = grad[n, j] * real(scale)
            for d in range(D):
                d_query[n, d] += g * key[r, d]
                d_key[r, d] += g * query[n, d]
