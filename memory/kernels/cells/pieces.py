"""A batch of sequences cut where episodes start, so that the pieces run side by side and no reset is left inside one.

The pieces come longest first:

    t        0 1 2 3 4        pieces  c c c c        c: row 1, from 1
    row 0    a a a b b                a a a          a: row 0, from 0 on the incoming state
    row 1    d c c c c                b b            b: row 0, from 3
    starts at (3, 0), (1, 1)          d              d: row 1, from 0 on the incoming state

Step s of all pieces is one matrix product over those longer than s, which are always the first ones. There are only as
many steps as the longest piece has.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import refuse_tracing


class Pieces(NamedTuple):
    """P pieces of T * B inputs. Packed inputs are ordered by their step in the piece, then by piece, longest first."""

    order: Tensor
    """[T * B] int64, which input of x [T * B, F] each packed one is."""
    active: Tensor
    """[length of the longest] int64, how many pieces are longer than s."""
    continuing: tuple[Tensor, Tensor]
    """The pieces that go on from the incoming state, and their rows, int64 each."""
    last: Tensor
    """[B] int64, the piece that ends each row."""


def cut(start: Tensor) -> Pieces:
    """Cut at `start` [T, B] bool, T and B of 1 or more."""
    refuse_tracing()
    T, B = start.shape
    opens = start.t().clone()
    opens[:, 0] = True
    first = opens.flatten().nonzero()[:, 0]  # of every piece, in the order of rows, then steps
    length = first.diff(append=first.new_tensor([T * B]))
    piece = length.argsort(descending=True, stable=True).argsort()  # their places, longest first
    step = torch.arange(T * B, device=start.device) - first.repeat_interleave(length)
    packed = (step * len(first) + piece.repeat_interleave(length)).argsort()
    row, begin = first // T, first % T
    goes_on = (begin == 0) & ~start[0, row]
    return Pieces(
        order=packed % T * B + packed // T,
        active=step.bincount(),
        continuing=(piece[goes_on], row[goes_on]),
        last=piece[opens.sum(1).cumsum(0) - 1],
    )
