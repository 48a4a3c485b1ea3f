"""The decaying traces of `memory.kernels.diagonal.decay` by torch's operations: a complex diagonal recurrence."""

from __future__ import annotations

import torch
from torch import Tensor

from palimpsest.memory.kernels.diagonal.torch_diagonal import torch_diagonal_scan


def rates(alpha: Tensor, omega: Tensor) -> tuple[Tensor, Tensor]:
    """A and b, [C, M] each, of gamma = a - i b. Computed in float64: omega may be many turns."""
    decay, angle = (-alpha.double().abs()).exp(), omega.double()[:, None]
    return (decay * angle.cos()).to(alpha.dtype), (decay * angle.sin()).to(alpha.dtype)


def torch_decay_scan(x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`decay_scan` of x [T, B, M], T of 1 or more, and state [B, 2, C, M] in planes: states in planes, and the last."""
    a, b = rates(alpha, omega)
    inputs = torch.complex(x, torch.zeros_like(x)).unsqueeze(2).expand(-1, -1, len(omega), -1)
    states, _ = torch_diagonal_scan(torch.complex(a, -b)[None, None], inputs, start, torch.complex(*state.unbind(1)))
    planes = torch.stack([states.real, states.imag], 2)
    return planes, planes[-1].clone()
