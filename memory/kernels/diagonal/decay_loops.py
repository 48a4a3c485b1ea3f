"""The decaying traces of `memory.kernels.diagonal.decay` in numba, forward and backward.

Arrays are read as they lie in memory, whatever their shape: see `memory.kernels.arithmetic.vectors`.
"""

from __future__ import annotations

import numpy as np
from numba import literally

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED
from palimpsest.memory.kernels.arithmetic.vectors import load, store, zeros_like

_LANES = 16
"""Decays in one vector: a register of float32 where registers are wide."""

_FLUSH = 64
"""Steps after which sums over time are added to float64, so that they stay exact at any length."""


@njit(**INLINED)
def decay_forward(x, a, b, start, opening, states):
    """Fill states [T, B, 2, C, M]; x [T, B, M], a and b [C, M], start [T, B], opening [B, 2, C, M]."""
    T, B, M = x.shape
    width, nothing = 2 * a.size, np.zeros(2 * a.size, x.dtype)
    for t in range(T):
        for row in range(B):
            token = t * B + row
            if start[t, row]:
                _advance(a, b, nothing, 0, x, token * M, states, token * width)
            elif t > 0:
                _advance(a, b, states, (token - B) * width, x, token * M, states, token * width)
            else:
                _advance(a, b, opening, row * width, x, token * M, states, token * width)


@njit(**INLINED)
def _advance(a, b, before, old, x, token, states, new):
    """One step of one row: states[new:] from before[old:] and x[token:]."""
    M = a.shape[1]
    whole = M - M % _LANES
    _advance_by(_LANES, 0, whole, a, b, before, old, x, token, states, new)
    _advance_by(1, whole, M, a, b, before, old, x, token, states, new)


@njit(**INLINED)
def _advance_by(count, first, last, a, b, before, old, x, token, states, new):
    """Decays first to last of every frequency, `count` at a time."""
    literally(count)
    (C, M), N = a.shape, a.size
    # decays are the inner loop, as they are contiguous; otherwise computing addresses costs more than the arithmetic
    for c in range(C):
        for m in range(first, last, count):
            p = c * M + m
            along, across = load(a, p, count), load(b, p, count)
            re, im = load(before, old + p, count), load(before, old + N + p, count)
            store(along * re + across * im + load(x, token + m, count), states, new + p)
            store(along * im - across * re, states, new + N + p)


@njit(**INLINED)
def decay_backward(d_states, states, a, b, start, opening, carried, dx, da, db):
    """Fill dx [T, B, M] and add to da and db [C, M] float64.

    carried [B, 2, C, M] holds the gradient of the last state; it is replaced by that of the opening one.
    """
    T, B, M = dx.shape
    width, sum_a, sum_b = 2 * a.size, np.zeros_like(a), np.zeros_like(b)
    for t in range(T - 1, -1, -1):
        for row in range(B):
            token, opens = t * B + row, start[t, row]
            into, carry, outside = token * M, row * width, token * width
            if t > 0:
                before = outside - B * width
                _retreat(a, b, opens, states, before, d_states, outside, carried, carry, dx, into, sum_a, sum_b)
            else:
                _retreat(a, b, opens, opening, carry, d_states, outside, carried, carry, dx, into, sum_a, sum_b)
        if t % _FLUSH == 0:
            da += sum_a
            db += sum_b
            sum_a[:] = 0
            sum_b[:] = 0


@njit(**INLINED)
def _retreat(a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b):
    """One step of one row: its dx, its terms of da and db; carried goes from conj(gamma) G_{t+1} to conj(gamma) G_t."""
    M = a.shape[1]
    whole = M - M % _LANES
    _retreat_by(_LANES, 0, whole, a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b)
    _retreat_by(1, whole, M, a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b)


@njit(**INLINED)
def _retreat_by(
    count, first, last, a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b
):
    """Decays first to last of every frequency, `count` at a time."""
    literally(count)
    (C, M), N = a.shape, a.size
    for m in range(first, last, count):
        nothing = zeros_like(load(dx, into + m, count))
        total = nothing
        for c in range(C):
            p = c * M + m
            re = load(d_states, outside + p, count) + load(carried, carry + p, count)
            im = load(d_states, outside + N + p, count) + load(carried, carry + N + p, count)
            total = total + re
            if opens:
                store(nothing, carried, carry + p)
                store(nothing, carried, carry + N + p)
            else:
                along, across = load(a, p, count), load(b, p, count)
                re_before, im_before = load(before, old + p, count), load(before, old + N + p, count)
                store(load(sum_a, p, count) + (re * re_before + im * im_before), sum_a, p)
                store(load(sum_b, p, count) + (re * im_before - im * re_before), sum_b, p)
                store(along * re - across * im, carried, carry + p)
                store(across * re + along * im, carried, carry + N + p)
        store(total, dx, into + m)
