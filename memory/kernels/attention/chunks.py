"""One query per row chooses among the chunks of its row and reads them: a step of acting.

Acting reads few of the many chunks that a memory holds. The compiled loops (`chunks_loops`), on the CPU and without
gradients, read them where they lie. Elsewhere torch gathers them first (`torch_chunks`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels
from palimpsest.memory.kernels.attention.chunks_loops import choose, read_chosen
from palimpsest.memory.kernels.attention.torch_chunks import torch_choose, torch_read


def choose_chunks(query: Tensor, summaries: Tensor, finished: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose the chunks with the highest score q . s / sqrt(D) in each row; of equal scores the newest.

    Args:
        query: [B, D].
        summaries: [B, N, D], s of the chunks in N slots; the m-th chunk of an episode is in slot m mod N.
        finished: [B] int64, chunks of the episode so far.
        count: K, chunks to choose; 1 to N.

    Returns:
        Their slots [B, K] int64, best first, and the softmax of their scores [B, K]; both 0 where a row has fewer.
    """
    if not _compiled(query):
        return torch_choose(query, summaries, finished, count)
    slot, weight = finished.new_zeros(len(query), count), query.new_zeros(len(query), count)
    given = query.contiguous(), summaries, finished, slot, weight
    choose(*(t.numpy(force=True) for t in given), 1 / math.sqrt(query.shape[1]))
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

    Keys and values are never formed: for one query it is cheaper to map the query. With c a content and p the code of
    its place, q . W_k (c + p) = (W_kᵀ q) . (c + p), and sum a W_v (c + p) = W_v sum a (c + p).

    Args:
        query: [B, D], all heads.
        key: W_k [D, D], all heads.
        value: W_v [D, D].
        code: [C, D], of the places in a chunk.
        contents: [X, C, D], all chunks, without code.
        which: [B, J] int64, the chunks that a row reads.
        length: [B, J] int64, how many places of each chunk it reads, 1 to C; the others must hold finite numbers.
        weight: [B, J], the weight of each chunk; a chunk of weight 0 must hold finite numbers.
        num_heads: H, which divides D.

    Returns:
        [B, D], all heads.
    """
    D = query.shape[1]
    query = (query / math.sqrt(D // num_heads)).contiguous()  # another layout is compiled anew
    if not _compiled(query):
        return torch_read(query, key, value, code, contents, which, length, weight, num_heads)
    read = query.new_empty(query.shape)
    tables = (t.contiguous() for t in (key, value, code, contents))
    read_chosen(*(t.numpy(force=True) for t in (query, *tables, which, length, weight, read)), num_heads)
    return read


def _compiled(query: Tensor) -> bool:
    return has_kernels(query) and not torch.is_grad_enabled()
