"""`gated_delta_scan`, the public entry: the compiled recurrence with its gradient, or the chunked form.

S <- 0                                  where start_t is true
S <- alpha_t S                          forget: how much of everything survives
S <- S + beta_t k_t (v_t - S^T k_t)^T   rewrite: beta_t of what stands under key k_t gives way to v_t
read_t = S^T q_t                        with `read_first`, of S before the two steps above
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.arithmetic.threads import over_rows
from palimpsest.memory.kernels.delta.chunked import gated_delta_chunked
from palimpsest.memory.kernels.delta.loops import SEGMENT, compiled
from palimpsest.memory.kernels.delta.naive import gated_delta_naive


@in_full_precision
def gated_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor,
    start: Tensor,
    state: Tensor,
    normalise: bool = False,
    read_first: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence above over a sequence: compiled on the CPU, where it is differentiable once; by torch elsewhere.

    Args:
        q: [T, B, H, K] floats, queries.
        k: [T, B, H, K], keys.
        v: [T, B, H, V], values.
        alpha: [T, B, H] in [0, 1], how much survives.
        beta: [T, B, H] in [0, 2], how much of what stands under the key is replaced; 1 is an exact overwrite of a key
            of unit length, 2 flips its sign.
        start: [T, B] bool, steps before which a row's tables are reset to zeros.
        state: [B, H, K, V], the tables before the first step.
        normalise: scale queries and keys to unit length first: x / sqrt(|x|^2 + EPS).
        read_first: read each table before the step forgets and writes; a step that starts reads zeros.

    Returns:
        What is read [T, B, H, V], and the last tables [B, H, K, V].
    """
    if not has_kernels(q, k, v, alpha, beta, state):
        # one step has nothing to solve
        form = gated_delta_naive if v.shape[0] == 1 else gated_delta_chunked
        return form(q, k, v, alpha, beta, start, state, normalise, read_first)
    read, last = _DeltaScan.apply(q, k, v, alpha, beta, start, state, normalise, read_first)
    return read, last


class _DeltaScan(torch.autograd.Function):
    """The compiled recurrence; forward keeps the table before each segment, backward recomputes those in between."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        alpha: Tensor,
        beta: Tensor,
        start: Tensor,
        state: Tensor,
        normalise: bool,
        read_first: bool,
    ) -> tuple[Tensor, Tensor]:
        T, B, _, V = v.shape
        z = torch.cat((torch.cat((q, k, v), -1).flatten(2), alpha, beta), -1)
        start = start.contiguous()  # another layout is compiled anew
        tables = z.new_empty(-(-T // SEGMENT) + 1, *state.shape)
        tables[0] = state
        read = z.new_empty(v.shape)
        filled = (tables.flatten(3).numpy(), read.numpy())
        over_rows(compiled(q.shape[3], V, read_first)[0], T, B, z.numpy(), start.numpy(), normalise, *filled)
        ctx.save_for_backward(z, start, tables)
        ctx.normalise, ctx.read_first = normalise, read_first
        return read, tables[-1].clone()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_read: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        z, start, tables = ctx.saved_tensors
        (T, B, H, V), K = d_read.shape, d_last.shape[2]
        dz, d_state = z.clone(), d_last.clone(memory_format=torch.contiguous_format)
        given = (start.numpy(), ctx.normalise, tables.flatten(3).numpy(), d_read.contiguous().numpy())
        over_rows(compiled(K, V, ctx.read_first)[1], T, B, dz.numpy(), *given, d_state.flatten(2).numpy())
        heads, *d_gates = dz.split((H * (2 * K + V), H, H), -1)
        return *heads.unflatten(-1, (H, 2 * K + V)).split((K, K, V), -1), *d_gates, None, d_state, None, None
