"""The recurrence of Stable Hadamard Memory: a matrix scaled element by element at every step, then written to.

    M <- 0                                            where start_t is true
    M <- M * (1 + tanh(theta_t calibrate_t^T)) + value_t key_t^T
    read_t = M query_t

M is [H, H] per row. Source: arXiv 2410.10132, its memory update with the calibration of SHM.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.outer.hadamard_loops import SEGMENT, backward, forward
from palimpsest.memory.kernels.outer.torch_hadamard import torch_hadamard_scan


@in_full_precision
def hadamard_scan(
    theta: Tensor, calibrate: Tensor, value: Tensor, key: Tensor, query: Tensor, start: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """The recurrence above over a sequence: compiled on the CPU, where it is differentiable once; torch elsewhere.

    Where gradients are wanted, one matrix per row is kept for every `SEGMENT` steps.

    Args:
        theta: [T, B, H] floats; one number per row of M, as `value`.
        calibrate: [T, B, H]; one number per column of M, as `key` and `query`.
        value: [T, B, H].
        key: [T, B, H].
        query: [T, B, H].
        start: [T, B] bool, steps before which a row's M is reset to zeros.
        state: [B, H, H], M before the first step.

    Returns:
        What is read [T, B, H], and the last M [B, H, H].

    Raises:
        ValueError: shapes or dtypes do not fit.
    """
    tokens = (theta, calibrate, value, key, query)
    _check(tokens, start, state)
    if not has_kernels(theta):
        return torch_hadamard_scan(*tokens, start, state)
    return _HadamardScan.apply(*tokens, start, state, torch.is_grad_enabled())


def _check(tokens: tuple[Tensor, ...], start: Tensor, state: Tensor) -> None:
    """Refuse shapes and dtypes that do not fit."""
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
        raise ValueError(f"all floats must have one dtype; got {[_name(x) for x in (*tokens, state)]}")


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


class _HadamardScan(torch.autograd.Function):
    """(theta, calibrate, value, key, query, start, state, whether autograd is on) -> (read, last)."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *tokens, start, state, recording = arguments
        tokens = [x.contiguous() for x in tokens]
        start = start.contiguous()
        T, B, H = tokens[0].shape
        read = torch.empty_like(tokens[0])
        last = state.clone(memory_format=torch.contiguous_format)
        kept = state.new_empty(-(-T // SEGMENT) if recording else 0, B, H, H)
        forward(*(x.numpy() for x in (*tokens, start, last, read, kept)))
        ctx.save_for_backward(*tokens, start, kept)
        return read, last

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_read: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        *tokens, start, kept = ctx.saved_tensors
        gradients = [torch.zeros_like(x) for x in tokens]
        d_state = d_last.clone(memory_format=torch.contiguous_format)
        backward(*(x.numpy() for x in (*tokens, start, kept, d_read.contiguous(), d_state, *gradients)))
        return *gradients, None, d_state, None
