"""ALER: an LSTM and slots, which it addresses by draws from Gumbel-Softmax.

h_t = LSTM(x_t, h_{t-1})
a, b, v, g = W h_t                                     addresses to write and to read [N] each, value [W], gate
w = g softmax((a + G_t) / tau),  g = sigmoid(g)        G_t and G'_t: Gumbel noise, a function of (salt, t)
M <- (1 - w) M + w v^T                                 slot by slot: what is written takes the place of what was there
r = M^T softmax((b + G'_t) / tau)
added = W_out (h_t, r)

x_t is what the layer reads of the stream: see `memory.parts.stack`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.outer.scan import outer_scan
from palimpsest.memory.parts.stack import Layer, Stack
from palimpsest.memory.parts.steps import episode_steps, gumbel
from palimpsest.memory.parts.tables import read, written
from palimpsest.memory.recurrent import LSTM, CellState
from palimpsest.refusals import check_integer, check_number

WRITE_AT_START = -2.0
"""Of the write gate's bias: what a slot holds is kept for about 8 N steps at first."""


class ALERState(NamedTuple):
    """State of ALER."""

    h: Tensor
    """[B, L, D], output of the LSTM."""
    c: Tensor
    """[B, L, D], its cells."""
    M: Tensor
    """[B, L, N, W], the slots."""
    t: Tensor
    """[B, L] int64, steps taken in the episode. It selects the noise."""


class ALER(Stack):
    """An LSTM with slots addressed by Gumbel-Softmax.

    Of the source only this much is known here: an LSTM, a slot memory, and that Gumbel-Softmax selects the slot that is
    written. The rest is chosen. The LSTM does not read the slots, so its kernel and that of tables with a decay per row
    compute a scan. Reads are drawn as writes are. An address is a weight per slot, as drawn, and not rounded to one
    slot: a rounding error could turn one draw into another, and acting and the update would differ.

    The noise is a hash of a saved `salt` and the episode's step, so that the update sees what acting saw; `redraw`
    changes the salts between rollouts, and evaluation keeps them.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream and of the LSTM.
        num_layers: L; 1 or more.
        num_slots: N, slots per layer.
        slot_size: W, numbers in a slot.
        temperature: tau in [0.001, 1000]; near 0 an address is a single slot.
    State:
        `ALERState`, zeros at first.
    Source: arXiv 2610.00592, known here from a summary; Gumbel-Softmax: arXiv 1611.01144.
    """

    state_type = ALERState

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 1,
        num_slots: int = 16,
        slot_size: int = 32,
        temperature: float = 0.5,
    ) -> None:
        num_layers = check_integer("num_layers", num_layers, 1)
        num_slots = check_integer("num_slots", num_slots, 1)
        slot_size = check_integer("slot_size", slot_size, 1)
        temperature = check_number("temperature", temperature, 1e-3, 1e3)
        output_size = check_integer("output_size", output_size, 1)
        layers = [ALERLayer(output_size, num_slots, slot_size, temperature) for _ in range(num_layers)]
        super().__init__(input_size, output_size, layers)

    def redraw(self, rng: np.random.Generator) -> None:
        """Draw new salts, which decide the noise of each step."""
        for layer in self.layers:
            assert isinstance(layer, ALERLayer)
            layer.salt.fill_(int(rng.integers(2**63 - 1)))


class ALERLayer(Layer):
    """An LSTM and N slots."""

    salt: Tensor

    def __init__(self, size: int, slots: int, width: int, temperature: float) -> None:
        super().__init__()
        self.slots, self.width, self.temperature = slots, width, temperature
        self.lstm = LSTM(size, size)
        self.interface = nn.Linear(size, 2 * slots + width + 1)
        self.leave = nn.Linear(size + width, size)
        self.register_buffer("salt", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            self.interface.bias[-1] = WRITE_AT_START

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """Empty slots and step 0."""
        h, c = (part.squeeze(1) for part in self.lstm.initial_state(batch_size))
        return h, c, h.new_zeros(batch_size, self.slots, self.width), h.new_zeros(batch_size, dtype=torch.int64)

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The equations."""
        h, c, M, t = state
        y, after = self.lstm(x, CellState(h.unsqueeze(1), c.unsqueeze(1)))
        w, address, v = self.tokens(y, t)
        M = (1 - w).unsqueeze(-1) * M + written(w, v)
        return self.leave(torch.cat([y, read(M, address)], -1)), (*(part.squeeze(1) for part in after), M, t + 1)

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """By the kernels of the LSTM and of `memory.kernels.outer_scan`, with a table of N keys."""
        h, c, M, before = state
        y, after = self.lstm(x, CellState(h.unsqueeze(1), c.unsqueeze(1)), start)
        t, last = episode_steps(start, before)
        w, address, v = (each.unsqueeze(2) for each in self.tokens(y, t))
        found, M = outer_scan(w, v, 1 - w, address, start, M.unsqueeze(1))
        self.watched = {"write": w.detach().sum(-1), "read_sharpness": address.detach().amax(-1)}
        added = self.leave(torch.cat([y, found.squeeze(2)], -1))
        return added, (*(part.squeeze(1) for part in after), M.squeeze(1), last)

    def tokens(self, h: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weights to write and to read [..., N], and v [..., W], of h [..., D] at the steps t [...] of episodes."""
        N = self.slots
        addresses, v, gate = self.interface(h).split([2 * N, self.width, 1], -1)
        drawn = (addresses + gumbel(self.salt, t, 2 * N).to(h.dtype)) / self.temperature
        write, address = drawn.unflatten(-1, (2, N)).softmax(-1).unbind(-2)
        return gate.sigmoid() * write, address, v
