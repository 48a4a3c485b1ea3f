"""Slot allocation: six strategies that choose the slot of an entry, and the readable entries over a sequence.

When all slots are full, a new entry replaces

    fifo  the oldest entry,
    lifo  the newest,
    mvfo  the oldest entry of the most visited place that has one,
    lvfo  the oldest entry of the least visited place that has one,
    lru   the entry that was attended the longest time ago,
    lfu   the entry that was attended the fewest times; of equals the oldest, for lru too.

The visits of a place are the entries ever stored from it in this episode. The new entry counts after the replacement.
Ties go to the lowest index. An input attends to one entry before it, that of the highest score; storing an entry counts
for lru as attending to it. Only for lru and lfu does this depend on contents, and they need scores. With the others it
is computed for a whole sequence before any entry is read. The kernels run on the CPU for every device.

Source: arXiv 2402.15160; lru and lfu: arXiv 2401.04881, where more than one entry is attended at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from palimpsest.machine_code import njit

STRATEGIES = ("fifo", "lifo", "mvfo", "lvfo", "lru", "lfu")
"""Names of the strategies. A `strategy` tensor holds indices into this tuple."""

BY_ATTENTION = STRATEGIES.index("lru")
"""The strategies from this one on need scores."""

Integers = NDArray[np.int64]

NO_SCORES = np.empty((0, 0, 0))


class Slots(NamedTuple):
    """The state of S slots and P places, without the contents. `allocate` writes into it."""

    time: Integers
    """[B, S], the step of its episode at which an entry was stored; -1 where the slot is empty."""
    place: Integers
    """[B, S], the place of an entry."""
    visits: Integers
    """[B, P], number of entries ever stored from a place in this episode."""
    steps: Integers
    """[B], inputs read in this episode; 0 for a fresh state."""
    strategy: Integers
    """[B], index into `STRATEGIES`."""
    attended: Integers
    """[B, S], the step at which an entry was last attended or stored; counted for lru and lfu only, as the next."""
    attentions: Integers
    """[B, S], how often it was attended."""


def allocate(
    slots: Slots,
    place: Integers,
    start: NDArray[np.bool_],
    strategy: Integers,
    by_place: bool,
    scores: NDArray[np.float64] = NO_SCORES,
) -> tuple[Integers, Integers]:
    """Choose the slot of every entry of a sequence, and update `slots` in place to the end of the sequence.

    Args:
        slots: the state before the first input, as C-contiguous arrays.
        place: [T, B], 0 to P - 1.
        start: [T, B], true where an episode starts: the slots are emptied before the entry is stored.
        strategy: [T, B], index into `STRATEGIES`; read at the first input of an episode and kept.
        by_place: whether every place has its own S // P slots, in the order of places; otherwise all share S slots.
        scores: [B, T, S + T], of each input for what the slots held before the sequence, then for the inputs' entries;
            read in rows whose strategy is lru or lfu.

    Returns:
        The slot of every entry, and its step in its episode, counted from 0, [T, B] each.

    Raises:
        ValueError: a place is out of range, or a strategy at the first input of an episode.
    """
    slot, now = np.empty_like(place), np.empty_like(place)
    t, b = _allocate(*slots, place, start, strategy, by_place, scores, slot, now)
    if t >= 0:
        P = slots.visits.shape[1]
        if not 0 <= place[t, b] < P:
            raise ValueError(f"place must be 0 to num_places - 1 = {P - 1}; got {place[t, b]} at input {t} of row {b}")
        known = ", ".join(f"{i} {name}" for i, name in enumerate(STRATEGIES))
        raise ValueError(f"strategy must be one of {known}; got {strategy[t, b]} at input {t} of row {b}")
    return slot, now


@njit(cache=True)
def _allocate(
    time, held, visits, steps, strategy, attended, attentions, place, start, chosen, by_place, scores, slot, now
):
    """Fill `slot` and `now`. Returns the first (t, b) with a value out of range, or (-1, -1)."""
    T, B = place.shape
    S, P = time.shape[1], visits.shape[1]
    key = np.empty(S, dtype=np.int64)  # which of the S + T scores is that of the entry in each slot
    for b in range(B):
        key[:] = np.arange(S)
        for t in range(T):
            if start[t, b]:
                time[b] = -1
                held[b] = 0
                visits[b] = 0
                steps[b] = 0
                attended[b] = 0
                attentions[b] = 0
            if steps[b] == 0:
                if not 0 <= chosen[t, b] < 6:
                    return t, b
                strategy[b] = chosen[t, b]
            p = place[t, b]
            if not 0 <= p < P:
                return t, b
            first, end = (p * (S // P), (p + 1) * (S // P)) if by_place else (0, S)
            s = _choose(time[b], held[b], visits[b], attended[b], attentions[b], strategy[b], first, end)
            if strategy[b] >= 4:
                time[b, s] = -1
                best = _attended(time[b], scores[b, t], key)
                if best >= 0:
                    attended[b, best] = steps[b]
                    attentions[b, best] += 1
                attended[b, s] = steps[b]
                attentions[b, s] = 0
                key[s] = S + t
            time[b, s] = steps[b]
            held[b, s] = p
            visits[b, p] += 1
            slot[t, b] = s
            now[t, b] = steps[b]
            steps[b] += 1
    return -1, -1


@njit(cache=True)
def _attended(time, scores, key):
    """The slot of the entry with the highest score, the oldest of equals; -1 where there is none."""
    best = -1
    for s in range(len(time)):
        if time[s] >= 0:
            more = 0.0 if best < 0 else scores[key[s]] - scores[key[best]]
            if best < 0 or more > 0 or (more == 0 and time[s] < time[best]):
                best = s
    return best


@njit(cache=True)
def _choose(time, held, visits, attended, attentions, strategy, first, end):
    """The slot, from `first` to `end` - 1, of a row's next entry: an empty one, or one that the strategy replaces."""
    for s in range(first, end):
        if time[s] < 0:
            return s
    if strategy >= 4:
        count, best = attended if strategy == 4 else attentions, first
        for s in range(first, end):
            if count[s] < count[best] or (count[s] == count[best] and time[s] < time[best]):
                best = s
        return best
    only = -1
    if strategy >= 2:
        sign = 1 if strategy == 2 else -1
        for s in range(first, end):
            p = held[s]
            more = 0 if only < 0 else sign * (visits[p] - visits[only])
            if only < 0 or more > 0 or (more == 0 and p < only):
                only = p
    best = -1
    for s in range(first, end):
        if only >= 0 and held[s] != only:
            continue
        if best < 0 or (time[s] > time[best] if strategy == 1 else time[s] < time[best]):
            best = s
    return best


