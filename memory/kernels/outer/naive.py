"""Outer-product recurrences as a plain loop over time: slow, and what every other form is tested against.

    S <- 0                          where start_t is true
    S <- decay_t * S + k_t v_t^T    element by element
    read_t = S^T q_t

S is [K, V] per row and head. What decays tells the members of this class apart: everything by one number (RetNet,
arXiv 2307.08621; mLSTM, 2405.04517), each key's row by its own (gated linear attention, 2312.06635), or each element by
its own (Stable Hadamard Memory, 2410.10132). Linear attention has a decay of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def outer_naive(k: Tensor, v: Tensor, decay: Tensor, q: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The equations above, step by step, on any device and in any dtype, differentiable by autograd.

    Arguments and results are those of `memory.kernels.outer_scan`; decay may be [T, B, H, K, V] too.
    """
    decay = decay.reshape(*decay.shape, *[1] * (5 - decay.ndim))
    S, reads = state, []
    for t in range(len(k)):
        S = torch.where(start[t, :, None, None, None], 0, S)
        S = decay[t] * S + k[t].unsqueeze(-1) * v[t].unsqueeze(-2)
        reads.append(torch.einsum("bhkv,bhk->bhv", S, q[t]))
    return torch.stack(reads) if reads else torch.empty_like(v), S


def hadamard_naive(
    theta: Tensor, calibrate: Tensor, value: Tensor, key: Tensor, query: Tensor, start: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`outer_naive` with M = S^T [B, H, H] and a decay of 1 + tanh(theta_i calibrate_j) for element M[i, j].

    Arguments and results are those of `memory.kernels.outer.hadamard.hadamard_scan`.
    """
    decay = 1 + torch.tanh(theta.unsqueeze(-2) * calibrate.unsqueeze(-1))
    k, v, decay, q = (x.unsqueeze(2) for x in (key, value, decay, query))
    read, last = outer_naive(k, v, decay, q, start, state.mT.unsqueeze(1))
    return read.squeeze(2), last.squeeze(1).mT
