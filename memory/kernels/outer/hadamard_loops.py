"""The loops of `memory.kernels.outer.hadamard` in numba.

With G_t the whole gradient of M_t,

    G_t = d_read_t query_t^T + G_{t+1} * (1 + tanh_{t+1})       the second term is zero where start_{t+1} is true
    d_value_t = G_t key_t    d_key_t = G_t^T value_t    d_query_t = M_t^T d_read_t
    d(theta_t calibrate_t^T) = G_t * M_{t-1} * (1 - tanh_t^2)

M_{t-1} cannot be computed from M_t, for 1 + tanh_t may be 0. So the forward pass keeps M before every `SEGMENT` steps,
and the backward pass recomputes the others. Inner loops go along contiguous rows, so that they vectorise.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.elementwise import tanh

SEGMENT = 16
"""Steps between two matrices that the forward pass keeps."""

# "reassoc" lets sums vectorise. No integer or float64 constant enters these loops: float32 would become float64.
_OPTIONS: Any = dict(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})
_INLINED: Any = {**_OPTIONS, "forceinline": True}
"""For what other kernels call, as in `memory.kernels.arithmetic.compiling`: the first run then equals later ones."""


@njit(**_OPTIONS)
def forward(theta, calibrate, value, key, query, start, M, read, kept):
    """Fill read [T, B, H] and kept [T / SEGMENT or 0, B, H, H]; M [B, H, H] enters as state and leaves as last."""
    T, B, _ = theta.shape
    for b in range(B):
        for t in range(T):
            if t % SEGMENT == 0 and len(kept) > 0:
                kept[t // SEGMENT, b] = M[b]
            if start[t, b]:
                M[b] = 0
            _step(M[b], theta[t, b], calibrate[t, b], value[t, b], key[t, b], query[t, b], read[t, b])


@njit(**_INLINED)
def _step(M, theta, calibrate, value, key, query, read):
    """One step of M [H, H] in place; fill read [H]."""
    H = len(theta)
    for i in range(H):
        th, v = theta[i], value[i]
        total = M.dtype.type(0)
        for j in range(H):
            m = M[i, j] + M[i, j] * tanh(th * calibrate[j]) + v * key[j]
            M[i, j] = m
            total += m * query[j]
        read[i] = total


@njit(**_OPTIONS)
def backward(
    theta, calibrate, value, key, query, start, kept, d_read, G, d_theta, d_calibrate, d_value, d_key, d_query
):
    """Add to the five gradients [T, B, H]; G [B, H, H] enters as d_last and leaves as d_state."""
    T, B, H = theta.shape
    nothing = np.zeros((H, H), theta.dtype)
    states = np.empty((SEGMENT + 1, H, H), theta.dtype)
    tanhs = np.empty((SEGMENT, H, H), theta.dtype)
    for b in range(B):
        for segment in range(len(kept) - 1, -1, -1):
            first = segment * SEGMENT
            steps = min(SEGMENT, T - first)
            states[0] = kept[segment, b]
            for s in range(steps):
                t = first + s
                before = nothing if start[t, b] else states[s]
                _recompute(before, states[s + 1], tanhs[s], theta[t, b], calibrate[t, b], value[t, b], key[t, b])
            for s in range(steps - 1, -1, -1):
                t = first + s
                before = nothing if start[t, b] else states[s]
                _write_backward(
                    G[b],
                    states[s + 1],
                    value[t, b],
                    key[t, b],
                    query[t, b],
                    d_read[t, b],
                    d_value[t, b],
                    d_key[t, b],
                    d_query[t, b],
                )
                _calibration_backward(
                    G[b], before, tanhs[s], theta[t, b], calibrate[t, b], d_theta[t, b], d_calibrate[t, b]
                )
                if start[t, b]:
                    G[b] = 0


@njit(**_INLINED)
def _recompute(before, after, tanhs, theta, calibrate, value, key):
    """One step from before to after [H, H]; fill tanhs [H, H]."""
    H = len(theta)
    for i in range(H):
        th, v = theta[i], value[i]
        for j in range(H):
            t = tanh(th * calibrate[j])
            tanhs[i, j] = t
            after[i, j] = before[i, j] + before[i, j] * t + v * key[j]


# The backward pass is several loops per row: with more arrays in one loop, the compiler can no longer prove that they
# do not overlap, and does not vectorise it.


@njit(**_INLINED)
def _write_backward(G, after, value, key, query, d_read, d_value, d_key, d_query):
    """G [H, H] becomes the whole gradient of `after`; add to the gradients of value, key and query [H]."""
    H = len(value)
    for i in range(H):
        dr, v = d_read[i], value[i]
        total = G.dtype.type(0)
        for j in range(H):
            g = G[i, j] + dr * query[j]
            G[i, j] = g
            total += g * key[j]
        d_value[i] = total
        for j in range(H):
            d_query[j] += dr * after[i, j]
        for j in range(H):
            d_key[j] += v * G[i, j]


@njit(**_INLINED)
def _calibration_backward(G, before, tanhs, theta, calibrate, d_theta, d_calibrate):
    """G [H, H] becomes the gradient of `before`; add to the gradients of theta and calibrate [H]."""
    H = len(theta)
    for i in range(H):
        th = theta[i]
        total = G.dtype.type(0)
        for j in range(H):
            g, t = G[i, j], tanhs[i, j]
            through = g * before[i, j]
            inner = through - through * t * t
            total += inner * calibrate[j]
            d_calibrate[j] += inner * th
            G[i, j] = g + g * t
        d_theta[i] = total
