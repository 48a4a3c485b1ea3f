"""Titans: a memory that is a small network, whose weights learn while it reads, by gradient descent with momentum.

q, k = W x_t, silu, of unit length;  v = silu(W_v x_t)              per head: [K], [K], [V]
f(k) = B^T silu(A^T k)                                              the memory; A [K, E] and B [E, V] are its weights
alpha, eta, theta = sigmoid(w x_t + b)                              [H] each
G = the gradient of |f(k) - v|^2 / 2 with respect to (A, B)         surprise
S <- eta S - theta G / sqrt(1 + |G|^2)                              momentum
(A, B) <- (A, B)_0 + (1 - alpha) ((A, B) - (A, B)_0) + S            forgetting
added = W_out (LN(f(q)) * silu(W_g x_t))                            f after the step; LN per head, without parameters

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import reset
from palimpsest.memory.kernels.delta.naive import EPS
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.tables import check_tables, normal_per_head, read, times_as_logits, written
from palimpsest.refusals import check_integer

TIMES_AT_START = (10.0, 500.0)
"""Steps: shortest and longest time constant of forgetting of a layer's heads before training; log-uniform."""


class TitansState(NamedTuple):
    """State of Titans."""

    A: Tensor
    """[B, L, H, K, E], how far the inner weights are from those they start with."""
    B: Tensor
    """[B, L, H, E, V], how far the outer weights are."""
    momentum_A: Tensor
    """[B, L, H, K, E]."""
    momentum_B: Tensor
    """[B, L, H, E, V]."""


class Titans(Stack):
    """The neural memory module of Titans, alone (LMM), with two layers per memory.

    The weights that a memory starts with are learned, and forgetting leads back to them. In the paper it leads to zero,
    where both gradients of two layers vanish and nothing is learned any more. The gradient is taken at every input; the
    paper takes those of a chunk at the weights before it, to compute them at once. From the paper: silu, unit lengths,
    and alpha, eta and theta that depend on the input.

    Chosen here: one of each per head, their values before training (theta .1, eta .5, forgetting in 10 to 500 steps),
    half of the squared error, and the norm of what is read (`memory.parts.tables`). A surprise is scaled to a length
    below 1: without this, weights grow without bound and become NaN where theta is near 1 and values are large. The
    short convolutions are left out, and so are the attention and the persistent tokens that the paper sets beside this
    memory.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_heads: H, memories per layer.
        key_size: K, what a memory reads.
        hidden_size: E, its hidden units.
        value_size: V, what it answers.
    State:
        `TitansState`, zeros at first.
    Source: arXiv 2501.00663.
    """

    state_type = TitansState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        key_size: int = 16,
        hidden_size: int = 16,
        value_size: int = 16,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        heads, key_size, value_size = check_tables(num_heads, key_size, value_size)
        hidden_size = check_integer("hidden_size", hidden_size, 1)
        output_size = check_integer("output_size", output_size, 1)
        layers = [TitansLayer(output_size, heads, key_size, hidden_size, value_size) for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)


class TitansLayer(Layer):
    """H memories."""

    def __init__(self, size: int, heads: int, key_size: int, hidden_size: int, value_size: int) -> None:
        super().__init__()
        self.query = nn.Linear(size, heads * key_size, bias=False)
        self.key = nn.Linear(size, heads * key_size, bias=False)
        self.value = nn.Linear(size, heads * value_size, bias=False)
        self.rates = nn.Linear(size, 3 * heads)
        """Alpha, eta and theta before the sigmoid."""
        self.gate = nn.Linear(size, heads * value_size)
        self.leave = nn.Linear(heads * value_size, size, bias=False)
        self.A = nn.Parameter(torch.randn(heads, key_size, hidden_size) * key_size**-0.5)
        self.B = nn.Parameter(torch.randn(heads, hidden_size, value_size) * hidden_size**-0.5)
        with torch.no_grad():
            alpha, eta, theta = self.rates.bias.chunk(3)
            alpha.copy_(-times_as_logits(*TIMES_AT_START, heads))
            eta.zero_()
            theta.fill_(-2.2)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The weights to start with, and no momentum."""
        return tuple(each.new_zeros(batch_size, *each.shape) for each in (self.A, self.B) * 2)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        found, _, after = self.one(self.tokens(x), state)
        return self.leaving(found, x), after

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Step by step, all rows and heads at once; the maps of the inputs are done for all steps at once."""
        tokens = self.tokens(x)
        fresh, now = TitansState(*self.initial_state(start.shape[1])), TitansState(*state)
        reads, errors = [], []
        for opens, *token in zip(start.unbind(), *(each.unbind() for each in tokens)):
            found, error, now = self.one(tuple(token), reset(now, fresh, opens))
            reads.append(found)
            errors.append(error)
        self.watched = {
            "surprise": torch.stack(errors).detach().square().sum(-1),
            "keep": 1 - tokens[3].detach(),
            "rate": tokens[5].detach(),
        }
        return self.leaving(torch.stack(reads), x), now

    def tokens(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries and keys [..., H, K], values [..., H, V], and alpha, eta and theta [..., H]."""
        heads = len(self.A)
        q, k, v = (functional.silu(map_(x)).unflatten(-1, (heads, -1)) for map_ in (self.query, self.key, self.value))
        q, k = (each * torch.rsqrt(square(each) + EPS) for each in (q, k))
        return q, k, v, *self.rates(x).sigmoid().chunk(3, -1)

    def one(self, token: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, TitansState]:
        """What is read and the error before, [B, H, V] each, and the next state."""
        q, k, v, *rates = token
        A, B, momentum_A, momentum_B = state
        alpha, eta, theta = (each[..., None, None] for each in rates)
        inner, outer = self.A + A, self.B + B
        a = read(inner, k)
        gate = a.sigmoid()
        hidden = a * gate
        error = read(outer, hidden) - v
        back = (outer @ error.unsqueeze(-1)).squeeze(-1) * (gate + hidden * (1 - gate))
        # both gradients are products of two vectors, and so are their lengths
        length = square(k) * square(back) + square(hidden) * square(error)
        theta = theta * torch.rsqrt(1 + length).unsqueeze(-1)
        momentum_A = eta * momentum_A - theta * written(k, back)
        momentum_B = eta * momentum_B - theta * written(hidden, error)
        A, B = (1 - alpha) * A + momentum_A, (1 - alpha) * B + momentum_B
        found = read(self.B + B, functional.silu(read(self.A + A, q)))
        return found, error, TitansState(A, B, momentum_A, momentum_B)

    def leaving(self, found: Tensor, x: Tensor) -> Tensor:
        """What is added to the stream [..., D], from what is read [..., H, V]."""
        return self.leave(normal_per_head(found) * functional.silu(self.gate(x)))


def square(x: Tensor) -> Tensor:
    """The squared length [..., 1] of vectors [..., N]."""
    return x.square().sum(-1, keepdim=True)
