"""Mixture of memories: several tables per head, of which a router lets each input write and read a few.

p = softmax(W_p x_t)                                        [M]; the k largest are chosen
g_m = p_m / (sum of the chosen p), 0 where not chosen;  g_0 = 1, the shared memory, which is always chosen
q = W_q x_t,  k_m, v_m = W_m x_t                            [H, K], [H, K], [H, V]
alpha = sigmoid(W_a x_t + b)                                [H]
S_m <- alpha S_m + k_m v_m^T                                where chosen; the others stay as they are
r = sum of g_m S_m^T q / sqrt(K)                            [H, V]
added = W_out (LN(r) * silu(W_g x_t))                       LN per head, without parameters

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
from palimpsest.memory.parts.tables import check_tables, normal_per_head, read, times_as_logits, written
from palimpsest.refusals import check_integer

TIMES_AT_START = (20.0, 500.0)
"""Steps: time constants of the first and the last head before training; log-uniform between them."""


class MoMState(NamedTuple):
    """State of MoM."""

    S: Tensor
    """[B, L, M + 1, H, K, V], the shared memory first."""


class MoM(Stack):
    """Mixture of memories: inputs that go to different memories do not disturb each other.

    Each memory has its own projections to keys and values, and queries are shared, as in the paper. The recurrence
    inside may be any linear one; here everything decays by a number per head (the authors' code has a gated delta
    rule), and what is read is weighed, summed and normed. The paper adds a loss that balances the load of the memories;
    a memory here has no loss of its own, and `chosen` in the diagnostics shows the load.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        num_layers: L; 1 or more.
        num_memories: M, memories besides the shared one.
        top_k: k, memories that an input writes and reads; M at most.
        num_heads: H, tables per memory.
        key_size: K, rows of a table.
        value_size: V, columns of a table.
    State:
        S [B, L, M + 1, H, K, V], zeros at first.
    Source: arXiv 2502.13685.
    """

    state_type = MoMState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_memories: int = 4,
        top_k: int = 2,
        num_heads: int = 1,
        key_size: int = 16,
        value_size: int = 32,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        num_memories = check_integer("num_memories", num_memories, 1)
        top_k = check_integer("top_k", top_k, 1, num_memories)
        sizes = check_tables(num_heads, key_size, value_size)
        output_size = check_integer("output_size", output_size, 1)
        layers = [MoMLayer(output_size, num_memories, top_k, *sizes) for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)


class MoMLayer(Layer):
    """M + 1 memories of H tables."""

    def __init__(self, size: int, memories: int, top_k: int, heads: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.shape = memories + 1, heads, key_size, value_size
        self.top_k = top_k
        self.route = nn.Linear(size, memories, bias=False)
        self.query = nn.Linear(size, heads * key_size, bias=False)
        self.key = nn.Linear(size, (memories + 1) * heads * key_size, bias=False)
        self.value = nn.Linear(size, (memories + 1) * heads * value_size, bias=False)
        self.decay = nn.Linear(size, heads)
        self.gate = nn.Linear(size, heads * value_size)
        self.leave = nn.Linear(heads * value_size, size, bias=False)
        with torch.no_grad():
            self.decay.bias.copy_(times_as_logits(*TIMES_AT_START, heads))

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty tables."""
        return (self.like.new_zeros(batch_size, *self.shape),)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        share = self.shares(x)
        q, k, v, alpha = self.tokens(x, share > 0)
        S = alpha[..., None, None] * state[0] + written(k, v)
        return self.leaving(read(S, q), share, x), (S,)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By `memory.kernels.outer_scan`: a table that is not chosen has a decay of 1 and a key of 0."""
        share = self.shares(x)
        chosen = share > 0
        q, k, v, alpha = (each.flatten(2, 3) for each in self.tokens(x, chosen))
        found, S = outer_scan(k, v, alpha, q, start, state[0].flatten(1, 2))
        self.watched = {"chosen": chosen[..., 1:].to(x.dtype), "keep": alpha[..., : self.shape[1]].detach()}
        return self.leaving(found.unflatten(2, self.shape[:2]), share, x), (S.view_as(state[0]),)

    def shares(self, x: Tensor) -> Tensor:
        """G [..., M + 1], the shared memory first."""
        p = self.route(x).softmax(-1)
        best, which = p.topk(self.top_k, -1)
        share = torch.zeros_like(p).scatter(-1, which, best / best.sum(-1, keepdim=True))
        return torch.cat([torch.ones_like(p[..., :1]), share], -1)

    def tokens(self, x: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries and keys [..., M + 1, H, K], values [..., M + 1, H, V], and decays [..., M + 1, H]."""
        memories, H, K, V = self.shape
        q = self.query(x).unflatten(-1, (1, H, K)) / math.sqrt(K)
        k = torch.where(chosen[..., None, None], self.key(x).unflatten(-1, (memories, H, K)), 0)
        v = self.value(x).unflatten(-1, (memories, H, V))
        return q.expand_as(k), k, v, torch.where(chosen[..., None], self.decay(x).sigmoid().unsqueeze(-2), 1)

    def leaving(self, found: Tensor, share: Tensor, x: Tensor) -> Tensor:
        """What is added to the stream [..., D], from what is read [..., M + 1, H, V]."""
        mixed = (share[..., None, None] * found).sum(-3)
        return self.leave(normal_per_head(mixed) * functional.silu(self.gate(x)))
