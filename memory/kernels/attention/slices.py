"""Attention in which every query reads its own few slices of one list of keys and values.

    read_n = sum_j weight_nj sum_i softmax_i(q_n . k_i / sqrt(E)) v_i        i = first_nj ... first_nj + length_nj - 1

and the choice of such slices: the best `count` of a range of candidates, by one scaled dot product each.

Nothing outside its slices reaches a query, not even multiplied by zero: what is not read may be NaN. Time and memory
grow with what is read, not with the length of the list. Both functions are compiled for the CPU and gather in torch
elsewhere.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import SUMS
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.attention.top_k import insert


def attend_slices(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, length: Tensor, weight: Tensor, longest: int
) -> Tensor:
    """Multi-head attention of each query to its own slices, one softmax per slice and head, summed by weight.

    Args:
        query: [N, H, E] for N queries, H heads of E features.
        key: [S, H, E]; S may be 0 where nothing is read.
        value: [S, H, E].
        first: [N, J] int64, where each of J slices begins.
        length: [N, J] int64, its number of entries, 0 (not read at all) to `longest`.
        weight: [N, J], what each slice counts; gradients reach it too.
        longest: the largest length that may occur; 1 or more.

    Returns:
        [N, H, E]; zero for a query that reads nothing.
    """
    if has_kernels(query):
        return _AttendSlices.apply(query, key, value, first, length, weight, longest)
    return torch_attend_slices(query, key, value, first, length, weight, longest)


def torch_attend_slices(
    query: Tensor, key: Tensor, value: Tensor, first: Tensor, length: Tensor, weight: Tensor, longest: int
) -> Tensor:
    """`attend_slices` by gathers [N, J, longest, H, E], on any device."""
    offset = torch.arange(longest, device=query.device)
    read = offset < length[..., None]  # [N, J, longest]
    # What is not read becomes a row of zeros: a NaN there would pass through a weight of zero.
    entry = torch.where(read, first[..., None] + offset, key.shape[0])
    zero = key.new_zeros(1, *key.shape[1:])
    keys, values = torch.cat([key, zero])[entry], torch.cat([value, zero])[entry]
    score = torch.einsum("nhe,njihe->njhi", query, keys) / math.sqrt(query.shape[-1])
    read = read[:, :, None]
    score = score.masked_fill(~read & read.any(-1, keepdim=True), -math.inf)
    return torch.einsum("njhi,njihe,nj->nhe", torch.where(read, score.softmax(-1), 0), values, weight)


def best_candidates(query: Tensor, key: Tensor, first: Tensor, length: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The keys with the highest score q . k / sqrt(D) in each query's range, best first; of equals the last.

    Args:
        query: [N, D].
        key: [R, D]; R may be 0 where every range is empty.
        first: [N] int64, where each query's range of candidates begins.
        length: [N] int64, how many candidates it has, 0 or more.
        count: K, how many to choose; 1 or more.

    Returns:
        Their indices [N, K] int64, -1 where a range holds fewer, and their scores [N, K], 0 there. Gradients reach
        query and key through the scores.
    """
    if has_kernels(query):
        return _BestCandidates.apply(query, key, first, length, count)
    return torch_best_candidates(query, key, first, length, count)


def torch_best_candidates(
    query: Tensor, key: Tensor, first: Tensor, length: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """`best_candidates` by a gather [N, longest range, D], on any device."""
    N, D = query.shape
    longest = int(length.max()) if N else 0
    back = torch.arange(max(longest, count), device=query.device)  # a stable sort keeps the last of equals first
    there = back < length[:, None]
    index = torch.where(there, (first + length)[:, None] - 1 - back, key.shape[0])
    padded = torch.cat([key, key.new_zeros(1, D)])
    score = torch.einsum("nd,nrd->nr", query, padded[index]) / math.sqrt(D)
    order = score.masked_fill(~there, -math.inf).sort(dim=1, descending=True, stable=True).indices[:, :count]
    there = there.gather(1, order)
    return torch.where(there, index.gather(1, order), -1), torch.where(there, score.gather(1, order), 0)


def softmax_where(score: Tensor, there: Tensor) -> Tensor:
    """Softmax over the last dimension's entries where `there` is true; 0 elsewhere, and 0 where none is."""
    masked = score.masked_fill(~there & there.any(-1, keepdim=True), -math.inf)
    return torch.where(there, masked.softmax(-1), 0)


def _run(kernel: Any, query: Tensor, *tensors: Tensor) -> None:
    """Call a compiled function on arrays, with the scale of dot products last."""
    kernel(*(t.detach().numpy() for t in (query, *tensors)), 1 / math.sqrt(query.shape[-1]))


class _AttendSlices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, first: Tensor, length: Tensor, weight: Tensor, longest: int
    ) -> Tensor:
        query, key, value, weight = (t.contiguous() for t in (query, key, value, weight))
        first, length = first.contiguous(), length.contiguous()
        N, H, _ = query.shape
        read = torch.empty_like(query)
        prob = query.new_empty(N, first.shape[1], H, longest)
        _run(_attend, query, key, value, first, length, weight, read, prob)
        ctx.save_for_backward(query, key, value, first, length, weight, prob)
        return read

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, first, length, weight, prob = ctx.saved_tensors
        grads = [torch.zeros_like(t) for t in (query, key, value, weight)]
        _run(_attend_backward, query, key, value, first, length, weight, prob, grad.contiguous(), *grads)
        d_query, d_key, d_value, d_weight = grads
        return d_query, d_key, d_value, None, None, d_weight, None


