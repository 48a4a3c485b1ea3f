"""The gated delta rule with resets: a table per head that is forgotten by one gate and rewritten by another.

    S <- 0                                  where start_t is true
    S <- alpha_t S                          how much of everything survives
    S <- S + beta_t k_t (v_t - S^T k_t)^T   what stands under key k_t is erased by beta_t before v_t is written
    read_t = S^T q_t

S is [K, V] per row and head. With S transposed this is equation 10 of arXiv 2412.06464,
S_t = S_{t-1} alpha_t (I - beta_t k_t k_t^T) + beta_t v_t k_t^T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.arithmetic.threads import over_rows
from palimpsest.memory.kernels.delta.loops import EPS, SEGMENT, compiled


def gated_delta_scan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor,
    start: Tensor,
    state: Tensor,
    normalise: bool = False,
) -> tuple[Tensor, Tensor]:
    """The recurrence above over a sequence: numba on the CPU, the chunked form elsewhere.

    Args:
        q: [T, B, H, K] floats, queries.
        k: [T, B, H, K], keys.
        v: [T, B, H, V], values.
        alpha: [T, B, H] in [0, 1], how much survives.
        beta: [T, B, H] in [0, 2], how much of what stands under the key is replaced; 1 is an exact overwrite of a key
            of unit length.
        start: [T, B] bool.
        state: [B, H, K, V], the tables before the first step.
        normalise: scale queries and keys to unit length first: x / sqrt(|x|^2 + EPS).

    Returns:
        What is read [T, B, H, V], and the last tables [B, H, K, V].
    """
    if not has_kernels(q, k, v, alpha, beta, state):
        return gated_delta_chunked(q, k, v, alpha, beta, start, state, normalise)
    read, last = _DeltaScan.apply(q, k, v, alpha, beta, start, state, normalise)
    return read, last


class _DeltaScan(torch.autograd.Function):
    """The numba form with its gradient."""

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
    ) -> tuple[Tensor, Tensor]:
        T, B, _, V = v.shape
        z = torch.cat((torch.cat((q, k, v), -1).flatten(2), alpha, beta), -1)
        borders = z.new_empty(-(-T // SEGMENT) + 1, *state.shape)
        borders[0] = state
        read = z.new_empty(v.shape)
        filled = (borders.flatten(3).numpy(), read.numpy())
        over_rows(compiled(q.shape[3], V)[0], T, B, z.numpy(), start.numpy(), normalise, *filled)
        ctx.save_for_backward(z, start, borders)
        ctx.normalise = normalise
        return read, borders[-1].clone()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_read: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        z, start, borders = ctx.saved_tensors
        (T, B, H, V), K = d_read.shape, d_last.shape[2]
        dz, d_state = z.clone(), d_last.clone(memory_format=torch.contiguous_format)
        given = (start.numpy(), ctx.normalise, borders.flatten(3).numpy(), d_read.contiguous().numpy())
        over_rows(compiled(K, V)[1], T, B, dz.numpy(), *given, d_state.flatten(2).numpy())
        heads, *d_gates = dz.split((H * (2 * K + V), H, H), -1)
        return *heads.unflatten(-1, (H, 2 * K + V)).split((K, K, V), -1), *d_gates, None, d_state, None


def gated_delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor,
    start: Tensor,
    state: Tensor,
    normalise: bool = False,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """The same in matrix products, on any device: the WY form of arXiv 2412.06464, section 3.3.

    Within a chunk of C steps, with D[t, s] the product of the alphas of s + 1 ... t, and s = 0 before the chunk,

        u_t = beta_t (v_t - D[t, 0] S_0^T k_t - sum_{0<s<t} D[t, s] (k_s . k_t) u_s)
        S_t = D[t, 0] S_0 + sum_{0<s<=t} D[t, s] k_s u_s^T

    so all u of all chunks come from one triangular solve, and only S_0 goes from chunk to chunk. The paper divides by
    products of alphas, which overflows; D is formed without a division. A start is an alpha of zero.

    Arguments and results are those of `gated_delta_scan`; chunk_size is C, 1 or more.
    """
    T, B, H, V = v.shape
    K, C = q.shape[3], chunk_size
    if T == 0:
        return v.new_empty(0, B, H, V), state
    if normalise:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS) for x in (q, k))
    alpha = torch.where(start.unsqueeze(-1), 0, alpha)
    chunks = -(-T // C)

    def chunked(x: Tensor, fill: float = 0) -> Tensor:
        """[T, B, H, ...] to [chunks, B, H, C, ...]; the last one is filled up."""
        x = functional.pad(x, (0, 0) * (x.ndim - 1) + (0, chunks * C - T), value=fill)
        return x.unflatten(0, (chunks, C)).movedim(1, 3)

    q, k, v = chunked(q), chunked(k), chunked(v)
    beta = chunked(beta).unsqueeze(-1)
    decay = _Decays.apply(functional.pad(chunked(alpha, 1.0), (1, 0), value=1.0))
    carried, decay = decay[..., 1:, :1], decay[..., 1:, 1:]
    open_ = chunked(start.unsqueeze(-1).to(q.dtype)).cumsum(3).unsqueeze(-1) == 0  # no start yet in the chunk
    overlap = (k @ k.mT) * decay
    system = torch.eye(C, dtype=q.dtype, device=q.device) + beta * overlap.tril(-1)
    solved = torch.linalg.solve_triangular(
        system, torch.cat((beta * v, beta * carried * k), -1), upper=False, unitriangular=True
    )
    writes, erases = solved.split((V, K), -1)
    queries, within = carried * q, (q @ k.mT) * decay
    keys = k * decay[..., -1, :].unsqueeze(-1)
    reads = []
    for n in range(chunks):
        # zero times NaN is NaN: a table that is not finite goes its own way, up to the first start
        broken = ~state.isfinite().flatten(2).all(-1)[..., None, None]
        state = torch.where(broken, 0, state)
        u = writes[n] - erases[n] @ state
        read = queries[n] @ state + within[n] @ u
        state = carried[n, ..., -1:, :] * state + keys[n].mT @ u
        reads.append(torch.where(broken & open_[n], math.nan, read))
        state = torch.where(broken & open_[n, ..., -1:, :], math.nan, state)
    return torch.stack(reads).movedim(3, 1).flatten(0, 1)[:T], state


class _Decays(torch.autograd.Function):
    """alphas [..., C] -> D [..., C, C], D[t, s] = product of the alphas of s + 1 ... t; zero above the diagonal.

    torch's own gradient of a product divides by its factors, or is slow where one is zero. Here
    d alpha_j = sum over t >= j > s of dD[t, s] D[t, j] D[j - 1, s], a matrix product.
    """

    @staticmethod
    def forward(ctx: Any, alpha: Tensor) -> Tensor:
        C = alpha.shape[-1]
        below = torch.ones(C, C, dtype=torch.bool, device=alpha.device).tril(-1)
        decay = torch.where(below, alpha.unsqueeze(-1), 1).cumprod(-2).tril()
        ctx.save_for_backward(decay)
        return decay

    @staticmethod
    def backward(ctx: Any, d_decay: Tensor) -> Tensor:
        (decay,) = ctx.saved_tensors
        after = (decay.mT @ d_decay.tril())[..., 1:, :]
        return functional.pad((after * decay[..., :-1, :]).sum(-1), (1, 0))
