"""The gated delta rule as a plain loop over time: slow, and what every other form is tested against.

    S <- 0                                  where start_t is true
    S <- alpha_t S                          forget: how much of everything survives
    S <- S + beta_t k_t (v_t - S^T k_t)^T   rewrite: beta_t of what stands under key k_t gives way to v_t
    read_t = S^T q_t                        with `read_first`, of S before the two steps above

S is a table [K, V] per row and head. This is equation 10 of arXiv 2412.06464 with S transposed:
S_t = S_{t-1} alpha_t (I - beta_t k_t k_t^T) + beta_t v_t k_t^T.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6
"""Added to the squared length of queries and keys where they are normalised."""


def gated_delta_naive(
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
    """The equations above, step by step, on any device and in any dtype, differentiable by autograd.

    Arguments and results are those of `memory.kernels.gated_delta_scan`.
    """
    if normalise:
        q, k = (x / (x.square().sum(-1, keepdim=True) + EPS).sqrt() for x in (q, k))
    S, reads = state, []
    for t in range(len(q)):
        S = torch.where(start[t, :, None, None, None], 0, S)
        if read_first:
            reads.append(torch.einsum("bhkv,bhk->bhv", S, q[t]))
        S = alpha[t, :, :, None, None] * S
        error = v[t] - torch.einsum("bhkv,bhk->bhv", S, k[t])
        S = S + torch.einsum("bhk,bhv->bhkv", k[t], beta[t, :, :, None] * error)
        if not read_first:
            reads.append(torch.einsum("bhkv,bhk->bhv", S, q[t]))
    return torch.stack(reads) if reads else torch.empty_like(v), S
