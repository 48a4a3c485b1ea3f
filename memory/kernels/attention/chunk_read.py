"""One query per row chooses among the chunks of its row and reads them.

Acting reads few of the many chunks that a memory holds. On the CPU and without gradients they are read where they lie;
elsewhere torch gathers them first.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import SUMS
from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels
from palimpsest.memory.kernels.arithmetic.products import multiply, multiply_turned, pack, pack_into, packed_size
from palimpsest.memory.kernels.attention.slices import softmax_where
from palimpsest.memory.kernels.attention.top_k import insert


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
    """Multi-head attention of one query per row to chunks, one softmax per chunk and head, summed by weight.

    For one query it is cheaper to move it into the space of the contents than to make a key and a value of everything:
    with c a content and p the code of its place, q . W_k (c + p) = (W_kᵀ q) . (c + p), and the sum of a W_v (c + p) is
    W_v times the sum of a (c + p).

    Args:
        query: [B, D], all heads.
        key: W_k [D, D], all heads.
        value: W_v [D, D].
        code: [C, D], of the places in a chunk.
        contents: [X, C, D], all chunks, without code.
        which: [B, J] int64, those that a row reads.
        length: [B] int64, how many places of each it reads, 1 to C; the others hold finite numbers.
        weight: [B, J], what each counts; one that counts nothing holds finite numbers.
        num_heads: H, which divides D.

    Returns:
        [B, D], all heads.
    """
    D = query.shape[1]
    query = query / math.sqrt(D // num_heads)
    if not _compiled(query):
        return _torch_read(query, key, value, code, contents, which, length, weight, num_heads)
    read = query.new_empty(query.shape)
    tables = (t.contiguous() for t in (key, value, code, contents))
    _read(*(t.numpy(force=True) for t in (query, *tables, which, length, weight, read)), num_heads)
    return read


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
    toward = torch.einsum("bhe,hed->bhd", query.view(B, H, -1), key.view(H, -1, D))
    content = contents.index_select(0, which.flatten()).view(B, J * C, D)
    score = (toward @ content.mT).view(B, H, J, C) + (toward @ code.T)[:, :, None]
    unread = torch.arange(C, device=query.device) >= length[:, None]
    prob = score.masked_fill(unread[:, None, None], -math.inf).softmax(-1) * weight[:, None, :, None]
    mixed = prob.view(B, H, J * C) @ content + prob.sum(2) @ code
    return torch.einsum("bhd,hed->bhe", mixed, value.view(H, -1, D)).reshape(B, D)


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
    B = len(query)
    N = summaries.shape[1]
    real = query.dtype.type
    scores = np.empty((1, N), query.dtype)
    for b in range(B):
        multiply_turned(query[b : b + 1], summaries[b], scores, False)
        best, value = slot[b], weight[b]
        found = 0
        for age in range(min(finished[b], N)):
            candidate = (finished[b] - 1 - age) % N
            s = scores[0, candidate] * real(scale)
            found = insert(value, best, found, s, candidate)
        _softmax(value[:found])


@njit(**SUMS)
def _read(query, key, value, code, contents, which, length, weight, read, H):  # type: ignore[no-untyped-def]
    """Fill read [B, D]."""
    B, D = query.shape
    C, E = len(code), D // H
    toward, mixed = np.empty((B, H, D), query.dtype), np.zeros((B, H, D), query.dtype)
    score, total = np.empty((H, C), query.dtype), np.zeros((B, H, C), query.dtype)
    shift = np.empty((B, H, C), query.dtype)
    for h in range(H):
        multiply(query[:, h * E : (h + 1) * E], pack(key[h * E : (h + 1) * E]), toward[:, h], False)
    multiply_turned(toward.reshape(B * H, D), code, shift.reshape(B * H, C), False)
    packed = np.empty(packed_size(C, D, query.itemsize), query.dtype)
    for b in range(B):
        for j in range(which.shape[1]):
            counts = weight[b, j]
            if counts == 0:
                continue
            content = contents[which[b, j]]
            multiply_turned(toward[b], content, score, False)
            for h in range(H):
                row, seen = score[h], score[h, : length[b]]
                for i in range(C):
                    row[i] += shift[b, h, i]
                _softmax(seen)
                row[length[b] :] = 0
                for i in range(C):
                    row[i] *= counts
                    total[b, h, i] += row[i]
            multiply(score, pack_into(content, packed), mixed[b], True)
    multiply(total.reshape(B * H, C), pack(code), mixed.reshape(B * H, D), True)
    for h in range(H):
        multiply_turned(mixed[:, h], value[h * E : (h + 1) * E], read[:, h * E : (h + 1) * E], False)
