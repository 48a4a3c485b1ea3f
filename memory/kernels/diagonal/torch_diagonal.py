"""The diagonal recurrence h_t = a_t h_{t-1} + b_t by torch's operations, parallel in time, on any device.

Real or complex, of any number of dimensions; differentiable as often as wanted.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import in_full_precision


def torch_diagonal_scan(a: Tensor, b: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t with h_{t-1} = 0 where start_t is true.

    Args:
        a: [T, B, ...], or [1, 1, ...] where it is the same at every step of every row.
        b: [T, B, ...]; T is 1 or more.
        start: [T, B] bool.
        state: [B, ...], h before the first step.

    Returns:
        h at every step [T, B, ...], and the last [B, ...].
    """
    h = _DiagonalScan.apply(a, b, start.view(*start.shape, *[1] * (b.ndim - 2)), state)
    return h, h[-1].clone()


class _DiagonalScan(torch.autograd.Function):
    """(a, b, start [T, B, 1, ...], state) -> h. Its gradient is made of the same recurrence, backwards in time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor, state: Tensor) -> Tensor:
        h = b.clone(memory_format=torch.contiguous_format)
        h[0] += torch.where(start[0], 0, a[0] * state)
        h = _join(a, h, start)
        ctx.save_for_backward(a, start, state, h)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        """G_t = dh_t + conj(a_{t+1}) G_{t+1}; db_t = G_t; da_t = G_t conj(h_{t-1})."""
        a, start, state, h = ctx.saved_tensors
        factors = a.conj()
        # from the end on: step t takes what the step after it leaves, and the last one takes nothing
        after = factors if len(a) == 1 else torch.cat([factors[1:], factors[:1]]).flip(0)
        ends = torch.cat([start[1:], torch.ones_like(start[:1])]).flip(0)
        G = _DiagonalScan.apply(after, dh.flip(0), ends, torch.zeros_like(state)).flip(0)
        before = torch.cat([state[None], h[:-1]]).conj()
        da = torch.where(start, 0, G * before).sum_to_size(a.shape)
        return da, G, None, torch.where(start[0], 0, factors[0] * G[0])


def _join(a: Tensor, h: Tensor, start: Tensor) -> Tensor:
    """h_t + a_t h_{t-1} + a_t a_{t-1} h_{t-2} + ..., back to the last start, by doubling: log2 T rounds.

    After the round with distance d, h_t covers 2 d steps and a_t is the product of their factors. What lies before a
    start is not multiplied by zero but left out: it may be NaN.
    """
    t = torch.arange(len(h), device=h.device).view(-1, *[1] * (h.ndim - 1))
    reach = t - torch.where(start, t, 0).cummax(0).values  # steps since the last start
    distance = 1
    while distance < len(h):
        factor = a if len(a) == 1 else a[distance:]
        earlier = torch.where(reach[distance:] >= distance, factor * h[:-distance], 0)
        h = torch.cat([h[:distance], h[distance:] + earlier])
        a = a * a if len(a) == 1 else torch.cat([a[:distance], factor * a[:-distance]])
        distance *= 2
    return h


@in_full_precision
def max_plus_scan(a: Tensor, b: Tensor, start: Tensor, state: Tensor) -> Tensor:
    """h_t = max(a_t + h_{t-1}, b_t) with h_{t-1} = 0 where start_t is true: sums for products, maxima for sums.

    It bounds the logarithms of a sum whose terms are scaled at every step, so that none of them overflows.

    Args:
        a: [T, B, N] floats; T is 1 or more.
        b: [T, B, N].
        start: [T, B] bool.
        state: [B, N], h before the first step.

    Returns:
        h at every step [T, B, N].
    """
    start = start.unsqueeze(-1)
    before = torch.cat([state[None], torch.full_like(a[1:], -math.inf)])
    h = torch.maximum(b, torch.where(start, 0, before) + a)
    t = torch.arange(len(a), device=a.device).view(-1, 1, 1)
    reach = t - torch.where(start, t, 0).cummax(0).values  # steps since the last start
    distance = 1
    while distance < len(a):
        earlier = torch.where(reach[distance:] >= distance, a[distance:] + h[:-distance], -math.inf)
        h = torch.cat([h[:distance], torch.maximum(h[distance:], earlier)])
        a = torch.cat([a[:distance], a[distance:] + a[:-distance]])
        distance *= 2
    return h
