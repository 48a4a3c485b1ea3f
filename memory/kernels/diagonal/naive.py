"""Diagonal recurrences as plain loops over time: slow, and what every other form is tested against.

On any device and in any dtype, differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor


def decay_naive(x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S_t = exp(-|alpha|) exp(-i omega)^T S_{t-1} + x_t, with S_{t-1} = 0 where start_t is true.

    Arguments and results are those of `memory.kernels.decay_scan`.
    """
    gamma = torch.polar((-alpha.abs()).exp()[:, None], -omega.expand(len(alpha), -1))
    S = torch.view_as_complex(state.contiguous())
    steps = []
    for x_t, start_t in zip(x, start):
        S = torch.where(start_t[:, None, None], 0, S)
        S = gamma * S + x_t[..., None]
        steps.append(torch.view_as_real(S))
    return torch.stack(steps) if steps else x.new_empty(0, *state.shape), torch.view_as_real(S)


def diagonal_naive(a: Tensor, b: Tensor, start: Tensor, state: Tensor, paired: bool = False) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t, with h_{t-1} = 0 where start_t is true.

    Arguments and results are those of `memory.kernels.diagonal_scan`.
    """
    if paired:
        a, b, state = (torch.complex(*x.chunk(2, -1)) for x in (a, b, state))
        h, last = diagonal_naive(a, b, start, state)
        return torch.cat([h.real, h.imag], -1), torch.cat([last.real, last.imag], -1)
    h, steps = state, []
    for a_t, b_t, start_t in zip(a.expand_as(b), b, start[..., None]):
        h = torch.where(start_t, 0, a_t * h) + b_t
        steps.append(h)
    return torch.stack(steps) if steps else b, h
