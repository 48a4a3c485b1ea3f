"""The functions of `memory.kernels.attention.chunks` by torch's operations, differentiable, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.attention.torch_slices import softmax_where


def torch_choose(query: Tensor, summaries: Tensor, finished: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`choose_chunks` by torch's operations."""
    N, D = summaries.shape[1:]
    score = (summaries @ query[..., None])[..., 0] / math.sqrt(D)
    age = torch.arange(N, device=query.device)
    there = age < finished[:, None]
    slot = (finished[:, None] - 1 - age) % N  # the newest first; the sort is stable, so that it comes first of equals
    score = score.gather(1, slot)
    best = score.masked_fill(~there, -math.inf).sort(dim=1, descending=True, stable=True).indices[:, :count]
    there = there.gather(1, best)
    return torch.where(there, slot.gather(1, best), 0), softmax_where(score.gather(1, best), there)


def torch_read(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    code: Tensor,
    contents: Tensor,
    which: Tensor,
    length: Tensor,
    weight: Tensor,
    num_heads: int,
) -> Tensor:
    """`read_chunks` by torch's operations, of a scaled query."""
    (B, D), J, C, H = query.shape, which.shape[1], len(code), num_heads
    toward = torch.einsum("bhe,hed->bhd", query.view(B, H, D // H), key.view(H, D // H, D))
    content = contents.index_select(0, which.flatten()).view(B, J * C, D)
    score = (toward @ content.mT).view(B, H, J, C) + (toward @ code.T)[:, :, None]
    prob = _weighted(score, length, weight)
    mixed = prob.view(B, H, J * C) @ content + prob.sum(2) @ code
    return torch.einsum("bhd,hed->bhe", mixed, value.view(H, D // H, D)).reshape(B, D)


def torch_read_mapped(
    query: Tensor,
    key: nn.Module,
    value: nn.Module,
    code: Tensor,
    contents: Tensor,
    which: Tensor,
    length: Tensor,
    weight: Tensor,
    num_heads: int,
) -> Tensor:
    """`read_chunks` of a query that is not scaled, by the keys and values that modules make of contents and code."""
    (B, D), J, C, H = query.shape, which.shape[1], len(code), num_heads
    placed = contents.index_select(0, which.flatten()) + code
    keys, values = (map_(placed).view(B, J, C, H, D // H) for map_ in (key, value))
    score = torch.einsum("bhe,bjche->bhjc", query.view(B, H, D // H), keys)
    prob = _weighted(score / math.sqrt(D // H), length, weight)
    return torch.einsum("bhjc,bjche->bhe", prob, values).reshape(B, D)


def _weighted(score: Tensor, length: Tensor, weight: Tensor) -> Tensor:
    """Weights of the places [B, H, J, C] of chunks from their scores: those of a chunk sum to the weight of it."""
    unread = torch.arange(score.shape[-1], device=score.device) >= length[:, :, None]
    return score.masked_fill(unread[:, None], -math.inf).softmax(-1) * weight[:, None, :, None]
