"""Minimal GRU: a gate and a candidate that do not see the state, so that the recurrence is diagonal.

z_t = sigmoid(W_z x_t + b_z)
h_t = (1 - z_t) * h_{t-1} + z_t * (W_h x_t + b_h)

x_t is what the layer reads of the stream, and h_t is what it adds to it: see `memory.parts.stack`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.refusals import check_integer


class MinGRUState(NamedTuple):
    """State of MinGRU."""

    h: Tensor
    """[B, L, D], a mean of the candidates so far."""


class MinGRU(Stack):
    """Minimal GRU, the parallel form of a GRU.

    The equations are those of the paper's section 3.1. Its appendix computes the recurrence in logarithms, for which
    candidates must be positive; the kernel here needs no logarithms, so candidates stay linear. The paper's blocks have
    a normalisation, a residual, and for some tasks a convolution and an MLP around the unit: of these the stack has the
    first two. The paper widens h by a factor of 1 to 4; here h is as wide as the stream. Gate biases start so that the
    time constants of half of the units are log-uniform in 2 to `horizon` steps and those of the others 2 steps, as in
    `gru` (chosen; the paper has torch's).

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream and units of every layer.
        num_layers: L; the gates of a layer see what the layers below remember. 1 or more.
        horizon: longest time constant of the units before training, in steps; 2 or more.
    State:
        h [B, L, D], zeros at first.
    Source: arXiv 2410.01201.
    """

    state_type = MinGRUState

    def __init__(self, input_size: int, output_size: int = 128, num_layers: int = 2, horizon: int = 128) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        horizon = check_integer("horizon", horizon, 2)
        output_size = check_integer("output_size", output_size, 1)
        super().__init__(input_size, output_size, [MinGRULayer(output_size, horizon) for _ in range(num_layers)])


class MinGRULayer(Layer):
    """D units that average their candidates."""

    def __init__(self, size: int, horizon: int) -> None:
        super().__init__()
        self.gate = nn.Linear(size, size)
        self.candidate = nn.Linear(size, size)
        slow = size // 2
        with torch.no_grad():
            # a time constant of tau steps is a gate of 1 / tau
            self.gate.bias[:slow].uniform_(math.log(2), math.log(horizon)).expm1_().log_().neg_()
            self.gate.bias[slow:].zero_()

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """An empty mean."""
        return (self.like.new_zeros(batch_size, self.gate.out_features),)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        z = self.gate(x).sigmoid()
        h = (1 - z) * state[0] + z * self.candidate(x)
        return h, (h,)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.diagonal_scan`."""
        z = self.gate(x).sigmoid()
        h, last = diagonal_scan(1 - z, z * self.candidate(x), start, state[0])
        self.watched = {"update_gate": z.detach()}
        return h, (last,)
