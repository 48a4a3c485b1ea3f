"""One query per row chooses among the chunks of its row and reads them.

Acting reads few of the many chunks that a memory holds. On the CPU and without gradients they are read where they lie;
elsewhere torch gathers them first.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from memory.attention import softmax_where
from memory.kernels.compiling import OPTIONS
from memory.kernels.forms import has_kernels
from memory.kernels.products import multiply, multiply_turned, pack_into, packed_size

SUMS = {**OPTIONS, "fastmath": {"contract", "reassoc"}}


def choose_chunks(query: Tensor, summaries: Tensor, finished: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The chunks with the highest score q . s / sqrt(D) in each row; of equals the newest.

    Args:
        query: [B, D].
        summaries: [B, N, D], of the chunks in N slots; the m-th chunk of an episode is in slot m mod N.
        finished: [B] int64, chunks of the episode so far.
        count: K, chunks to choose; 1 to N.

    Returns:
        Their slots [B, K] int64, best first, and the softmax of their scores [B, K]: both 0 where there are fewer.
    """
    if not _compiled(query):
        return _torch_choose(query, summaries, finished, count)
    slot, weight = finished.new_zeros(len(query), count), query.new_zeros(len(query), count)
    given = query.contiguous(), summaries, finished, slot, weight
    _choose(*(t.numpy(force=True) for t in given), 1 / math.sqrt(query.shape[1]))
    return slot, weight


def read_chunks(
    query: Tensor, shift: Tensor, contents: Tensor, which: Tensor, length: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Each head's attention to chunks of its row, one softmax per chunk, summed by weight.

    Args:
        query: [B, H, D], scaled.
        shift: [B, H, C], what a place in a chunk adds to its score.
        contents: [X, C, D], all chunks.
        which: [B, J] int64, those that a row reads.
        length: [B] int64, how many places of each may be read, 1 to C; the others may hold anything.
        weight: [B, J], what each counts; one of weight 0 may hold anything.

    Returns:
        The weighted mean of what was read [B, H, D], and the weight of each place [B, H, C].
    """
    if not _compiled(query):
        return _torch_read(query, shift, contents, which, length, weight)
    mean, total = query.new_zeros(query.shape), query.new_zeros(shift.shape)
    given = query.contiguous(), shift.contiguous(), contents, which, length, weight, mean, total
    _read(*(t.numpy(force=True) for t in given))
    return mean, total


def _compiled(query: Tensor) -> bool:
    return has_kernels(query) and not torch.is_grad_enabled()


def _torch_choose(query: Tensor, summaries: Tensor, finished: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`choose_chunks` by torch's operations."""
    N, D = summaries.shape[1:]
    score = (summaries @ query[..., None])[..., 0] / math.sqrt(D)
    age = torch.arange(N, device=query.device)
    there = age < finished[:, None]
    slot = (finished[:, None] - 1 - age) % N  # the newest first: a stable sort keeps the first of equals first
    score = score.gather(1, slot)
    best = score.masked_fill(~there, -math.inf).sort(dim=1, descending=True, stable=True).indices[:, :count]
    there = there.gather(1, best)
    return torch.where(there, slot.gather(1, best), 0), softmax_where(score.gather(1, best), there)


def _torch_read(
    query: Tensor, shift: Tensor, contents: Tensor, which: Tensor, length: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """`read_chunks` by torch's operations."""
    (B, H, _), J, (C, D) = query.shape, which.shape[1], contents.shape[1:]
    content = contents.index_select(0, which.flatten()).view(B, J * C, D)
    score = (query @ content.mT).view(B, H, J, C) + shift[:, :, None]
    unread = torch.arange(C, device=query.device) >= length[:, None]
    prob = score.masked_fill(unread[:, None, None], -math.inf).softmax(-1) * weight[:, None, :, None]
    return prob.view(B, H, J * C) @ content, prob.sum(2)


@njit(**SUMS, forceinline=True)
def _softmax(row):  # type: ignore[no-untyped-def]
    """The softmax of a row, in place; of an empty row nothing."""
    if len(row) == 0:
        return
    top = row[0]
    for i in range(1, len(row)):
        top = max(top, row[i])
    total = row.dtype.type(0)
    for i in range(len(row)):
        row[i] = np.exp(row[i] - top)
        total += row[i]
    for i in range(len(row)):
        row[i] /= total


@njit(**SUMS)
def _choose(query, summaries, finished, slot, weight, scale):  # type: ignore[no-untyped-def]
    """Fill slot and weight [B, K], by insertion from the newest on."""
    B, D = query.shape
    N, K = summaries.shape[1], slot.shape[1]
    real = query.dtype.type
    scores = np.empty((1, N), query.dtype)
    for b in range(B):
        multiply_turned(query[b : b + 1], summaries[b], scores, False)
        best, value = slot[b], weight[b]
        found = 0
        for age in range(min(finished[b], N)):
            candidate = (finished[b] - 1 - age) % N
            s = scores[0, candidate] * real(scale)
            if found < K:
                at = found
                found += 1
            elif s > value[K - 1]:
                at = K - 1
            else:
                continue
            while at > 0 and s > value[at - 1]:
                value[at], best[at] = value[at - 1], best[at - 1]
                at -= 1
            value[at], best[at] = s, candidate
        _softmax(value[:found])


@njit(**SUMS)
def _read(query, shift, contents, which, length, weight, mean, total):  # type: ignore[no-untyped-def]
    """Add to mean [B, H, D] and total [B, H, C]."""
    B, H, D = query.shape
    C = shift.shape[2]
    score = np.empty((H, C), query.dtype)
    packed = np.empty(packed_size(C, D, query.itemsize), query.dtype)
    for b in range(B):
        size = length[b]
        for j in range(which.shape[1]):
            counts = weight[b, j]
            if counts == 0:
                continue
            content, part = contents[which[b, j], :size], score[:, :size]
            multiply_turned(query[b], content, part, False)
            for h in range(H):
                row = part[h]
                for i in range(size):
                    row[i] += shift[b, h, i]
                _softmax(row)
                for i in range(size):
                    row[i] *= counts
                    total[b, h, i] += row[i]
            multiply(part, pack_into(content, packed), mean[b], True)
