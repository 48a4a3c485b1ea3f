"""The gated delta rule in matrix products: the chunked (WY) form of arXiv 2412.06464, section 3.3, in torch.

Within a chunk of C steps, with D[t, s] the product of the alphas of steps s + 1 to t, and s = 0 before the chunk,

    u_t = beta_t (v_t - D[t, 0] S_0^T k_t - sum_{0<s<t} D[t, s] (k_s . k_t) u_s)
    S_t = D[t, 0] S_0 + sum_{0<s<=t} D[t, s] k_s u_s^T

One triangular solve gives all u of all chunks, so only S_0 passes from chunk to chunk. The paper divides by products of
alphas, which overflows; here D is computed without a division. A start is an alpha of zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.kernels.arithmetic.decay_products import decay_products
from palimpsest.memory.kernels.delta.naive import EPS


def gated_delta_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    alpha: Tensor,
    beta: Tensor,
    start: Tensor,
    state: Tensor,
    normalise: bool = False,
    read_first: bool = False,
    chunk_size: int = 32,
) -> tuple[Tensor, Tensor]:
    """The equations above, on any device, differentiable by autograd, twice too.

    Arguments and results are those of `memory.kernels.gated_delta_scan`; chunk_size is C, 1 or more.
    """
    T, B, H, V = v.shape
    if T == 0:
        return v.new_empty(0, B, H, V), state
    K, C = q.shape[3], min(chunk_size, T)
    if normalise:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS) for x in (q, k))
    alpha = torch.where(start.unsqueeze(-1), 0, alpha)
    chunks = -(-T // C)

    def chunked(x: Tensor, fill: float = 0) -> Tensor:
        """[T, B, H, ...] to [chunks, B, H, C, ...]; the last chunk is padded with `fill`."""
        x = functional.pad(x, (0, 0) * (x.ndim - 1) + (0, chunks * C - T), value=fill)
        return x.unflatten(0, (chunks, C)).movedim(1, 3)

    q, k, v = chunked(q), chunked(k), chunked(v)
    beta = chunked(beta).unsqueeze(-1)
    decay = decay_products(functional.pad(chunked(alpha, 1.0), (1, 0), value=1.0))
    opens = chunked(start.unsqueeze(-1).to(q.dtype)).unsqueeze(-1)
    before_start = opens.cumsum(3) == 0
    # of each earlier step, how much is left when this one reads
    seen = torch.where(opens > 0, 0, decay[..., :-1, :]) if read_first else decay[..., 1:, :]
    carried, decay = decay[..., 1:, :1], decay[..., 1:, 1:]
    overlap = (k @ k.mT) * decay
    system = torch.eye(C, dtype=q.dtype, device=q.device) + beta * overlap.tril(-1)
    solved = torch.linalg.solve_triangular(
        system, torch.cat((beta * v, beta * carried * k), -1), upper=False, unitriangular=True
    )
    writes, erases = solved.split((V, K), -1)
    queries, within = seen[..., :1] * q, (q @ k.mT) * seen[..., 1:]
    keys = k * decay[..., -1, :].unsqueeze(-1)
    reads = []
    for n in range(chunks):
        # 0 * NaN is NaN: a table that is not finite is replaced by zeros, and the result by NaN up to the first start
        broken = ~state.isfinite().flatten(2).all(-1)[..., None, None]
        state = torch.where(broken, 0, state)
        u = writes[n] - erases[n] @ state
        read = queries[n] @ state + within[n] @ u
        state = carried[n, ..., -1:, :] * state + keys[n].mT @ u
        reads.append(torch.where(broken & before_start[n], math.nan, read))
        state = torch.where(broken & before_start[n, ..., -1:, :], math.nan, state)
    return torch.stack(reads).movedim(3, 1).flatten(0, 1)[:T], state
