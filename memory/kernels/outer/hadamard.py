"""A matrix scaled element by element at every step, then written to: the recurrence of Stable Hadamard Memory.

    t_t = tanh(theta_t (x) calibrate_t)                                   [H, H]
    M_t = M_{t-1} * (1 + t_t) + value_t (x) key_t                         where start_t is true, M_{t-1} = 0
    read_t = M_t query_t                                                  [H]

and with G_t the whole gradient of M_t,

    G_t = dread_t (x) query_t + G_{t+1} * (1 + t_{t+1})                   where start_{t+1} is true, only the first
    dvalue_t = G_t key_t,  dkey_t = G_t^T value_t,  dquery_t = M_t^T dread_t
    d(theta_t (x) calibrate_t) = G_t * M_{t-1} * (1 - t_t^2)

M_{t-1} is not M_t undone: 1 + t_t may be 0. The forward pass keeps M every `_CHUNK` steps, and the backward pass
recomputes the steps between two of them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import overload
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels

_CHUNK = 16
"""Steps from one kept M to the next."""


def hadamard_scan(
    theta: Tensor, calibrate: Tensor, value: Tensor, key: Tensor, query: Tensor, start: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """M_t = M_{t-1} * (1 + tanh(theta_t (x) calibrate_t)) + value_t (x) key_t, read as M_t query_t.

    Gradients reach everything but `start`. Memory: T / 16 matrices per row while gradients are wanted.

    Args:
        theta: [T, B, H] float32 or float64; along M's rows, as `value`.
        calibrate: [T, B, H]; along M's columns, as `key` and `query`.
        value: [T, B, H].
        key: [T, B, H].
        query: [T, B, H].
        start: [T, B] bool.
        state: M [B, H, H] at the first step.

    Returns:
        read [T, B, H] and the last M [B, H, H].

    Raises:
        ValueError: shapes or types do not fit.
    Source: arXiv 2410.10132, its memory update with the calibration of SHM.
    """
    tokens = (theta, calibrate, value, key, query)
    _check(tokens, start, state)
    if not has_kernels(theta):
        return torch_hadamard_scan(*tokens, start, state)
    return _HadamardScan.apply(*tokens, start, state, torch.is_grad_enabled())


def torch_hadamard_scan(
    theta: Tensor, calibrate: Tensor, value: Tensor, key: Tensor, query: Tensor, start: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`hadamard_scan` by torch operations alone, on any device; a loop over time, recomputed chunk by chunk."""
    tokens = (theta, calibrate, value, key, query)
    _check(tokens, start, state)
    reads = []
    for first in range(0, len(start), _CHUNK):
        part = slice(first, first + _CHUNK)
        read, state = checkpoint(
            _torch_chunk, state, start[part], *(x[part] for x in tokens), use_reentrant=False, preserve_rng_state=False
        )
        reads.append(read)
    return (torch.cat(reads) if reads else torch.empty_like(theta)), state


