"""How old an episode is at each step of a sequence."""

from __future__ import annotations

import torch
from torch import Tensor


def episode_steps(start: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Steps since the episode's start: before each input [T, B], and after the last one [B].

    Args:
        start: [T, B] bool.
        before: [B] int64, steps of the episode before the first input; ignored where an episode starts there.
    """
    now = torch.arange(len(start), device=start.device).unsqueeze(1)
    # the time of the episode's step 0, which is negative for an episode that began before the sequence
    opened = torch.cat([-before.unsqueeze(0), torch.where(start, now, -before - 1)]).cummax(0).values
    return now - opened[1:], len(start) - opened[-1]
