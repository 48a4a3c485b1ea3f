"""mLSTM: a table per head with exponential gates, and a normaliser.

q, k, v = W x_t                                             [H, K], [H, K], [H, V]
i = exp(w_i x_t + b_i),  f = sigmoid(w_f x_t + b_f)         [H]
C_t = f C_{t-1} + i k v^T / sqrt(K)                         [H, K, V]
n_t = f n_{t-1} + i k / sqrt(K)                             [H, K]
r = C_t^T q / max(|n_t . q|, 1)                             [H, V]
added = W_out (LN(r) * sigmoid(W_o x_t + b_o))              LN per head, without parameters

Stable: C and n are kept divided by exp(m), m_t = max(log f + m_{t-1}, log i), and the 1 becomes exp(-m).
x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.kernels.diagonal.diagonal import diagonal_scan
from palimpsest.memory.kernels.diagonal.torch_diagonal import max_plus_scan
from palimpsest.memory.kernels.outer.scan import outer_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.tables import check_tables, normal_per_head, outer_weights, read, written
from palimpsest.refusals import check_integer

FORGET_AT_START = (3.0, 6.0)
"""Biases of the forget gates of the first and the last head before training: time constants of 21 and 404 steps."""

MOST_EXPONENT = 80
"""exp(-m) is taken for at most this, that it does not overflow."""


class MLSTMState(NamedTuple):
    """State of MLSTM."""

    C: Tensor
    """[B, L, H, K, V], the tables, divided by exp(m)."""
    n: Tensor
    """[B, L, H, K], the normalisers, divided by exp(m)."""
    m: Tensor
    """[B, L, H], the largest logarithm of what an input so far weighs."""


class MLSTM(Stack):
    """The matrix LSTM of xLSTM.

    The equations are the paper's (19) to (27), with the stable form of its appendix; where that leaves a choice for f,
    the sigmoid, as in the authors' code. m starts at 0, as there. Nothing that is given out depends on it, so no
    gradient is made for it: gradients of C and n are those at a given m. From the code, too, come the biases of the
    forget gates and the norm of what is read, per head; its epsilon is larger here (`memory.parts.tables`). The paper's
    block widens the stream and has a short convolution before queries and keys and a skip around the table: they are
    left out.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_heads: H, tables per layer.
        key_size: K, rows of a table.
        value_size: V, columns of a table.
    State:
        C [B, L, H, K, V], n [B, L, H, K] and m [B, L, H], zeros at first.
    Source: arXiv 2405.04517.
    """

    state_type = MLSTMState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 32,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        sizes = check_tables(num_heads, key_size, value_size)
        output_size = check_integer("output_size", output_size, 1)
        super().__init__(input_size, output_size, [MLSTMLayer(output_size, *sizes) for _ in range(num_layers)])


class MLSTMLayer(Layer):
    """H tables with their normalisers."""

    def __init__(self, size: int, heads: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.sizes = heads, key_size, value_size
        self.query = nn.Linear(size, heads * key_size)
        self.key = nn.Linear(size, heads * key_size)
        self.value = nn.Linear(size, heads * value_size)
        self.gates = nn.Linear(size, 2 * heads)
        """log i, and f before the sigmoid."""
        self.output_gate = nn.Linear(size, heads * value_size)
        self.leave = nn.Linear(heads * value_size, size, bias=False)
        with torch.no_grad():
            self.gates.bias[:heads].normal_(0, 0.1)
            self.gates.bias[heads:] = torch.linspace(*FORGET_AT_START, heads)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty tables."""
        H, K, V = self.sizes
        zeros = self.like.new_zeros
        return zeros(batch_size, H, K, V), zeros(batch_size, H, K), zeros(batch_size, H)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        (q, k, v), (log_i, log_f), (C, n, m) = self.tokens(x), self.log_gates(x), state
        new = torch.maximum(log_f + m, log_i).detach()
        keep, write = (log_f + m - new).exp().unsqueeze(-1), (log_i - new).exp().unsqueeze(-1)
        C, n = keep.unsqueeze(-1) * C + written(write * k, v), keep * n + write * k
        return self.leaving(read(C, q), n, new, q, x), (C, n, new)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.outer_scan` and `memory.kernels.diagonal_scan`."""
        (q, k, v), (log_i, log_f), (C, n, m) = self.tokens(x), self.log_gates(x), state
        k, keep, new = self.scaled(k, log_i, log_f, start, m)
        found, C = outer_scan(k, v, keep, q, start, C)
        normaliser, last = diagonal_scan(keep.flatten(2), k.flatten(2), start, n.flatten(1))
        self.watched = {"log_input_gate": log_i.detach(), "keep": log_f.detach().exp()}
        return self.leaving(found, normaliser.view_as(k), new, q, x), (C, last.view_as(n), new[-1])

    def read_weights(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> Tensor:
        """The weights of values in what is read, before its norm."""
        (q, k, _), (log_i, log_f), (_, n, m) = self.tokens(x), self.log_gates(x), state
        k, keep, new = self.scaled(k, log_i, log_f, start, m)
        normaliser, _ = diagonal_scan(keep.flatten(2), k.flatten(2), start, n.flatten(1))
        return outer_weights(k, keep, q, start) / self.divisor(normaliser.view_as(k), new, q)

    def scaled(
        self, k: Tensor, log_i: Tensor, log_f: Tensor, start: Tensor, m: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys with their input gates and what is kept, both in the stable form [T, B, H, K], and m of every step."""
        with torch.no_grad():
            new = max_plus_scan(log_f, log_i, start, m)
        before = torch.where(start.unsqueeze(-1), 0, torch.cat([m[None], new[:-1]]))
        keep, k = (log_f + before - new).exp(), (log_i - new).exp().unsqueeze(-1) * k
        return k, keep.unsqueeze(-1).expand_as(k).contiguous(), new

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and scaled keys [..., H, K], and values [..., H, V]."""
        H, K, _ = self.sizes
        q, k, v = (map_(x).unflatten(-1, (H, -1)) for map_ in (self.query, self.key, self.value))
        return q, k / math.sqrt(K), v

    def log_gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logarithms of i and f, [..., H] each."""
        log_i, f = self.gates(x).chunk(2, -1)
        return log_i, functional.logsigmoid(f)

    def leaving(self, found: Tensor, n: Tensor, m: Tensor, q: Tensor, x: Tensor) -> Tensor:
        """What is added to the stream [..., D], from what is read [..., H, V]."""
        return self.leave(normal_per_head(found / self.divisor(n, m, q)) * self.output_gate(x).sigmoid())

    def divisor(self, n: Tensor, m: Tensor, q: Tensor) -> Tensor:
        """What divides what is read, [..., H, 1]."""
        return torch.maximum((n * q).sum(-1).abs(), (-m).clamp(max=MOST_EXPONENT).exp()).unsqueeze(-1)