class _BestCandidates(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, first: Tensor, length: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        query, key, first, length = (t.contiguous() for t in (query, key, first, length))
        index = first.new_empty(len(query), count)
        score = query.new_empty(len(query), count)
        _run(_choose, query, key, first, length, index, score)
        ctx.save_for_backward(query, key, index)
        ctx.mark_non_differentiable(index)
        return index, score

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, index = ctx.saved_tensors
        d_query, d_key = torch.zeros_like(query), torch.zeros_like(key)
        _run(_choose_backward, query, key, index, grad.contiguous(), d_query, d_key)
        return d_query, d_key, None, None, None


@njit(**SUMS)
def _attend(query, key, value, first, length, weight, read, prob, scale):  # type: ignore[no-untyped-def]
    """Fill read [N, H, E] and prob [N, J, H, longest], the softmax weights, undefined beyond a slice's length."""
    real = query.dtype.type
    N, H, E = query.shape
    for n in range(N):
        read[n] = 0
        for j in range(first.shape[1]):
            begin, size = first[n, j], length[n, j]
            if size <= 0:
                continue
            for h in range(H):
                q, p, r = query[n, h], prob[n, j, h], read[n, h]
                top = real(-np.inf)
                for i in range(size):
                    k = key[begin + i, h]
                    s = real(0)
                    for e in range(E):
                        s += q[e] * k[e]
                    s *= real(scale)
                    p[i] = s
                    top = max(top, s)
                total = real(0)
                for i in range(size):
                    p[i] = np.exp(p[i] - top)
                    total += p[i]
                for i in range(size):
                    p[i] /= total
                    v = value[begin + i, h]
                    counts = weight[n, j] * p[i]
                    for e in range(E):
                        r[e] += counts * v[e]


@njit(**SUMS)
def _attend_backward(  # type: ignore[no-untyped-def]
    query, key, value, first, length, weight, prob, grad, d_query, d_key, d_value, d_weight, scale
):
    """Add the gradients of _attend to d_query, d_key, d_value, d_weight; grad [N, H, E] is that of read."""
    real = query.dtype.type
    N, H, E = query.shape
    d_prob = np.empty(prob.shape[3], dtype=query.dtype)
    for n in range(N):
        for j in range(first.shape[1]):
            begin, size = first[n, j], length[n, j]
            for h in range(H):
                q, p, g, dq = query[n, h], prob[n, j, h], grad[n, h], d_query[n, h]
                mean = real(0)
                for i in range(size):
                    v = value[begin + i, h]
                    s = real(0)
                    for e in range(E):
                        s += g[e] * v[e]
                    d_prob[i] = s
                    mean += p[i] * s
                d_weight[n, j] += mean
                for i in range(size):
                    counts = weight[n, j] * p[i]
                    d_score = counts * (d_prob[i] - mean) * real(scale)
                    k, dk, dv = key[begin + i, h], d_key[begin + i, h], d_value[begin + i, h]
                    for e in range(E):  # three loops of two arrays each are vectorised better than one of six
                        dq[e] += d_score * k[e]
                    for e in range(E):
                        dk[e] += d_score * q[e]
                    for e in range(E):
                        dv[e] += counts * g[e]


@njit(**SUMS)
def _choose(query, key, first, length, index, score, scale):  # type: ignore[no-untyped-def]
    """Fill index and score [N, K] with each range's best, by insertion from the range's end."""
    real = query.dtype.type
    N, D = query.shape
    for n in range(N):
        index[n] = -1
        score[n] = 0
        found = 0
        q = query[n]
        for r in range(first[n] + length[n] - 1, first[n] - 1, -1):
            k = key[r]
            s = real(0)
            for d in range(D):
                s += q[d] * k[d]
            s *= real(scale)
            found = insert(score[n], index[n], found, s, r)


@njit(**SUMS)
def _choose_backward(query, key, index, grad, d_query, d_key, scale):  # type: ignore[no-untyped-def]
    """Add the gradients of the scores to d_query, d_key; grad [N, K] is that of score."""
    real = query.dtype.type
    N, D = query.shape
    for n in range(N):
        for j in range(index.shape[1]):
            r = index[n, j]
            if r < 0:
                continue
            g = grad[n, j] * real(scale)
            for d in range(D):
                d_query[n, d] += g * key[r, d]
                d_key[r, d] += g * query[n, d]
