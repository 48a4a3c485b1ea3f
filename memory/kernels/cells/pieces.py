"""Columns of a sequence cut where episodes start, and in which order the pieces' inputs are worked through.

The pieces run side by side, longest first:

    t           0 1 2 3 4        pieces  c c c c        c: column 1, from 1
    column 0    a a a b b                a a a          a: column 0, from 0 on the incoming state
    column 1    d c c c c                b b            b: column 0, from 3
    starts at (3, 0), (1, 1)             d              d: column 1, from 0 on the incoming state

No reset is left inside a piece. Step s of all pieces is one matrix product over those longer than s, which are
always the first ones, and there are only as many steps as the longest piece has.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from palimpsest.machine_code import njit


class Pieces(NamedTuple):
    """Columns cut at their starts, longest piece first. Packed rows are all inputs ordered by step, then by piece."""

    rows: np.ndarray
    """[R] int64 with R = T * B, the row of x, seen as [T * B, F], of each packed row."""
    active: np.ndarray
    """[length of the longest] int64, how many pieces are longer than s."""
    carried: np.ndarray
    """[N] bool, whether a piece continues the incoming state."""
    last: np.ndarray
    """[B] int64, the piece that ends each column."""


@njit(cache=True)
def _cut(start):  # type: ignore[no-untyped-def]
    """The fields of `Pieces` for `start` [T, B] bool with T, B >= 1."""
    T, B = start.shape
    first = np.empty(T * B, np.int64)
    length = np.empty(T * B, np.int64)
    count = 0
    for b in range(B):
        opened = 0
        for t in range(1, T + 1):
            if t == T or start[t, b]:
                first[count] = opened * B + b
                length[count] = t - opened
                opened = t
                count += 1
    active = np.zeros(length[:count].max(), np.int64)
    for p in range(count):
        active[length[p] - 1] += 1
    for s in range(len(active) - 2, -1, -1):
        active[s] += active[s + 1]
    begin = np.cumsum(active) - active
    # a counting sort: pieces of length l follow the active[l] longer ones, in the order of the columns
    place = np.append(active[1:], 0)
    rows = np.empty(T * B, np.int64)
    carried = np.empty(count, np.bool_)
    last = np.empty(B, np.int64)
    for p in range(count):
        slot = place[length[p] - 1]
        place[length[p] - 1] += 1
        carried[slot] = first[p] < B and not start[0, first[p]]
        for s in range(length[p]):
            rows[begin[s] + slot] = first[p] + s * B
        if first[p] // B + length[p] == T:
            last[first[p] % B] = slot
    return rows, active, carried, last


def cut(start: Tensor) -> Pieces:
    """Cut the columns of `start` [T, B] bool, T and B >= 1."""
    return Pieces(*_cut(start.detach().cpu().contiguous().numpy()))


def carried_pieces(pieces: Pieces, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pieces that continue the incoming state, and their columns."""
    piece = np.flatnonzero(pieces.carried)
    column = pieces.rows[piece] % len(pieces.last)
    return torch.from_numpy(piece).to(device), torch.from_numpy(column).to(device)


def opening_state(state: tuple[Tensor, ...], pieces: Pieces) -> list[Tensor]:
    """[N, H] each: the incoming state where a piece continues it, zeros where an episode starts."""
    piece, column = carried_pieces(pieces, state[0].device)
    return [s.new_zeros(len(pieces.carried), s.shape[1]).index_copy(0, piece, s[column]) for s in state]
