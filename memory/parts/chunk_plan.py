"""Where the chunks of a batch of episodes lie in one scan. With that plan no layer needs a loop over time.

C = 3, stored before: chunk 0 and one running input     start  0 0 0 0 0 1 0 0 0
place in its chunk of each input                               1 2 0 1 2 0 1 2 0
finished chunks that each input may read                       1 1 2 2 2 0 0 0 1
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import refuse_tracing


class ChunkPlan(NamedTuple):
    """Which token is where in a scan; the same for every layer.

    A row has E = C - 1 + T tokens: C - 1 places for what the running chunk held before the scan (the last ones are
    used), then the T inputs. The list of chunks has R entries, row by row, oldest first: the P stored ones that the
    scan can still read, and those that it finishes.
    """

    place: Tensor
    """[B, E], the place of each token in its chunk."""
    filled: Tensor
    """[B, C - 1, 1] bool, whether a place before the scan holds an input of the running episode."""
    local_first: Tensor
    """[B * T, 1], the first token of the running chunk of each input, in [B * E]."""
    local_length: Tensor
    """[B * T, 1], inputs of the running chunk, the current one included."""
    oldest: Tensor
    """[B * T], the first chunk in the list that each input may read."""
    finished: Tensor
    """[B * T], how many it may read, 0 to N."""
    stored: tuple[Tensor, Tensor]
    """[P] each: row and slot of the stored chunks in the list."""
    stored_index: Tensor
    """[P], their positions in the list."""
    content: Tensor
    """[R * C], the token at every place of every chunk: an index into P * C stored ones, then [B * E]."""
    kept: Tensor
    """[B] bool, whether the row's episode lasts through the whole scan."""
    untouched: Tensor
    """[B] bool, whether it lasts and no chunk is finished: the rest of the running chunk then stays as it was."""
    final: tuple[Tensor, Tensor]
    """Row and slot of the chunks to store at the end: the last episode's newest N."""
    final_index: Tensor
    """Their positions in the list."""
    running: Tensor
    """[B * C], the token in [B * E] of each place of the running chunk at the end."""
    running_filled: Tensor
    """[B, C, 1] bool, whether that place holds one."""
    steps: Tensor
    """[B], inputs read since the episode's start, at the end."""


def plan_chunks(start: Tensor, steps: Tensor, C: int, N: int) -> ChunkPlan:
    """Lay out a scan of `start` [T, B], T of 1 or more, from rows that have read `steps` [B] inputs."""
    refuse_tracing()
    T, B = start.shape
    device = start.device
    E = C - 1 + T
    start = start.T
    time, slots, places = (torch.arange(size, device=device) for size in (T, N, C))
    opened = torch.where(start, time, -1).cummax(1).values
    position = torch.where(opened >= 0, time - opened, steps[:, None] + time)  # [B, T], in the episode
    place, number = position % C, position // C
    full = place == C - 1

    goes_on = ~start[:, 0]
    fill = torch.where(goes_on, steps % C, 0)
    slot_before = fill[:, None] + torch.arange(1 - C, 0, device=device)  # [B, C - 1]
    begin = torch.arange(B, device=device)[:, None] * E + C - 1 + time - place

    stored = torch.where(goes_on, (steps // C).clamp(max=N), 0)
    done = full.cumsum(1)
    size = stored + done[:, -1]
    end = (size.cumsum(0) - size + stored)[:, None] + done - full.long()  # [B, T], behind the newest finished chunk
    finished = number.clamp(max=N)

    row, nth = (slots < stored[:, None]).nonzero(as_tuple=True)
    stored_index = (size.cumsum(0) - size)[row] + nth
    new_row, new_time = full.nonzero(as_tuple=True)
    new_index = end[new_row, new_time]
    P, Q = len(row), len(new_row)
    content = torch.empty(P + Q, C, dtype=torch.int64, device=device)
    content[stored_index] = torch.arange(P * C, device=device).view(P, C)
    content[new_index] = (P * C + new_row * E + new_time)[:, None] + places

    kept = ~start.any(1)
    last, new_number = position[:, -1] + 1, number[new_row, new_time]
    final = (new_time >= opened[new_row, -1]) & (new_number >= (last // C - N)[new_row])
    rest = (last % C)[:, None]
    token = torch.arange(B, device=device)[:, None] * E + (E - rest + places).clamp(max=E - 1)
    return ChunkPlan(
        place=torch.cat([slot_before.clamp(min=0), place], 1),
        filled=(slot_before >= 0)[..., None],
        local_first=begin.reshape(-1, 1),
        local_length=(place + 1).view(-1, 1),
        oldest=(end - finished).view(-1),
        finished=finished.reshape(-1),
        stored=(row, ((steps // C - stored)[row] + nth) % N),
        stored_index=stored_index,
        content=content.view(-1),
        kept=kept,
        untouched=kept & (done[:, -1] == 0),
        final=(new_row[final], new_number[final] % N),
        final_index=new_index[final],
        running=token.view(-1),
        running_filled=(places < rest)[..., None],
        steps=last,
    )
