"""Cumulative memory recurrent unit: units with two states that change only where the input is strong enough.

a_t = W_a x_t + b_a                            candidate
beta_t = |W_b x_t + b_b|                       threshold
z_t = 1 where |a_t| > beta_t, else 0
h_t = h_{t-1} + z_t (alpha sign(a_t) - h_{t-1})
added = W_out h_t

No gradient passes through the h_{t-1} in the bracket: h is a sum of updates, and dh_t / dh_{t-1} is 1 whether or not a
unit changes. x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.refusals import check_integer

THRESHOLDS_AT_START = (0.5, 2.0)
"""Biases of the thresholds before training, uniform: candidates start at about half of that."""

SLOPE = 4.0
"""Where z is differentiated, it is a sigmoid of this slope; sign is a tanh."""


class CMRUState(NamedTuple):
    """State of CMRU."""

    h: Tensor
    """[B, L, D]: alpha or -alpha, and 0 before a unit's first change."""


class CMRU(Stack):
    """Bistable units: each keeps one of two values exactly, for any time, until a candidate passes the threshold.

    The threshold is a hysteresis: a unit that turned positive at +beta turns negative only at -beta. An update
    overwrites, as in the BMRU; there the gradient ends where a unit changes, here it passes, which is what the
    cumulative form is for. The scan is parallel, since z and the sign do not see the state.

    Neither paper's equations could be looked up, only their abstracts. Chosen are: thresholds that depend on the input,
    a learned alpha per unit, the derivatives that stand in for those of z and sign, the map from h to the stream, and
    that a sum of updates leads to the two states of the BMRU, not to counts.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream and units of every layer.
        num_layers: L; 1 or more.
    State:
        h [B, L, D], zeros at first.
    Source: arXiv 2605.11855; BMRU: arXiv 2601.09495.
    """

    state_type = CMRUState

    def __init__(self, input_size: int, output_size: int = 128, num_layers: int = 1) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        output_size = check_integer("output_size", output_size, 1)
        super().__init__(input_size, output_size, [CMRULayer(output_size) for _ in range(num_layers)])


class CMRULayer(Layer):
    """D bistable units."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.candidate = nn.Linear(size, size)
        self.threshold = nn.Linear(size, size)
        self.alpha = nn.Parameter(torch.ones(size))
        self.leave = nn.Linear(size, size)
        nn.init.uniform_(self.threshold.bias, *THRESHOLDS_AT_START)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Neither of the two values."""
        return (self.like.new_zeros(batch_size, len(self.alpha)),)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        z, value = self.update(x)
        before = state[0].detach()
        h = with_gradient_of(torch.where(z > 0, value, before), state[0] + z * (value - before))
        return self.leave(h), (h,)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Values and gradients by `memory.kernels.diagonal_scan`, each with factors of its own."""
        z, value = self.update(x)
        with torch.no_grad():
            held, _ = diagonal_scan(1 - z, z * value, start, state[0])
            before = torch.where(start.unsqueeze(-1), 0, torch.cat([state[0][None], held[:-1]]))
        h = held
        if torch.is_grad_enabled():
            summed, _ = diagonal_scan(z.new_ones(z.shape[-1]), z * (value - before), start, state[0])
            h = with_gradient_of(held, summed)
        self.watched = {"update": z.detach()}
        return self.leave(h), (h[-1],)

    def update(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whether units change, 0 or 1, and what to, [..., D] each."""
        a = self.candidate(x)
        over = a.abs() - self.threshold(x).abs()
        z = with_gradient_of((over > 0).to(a.dtype), (SLOPE * over).sigmoid())
        return z, self.alpha * with_gradient_of(a.sign(), a.tanh())


def with_gradient_of(value: Tensor, other: Tensor) -> Tensor:
    """The numbers of `value`, exactly, with the gradient of `other`, which is finite."""
    return value.detach() + (other - other.detach())
