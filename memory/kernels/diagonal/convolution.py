"""A short causal convolution, every channel for itself: what was read a few steps ago, with a learned weight per lag.

y_t = w_0 x_t + w_1 x_{t-1} + ... + w_{W-1} x_{t-W+1}      inputs before a start are left out
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.arithmetic.threads import in_parts, over_rows, part_borders


@in_full_precision
def short_convolution(x: Tensor, weight: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The equation above over a sequence: compiled on the CPU, where it is differentiable once; torch elsewhere.

    Args:
        x: [T, B, N] floats; T is 1 or more.
        weight: [W, N], one per lag and channel, the current input first.
        start: [T, B] bool.
        state: [B, W - 1, N], the last inputs before the sequence, oldest first.

    Returns:
        y [T, B, N], and the last W - 1 inputs of the episode [B, W - 1, N], zeros where it has fewer.

    Raises:
        ValueError: shapes do not fit.
    """
    (T, B, N), W = x.shape, len(weight)
    sizes, given = [(W, N), (T, B), (B, W - 1, N)], [tuple(each.shape) for each in (weight, start, state)]
    if given != sizes:
        raise ValueError(f"weight, start and state must be {sizes} for x {[T, B, N]}; got {given}")
    now = torch.arange(T, device=x.device).unsqueeze(1)
    # steps since the start; an episode that began before the sequence reaches over all of it
    age = now - torch.where(start, now, -W).cummax(0).values
    everything = torch.cat([state.movedim(1, 0), x])
    lags = torch.arange(W - 1, 0, -1, device=x.device).unsqueeze(1)
    last = torch.where((age[-1] >= lags - 1).unsqueeze(-1), everything[T:], 0).movedim(0, 1)
    if has_kernels(x, weight, state):
        return _ShortConvolution.apply(x, weight, start, state), last
    y = x * weight[0]
    for lag in range(1, W):
        earlier = everything[W - 1 - lag : W - 1 - lag + T]
        y = y + torch.where((age >= lag).unsqueeze(-1), earlier, 0) * weight[lag]
    return y, last


@njit(**OPTIONS)
def _forward(first, last, x, weight, start, state, out):
    """Fill out [T, B, N] for the rows first to last from x [T, B, N], weight [W, N] and state [B, W - 1, N]."""
    T, _, N = x.shape
    W = len(weight)
    for t in range(T):
        for row in range(first, last):
            to = out[t, row]
            for lag in range(W):
                if lag > 0 and t - lag + 1 >= 0 and start[t - lag + 1, row]:
                    break
                source = x[t - lag, row] if t >= lag else state[row, W - 1 + t - lag]
                factor = weight[lag]
                if lag == 0:
                    for n in range(N):
                        to[n] = factor[n] * source[n]
                else:
                    for n in range(N):
                        to[n] += factor[n] * source[n]


@njit(**OPTIONS)
def _backward(first, last, x, weight, start, state, d_out, dx, d_weight, d_state):
    """Add to dx, d_state and d_weight for the rows first to last."""
    T, _, N = x.shape
    W = len(weight)
    for t in range(T):
        for row in range(first, last):
            outside = d_out[t, row]
            for lag in range(W):
                if lag > 0 and t - lag + 1 >= 0 and start[t - lag + 1, row]:
                    break
                source = x[t - lag, row] if t >= lag else state[row, W - 1 + t - lag]
                to = dx[t - lag, row] if t >= lag else d_state[row, W - 1 + t - lag]
                factor, d_factor = weight[lag], d_weight[lag]
                for n in range(N):
                    to[n] += factor[n] * outside[n]
                for n in range(N):
                    d_factor[n] += source[n] * outside[n]


class _ShortConvolution(torch.autograd.Function):
    """(x, weight, start, state) -> y, compiled."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        given = tuple(each.contiguous() for each in given)
        y = torch.empty_like(given[0])
        over_rows(_forward, *y.shape[:2], *(each.numpy() for each in (*given, y)))
        ctx.save_for_backward(*given)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, start, state = ctx.saved_tensors
        dx, d_state = torch.zeros_like(x), torch.zeros_like(state)
        given = [each.numpy() for each in (x, weight, start, state, dy.contiguous())]

        def run(first: int, last: int) -> Tensor:
            # a sum over time: in float64 it stays exact
            own = torch.zeros(weight.shape, dtype=torch.float64)
            _backward(first, last, *given, dx.numpy(), own.numpy(), d_state.numpy())
            return own

        first, *others = in_parts(run, part_borders(*start.shape))
        return dx, sum(others, first).to(x.dtype), None, d_state
