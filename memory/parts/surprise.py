"""Borders of events: where an input surprises more than others did lately.

s_t = mean over features of (x_t - x_{t-1})^2                  surprise, from an episode's second input on
border_t: s_t > 1.01 mean + gamma deviation                    of the surprises before it

Mean and deviation are of a moving window: the weight of a surprise is 1 / C for the newest and falls by 1 - 1 / C with
every input. There is no border before there are two surprises. 1.01: what is as large as all before it but for
rounding errors is no surprise.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Surprises(NamedTuple):
    """What is known of an episode's surprises so far."""

    steps: Tensor
    """[B] int64, inputs read in the episode."""
    last: Tensor
    """[B, F], the last one."""
    mean: Tensor
    """[B], the sum of surprises by weight."""
    square: Tensor
    """[B], the sum of their squares by weight."""


def borders(x: Tensor, start: Tensor, before: Surprises, C: int, gamma: float) -> tuple[Tensor, Surprises]:
    """Where events begin, [T, B] bool, and what is known after; no gradient passes.

    Args:
        x: [T, B, F]; T is 1 or more.
        start: [T, B] bool, where an episode begins; there is no border there.
        before: what is known before the sequence.
        C: inputs in the window.
        gamma: how many deviations above the mean a surprise is a border.
    """
    x = x.detach()
    steps, last, mean, square = (each.detach() for each in before)
    surprises = (x - torch.cat([last.unsqueeze(0), x[:-1]])).square().mean(-1)
    found, keep = [], 1 - 1 / C
    for opens, s in zip(start.unbind(), surprises.unbind()):
        steps = steps.masked_fill(opens, 0)
        none = steps == 0
        mean, square, s = (each.masked_fill(none, 0) for each in (mean, square, s))
        # weights sum to 1 - keep^n after n surprises
        total = (1 - torch.as_tensor(keep, dtype=s.dtype) ** (steps - 1)).clamp_min(1e-6)
        usual, spread = mean / total, (square / total - (mean / total).square()).clamp_min(0).sqrt()
        found.append((steps > 2) & (s > 1.01 * usual + gamma * spread))
        mean, square = keep * mean + (1 - keep) * s, keep * square + (1 - keep) * s.square()
        steps = steps + 1
    return torch.stack(found), Surprises(steps, x[-1], mean, square)
