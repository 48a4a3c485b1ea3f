"""S5: a complex diagonal state-space model with many inputs and outputs and learned step sizes.

A = exp(Lambda * Delta)                               [P], complex
B = ((A - 1) / Lambda) * B'                           [P, D], zero-order hold
h_t = A * h_{t-1} + B x_t                             [P], complex
u_t = 2 Re(C h_t) + d * x_t                           [D]
added = gelu(u_t) * sigmoid(W gelu(u_t) + c)          [D]

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.refusals import check_integer

STEPS_AT_START = (1e-3, 1e-1)
"""Delta before training, log-uniform: a trace then decays by e in 20 to 2,000 steps."""


class S5State(NamedTuple):
    """State of S5."""

    h: Tensor
    """[B, L, 2 P], real parts, then imaginary parts."""


class S5(Stack):
    """S5 layers: traces that decay and rotate at learned rates, whatever the input.

    Of each pair of conjugate states one is kept, as in the authors' code. Initial Lambda are the eigenvalues of the
    normal part of HiPPO-LegS, in one block; B' and C are drawn as real matrices in the coordinates of HiPPO and turned
    into those of the eigenvectors. Real parts are minus an exponential, so that no training makes a trace grow (the
    authors' code has an option that clips them instead, off by default). The gated output is the code's "half_glu1";
    the layer norm has no parameters. In reinforcement learning (arXiv 2303.03982) resets are part of the scan, as they
    are here; the code of that paper has four layers of 256, with 128 traces each and a full GLU. The sizes here are
    chosen for speed.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        state_size: P, complex traces per layer; the paper counts their conjugates too. 1 or more.
    State:
        h [B, L, 2 P], zeros at first.
    Source: arXiv 2208.04933; resets inside the scan: arXiv 2303.03982.
    """

    state_type = S5State

    def __init__(self, input_size: int, output_size: int = 128, num_layers: int = 2, state_size: int = 32) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        state_size = check_integer("state_size", state_size, 1)
        output_size = check_integer("output_size", output_size, 1)
        super().__init__(input_size, output_size, [S5Layer(output_size, state_size) for _ in range(num_layers)])


class S5Layer(Layer):
    """P complex traces of all D features, read by all."""

    def __init__(self, size: int, P: int) -> None:
        super().__init__()
        eigenvalues, vectors = hippo(2 * P)
        real = torch.get_default_dtype()
        self.log_decay = nn.Parameter(torch.tensor(np.log(-eigenvalues.real)).to(real))
        self.frequency = nn.Parameter(torch.tensor(eigenvalues.imag).to(real))
        self.log_step = nn.Parameter(torch.empty(P).uniform_(*map(math.log, STEPS_AT_START)))
        basis = torch.tensor(vectors)
        into = basis.mH @ (torch.randn(2 * P, size) / math.sqrt(size)).to(basis)
        out_of = (torch.randn(size, 2 * P) / math.sqrt(2 * P)).to(basis) @ basis
        self.into = nn.Parameter(torch.cat([into.real, into.imag]).to(real))
        """B' [2 P, D], real parts, then imaginary parts."""
        self.out_of = nn.Parameter(torch.cat([out_of.real, -out_of.imag], 1).to(real))
        """C [D, 2 P], real parts, then imaginary parts with a minus."""
        self.direct = nn.Parameter(torch.randn(size))
        self.gate = nn.Linear(size, size)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty traces."""
        return (self.like.new_zeros(batch_size, len(self.into)),)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations, in real numbers."""
        A, B = self.discrete()
        (a, b), (real, imaginary) = A.chunk(2), state[0].chunk(2, -1)
        turned = torch.cat([a * real - b * imaginary, a * imaginary + b * real], -1)
        h = turned + functional.linear(x, B)
        return self.leave(x, h), (h,)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.diagonal_scan`."""
        A, B = self.discrete()
        h, last = diagonal_scan(A, functional.linear(x, B), start, state[0], paired=True)
        rates = (self.log_decay + self.log_step).exp().detach()
        turns = (self.frequency * self.log_step.exp()).detach().abs()
        self.watched = {"half_life_steps": math.log(2) / rates, "period_steps": 2 * math.pi / turns.clamp(min=1e-6)}
        return self.leave(x, h), (last,)

    def discrete(self) -> tuple[Tensor, Tensor]:
        """A [2 P] and B [2 P, D] for steps of Delta; real parts, then imaginary parts."""
        step = self.log_step.exp()
        r, w = -self.log_decay.exp(), self.frequency
        size, angle = (r * step).exp(), w * step
        a, b = size * angle.cos(), size * angle.sin()
        # (A - 1) / Lambda
        square = r * r + w * w
        real, imaginary = ((a - 1) * r + b * w) / square, (b * r - (a - 1) * w) / square
        into_r, into_i = self.into.chunk(2)
        real, imaginary = real.unsqueeze(1), imaginary.unsqueeze(1)
        into = torch.cat([real * into_r - imaginary * into_i, real * into_i + imaginary * into_r])
        return torch.cat([a, b]), into

    def leave(self, x: Tensor, h: Tensor) -> Tensor:
        """What is added to the stream [..., D], from traces [..., 2 P]."""
        u = functional.gelu(2 * functional.linear(h, self.out_of) + self.direct * x)
        return u * self.gate(u).sigmoid()


def hippo(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues [size / 2] with negative frequency of the normal part of HiPPO-LegS, and eigenvectors as columns.

    The normal part is S - 1/2 with S antisymmetric, S[n, k] = -sqrt(n + 1/2) sqrt(k + 1/2) below the diagonal.
    """
    root = np.sqrt(np.arange(size) + 0.5)
    lower = -np.tril(np.outer(root, root), -1)
    frequencies, vectors = np.linalg.eigh(-1j * (lower - lower.T))
    return -0.5 + 1j * frequencies[: size // 2], vectors[:, : size // 2]