class Reads(NamedTuple):
    """The keys of every step, in N chunks of C steps; S slots.

    A table lists all entries. First come the B * S slots before the sequence, at index b * S + s. Then come the
    N * B * C inputs, at index B * S + (n * B + b) * C + i for step n * C + i of row b. The keys of a chunk are the S
    slots at its start, then its C inputs.
    """

    held: Integers
    """[N, B, S], table index of the entry in each slot at the start of a chunk; any index if it is not readable."""
    readable: NDArray[np.bool_]
    """[N, B, C, S + C], the keys that a step reads, its own entry included. A step after T reads only its own entry."""
    last: Integers
    """[B, S], table index of the entry in each slot at the end; -1 for a slot that is empty since a start."""


def reads(occupied: NDArray[np.bool_], slot: Integers, start: NDArray[np.bool_], chunk: int) -> Reads:
    """Find the entries that every step reads.

    Args:
        occupied: [B, S], whether a slot holds an entry before the first input.
        slot: [T, B], as `allocate` returned it; T is 1 or more.
        start: [T, B], true where an episode starts.
        chunk: C, steps per chunk.
    """
    T, B = slot.shape
    N, S = -(-T // chunk), occupied.shape[1]
    held = np.empty((N, B, S), dtype=np.int64)
    readable = np.zeros((N, B, chunk, S + chunk), dtype=np.bool_)
    last = np.empty((B, S), dtype=np.int64)
    _reads(occupied, slot, start, held, readable, last)
    return Reads(held, readable, last)


@njit(cache=True)
def _reads(occupied, slot, start, held, readable, last):
    """Fill `held`, `readable` and `last`."""
    T, B = slot.shape
    N, _, C, _ = readable.shape
    S = occupied.shape[1]
    key = np.empty(S, dtype=np.int64)  # index of each slot's entry among the keys of the chunk; -1 for an empty slot
    for b in range(B):
        row = last[b]
        for s in range(S):
            row[s] = b * S + s
            key[s] = s if occupied[b, s] else -1
        for n in range(N):
            for s in range(S):
                held[n, b, s] = max(row[s], 0)
                if key[s] >= 0:
                    key[s] = s
            for i in range(C):
                t = n * C + i
                if t >= T:
                    readable[n, b, i, S + i] = True
                    continue
                if start[t, b]:
                    row[:] = -1
                    key[:] = -1
                row[slot[t, b]] = B * S + (n * B + b) * C + i
                key[slot[t, b]] = S + i
                for s in range(S):
                    if key[s] >= 0:
                        readable[n, b, i, key[s]] = True


LATE = 2**40
"""Later than any step of an episode."""


def allocate_step(
    slots: tuple[Tensor, ...], place: Tensor, strategy: Tensor, by_place: bool
) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
    """Choose the slot of one entry in each row by torch's operations, for what records those: `allocate` for one step.

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