def _torch_chunk(M: Tensor, start: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
    reads = []
    for t in range(len(start)):
        M = torch.where(start[t, :, None, None], torch.zeros_like(M), M)
        theta, calibrate, value, key, query = (x[t] for x in tokens)
        read, M = hadamard_step(theta, calibrate, value, key, query, M)
        reads.append(read)
    return torch.stack(reads), M


def hadamard_step(
    theta: Tensor, calibrate: Tensor, value: Tensor, key: Tensor, query: Tensor, M: Tensor
) -> tuple[Tensor, Tensor]:
    """One step: tokens [B, H] and M [B, H, H] to the read [B, H] and the next M."""
    C = 1 + (theta.unsqueeze(2) * calibrate.unsqueeze(1)).tanh()
    M = M * C + value.unsqueeze(2) * key.unsqueeze(1)
    return (M @ query.unsqueeze(2)).squeeze(2), M


def _check(tokens: tuple[Tensor, ...], start: Tensor, state: Tensor) -> None:
    """Refuse shapes and types that do not fit."""
    shape = tokens[0].shape
    if len(shape) != 3 or any(x.shape != shape for x in tokens):
        raise ValueError(
            f"theta, calibrate, value, key and query must all be [T, B, H]; got {[list(x.shape) for x in tokens]}"
        )
    T, B, H = shape
    if start.shape != (T, B) or start.dtype != torch.bool:
        raise ValueError(f"start must be [T, B] = [{T}, {B}] bool; got {list(start.shape)} {_name(start)}")
    if state.shape != (B, H, H):
        raise ValueError(f"state must be [B, H, H] = [{B}, {H}, {H}]; got {list(state.shape)}")
    if any(x.dtype != state.dtype for x in tokens):
        raise ValueError(f"all floats must have one type; got {[_name(x) for x in (*tokens, state)]}")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class _HadamardScan(torch.autograd.Function):
    """(theta, calibrate, value, key, query, start, state, keep) -> (read, last); `keep` where a backward may follow."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tokens, start, state, keep = arguments
        tokens = [x.contiguous() for x in tokens]
        start = start.contiguous()
        T, B, H = tokens[0].shape
        read = torch.empty_like(tokens[0])
        last = state.clone(memory_format=torch.contiguous_format)
        kept = state.new_empty(-(-T // _CHUNK) if keep else 0, B, H, H)
        _forward(*(x.numpy() for x in (*tokens, start, last, read, kept)))
        ctx.save_for_backward(*tokens, start, kept)
        return read, last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_read: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        *tokens, start, kept = ctx.saved_tensors
        gradients = [torch.zeros_like(x) for x in tokens]
        carried = d_last.clone(memory_format=torch.contiguous_format)
        _backward(*(x.numpy() for x in (*tokens, start, kept, d_read.contiguous(), carried, *gradients)))
        return *gradients, None, carried, None


# tanh x = x P(x^2) / Q(x^2) on |x| <= 8, a fit of least relative error (1.5e-7); tanh 8 = 1 - 2.3e-7. Evaluated in
# float32 it is within 5e-7 and never above 1. Unlike the library's tanh it is vectorised.
_BOUND = np.float32(8)
_P0, _P1, _P2, _P3 = map(np.float32, (9.9999985e-01, 1.2925667e-01, 2.9510283e-03, 1.1428467e-05))
_Q0, _Q1, _Q2, _Q3, _Q4 = map(np.float32, (1.0, 4.6258883e-01, 2.3815573e-02, 2.3866977e-04, 2.4592237e-07))


def _tanh(x):
    """Hyperbolic tangent inside the kernels: exact for float64, within 5e-7 for float32."""
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


# The inner loops are contiguous and vectorised ("reassoc" lets sums be). No integer or float64 constant enters them:
# it would turn float32 into float64.
_OPTIONS: Any = dict(cache=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz"})


@njit(**_OPTIONS)
def _forward(theta, calibrate, value, key, query, start, M, read, kept):
    """Fill read [T, B, H] and kept [T / _CHUNK or 0, B, H, H]; M [B, H, H] enters as state and leaves as last."""
    T, B, _ = theta.shape
    for b in range(B):
        for t in range(T):
            if t % _CHUNK == 0 and len(kept) > 0:
                kept[t // _CHUNK, b] = M[b]
            if start[t, b]:
                M[b] = 0
            _advance(M[b], theta[t, b], calibrate[t, b], value[t, b], key[t, b], query[t, b], read[t, b])


@njit(**_OPTIONS)
def _advance(M, theta, calibrate, value, key, query, read):
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
def _backward(
    theta, calibrate, value, key, query, start, kept, d_read, G, d_theta, d_calibrate, d_value, d_key, d_query
):
    """Add to the five gradients [T, B, H]; G [B, H, H] enters as d_last and leaves as d_state."""
    T, B, H = theta.shape
    nothing = np.zeros((H, H), theta.dtype)
    states = np.empty((_CHUNK + 1, H, H), theta.dtype)
    tanh = np.empty((_CHUNK, H, H), theta.dtype)
    for b in range(B):
        for chunk in range(len(kept) - 1, -1, -1):
            first = chunk * _CHUNK
            steps = min(_CHUNK, T - first)
            states[0] = kept[chunk, b]
            for s in range(steps):
                t = first + s
                before = nothing if start[t, b] else states[s]
                _recompute(before, states[s + 1], tanh[s], theta[t, b], calibrate[t, b], value[t, b], key[t, b])
            for s in range(steps - 1, -1, -1):
                t = first + s
                before = nothing if start[t, b] else states[s]
                _retreat_write(
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
                _retreat_calibration(
                    G[b], before, tanh[s], theta[t, b], calibrate[t, b], d_theta[t, b], d_calibrate[t, b]
                )
                if start[t, b]:
                    G[b] = 0


@njit(**_OPTIONS)
def _recompute(before, after, tanh, theta, calibrate, value, key):
    """One step from before to after [H, H], with the tanh [H, H] on the way."""
    H = len(theta)
    for i in range(H):
        th, v = theta[i], value[i]
        for j in range(H):
            t = _tanh(th * calibrate[j])
            tanh[i, j] = t
            after[i, j] = before[i, j] + before[i, j] * t + v * key[j]


# The way back is several loops per row: with more arrays in one loop, the compiler gives up proving that none
# overlaps another, and does not vectorise it.


@njit(**_OPTIONS)
def _retreat_write(G, after, value, key, query, d_read, d_value, d_key, d_query):
    """G [H, H] becomes the whole gradient of `after`; add to the gradients of the write and of the query [H]."""
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
def _retreat_calibration(G, before, tanh, theta, calibrate, d_theta, d_calibrate):
    """G [H, H] becomes the gradient of `before`; add to the gradients of theta and calibrate [H]."""
    H = len(theta)
    for i in range(H):
        th = theta[i]
        total = G.dtype.type(0)
        for j in range(H):
            g, t = G[i, j], tanh[i, j]
            through = g * before[i, j]
            inner = through - through * t * t
            total += inner * calibrate[j]
            d_calibrate[j] += inner * th
            G[i, j] = g + g * t
        d_theta[i] = total
