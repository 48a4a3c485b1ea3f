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
from torch import Tensor

from palimpsest.memory.parts.learners import Learners, answer, surprise
from palimpsest.memory.parts.stack import Stack
from palimpsest.memory.parts.tables import check_tables, times_as_logits, written
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


class TitansLayer(Learners):
    """H memories."""

    state_type = TitansState

    def __init__(self, size: int, heads: int, key_size: int, hidden_size: int, value_size: int) -> None:
        super().__init__(size, heads, key_size, hidden_size, value_size, num_rates=3)
        with torch.no_grad():
            alpha, eta, theta = self.rates.bias.chunk(3)
            alpha.copy_(-times_as_logits(*TIMES_AT_START, heads))
            eta.zero_()
            theta.fill_(-2.2)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The weights to start with, and no momentum."""
        return tuple(each.new_zeros(batch_size, *each.shape) for each in (self.A, self.B) * 2)

    def rates_of(self, x: Tensor) -> tuple[Tensor, ...]:
        """Alpha, theta and eta."""
        alpha, eta, theta = self.rates(x).sigmoid().chunk(3, -1)
        return alpha, theta, eta

    def learn(self, token: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, TitansState]:
        """A step of gradient descent with momentum."""
        q, k, v, *rates = token
        A, B, momentum_A, momentum_B = state
        alpha, theta, eta = (each[..., None, None] for each in rates)
        new = surprise(self.A + A, self.B + B, k, v)
        theta = theta * new.scale.unsqueeze(-1)
        momentum_A = eta * momentum_A - theta * written(k, new.back)
        momentum_B = eta * momentum_B - theta * written(new.hidden, new.slope)
        A, B = (1 - alpha) * A + momentum_A, (1 - alpha) * B + momentum_B
        return answer(self.A + A, self.B + B, q), new.error, TitansState(A, B, momentum_A, momentum_B)
