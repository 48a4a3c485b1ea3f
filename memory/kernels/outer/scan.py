"""`outer_scan`, the public entry: the compiled recurrence with its gradient, or the chunked form.

S <- 0                          where start_t is true
S <- decay_t * S + k_t v_t^T    the decay scales all of S, or each key's row
read_t = S^T q_t
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.arithmetic.threads import over_rows
from palimpsest.memory.kernels.outer.chunked import outer_chunked
from palimpsest.memory.kernels.outer.loops import SEGMENT, compiled


@in_full_precision
def outer_scan(k: Tensor, v: Tensor, decay: Tensor, q: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence above over a sequence: compiled on the CPU, where it is differentiable once; chunked elsewhere.

    Args:
        k: [T, B, H, K] floats, keys.
        v: [T, B, H, V], values.
        decay: [T, B, H], a number per table, or [T, B, H, K], one per key; any real numbers.
        q: [T, B, H, K], queries.
        start: [T, B] bool, steps before which a row's tables are reset to zeros.
        state: [B, H, K, V], the tables before the first step.

    Returns:
        What is read [T, B, H, V], and the last tables [B, H, K, V].

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    _check(k, v, decay, q, start, state)
    if state.numel() == 0 or not has_kernels(k, v, decay, q, state):
        return outer_chunked(k, v, decay, q, start, state)
    decay = decay if decay.ndim == 4 else decay.unsqueeze(-1).expand_as(k)
    read, last = _OuterScan.apply(k, v, decay, q, start, state, torch.is_grad_enabled())
    return read, last


def _check(k: Tensor, v: Tensor, decay: Tensor, q: Tensor, start: Tensor, state: Tensor) -> None:
    """Refuse shapes and dtypes that do not fit."""
    if k.ndim != 4 or v.ndim != 4 or q.shape != k.shape or v.shape[:3] != k.shape[:3]:
        shapes = ", ".join(str(list(x.shape)) for x in (k, q, v))
        raise ValueError(f"k and q must be [T, B, H, K] and v [T, B, H, V]; got {shapes}")
    (T, B, H, K), V = k.shape, v.shape[3]
    if decay.shape not in (k.shape, k.shape[:3]):
        raise ValueError(f"decay must be [T, B, H] = {[T, B, H]} or {[T, B, H, K]}; got {list(decay.shape)}")
    if start.shape != (T, B) or start.dtype != torch.bool:
        raise ValueError(f"start must be [T, B] = {[T, B]} bool; got {list(start.shape)} {start.dtype}")
    if state.shape != (B, H, K, V):
        raise ValueError(f"state must be [B, H, K, V] = {[B, H, K, V]}; got {list(state.shape)}")
    if len({x.dtype for x in (k, v, decay, q, state)}) > 1:
        raise ValueError(f"all floats must have one dtype; got {[x.dtype for x in (k, v, decay, q, state)]}")


class _OuterScan(torch.autograd.Function):
    """The compiled recurrence; forward keeps the table before each segment where a backward pass may follow."""

    @staticmethod
    def forward(
        ctx: Any, k: Tensor, v: Tensor, decay: Tensor, q: Tensor, start: Tensor, state: Tensor, recording: bool
    ) -> tuple[Tensor, Tensor]:
        (T, B, _, K), V = k.shape, v.shape[3]
        keep = recording and any(ctx.needs_input_grad)
        given = [x.contiguous() for x in (k, v, decay, q, start)]
        tables = k.new_empty(1 + -(-T // SEGMENT) * keep, *state.shape)
        tables[0] = state
        read = k.new_empty(v.shape)
        over_rows(compiled(K, V)[0], T, B, *(x.numpy() for x in (*given, tables.flatten(3), read)))
        ctx.save_for_backward(*given, tables)
        return read, tables[-1].clone()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_read: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        k, v, decay, q, start, tables = ctx.saved_tensors
        (T, B, _, K), V = k.shape, v.shape[3]
        d_state = d_last.clone(memory_format=torch.contiguous_format)
        dk, dv, d_decay, dq = torch.zeros_like(k), torch.empty_like(v), torch.zeros_like(decay), torch.zeros_like(q)
        given = (k, v, decay, q, start, tables.flatten(3), d_read.contiguous(), d_state.flatten(2))
        over_rows(compiled(K, V)[1], T, B, *(x.numpy() for x in (*given, dk, dv, d_decay, dq)))
        return dk, dv, d_decay, dq, None, d_state, None
