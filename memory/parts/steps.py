"""Steps of an episode, and numbers that look random and are a function of a step and of a saved salt.

With such numbers an update sees what acting saw.
"""

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


def bits_of(salt: Tensor, t: Tensor) -> Tensor:
    """The lower 63 bits of output t of SplitMix64 with the seed `salt`.

    Args:
        salt: one int64.
        t: int64 of any shape, 0 or more.

    Returns:
        int64 of t's shape, 0 or more.
    Source: Steele, Lea and Flood 2014, Fast Splittable Pseudorandom Number Generators.
    """
    # int64 products wrap around as unsigned ones do; shifts copy the sign bit, and the masks remove the copies
    z = salt + (t + 1) * _as_signed(0x9E3779B97F4A7C15)
    z = (z ^ (z >> 30 & (1 << 34) - 1)) * _as_signed(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27 & (1 << 37) - 1)) * _as_signed(0x94D049BB133111EB)
    z = z ^ (z >> 31 & (1 << 33) - 1)
    return z & (1 << 63) - 1


def gumbel(salt: Tensor, t: Tensor, count: int) -> Tensor:
    """`count` numbers of Gumbel's distribution for each of t [...] int64: [..., count] float64."""
    which = t.unsqueeze(-1) * count + torch.arange(count, device=t.device)
    # 52 bits and a half: a float64 holds them, and it is neither 0 nor 1
    uniform = ((bits_of(salt, which) >> 11).double() + 0.5) / (1 << 52)
    return -(-uniform.log()).log()


def _as_signed(bits: int) -> int:
    """The int64 with the same bits as an unsigned 64-bit number."""
    return bits - (bits >> 63 << 64)
