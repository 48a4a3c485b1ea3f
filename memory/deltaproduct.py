"""DeltaProduct: tables under the delta rule that take several Householder steps per token.

q = W_q x_t,  k_j, v_j = W_j x_t                            [H, K], [H, K], [H, V]; j = 1 .. n
q, k_j divided by their length, after silu                  silu on v_j too
beta_j = 2 sigmoid(w_j x_t + b_j),  alpha = sigmoid(w x_t + b)       [H]
S <- alpha S_{t-1}
S <- S + beta_j k_j (v_j - S^T k_j)^T                       for j = 1 .. n; after the last S is S_t
added = W_out (LN(S_t^T q) * silu(g x_t))                   LN per head, without parameters

Without what is written, S_t = (I - beta_n k_n k_n^T) .. (I - beta_1 k_1 k_1^T) alpha S_{t-1}: n reflections make a
rotation, which a single one cannot. x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.kernels.delta.naive import EPS
from palimpsest.memory.kernels.delta.scan import gated_delta_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.tables import check_tables, normal_per_head, read, times_as_logits, written
from palimpsest.refusals import check_integer

TIMES_AT_START = (2.0, 500.0)
"""Steps: shortest and longest time constant of a layer's heads before training; log-uniform between them."""


class DeltaProductState(NamedTuple):
    """State of DeltaProduct."""

    S: Tensor
    """[B, L, H, K, V]."""


class DeltaProduct(Stack):
    """Gated DeltaProduct.

    A token is n micro-steps of the gated delta rule; the decay acts once, before the first. Keys, values and beta of
    each micro-step have maps of their own. From the paper: silu, unit lengths and beta up to 2, which lets reflections
    flip signs. Chosen here: a decay that is a sigmoid, whose initial time constants lie between 2 and 500 steps, and a
    layer norm of what is read (`memory.parts.tables`). The short convolutions and the MLP of the paper's block are left
    out.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_householder: n, steps per token; 1 is Gated DeltaNet.
        num_heads: H, tables per layer.
        key_size: K, rows of a table.
        value_size: V, columns of a table.
    State:
        S [B, L, H, K, V], zeros at first.
    Source: arXiv 2502.10297.
    """

    state_type = DeltaProductState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_householder: int = 2,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 16,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        num_householder = check_integer("num_householder", num_householder, 1)
        sizes = check_tables(num_heads, key_size, value_size)
        output_size = check_integer("output_size", output_size, 1)
        layers = [DeltaProductLayer(output_size, num_householder, *sizes) for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)


class DeltaProductLayer(Layer):
    """H tables."""

    def __init__(self, size: int, householder: int, heads: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.householder = householder
        self.sizes = heads, key_size, value_size
        self.query = nn.Linear(size, heads * key_size, bias=False)
        self.key = nn.Linear(size, householder * heads * key_size, bias=False)
        self.value = nn.Linear(size, householder * heads * value_size, bias=False)
        self.beta = nn.Linear(size, householder * heads)
        self.decay = nn.Linear(size, heads)
        self.gate = nn.Linear(size, heads * value_size)
        self.leave = nn.Linear(heads * value_size, size, bias=False)
        with torch.no_grad():
            self.beta.bias.zero_()
            self.decay.bias.copy_(times_as_logits(*TIMES_AT_START, heads))

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty tables."""
        return (self.like.new_zeros(batch_size, *self.sizes),)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        q, k, v, alpha, beta = self.tokens(x)
        q, k = (each * torch.rsqrt(each.square().sum(-1, keepdim=True) + EPS) for each in (q, k))
        S = alpha[..., None, None] * state[0]
        for k_j, v_j, beta_j in zip(k.unbind(1), v.unbind(1), beta.unbind(1)):
            S = S + written(k_j, beta_j.unsqueeze(-1) * (v_j - read(S, k_j)))
        return self.leaving(read(S, q), x), (S,)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.gated_delta_scan` over n T steps; the last of each token's n is read."""
        q, k, v, alpha, beta = self.tokens(x)
        self.watched = {"keep": alpha.detach(), "rewrite": beta.detach().flatten(2)}
        n = self.householder
        k, v, beta = (each.transpose(1, 2).flatten(0, 1) for each in (k, v, beta))
        # the first of a token's steps decays and resets, the others do neither
        alpha, start = (
            functional.pad(each.unsqueeze(1), (0, 0) * (each.ndim - 1) + (0, n - 1), value=other).flatten(0, 1)
            for each, other in ((alpha, 1), (start, 0))
        )
        q = q.repeat_interleave(n, 0)
        found, S = gated_delta_scan(q, k, v, alpha, beta, start, state[0], normalise=True)
        return self.leaving(found[n - 1 :: n], x), (S,)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Q [..., H, K], k [..., n, H, K], v [..., n, H, V], alpha [..., H] and beta [..., n, H]."""
        n, (H, K, V) = self.householder, self.sizes
        q = functional.silu(self.query(x)).unflatten(-1, (H, K))
        k = functional.silu(self.key(x)).unflatten(-1, (n, H, K))
        v = functional.silu(self.value(x)).unflatten(-1, (n, H, V))
        return q, k, v, self.decay(x).sigmoid(), 2 * self.beta(x).sigmoid().unflatten(-1, (n, H))

    def leaving(self, found: Tensor, x: Tensor) -> Tensor:
        """What is added to the stream [..., D], from what is read [..., H, V]."""
        return self.leave(normal_per_head(found) * functional.silu(self.gate(x)))
