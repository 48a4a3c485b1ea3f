"""Attention in which every query reads a few slices of its own of one list of keys and values.

    read_n = sum_j weight_nj sum_i softmax_i(q_n . k_i / sqrt(E)) v_i        i = first_nj ... first_nj + length_nj - 1

and the choice of such slices: the best `count` of a range of candidates, each scored by one scaled dot product.

Nothing outside its slices reaches a query, not even multiplied by zero: it may be NaN. Time and memory grow with what
is read, not with the length of the list. On the CPU the compiled loops run (`slices_loops`), elsewhere torch gathers
(`torch_slices`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.attention import slices_loops as loops
from palimpsest.memory.kernels.attention.torch_slices import torch_attend_slices, torch_best_candidates


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
        weight: [N, J], the weight of each slice; gradients reach it too.
        longest: the largest length that may occur; 1 or more.

    Returns:
        [N, H, E]; zero for a query that reads nothing.
    """
    if has_kernels(query):
        return _AttendSlices.apply(query, key, value, first, length, weight, longest)
    return torch_attend_slices(query, key, value, first, length, weight, longest)


def best_candidates(query: Tensor, key: Tensor, first: Tensor, length: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The keys with the highest score q . k / sqrt(D) in the range of each query, best first; of equal scores the last.

    Args:
        query: [N, D].
        key: [R, D]; R may be 0 where every range is empty.
        first: [N] int64, where the range of each query begins.
        length: [N] int64, the number of candidates in it, 0 or more.
        count: K, how many to choose; 1 or more.

    Returns:
        Their indices [N, K] int64 and their scores [N, K]; -1 and 0 where a range holds fewer. Gradients reach query
        and key through the scores.
    """
    if has_kernels(query):
        return _BestCandidates.apply(query, key, first, length, count)
    return torch_best_candidates(query, key, first, length, count)


def _run(kernel: Any, query: Tensor, *tensors: Tensor) -> None:
    """Call a kernel on arrays; the scale of dot products is its last argument."""
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
        _run(loops.attend, query, key, value, first, length, weight, read, prob)
        ctx.save_for_backward(query, key, value, first, length, weight, prob)
        return read

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, first, length, weight, prob = ctx.saved_tensors
        grads = [torch.zeros_like(t) for t in (query, key, value, weight)]
        _run(loops.attend_backward, query, key, value, first, length, weight, prob, grad.contiguous(), *grads)
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
        _run(loops.choose, query, key, first, length, index, score)
        ctx.save_for_backward(query, key, index)
        ctx.mark_non_differentiable(index)
        return index, score

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, index = ctx.saved_tensors
        d_query, d_key = torch.zeros_like(query), torch.zeros_like(key)
        _run(loops.choose_backward, query, key, index, grad.contiguous(), d_query, d_key)
        return d_query, d_key, None, None, None
