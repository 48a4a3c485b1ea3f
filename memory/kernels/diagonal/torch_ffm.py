"""FFM's scan from x to y by torch's operations, on any device: four maps of x, decaying traces, their mix.

Equations and names are those of `memory.ffm`; the traces are those of `memory.kernels.diagonal.decay`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.kernels.diagonal import decay
from palimpsest.memory.kernels.diagonal.ffm_loops import EPSILON


def torch_scan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    mix_bias: Tensor,
    alpha: Tensor,
    omega: Tensor,
    start: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """The scan by torch's operations, all of it in memory at once; differentiable by autograd.

    Args:
        x: [T, B, F].
        weight: [2 m + 2 D, F], rows of value, input gate, output gate and skip.
        bias: [2 m + 2 D].
        mix: [D, 2 c m], columns as the planes of `memory.kernels.diagonal.decay`.
        mix_bias: [D].
        alpha: [m].
        omega: [c].
        start: [T, B] bool.
        state: [B, m, c, 2].

    Returns:
        y [T, B, D] and the last state.
    """
    m, D = len(alpha), len(mix)
    value, gates, skip = functional.linear(x, weight, bias).split([m, m + D, D], -1)
    input_gate, output_gate = gates.sigmoid().split([m, D], -1)
    # under autocast the maps are in half precision; the traces stay in the type of the parameters
    states, last = decay.decay_scan((value * input_gate).to(alpha.dtype), alpha, omega, start, state)
    z = functional.linear(decay.to_planes(states).flatten(2), mix, mix_bias)
    return torch.lerp(skip, functional.layer_norm(z, (D,), eps=EPSILON).to(skip.dtype), output_gate), last
