"""Attention to slices and chunks as plain loops: slow, and what every other form is tested against.

On any device and in any dtype, differentiable by autograd.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attend_slices_naive(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, length: Tensor, weight: Tensor
) -> Tensor:
    """Arguments and results are those of `memory.kernels.attention.slices.attend_slices`."""
    reads = []
    for n, q in enumerate(query):
        read = torch.zeros_like(q)
        for begin, size, counts in zip(first[n].tolist(), length[n].tolist(), weight[n]):
            if size > 0:
                read = read + counts * _attend(q, key[begin : begin + size], value[begin : begin + size])
        reads.append(read)
    return torch.stack(reads) if reads else torch.empty_like(query)


def best_candidates_naive(
    query: Tensor, key: Tensor, first: Tensor, length: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of `memory.kernels.attention.slices.best_candidates`."""
    index, score = first.new_full((len(query), count), -1), query.new_zeros(len(query), count)
    for n, q in enumerate(query):
        begin, size = int(first[n]), int(length[n])
        scores = key[begin : begin + size] @ q / math.sqrt(len(q))
        best = sorted(range(size), key=lambda r: (scores[r].item(), r), reverse=True)[:count]
        for k, r in enumerate(best):
            index[n, k], score[n, k] = begin + r, scores[r]
    return index, score


def choose_chunks_naive(query: Tensor, summaries: Tensor, finished: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of `memory.kernels.attention.chunks.choose_chunks`."""
    B, N, D = summaries.shape
    slot, weight = finished.new_zeros(B, count), query.new_zeros(B, count)
    for b in range(B):
        chunks = range(max(0, int(finished[b]) - N), int(finished[b]))
        scores = {m: query[b] @ summaries[b, m % N] / math.sqrt(D) for m in chunks}
        best = sorted(chunks, key=lambda m: (scores[m].item(), m), reverse=True)[:count]
        if best:
            slot[b, : len(best)] = torch.tensor([m % N for m in best])
            weight[b, : len(best)] = torch.stack([scores[m] for m in best]).softmax(0)
    return slot, weight


def read_chunks_naive(
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
    """Arguments and results are those of `memory.kernels.attention.chunks.read_chunks`."""
    reads = []
    for b, q in enumerate(query.unflatten(1, (num_heads, -1))):
        read = torch.zeros_like(q)
        for chunk, counts, long in zip(which[b], weight[b], length[b]):
            placed = (contents[chunk] + code)[: int(long)]
            keys, values = ((placed @ w.T).unflatten(1, (num_heads, -1)) for w in (key, value))
            read = read + counts * _attend(q, keys, values)
        reads.append(read.flatten())
    return torch.stack(reads) if reads else torch.empty_like(query)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of one query [H, E] to keys and values [N, H, E], head by head."""
    weight = (torch.einsum("he,nhe->nh", query, key) / math.sqrt(query.shape[1])).softmax(0)
    return torch.einsum("nh,nhe->he", weight, value)
