"""ELMUR: slots beside each layer; the one written longest ago is blended with what is new, or replaced by it.

m = the slot that was written longest ago, zeros while one of M is empty
a = LN(m + W_w x_t)                                    write: attention from a slot to the only input of its segment
u = LN(a + mlp(a))
m <- (1 - b) m + b u, or u where the slot was empty
q = W_q x_t,  k_j, v_j = W_k m_j, W_v m_j              [H, D / H] each; read: attention from the input to the slots
added = W_out sum of softmax_j(q . k_j / sqrt(D / H) + c_j) v_j         over slots that are not empty; j is age

LN has no parameters. x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Panel
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.steps import episode_steps
from palimpsest.memory.parts.windows import Window, attend
from palimpsest.refusals import check_divides, check_integer, check_number


class ELMURState(NamedTuple):
    """State of ELMUR."""

    slots: Tensor
    """[B, L, M, D], the slot that was written longest ago first; zeros where one is empty."""
    filled: Tensor
    """[B, L] int64 in [0, M], how many are not empty; they are the last."""


class ELMUR(Stack):
    """External layer memory with update and rewrite.

    The paper cuts an episode into segments and writes one slot after each. Here a segment is one input: what is read is
    never older than one step, and a step costs the same at all times. Then a slot attends to one input alone, with
    weight 1, and slots are least recently used in turns. So slots stand in the order of their age, without the paper's
    anchors, and M writes that lie one behind the other do not depend on each other: they are computed at once.

    Further choices: a slot is written from what the layer reads, not from what its read gave; it is read after the
    write, so that there is always one; empty slots are zeros, in the paper small random numbers; age is encoded by a
    learned number per head, c. The self-attention and the MLP of the paper's token track are left out, for they have no
    other input of the segment to look at. The default blend keeps half of a slot for M log 2 / b inputs, 74 or more.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream and of a slot.
        num_layers: L; 1 or more.
        num_slots: M, slots per layer.
        num_heads: H, heads that read; it must divide D.
        blend: b in [0, 1], how much of a slot gives way to what is new; 1 replaces it.
    State:
        slots [B, L, M, D] and filled [B, L] int64, zeros at first.
    Source: arXiv 2510.07151.
    """

    state_type = ELMURState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_slots: int = 16,
        num_heads: int = 4,
        blend: float = 0.15,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        num_slots = check_integer("num_slots", num_slots, 1)
        num_heads = check_integer("num_heads", num_heads, 1)
        output_size = check_integer("output_size", output_size, 1)
        check_divides("num_heads", num_heads, "output_size", output_size)
        blend = check_number("blend", blend, 0, 1)
        layers = [ELMURLayer(output_size, num_slots, num_heads, blend) for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """How much of each slot is read, and what the slots hold."""
        L, M, D = after.slots.shape[1:]
        names = tuple(f"layer {i + 1}, slot of age {j}" for i in range(L) for j in reversed(range(M)))
        # by distance, nearest first; slots stand oldest first
        read = self.diagnostics()["attention"].unflatten(0, (L, M)).flip(1).flatten()
        return [
            Panel("weight of each slot read", read, (0, 1), names),
            Panel("what the slots hold", after.slots[0].detach().reshape(L * M, D), None, names),
        ]


class ELMURLayer(Layer):
    """M slots."""

    def __init__(self, size: int, slots: int, heads: int, blend: float) -> None:
        super().__init__()
        self.M, self.heads, self.blend = slots, heads, blend
        self.write = nn.Linear(size, size)
        self.mlp = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size)
        self.by_age = nn.Parameter(torch.zeros(heads, slots))
        """C, oldest first."""
        self.leave = nn.Linear(size, size)

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty slots."""
        slots = self.like.new_zeros(batch_size, self.M, self.leave.out_features)
        return slots, slots.new_zeros(batch_size, dtype=torch.int64)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        slots, filled = state
        new = self.written(slots[:, 0], filled == self.M, self.write(x))
        slots, filled = torch.cat([slots[:, 1:], new.unsqueeze(1)], 1), (filled + 1).clamp(max=self.M)
        heads = (self.heads, -1)
        q, k, v = self.query(x).unflatten(-1, heads), self.key(slots), self.value(slots)
        scores = torch.einsum("bhe,bmhe->bhm", q, k.unflatten(-1, heads)) / math.sqrt(q.shape[-1])
        empty = torch.arange(self.M, 0, -1, device=x.device) > filled.unsqueeze(1)
        weights = (scores + self.by_age).masked_fill(empty.unsqueeze(1), -math.inf).softmax(-1)
        found = torch.einsum("bhm,bmhe->bhe", weights, v.unflatten(-1, heads))
        return self.leave(found.flatten(1)), (slots, filled)

    def written(self, m: Tensor, full: Tensor, w: Tensor) -> Tensor:
        """What a slot [..., D] is after the write of w [..., D]; `full` [...] says where it was not empty."""
        m = torch.where(full.unsqueeze(-1), m, 0)
        a = normal(m + w)
        u = normal(a + self.mlp(a))
        return torch.where(full.unsqueeze(-1), torch.lerp(m, u, self.blend), u)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """M writes at once, then all reads, in blocks of windows."""
        T, M = len(x), self.M
        # of what is not finite there, no map is taken
        slots = torch.where(start[0, :, None, None], 0, state[0])
        filled = state[1]
        age, after = episode_steps(start, filled)
        w, written = self.write(x), [slots.transpose(0, 1)]
        for t in range(0, T, M):
            block = slice(t, min(t + M, T))
            written.append(self.written(written[-1][: block.stop - t], age[block] >= M, w[block]))
        slots = torch.cat(written).transpose(0, 1)
        window = Window(start.t(), filled, M - 1, x.dtype)
        q, k, v = self.query(x).transpose(0, 1), self.key(slots[:, 1:]), self.value(slots[:, 1:])
        found, weights = attend(window, q.unflatten(2, (self.heads, -1)), k, v, self.by_age)
        self.watched = {"attention": weights}
        empty = torch.arange(M, 0, -1, device=x.device) > after.unsqueeze(1)
        last = slots[:, T:].masked_fill((empty & start.any(0).unsqueeze(1)).unsqueeze(2), 0)
        return self.leave(found.transpose(0, 1)), (last, after.clamp(max=M))


def normal(x: Tensor) -> Tensor:
    """Layer norm without parameters."""
    return functional.layer_norm(x, x.shape[-1:])
