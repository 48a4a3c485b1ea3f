"""Mamba's recurrence: every element of a table decays at a rate of its own, for as long as the input's step says.

S_t = exp(A * delta_t) * S_{t-1} + key_t value_t^T       S [N, D]; delta_t and value_t [D], key_t and query_t [N]
read_t = S_t^T query_t

With G_t the whole gradient of S_t, E_t = exp(A * delta_t), and S_{t-1} zero where start_t is true,

    G_t = query_t d_read_t^T + E_{t+1} * G_{t+1}        the second term is zero where start_{t+1} is true
    d_value_t = G_t^T key_t    d_key_t = G_t value_t    d_query_t = S_t d_read_t
    X_t = G_t * E_t * S_{t-1}    d_delta_t = the sums of the columns of A * X_t    dA = the sum of delta_t * X_t

The forward pass keeps S before every `SEGMENT` steps, and the backward pass recomputes the others. Each loop over
channels writes one array, so that it vectorises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, SUMS
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.arithmetic.elementwise import exp
from palimpsest.memory.kernels.arithmetic.threads import in_parts, over_rows, part_borders
from palimpsest.memory.kernels.diagonal.torch_diagonal import torch_diagonal_scan

SEGMENT = 16
"""Steps between two tables that the forward pass keeps."""


@in_full_precision
def selective_scan(
    delta: Tensor, A: Tensor, value: Tensor, key: Tensor, query: Tensor, start: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence above over a sequence: compiled on the CPU, where it is differentiable once; torch elsewhere.

    The compiled form keeps one table per row for every `SEGMENT` steps; torch's operations keep all.

    Args:
        delta: [T, B, D] floats, steps; T is 1 or more.
        A: [N, D], rates; negative, or tables grow.
        value: [T, B, D].
        key: [T, B, N].
        query: [T, B, N].
        start: [T, B] bool, steps before which a row's table is reset to zeros.
        state: [B, N, D], the tables before the first step.

    Returns:
        What is read [T, B, D], and the last tables [B, N, D].

    Raises:
        ValueError: shapes do not fit.
    """
    (T, B, D), N = delta.shape, len(A)
    sizes = [(T, B, D), (N, D), (T, B, D), (T, B, N), (T, B, N), (T, B), (B, N, D)]
    given = [tuple(each.shape) for each in (delta, A, value, key, query, start, state)]
    if given != sizes:
        raise ValueError(f"delta, A, value, key, query, start and state must be {sizes}; got {given}")
    if has_kernels(delta, A, value, key, query, state):
        read, last = _SelectiveScan.apply(delta, A, value, key, query, start, state, torch.is_grad_enabled())
        return read, last
    decay = (A * delta.unsqueeze(2)).exp()
    S, last = torch_diagonal_scan(decay, key.unsqueeze(3) * value.unsqueeze(2), start, state)
    return torch.einsum("tbnd,tbn->tbd", S, query), last


# without reassociation: see `elementwise`
@njit(**INLINED)
def _advance(S, E, after, A, delta, key, value):
    """One step from S to `after` [N, D]; fill E [N, D] with the decays. `after` may be S."""
    N, D = S.shape
    for n in range(N):
        a, e, old, new, k = A[n], E[n], S[n], after[n], key[n]
        for d in range(D):
            e[d] = exp(a[d] * delta[d])
        for d in range(D):
            new[d] = e[d] * old[d] + k * value[d]


