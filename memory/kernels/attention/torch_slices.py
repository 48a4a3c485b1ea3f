"""The functions of `memory.kernels.attention.slices` by torch's operations, which gather first, on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def torch_attend_slices(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, length: Tensor, weight: Tensor, longest: int
) -> Tensor:
    """`attend_slices` by gathers [N, J, longest, H, E], on any device."""
    offset = torch.arange(longest, device=query.device)
    read = offset < length[..., None]  # [N, J, longest]
    # what is not read is replaced by zeros: a NaN would pass through a weight of zero
    entry = torch.where(read, first[..., None] + offset, key.shape[0])
    zero = key.new_zeros(1, *key.shape[1:])
    keys, values = torch.cat([key, zero])[entry], torch.cat([value, zero])[entry]
    score = torch.einsum("nhe,njihe->njhi", query, keys) / math.sqrt(query.shape[-1])
    read = read[:, :, None]
    score = score.masked_fill(~read & read.any(-1, keepdim=True), -math.inf)
    return torch.einsum("njhi,njihe,nj->nhe", torch.where(read, score.softmax(-1), 0), values, weight)


def torch_best_candidates(
    query: Tensor, key: Tensor, first: Tensor, length: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """`best_candidates` by a gather [N, longest range, D], on any device."""
    N, D = query.shape
    longest = int(length.max()) if N else 0
    # from the end of the range on: the sort is stable, so that of equal scores the last comes first
    back = torch.arange(max(longest, count), device=query.device)
    there = back < length[:, None]
    index = torch.where(there, (first + length)[:, None] - 1 - back, key.shape[0])
    padded = torch.cat([key, key.new_zeros(1, D)])
    score = torch.einsum("nd,nrd->nr", query, padded[index]) / math.sqrt(D)
    order = score.masked_fill(~there, -math.inf).sort(dim=1, descending=True, stable=True).indices[:, :count]
    there = there.gather(1, order)
    return torch.where(there, index.gather(1, order), -1), torch.where(there, score.gather(1, order), 0)


def softmax_where(score: Tensor, there: Tensor) -> Tensor:
    """Softmax over the last dimension where `there` is true; 0 elsewhere, and 0 everywhere where none is true."""
    masked = score.masked_fill(~there & there.any(-1, keepdim=True), -math.inf)
    return torch.where(there, masked.softmax(-1), 0)
