"""Outer-product recurrences in matrix products: the chunked form of arXiv 2312.06635, section 4, in torch.

Within a chunk, with D[t, s] the product of the decays of steps s + 1 to t, and s = 0 before the chunk,

    read_t = S_0^T (D[t, 0] * q_t) + sum_{0<s<=t} (q_t . (D[t, s] * k_s)) v_s
    S_C = D[C, 0] S_0 + sum_{0<s<=C} (D[C, s] * k_s) v_s^T

All sums of all chunks are computed at once, so only S_0 passes from chunk to chunk. The paper divides by products of
decays, which overflows; here D is computed without a division. A start is a decay of zero.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.kernels.arithmetic.decay_products import decay_products


def outer_chunked(
    k: Tensor, v: Tensor, decay: Tensor, q: Tensor, start: Tensor, state: Tensor, chunk_size: int = 16
) -> tuple[Tensor, Tensor]:
    """The equations above, on any device, differentiable by autograd, twice too.

    With a decay per key, chunk_size + 1 numbers are kept for each number of k.

    Arguments and results are those of `memory.kernels.outer_scan`; chunk_size is 1 or more.
    """
    T, C = len(k), chunk_size
    if T == 0:
        return torch.empty_like(v), state
    chunks = -(-T // C)
    decay = decay if decay.ndim == 4 else decay.unsqueeze(-1)
    decay = torch.where(start[..., None, None], 0, decay)

    def chunked(x: Tensor, fill: float = 0) -> Tensor:
        """[T, B, H, n] to [chunks, B, H, C, n]; the last chunk is padded with `fill`."""
        x = functional.pad(x, (0, 0) * (x.ndim - 1) + (0, chunks * C - T), value=fill)
        return x.unflatten(0, (chunks, C)).movedim(1, 3)

    k, v, q = chunked(k), chunked(v), chunked(q)
    D = decay_products(functional.pad(chunked(decay, 1.0).mT, (1, 0), value=1.0))  # [..., 1 or K, C + 1, C + 1]
    from_first, to_last, between = D[..., 1:, 0].mT, D[..., -1, 1:].mT, D[..., 1:, 1:]
    if between.shape[-3] == 1:
        scores = (q @ k.mT) * between.squeeze(-3)
    else:
        scores = torch.einsum("...tk,...kts,...sk->...ts", q, between, k)
    queries, inner = from_first * q, scores @ v
    written = (to_last * k).mT @ v
    remaining = from_first[..., -1, :].unsqueeze(-1)
    before_start = chunked(start[..., None, None].to(q.dtype)).cumsum(3) == 0
    reads = []
    for n in range(chunks):
        # 0 * NaN is NaN: a table that is not finite is replaced by zeros, and the result by NaN up to the first start
        broken = ~state.isfinite().flatten(2).all(-1)[..., None, None]
        state = torch.where(broken, 0, state)
        reads.append(torch.where(broken & before_start[n], math.nan, queries[n] @ state + inner[n]))
        state = torch.where(broken & before_start[n, ..., -1:, :], math.nan, remaining[n] * state + written[n])
    return torch.stack(reads).movedim(3, 1).flatten(0, 1)[:T], state
