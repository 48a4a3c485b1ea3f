"""The strategies of `memory.parts.allocation` for one step, by torch's operations, for what records those."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LATE = 2**40
"""Later than any step of an episode."""


def allocate_step(
    slots: tuple[Tensor, ...], place: Tensor, strategy: Tensor, by_place: bool
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Choose the slot of one entry in each row.

    Args:
        slots: as `allocation.Slots`, tensors that stay as they are.
        place: [B] int64, 0 to P - 1; not checked.
        strategy: [B] int64, index into `STRATEGIES`, read in a fresh state; not checked.
        by_place: as for `allocation.allocate`.

    Returns:
        The next slots, the slot of each entry and its step in its episode, [B] each.
    """
    time, held, visits, now, before = slots
    S, P = time.shape[1], visits.shape[1]
    strategy = torch.where(now == 0, strategy, before)[:, None]
    index = torch.arange(S, device=time.device)
    open_to = index // (S // P) == place[:, None] if by_place else torch.ones_like(time, dtype=torch.bool)
    # the place to take from is that of the least rank: no two are equal
    rank = torch.where(strategy == 2, -visits, visits) * P + torch.arange(P, device=time.device)
    rank = torch.where(strategy >= 2, rank.gather(1, held), 0)
    taken = open_to & (rank == torch.where(open_to, rank, LATE).amin(1, keepdim=True))
    order = torch.where(taken, torch.where(strategy == 1, -time, time), LATE)
    # an empty slot comes before all others, the first one first
    order = torch.where(open_to & (time < 0), index - LATE, order)
    slot = order.argmin(1)
    here = index == slot[:, None]
    after = (
        torch.where(here, now[:, None], time),
        torch.where(here, place[:, None], held),
        visits + functional.one_hot(place, P),
        now + 1,
        strategy.squeeze(1),
    )
    return after, slot, now
