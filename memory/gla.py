"""Gated linear attention: every key's row of a table decays at a rate that the input chooses.

q, k, v, g = W x_t                                          [H, K], [H, K], [H, V], [H V]
alpha = sigmoid(W_2 W_1 x_t + b)^(1 / 16)                   [H, K], W_1 of rank 16; or fixed
S_t = alpha * S_{t-1} + k v^T
added = W_out (LN(S_t^T q / sqrt(K)) * silu(g))             LN per head, without parameters

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.kernels.outer.scan import outer_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.tables import check_tables, normal_per_head, outer_weights, read, times_as_logits, written
from palimpsest.refusals import check_choice, check_integer

RANK = 16
"""Rank of the map to the decays."""

POWER = 1 / 16
"""The decay is a sigmoid to this power, so that it lies near 1."""

TIMES_AT_START = (2.0, 500.0)
"""Steps: shortest and longest time constant of a head's keys before training; log-uniform between them."""


class GLAState(NamedTuple):
    """State of GLA."""

    S: Tensor
    """[B, L, H, K, V]."""


class GLA(Stack):
    """Gated linear attention, and with fixed decays RetNet's retention.

    The equations are those of the paper's section 4.4. The initial decays are chosen: the paper's biases start near 0,
    at which a key is forgotten within 23 steps; here the keys of a head have time constants from 2 to 500 steps. The
    norm of what is read is a layer norm, as in the paper, with a larger epsilon (`memory.parts.tables`); the authors'
    code has an RMS norm with a gain. A layer here has no MLP. With `decay="fixed"` head h keeps 1 - 2^(-5 - h) of
    everything, as in RetNet, whose rotations of queries and keys are left out.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_heads: H, tables per layer.
        key_size: K, rows of a table.
        value_size: V, columns of a table.
        decay: "learned", by key and input, or "fixed", by head.
    State:
        S [B, L, H, K, V], zeros at first.
    Source: arXiv 2312.06635; fixed decays: arXiv 2307.08621.
    """

    state_type = GLAState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 32,
        decay: str = "learned",
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        sizes = check_tables(num_heads, key_size, value_size)
        decay = check_choice("decay", decay, ("learned", "fixed"))
        output_size = check_integer("output_size", output_size, 1)
        layers = [GLALayer(output_size, *sizes, decay == "learned") for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)


class GLALayer(Layer):
    """H tables."""

    def __init__(self, size: int, heads: int, key_size: int, value_size: int, learned: bool) -> None:
        super().__init__()
        self.sizes = heads, key_size, value_size
        self.query = nn.Linear(size, heads * key_size, bias=False)
        self.key = nn.Linear(size, heads * key_size, bias=False)
        self.value = nn.Linear(size, heads * value_size, bias=False)
        self.gate = nn.Linear(size, heads * value_size)
        self.leave = nn.Linear(heads * value_size, size, bias=False)
        self.decay: nn.Module | None = None
        if learned:
            to_decay = nn.Linear(RANK, heads * key_size)
            with torch.no_grad():
                to_decay.bias.copy_(times_as_logits(*TIMES_AT_START, key_size, POWER).repeat(heads))
            self.decay = nn.Sequential(nn.Linear(size, RANK, bias=False), to_decay)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty tables."""
        return (self.like.new_zeros(batch_size, *self.sizes),)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        q, k, v, alpha = self.tokens(x)
        S = (alpha if alpha.ndim == k.ndim else alpha.unsqueeze(-1)).unsqueeze(-1) * state[0] + written(k, v)
        return self.leaving(read(S, q), x), (S,)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.outer_scan`."""
        q, k, v, alpha = self.tokens(x)
        found, S = outer_scan(k, v, alpha, q, start, state[0])
        self.watched = {"keep": alpha.detach().flatten(2)}
        return self.leaving(found, x), (S,)

    def read_weights(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """The weights of values in what is read, before its norm."""
        q, k, _, alpha = self.tokens(x)
        return outer_weights(k, alpha, q, start)

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and keys [..., H, K], values [..., H, V], and decays [..., H, K] or, fixed, [..., H]."""
        H, K, _ = self.sizes
        q, k, v = (map_(x).unflatten(-1, (H, -1)) for map_ in (self.query, self.key, self.value))
        if self.decay is None:
            fixed = 1 - 2.0 ** -(5 + torch.arange(H, dtype=x.dtype, device=x.device))
            return q / math.sqrt(K), k, v, fixed.expand(*x.shape[:-1], H)
        return q / math.sqrt(K), k, v, (functional.logsigmoid(self.decay(x)) * POWER).exp().unflatten(-1, (H, K))

    def leaving(self, found: Tensor, x: Tensor) -> Tensor:
        """What is added to the stream [..., D], from what is read [..., H, V]."""
        return self.leave(normal_per_head(found) * functional.silu(self.gate(x)))
