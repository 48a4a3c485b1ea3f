"""The loops of `memory.kernels.outer.hadamard` in numba.

With G_t the whole gradient of M_t,

    G_t = d_read_t query_t^T + G_{t+1} * (1 + tanh_{t+1})       the second term is zero where start_{t+1} is true
    d_value_t = G_t key_t    d_key_t = G_t^T value_t    d_query_t = M_t^T d_read_t
    d(theta_t calibrate_t^T) = G_t * M_{t-1} * (1 - tanh_t^2)

M_{t-1} cannot be computed from M_t, for 1 + tanh_t may be 0. So the forward pass keeps M before every `SEGMENT` steps,
and the backward pass recomputes the others. Inner loops go along contiguous rows, so that they vectorise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from palimpsest.machine_code import njit

SEGMENT = 16
"""Steps between two matrices that the forward pass keeps."""

# tanh x = x P(x^2) / Q(x^2) for |x| <= 8, fitted to the least relative error (1.5e-7); tanh 8 = 1 - 2.3e-7. Evaluated
# in float32 it is within 5e-7 and never above 1. Unlike the library's tanh it vectorises.
_BOUND = np.float32(8)
_P0, _P1, _P2, _P3 = map(np.float32, (9.9999985e-01, 1.2925667e-01, 2.9510283e-03, 1.1428467e-05))
_Q0, _Q1, _Q2, _Q3, _Q4 = map(np.float32, (1.0, 4.6258883e-01, 2.3815573e-02, 2.3866977e-04, 2.4592237e-07))


def _tanh(x):
    """Tanh inside these kernels: exact in float64, within 5e-7 in float32."""
    return math.tanh(x)


@overload(_tanh, jit_options={"fastmath": {"contract"}, "error_model": "numpy"})
def _tanh_by_type(x):
    if x == types.float32:

        def rational(x):
            # written so that NaN fails both comparisons and stays NaN
            x = _BOUND if x > _BOUND else x
            x = -_BOUND if x < -_BOUND else x
            y = x * x
            p = _P0 + y * (_P1 + y * (_P2 + y * _P3))
            q = _Q0 + y * (_Q1 + y * (_Q2 + y * (_Q3 + y * _Q4)))
            return x * p / q

        return rational
    return lambda x: math.tanh(x)


# "reassoc" lets sums vectorise. No integer or float64 constant enters these loops: float32 would become float64.
_OPTIONS: Any = dict(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


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


@njit(**_OPTIONS)
def _step(M, theta, calibrate, value, key, query, read):
    """One step of M [H, H] in place; fill read [H]."""
    H = len(theta)
    for i in range(H):
        th, v = theta[i], value[i]
        total = M.dtype.type(0)
        for j in range(H):
            m = M[i, j] + M[i, j] * _tanh(th * calibrate[j]) + v * key[j]
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


@njit(**_OPTIONS)
def _recompute(before, after, tanhs, theta, calibrate, value, key):
    """One step from before to after [H, H]; fill tanhs [H, H]."""
    H = len(theta)
    for i in range(H):
        th, v = theta[i], value[i]
        for j in range(H):
            t = _tanh(th * calibrate[j])
            tanhs[i, j] = t
            after[i, j] = before[i, j] + before[i, j] * t + v * key[j]


# The backward pass is several loops per row: with more arrays in one loop, the compiler can no longer prove that they
# do not overlap, and does not vectorise it.


@njit(**_OPTIONS)
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


@njit(**_OPTIONS)
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
