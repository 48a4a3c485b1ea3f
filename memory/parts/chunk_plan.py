"""The positions of all chunks in a scan over a batch of episodes. With them, no layer needs a loop over time.

Example: C = 3; before the scan, chunk 0 is stored and the running chunk holds one input.

start                                       0 0 0 0 0 1 0 0 0
place of each input in its chunk            1 2 0 1 2 0 1 2 0
finished chunks that each input may read    1 1 2 2 2 0 0 0 1
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.kernels.arithmetic.dispatch import refuse_tracing


class ChunkPlan(NamedTuple):
    """Indices of tokens and chunks in a scan, the same for every layer.

    A row has E = C - 1 + T tokens. The first C - 1 are places for the running chunk before the scan; it uses the last
    ones of them. The T inputs follow. The list of chunks has R entries, row by row, oldest first: the P stored chunks
    that the scan can still read, and the chunks that it finishes.
    """

    place: Tensor
    """[B, E], place of each token in its chunk."""
    filled: Tensor
    """[B, C - 1, 1] bool, whether a token before the scan is an input of the episode that continues."""
    local_first: Tensor
    """[B * T, 1], the first token of each input's running chunk, an index into [B * E]."""
    local_length: Tensor
    """[B * T, 1], number of inputs in the running chunk, the current one included."""
    oldest: Tensor
    """[B * T], list index of the first chunk that each input may read."""
    finished: Tensor
    """[B * T], number of chunks that each input may read, 0 to N."""
    stored: tuple[Tensor, Tensor]
    """[P] each, row and slot of the stored chunks in the list."""
    stored_index: Tensor
    """[P], their list indices."""
    content: Tensor
    """[R * C], the token at every place of every chunk, an index into the P * C stored tokens, then [B * E]."""
    length: Tensor
    """[R], inputs in every chunk; C for a stored one, whose length the plan does not know. Places after them repeat the
    last one."""
    kept: Tensor
    """[B] bool, whether no episode starts in the row during the scan."""
    untouched: Tensor
    """[B] bool, `kept` and no chunk is finished: the places after the running inputs then stay as they were."""
    final: tuple[Tensor, Tensor]
    """Row and slot of the chunks to store at the end: of the new chunks of the last episode, the newest N."""
    final_index: Tensor
    """Their list indices."""
    running: Tensor
    """[B * C], the token at each place of the running chunk at the end, an index into [B * E]."""
    running_filled: Tensor
    """[B, C, 1] bool, whether such a place holds an input."""
    rest: Tensor
    """[B], inputs in the running chunk at the end."""
    total: Tensor
    """[B], chunks finished in the last episode at the end."""


def plan_chunks(
    start: Tensor, place: Tensor, finished: Tensor, C: int, N: int, opens: Tensor | None = None
) -> ChunkPlan:
    """Plan a scan.

    Args:
        start: [T, B] bool, true where an episode starts; T is 1 or more.
        place: [B], inputs in each row's running chunk before the scan, 0 to C - 1.
        finished: [B], chunks that each row has finished in its episode before the scan.
        C: largest size of a chunk.
        N: number of chunks that a row can store.
        opens: [T, B] bool, true where a chunk begins although the one before may not be full; None where none does.
    """
    refuse_tracing()
    T, B = start.shape
    device = start.device
    E = C - 1 + T
    start = start.T
    border = start if opens is None else start | opens.T
    time, slots, places = (torch.arange(size, device=device) for size in (T, N, C))
    goes_on = ~start[:, 0]
    fill = torch.where(goes_on, place, 0)
    begun = torch.where(border, time, -1).cummax(1).values
    place = torch.where(begun >= 0, time - begun, fill[:, None] + time) % C
    # chunks are finished before the scan's first input, where that is a border, or after one of its inputs
    ends = (place == C - 1) | functional.pad(border[:, 1:] & ~start[:, 1:], (0, 1))
    ends = torch.cat([(border[:, :1] & goes_on[:, None]) & (fill > 0)[:, None], ends], 1)
    done = ends.cumsum(1)  # [B, T + 1], before each input and at the end
    opened = torch.where(start, time, -1).cummax(1).values
    opened = torch.cat([opened, opened[:, -1:]], 1)
    number = torch.where(opened >= 0, done - done.gather(1, opened.clamp(min=0)), finished[:, None] + done)

    slot_before = fill[:, None] + torch.arange(1 - C, 0, device=device)  # [B, C - 1]
    begin = torch.arange(B, device=device)[:, None] * E + C - 1 + time - place

    stored = torch.where(goes_on, finished.clamp(max=N), 0)
    size = stored + done[:, -1]
    base = (size.cumsum(0) - size)[:, None]
    end = base + stored[:, None] + done  # behind the newest finished chunk
    readable = number.clamp(max=N)

    row, nth = (slots < stored[:, None]).nonzero(as_tuple=True)
    stored_index = base[row, 0] + nth
    new_row, new_time = ends.nonzero(as_tuple=True)
    new_index = end[new_row, new_time] - 1
    P, Q = len(row), len(new_row)
    new_length = torch.cat([fill[:, None], place + 1], 1)[new_row, new_time]
    content = torch.empty(P + Q, C, dtype=torch.int64, device=device)
    content[stored_index] = torch.arange(P * C, device=device).view(P, C)
    last = C - 2 + new_time  # the token of its last input
    content[new_index] = (P * C + new_row * E)[:, None] + torch.minimum(
        (last - new_length + 1)[:, None] + places, last[:, None]
    )
    length = torch.full((P + Q,), C, dtype=torch.int64, device=device)
    length[new_index] = new_length

    kept = ~start.any(1)
    # the number of a chunk is how many were finished before it
    new_number = torch.cat([finished[:, None], number[:, :T]], 1)[new_row, new_time]
    total = number[:, T]
    final = (new_time > opened[new_row, -1]) & (new_number >= (total - N)[new_row])
    rest = ((place[:, -1] + 1) % C)[:, None]
    token = torch.arange(B, device=device)[:, None] * E + (E - rest + places).clamp(max=E - 1)
    return ChunkPlan(
        place=torch.cat([slot_before.clamp(min=0), place], 1),
        filled=(slot_before >= 0)[..., None],
        local_first=begin.reshape(-1, 1),
        local_length=(place + 1).view(-1, 1),
        oldest=(end[:, :T] - readable[:, :T]).reshape(-1),
        finished=readable[:, :T].reshape(-1),
        stored=(row, ((finished - stored)[row] + nth) % N),
        stored_index=stored_index,
        content=content.view(-1),
        length=length,
        kept=kept,
        untouched=kept & (done[:, -1] == 0),
        final=(new_row[final], new_number[final] % N),
        final_index=new_index[final],
        running=token.view(-1),
        running_filled=(places < rest)[..., None],
        rest=rest[:, 0],
        total=total,
    )
