"""Mamba: a state-space model whose steps, writes and reads depend on the input.

u, z = W x_t                                            [E] each
u = silu(a short causal convolution of u + c)           [E]
d, b_t, c_t = W' u                                      [R], [N], [N]
Delta = softplus(W'' d + c'')                           [E]
S_t = exp(A * Delta) * S_{t-1} + b_t (Delta * u)^T      [N, E], A < 0
added = W_out ((S_t^T c_t + e * u) * silu(z))           [D]

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context
from palimpsest.memory.kernels.diagonal.convolution import short_convolution
from palimpsest.memory.kernels.diagonal.selective import selective_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.refusals import check_integer

DELTA_AT_START = (1e-3, 1e-1)
"""Delta before training, log-uniform: an element then decays by e in 10 / n to 1,000 / n steps, n = 1 .. N."""


class MambaState(NamedTuple):
    """State of Mamba."""

    S: Tensor
    """[B, L, N, E], a table per layer."""
    recent: Tensor
    """[B, L, W - 1, E], the inputs of the convolution before the next one, oldest first; zeros where there are none."""


class Mamba(Stack):
    """Mamba blocks.

    Equations and initial values are those of the paper's section 3 and of the authors' code: A starts at -n in row n,
    Delta log-uniform, R is D / 16 rounded up. What is written is Delta b_t u^T, as in that code, where zero-order hold
    would give another factor. Chosen for speed: one block, and E = D where the paper has 2 D (`expand`). The layer norm
    around a block has no parameters.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L, blocks; 1 or more.
        state_size: N, numbers of state per channel.
        conv_size: W, inputs that the convolution sees, the current one included.
        expand: E / D, channels of a block per feature of the stream.
    State:
        S [B, L, N, E] and recent [B, L, W - 1, E], zeros at first.
    Source: arXiv 2312.00752.
    """

    state_type = MambaState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        state_size: int = 16,
        conv_size: int = 4,
        expand: int = 1,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        state_size = check_integer("state_size", state_size, 1)
        conv_size = check_integer("conv_size", conv_size, 1)
        expand = check_integer("expand", expand, 1)
        output_size = check_integer("output_size", output_size, 1)
        layers = [MambaLayer(output_size, expand * output_size, state_size, conv_size) for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)
        self.conv_size = conv_size

    def context(self) -> Context:
        """The convolution reads its inputs directly; the tables may carry any earlier one."""
        return Context(self.conv_size, math.inf)


class MambaLayer(Layer):
    """One block of E channels."""

    def __init__(self, size: int, channels: int, state_size: int, conv_size: int) -> None:
        super().__init__()
        self.rank = -(-size // 16)
        self.enter = nn.Linear(size, 2 * channels, bias=False)
        bound = 1 / math.sqrt(conv_size)
        self.conv_weight = nn.Parameter(torch.empty(conv_size, channels).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(channels).uniform_(-bound, bound))
        self.select = nn.Linear(channels, self.rank + 2 * state_size, bias=False)
        self.to_delta = nn.Linear(self.rank, channels)
        self.log_rate = nn.Parameter(torch.arange(1.0, state_size + 1).log().unsqueeze(1).repeat(1, channels))
        self.direct = nn.Parameter(torch.ones(channels))
        self.leave = nn.Linear(channels, size, bias=False)
        with torch.no_grad():
            self.to_delta.weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
            # the inverse of softplus
            self.to_delta.bias.uniform_(*map(math.log, DELTA_AT_START)).exp_().expm1_().log_()

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """An empty table, and no inputs before."""
        rates, weight = self.log_rate, self.conv_weight
        return (
            rates.new_zeros(batch_size, *rates.shape),
            weight.new_zeros(batch_size, len(weight) - 1, weight.shape[1]),
        )

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        u, z = self.enter(x).chunk(2, -1)
        seen = torch.cat([state[1], u.unsqueeze(1)], 1)
        u, delta, b, c = self.selected((seen * self.conv_weight.flip(0)).sum(1))
        decay = (-self.log_rate.exp() * delta.unsqueeze(1)).exp()
        S = decay * state[0] + b.unsqueeze(2) * (delta * u).unsqueeze(1)
        return self.gated((c.unsqueeze(1) @ S).squeeze(1), u, z), (S, seen[:, 1:])

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.diagonal.selective` and `memory.kernels.diagonal.convolution`."""
        u, z = self.enter(x).chunk(2, -1)
        convolved, recent = short_convolution(u, self.conv_weight, start, state[1])
        u, delta, b, c = self.selected(convolved)
        read, S = selective_scan(delta, -self.log_rate.exp(), delta * u, b, c, start, state[0])
        self.watched = {"delta": delta.detach()}
        return self.gated(read, u, z), (S, recent)

    def selected(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """U [..., E], Delta [..., E], b [..., N] and c [..., N]."""
        u = functional.silu(convolved + self.conv_bias)
        N = len(self.log_rate)
        d, b, c = self.select(u).split([self.rank, N, N], -1)
        return u, functional.softplus(self.to_delta(d)), b, c

    def gated(self, read: Tensor, u: Tensor, z: Tensor) -> Tensor:
        """What is added to the stream [..., D]."""
        return self.leave((read + self.direct * u) * functional.silu(z))