@njit(**SUMS)
def _forward(first, last, delta, A, value, key, query, start, S, read, kept):
    """Fill read [T, B, D] and kept [T / SEGMENT or 0, B, N, D]; S [B, N, D] enters as state and leaves as last."""
    T, _, D = delta.shape
    N = len(A)
    E = np.empty((N, D), delta.dtype)
    for b in range(first, last):
        table = S[b]
        for t in range(T):
            if t % SEGMENT == 0 and len(kept) > 0:
                kept[t // SEGMENT, b] = table
            if start[t, b]:
                table[:] = 0
            _advance(table, E, table, A, delta[t, b], key[t, b], value[t, b])
            out = read[t, b]
            out[:] = 0
            for n in range(N):
                q, row = query[t, b, n], table[n]
                for d in range(D):
                    out[d] += q * row[d]


@njit(**SUMS)
def _backward(first, last, delta, A, value, key, query, start, kept, d_read, G, d_delta, dA, d_value, d_key, d_query):
    """Fill the gradients of delta, value, key and query, and add to dA [N, D].

    G [B, N, D] enters as d_last and leaves as d_state.
    """
    T, _, D = delta.shape
    N = len(A)
    nothing = np.zeros((N, D), delta.dtype)
    states, E = np.empty((SEGMENT + 1, N, D), delta.dtype), np.empty((SEGMENT, N, D), delta.dtype)
    part = np.empty((N, D), delta.dtype)
    for b in range(first, last):
        gradient = G[b]
        for segment in range(len(kept) - 1, -1, -1):
            t0 = segment * SEGMENT
            steps = min(SEGMENT, T - t0)
            states[0] = kept[segment, b]
            part[:] = 0
            for s in range(steps):
                t = t0 + s
                before = nothing if start[t, b] else states[s]
                _advance(before, E[s], states[s + 1], A, delta[t, b], key[t, b], value[t, b])
            for s in range(steps - 1, -1, -1):
                t = t0 + s
                before = nothing if start[t, b] else states[s]
                to_delta, to_value = d_delta[t, b], d_value[t, b]
                to_delta[:] = 0
                to_value[:] = 0
                for n in range(N):
                    d_key[t, b, n], d_query[t, b, n] = _row(
                        gradient[n], E[s, n], before[n], states[s + 1, n], A[n], part[n], delta[t, b], value[t, b],
                        d_read[t, b], key[t, b, n], query[t, b, n], to_delta, to_value,
                    )  # fmt: skip
                if start[t, b]:
                    gradient[:] = 0
            for n in range(N):
                for d in range(D):
                    dA[n, d] += part[n, d]


@njit(**SUMS)
def _row(G, E, before, after, A, part, delta, value, d_read, k, q, d_delta, d_value):
    """One step of the backward pass for a row [D] of a table; the gradients of its key and its query."""
    D = len(G)
    d_key = d_query = G.dtype.type(0)
    for d in range(D):
        G[d] += q * d_read[d]
    for d in range(D):
        d_query += after[d] * d_read[d]
        d_key += G[d] * value[d]
    for d in range(D):
        d_value[d] += k * G[d]
    for d in range(D):
        G[d] *= E[d]
    for d in range(D):
        d_delta[d] += A[d] * G[d] * before[d]
    for d in range(D):
        part[d] += delta[d] * G[d] * before[d]
    return d_key, d_query


class _SelectiveScan(torch.autograd.Function):
    """(delta, A, value, key, query, start, state, whether autograd is on) -> (read, last)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *given, state, recording = arguments
        given = [each.contiguous() for each in given]
        T, B, _ = given[0].shape
        read, last = torch.empty_like(given[0]), state.clone(memory_format=torch.contiguous_format)
        kept = state.new_empty(-(-T // SEGMENT) if recording else 0, *state.shape)
        over_rows(_forward, T, B, *(each.numpy() for each in (*given, last, read, kept)))
        ctx.save_for_backward(*given, kept)
        return read, last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_read: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once, as checkpoints allow
        delta, A, value, key, query, start, _ = saved
        d_state = d_last.clone(memory_format=torch.contiguous_format)
        d_delta, d_value, d_key, d_query = (torch.empty_like(each) for each in (delta, value, key, query))
        given = [each.numpy() for each in (*saved, d_read.contiguous(), d_state, d_delta)]
        others = [each.numpy() for each in (d_value, d_key, d_query)]

        def run(first: int, last: int) -> Tensor:
            # a sum over time: in float64 it stays exact
            own = torch.zeros(A.shape, dtype=torch.float64)
            _backward(first, last, *given, own.numpy(), *others)
            return own

        mine, *theirs = in_parts(run, part_borders(*start.shape))
        return d_delta, sum(theirs, mine).to(A.dtype), d_value, d_key, d_query, None, d_state, None
