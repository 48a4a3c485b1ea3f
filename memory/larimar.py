"""Larimar: a table that is written in one shot by least squares, and forgets what stands under an address.

w, r = W_w x_t, W_r x_t, of unit length;  z = W_z x_t       addresses to write and to read [N], encoding [W]
b, f = sigmoid(W_b x_t + c)                                 how much is written and forgotten, numbers
P = I - f w w^T
M <- M_0 + P (M - M_0)                                      selective forgetting: back to the prior,
U <- I - P (I - U) P                                            whose covariance U is I
g = U w / (w^T U w + (1 - b + e) / b)                       the gain, for an encoding with this noise; e = 1e-3
M <- M + g (z - M^T w)^T                                    one-shot write
U <- U - g (U w)^T
added = W_out (LN(M^T r) * silu(W_g x_t))                   LN without parameters

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.kernels.arithmetic.dispatch import in_full_precision
from palimpsest.memory.kernels.delta.naive import EPS
from palimpsest.memory.parts.learners import square
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.tables import normal_per_head
from palimpsest.refusals import check_integer

NOISE = 1e-3
"""E, the smallest variance of an encoding's noise, in units of the prior's."""


class LarimarState(NamedTuple):
    """State of Larimar."""

    S: Tensor
    """[B, L, N, N + W]: I - U, what is known of each address, beside M - M_0."""


class Larimar(Stack):
    """The memory of Larimar, in its sequential form.

    Without forgetting, M is the solution of a regularised least-squares problem over all that was written, as in the
    paper's sequential writing: C_t = C_{t-1} + a w w^T and M_t = M_{t-1} + a C_t^{-1} w (z - M_{t-1}^T w)^T, with U the
    inverse of C and a = b / (1 - b + e). The authors' code has the same update beside one that writes a whole episode
    at once by a pseudo-inverse.

    Forgetting differs. The paper writes a fact again with a = -1. This needs the very fact, and C is no longer positive
    where that was never written. Here what stands under an address goes back to the prior, so that U stays between 0
    and I whatever is forgotten. An address is a learned linear map of the input; in the paper it is the encoding times
    the pseudo-inverse of a fixed table, a linear map too. What is read is not drawn: the paper adds noise.

    Chosen: the address of a step is forgotten before it is written, b and f start at sigmoid(-1) and sigmoid(-2), what
    is read passes a norm and a gate (`memory.parts.tables`).

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_slots: N, rows of a table.
        slot_size: W, columns of a table.
    State:
        S [B, L, N, N + W], zeros at first.
    Source: arXiv 2403.11901 and its public code; Kanerva machine: arXiv 1804.01756.
    """

    state_type = LarimarState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_slots: int = 32,
        slot_size: int = 32,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        num_slots = check_integer("num_slots", num_slots, 1)
        slot_size = check_integer("slot_size", slot_size, 1)
        output_size = check_integer("output_size", output_size, 1)
        super().__init__(
            input_size, output_size, [LarimarLayer(output_size, num_slots, slot_size) for _ in range(num_layers)]
        )


class LarimarLayer(Layer):
    """A table."""

    def __init__(self, size: int, slots: int, width: int) -> None:
        super().__init__()
        self.address = nn.Linear(size, 2 * slots, bias=False)
        """To write and to read."""
        self.encode = nn.Linear(size, width, bias=False)
        self.rates = nn.Linear(size, 2)
        """B and f before the sigmoid."""
        self.prior = nn.Parameter(torch.randn(slots, width) * slots**-0.5)
        """M_0."""
        self.gate = nn.Linear(size, width)
        self.leave = nn.Linear(width, size, bias=False)
        with torch.no_grad():
            self.rates.bias.copy_(torch.tensor([-1.0, -2.0]))

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The prior: nothing is known."""
        N, W = self.prior.shape
        return (self.prior.new_zeros(batch_size, N, N + W),)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        token = self.tokens(x)
        found, _, S = self.one(token, state[0])
        return self.leaving(found, token[1], x), (S,)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Step by step; the maps of the inputs are done for all steps at once."""
        tokens = self.tokens(x)
        (S,), reads, known = state, [], []
        for opens, *token in zip(start.unbind(), *(each.unbind() for each in tokens)):
            found, before, S = self.one(tuple(token), torch.where(opens[:, None, None], 0, S))
            reads.append(found)
            known.append(before)
        b, forgotten = tokens[3:]
        self.watched = {"known": torch.stack(known).detach(), "write": b.detach(), "forget": forgotten.detach()}
        return self.leaving(torch.stack(reads), tokens[1], x), (S,)

    def tokens(self, x: Tensor) -> tuple[Tensor, ...]:
        """The addresses w and r [..., N], z - M_0^T w [..., W], and b and f [..., 1]."""
        w, r = (each * torch.rsqrt(square(each) + EPS) for each in self.address(x).chunk(2, -1))
        return w, r, self.encode(x) - w @ self.prior, *self.rates(x).sigmoid().split(1, -1)

    @in_full_precision
    def one(self, token: tuple[Tensor, ...], S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(M - M_0)^T r [B, W] after the step, how much was known of w [B, 1], and the next state.

        With V = I - U the updates are three products of two vectors:
        V - f (w h^T + h w^T) + g (U w)^T and M - f w (M^T w)^T + g (z - M^T w)^T, with h = V w - f/2 (w^T V w) w.
        """
        w, r, z, b, f = token
        N, W = self.prior.shape
        under = (w.unsqueeze(1) @ S).squeeze(1)
        at, m = under.split([N, W], -1)
        known = (w * at).sum(-1, keepdim=True)
        h = at - f / 2 * known * w
        # after forgetting; w has unit length to within EPS
        left = 1 - f * square(w)
        free = w - left * (at - f * known * w)
        gain = b * free / (b * (w * free).sum(-1, keepdim=True) + 1 - b + NOISE)
        columns = torch.stack([-f * w, -f * h, gain], -1)
        rows = torch.stack(
            [torch.cat([h, m], -1), torch.cat([w, torch.zeros_like(m)], -1), torch.cat([free, z - left * m], -1)], -2
        )
        S = torch.baddbmm(S, columns, rows)
        return (r.unsqueeze(1) @ S[..., N:]).squeeze(1), known, S

    def leaving(self, found: Tensor, r: Tensor, x: Tensor) -> Tensor:
        """What is added to the stream [..., D], from (M - M_0)^T r [..., W]."""
        found = (found + r @ self.prior).unsqueeze(-2)
        return self.leave(normal_per_head(found) * functional.silu(self.gate(x)))
