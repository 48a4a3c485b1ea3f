"""Differentiable neural computer: N slots that are addressed by content, by what is free, and by order of writing.

r_{t-1} = M^T w_i                                      what R heads read before, [R W]
h = tanh(W_x x_t + W_r r_{t-1} + b)                    the controller; W_h h gives all that follows
psi = prod_i (1 - f_i w_i)                             free gates f; w_i the reads, w the write of the step before
u <- (u + w - u * w) * psi                             usage
a_{o_j} = (1 - u_{o_j}) prod_{l<j} u_{o_l}             allocation: slots in order of usage, o
c(k, s) = softmax(s cos(M, k))                         content, strength s >= 1
w <- g_w (g_a a + (1 - g_a) c(k_w, s_w))               where to write
M <- M * (1 - w e^T) + w v^T                           erase vector e, write vector v
P_ij <- (1 - w_i - w_j) P_ij + w_i p_j, P_ii = 0       slot i was written after slot j
p <- (1 - sum(w)) p + w                                which slot was written last
w_i <- m_1 P^T w_i + m_2 c(k_i, s_i) + m_3 P w_i       backward, content, forward; m of each head sums to 1
added = W_out (h, M^T w_i)

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Panel, reset
from palimpsest.memory.kernels.arithmetic.dispatch import in_full_precision
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.refusals import check_integer

EPSILON = 1e-3
"""Added to squared lengths: the cosine of a slot that is nearly empty is near 0, not rounding error made large."""

LEAST_USAGE = 1e-6
"""Usage is at least this where slots are allocated, so that no product is 0."""

RANKS = 1024
"""Usage is ranked in steps of 1 / RANKS. Slots that are alike but for rounding errors are ranked by their number."""


class DNCState(NamedTuple):
    """State of DNC."""

    M: Tensor
    """[B, L, N, W], the slots."""
    usage: Tensor
    """[B, L, N] in [0, 1]."""
    write: Tensor
    """[B, L, N], weights of the last write."""
    reads: Tensor
    """[B, L, R, N], weights of the last reads."""
    precedence: Tensor
    """[B, L, N], p, how far each slot was the last one written."""
    link: Tensor
    """[B, L, N, N], P, how far slot i was written right after slot j."""


class DNC(Stack):
    """Differentiable neural computer with a feed-forward controller.

    The paper's controller is an LSTM; here it has no state of its own, as one of the NTM's, so that what is remembered
    is in the slots. From the authors' code is the least usage. Chosen here: slots that are used alike are ranked by
    their number, the epsilon of the cosines, and that at first the free gates are nearly closed.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream and of the controller.
        num_layers: L; 1 or more.
        num_slots: N, slots per layer.
        slot_size: W, numbers in a slot.
        num_reads: R, heads that read.
    State:
        `DNCState`, zeros at first.
    Source: Graves et al. 2016, Nature 538; NTM: arXiv 1410.5401.
    """

    state_type = DNCState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_slots: int = 16,
        slot_size: int = 16,
        num_reads: int = 2,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        num_slots = check_integer("num_slots", num_slots, 1)
        slot_size = check_integer("slot_size", slot_size, 1)
        num_reads = check_integer("num_reads", num_reads, 1)
        output_size = check_integer("output_size", output_size, 1)
        layers = [DNCLayer(output_size, num_slots, slot_size, num_reads) for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """Which slots are written, read and in use, and what they hold."""
        L, N, W = after.M.shape[1:]
        R = after.reads.shape[2]
        names = tuple(f"layer {i + 1}, slot {j + 1}" for i in range(L) for j in range(N))
        heads = tuple(
            f"layer {i + 1}, head {r + 1}, slot {j + 1}" for i in range(L) for r in range(R) for j in range(N)
        )
        return [
            Panel("weight of each slot written", after.write[0].detach().flatten(), (0, 1), names),
            Panel("weight of each slot read", after.reads[0].detach().flatten(), (0, 1), heads),
            Panel("usage of each slot", after.usage[0].detach().flatten(), (0, 1), names),
            Panel("what the slots hold", after.M[0].detach().reshape(L * N, W), None, names),
        ]


class DNCLayer(Layer):
    """N slots and their controller."""

    def __init__(self, size: int, slots: int, width: int, reads: int) -> None:
        super().__init__()
        self.slots, self.width, self.reads = slots, width, reads
        R, W = reads, width
        # read keys and strengths, write key and strength, erase, write vector, free gates, g_a and g_w, read modes
        self.parts = [R * W, R, W, 1, W, W, R, 2, 3 * R]
        self.enter = nn.Linear(size, size)
        self.back = nn.Linear(R * W, size, bias=False)
        self.interface = nn.Linear(size, sum(self.parts))
        self.leave = nn.Linear(size + R * W, size)
        with torch.no_grad():
            self.interface.bias.split(self.parts)[6].fill_(-3)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty slots, which nothing has written or read."""
        N, W, R, zeros = self.slots, self.width, self.reads, self.like.new_zeros
        return tuple(zeros(batch_size, *shape) for shape in ((N, W), (N,), (N,), (R, N), (N,), (N, N)))

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        out, _, after = self.one(self.enter(x), DNCState(*state))
        return self.leave(out), after

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Step by step; the maps into the controller and to the stream are done for all steps at once."""
        fresh, now = DNCState(*self.initial_state(start.shape[1])), DNCState(*state)
        outs, gates = [], []
        for entered, opens in zip(self.enter(x).unbind(), start.unbind()):
            out, gate, now = self.one(entered, reset(now, fresh, opens))
            outs.append(out)
            gates.append(gate)
        allocation, write = torch.stack(gates).detach().split(1, -1)
        self.watched = {"allocation_gate": allocation, "write_gate": write}
        return self.leave(torch.stack(outs)), now

    @in_full_precision
    def one(self, entered: Tensor, state: DNCState) -> tuple[Tensor, Tensor, DNCState]:
        """Controller and reads [B, D + R W], g_a and g_w [B, 2], and the next state, from W_x x + b [B, D]."""
        M, usage, write, reads, precedence, link = state
        R = self.reads
        h = torch.tanh(entered + self.back((reads @ M).flatten(1)))
        keys, strengths, key, strength, erase, vector, free, gates, modes = self.interface(h).split(self.parts, -1)
        gates = gates.sigmoid()

        kept = (1 - free.sigmoid().unsqueeze(-1) * reads).prod(1)
        usage = (usage + write - usage * write) * kept
        found = content(M, key.unsqueeze(1), strength).squeeze(1)
        write = gates[:, 1:] * torch.lerp(found, allocation(usage), gates[:, :1])

        column = write.unsqueeze(2)
        M = M * (1 - column * erase.sigmoid().unsqueeze(1)) + column * vector.unsqueeze(1)
        link = (1 - column - write.unsqueeze(1)) * link + column * precedence.unsqueeze(1)
        link = link.masked_fill(torch.eye(self.slots, dtype=torch.bool, device=link.device), 0)
        precedence = (1 - write.sum(1, keepdim=True)) * precedence + write

        back, same, forth = modes.unflatten(-1, (R, 3)).softmax(-1).split(1, -1)
        found = content(M, keys.unflatten(-1, (R, -1)), strengths)
        reads = back * (reads @ link) + same * found + forth * (reads @ link.mT)
        after = DNCState(M, usage, write, reads, precedence, link)
        return torch.cat([h, (reads @ M).flatten(1)], -1), gates, after


def content(M: Tensor, keys: Tensor, strengths: Tensor) -> Tensor:
    """Weights [B, R, N] of slots M [B, N, W] for keys [B, R, W] and strengths [B, R], which become 1 + softplus."""
    M, keys = (each * torch.rsqrt(each.square().sum(-1, keepdim=True) + EPSILON) for each in (M, keys))
    return ((1 + functional.softplus(strengths)).unsqueeze(-1) * (keys @ M.mT)).softmax(-1)


def allocation(usage: Tensor) -> Tensor:
    """How much of a write goes to each free slot [B, N], the least used one first."""
    order = (usage.detach() * RANKS).round().sort(dim=-1, stable=True).indices
    usage = (LEAST_USAGE + (1 - LEAST_USAGE) * usage).gather(-1, order)
    before = torch.cat([torch.ones_like(usage[:, :1]), usage[:, :-1]], -1).cumprod(-1)
    return torch.zeros_like(usage).scatter(-1, order, (1 - usage) * before)
