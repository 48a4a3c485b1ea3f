"""The functions of `memory.kernels.attention.chunks` in numba, forward only: they serve acting."""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import SUMS
from palimpsest.memory.kernels.arithmetic.products import multiply, multiply_transposed, pack, pack_into, packed_size
from palimpsest.memory.kernels.attention.top_k import insert


@njit(**SUMS, forceinline=True)
def _softmax(row):
    """Softmax of a row in place; an empty row stays empty."""
    if len(row) == 0:
        return
    top = row[0]
    for i in range(1, len(row)):
        top = max(top, row[i])
    total = row.dtype.type(0)
    for i in range(len(row)):
        row[i] = np.exp(row[i] - top)
        total += row[i]
    for i in range(len(row)):
        row[i] /= total


@njit(**SUMS)
def choose(query, summaries, finished, slot, weight, scale):
    """Fill slot and weight [B, K], by insertion, the newest chunk first."""
    B = len(query)
    N = summaries.shape[1]
    real = query.dtype.type
    scores = np.empty((1, N), query.dtype)
    for b in range(B):
        multiply_transposed(query[b : b + 1], summaries[b], scores, False)
        best, value = slot[b], weight[b]
        found = 0
        for age in range(min(finished[b], N)):
            candidate = (finished[b] - 1 - age) % N
            s = scores[0, candidate] * real(scale)
            found = insert(value, best, found, s, candidate)
        _softmax(value[:found])


@njit(**SUMS)
def read_chosen(query, key, value, code, contents, which, length, weight, read, H):
    """Fill read [B, D]."""
    B, D = query.shape
    C, E = len(code), D // H
    toward, mixed = np.empty((B, H, D), query.dtype), np.zeros((B, H, D), query.dtype)
    score, total = np.empty((H, C), query.dtype), np.zeros((B, H, C), query.dtype)
    shift = np.empty((B, H, C), query.dtype)
    for h in range(H):
        multiply(query[:, h * E : (h + 1) * E], pack(key[h * E : (h + 1) * E]), toward[:, h], False)
    multiply_transposed(toward.reshape(B * H, D), code, shift.reshape(B * H, C), False)
    packed = np.empty(packed_size(C, D, query.itemsize), query.dtype)
    for b in range(B):
        for j in range(which.shape[1]):
            counts = weight[b, j]
            if counts == 0:
                continue
            content = contents[which[b, j]]
            multiply_transposed(toward[b], content, score, False)
            for h in range(H):
                row, seen = score[h], score[h, : length[b, j]]
                for i in range(C):
                    row[i] += shift[b, h, i]
                _softmax(seen)
                row[length[b, j] :] = 0
                for i in range(C):
                    row[i] *= counts
                    total[b, h, i] += row[i]
            multiply(score, pack_into(content, packed), mixed[b], True)
    multiply(total.reshape(B * H, C), pack(code), mixed.reshape(B * H, D), True)
    for h in range(H):
        multiply_transposed(mixed[:, h], value[h * E : (h + 1) * E], read[:, h * E : (h + 1) * E], False)
