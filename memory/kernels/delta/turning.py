"""Queries and keys turned by time, so that a read can point at a lag.

R = K // 4 pairs of the K components of a query or a key, (x_i, x_{i + R}) for i < R, are turned by the angle
2 pi t / P_i, t the steps since the memory began; the other components stand still:

    x_i       <- cos x_i - sin x_{i + R}
    x_{i + R} <- sin x_i + cos x_{i + R}

A key of step s meets a query of step t, turned alike, at the angle 2 pi (t - s) / P_i: what is read depends on the lag.
What stands still is for what is to be held for ever.

With K // 2 pairs of nominal periods 2, 4, 8, ... steps, the slower half turns: 32, 64, 128 and 256 steps for K = 16. No
period is longer than 256; with K of 20 or more, the same four come again. With K below 4 nothing turns. All periods
divide the longest one, so that t modulo that period gives every angle exactly, however long an episode is.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import literally
from torch import Tensor

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED
from palimpsest.memory.kernels.arithmetic.vectors import load, store

LONGEST = 8
"""Binary logarithm of the longest period that is ever used, in steps."""


def periods(key_size: int) -> list[int]:
    """P_i of each turning pair, in steps."""
    number, longest = key_size // 4, min(key_size // 2, LONGEST)
    different = min(number, LONGEST // 2)
    return [2 ** (longest - different + 1 + i % different) for i in range(number)]


def period(key_size: int) -> int:
    """P, the longest of the periods, in steps: a power of two; 2 where nothing turns."""
    return max(periods(key_size), default=2)


def turns(key_size: int) -> np.ndarray:
    """cos, then sin, of every angle at the steps 0 to P - 1, [P, 2 R] float64."""
    found = periods(key_size)
    steps = np.arange(period(key_size)).reshape(-1, 1)
    angles = 2 * np.pi * (steps % np.array(found, int) / np.array(found, int))
    return np.concatenate((np.cos(angles), np.sin(angles)), 1)


def turn(x: Tensor, times: Tensor, turns: Tensor) -> Tensor:
    """Turn the vectors x [T, B, H, K] by the angles at times [T, B] int64, by the table of `turns`."""
    R = turns.shape[1] // 2
    cos, sin = turns[times % len(turns)].to(x.dtype).unsqueeze(2).split((R, R), -1)
    one, other, still = x.split((R, R, x.shape[-1] - 2 * R), -1)
    return torch.cat((cos * one - sin * other, sin * one + cos * other, still), -1)


@njit(**INLINED)
def turn_in_place(K, R, back, numbers, at, turns, time):
    """`turn` the query [K] at numbers[at] and the key behind it, or turn them back: the gradient of turning."""
    literally(K)
    literally(R)
    angle = (time & (len(turns) - 1)) * 2 * R  # the period is a power of two
    cos, sin = load(turns, angle, R), load(turns, angle + R, R)
    for i in (at, at + K):
        one, other = load(numbers, i, R), load(numbers, i + R, R)
        if back:
            store(cos * one + sin * other, numbers, i)
            store(cos * other - sin * one, numbers, i + R)
        else:
            store(cos * one - sin * other, numbers, i)
            store(cos * other + sin * one, numbers, i + R)
