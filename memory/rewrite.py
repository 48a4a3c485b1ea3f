"""The flagship: tables that forget and overwrite by two separate gates, on the gated delta rule.

A gated recurrent unit reads the input, and layers of tables read what it gives out. Per layer and head, with x what the
layer reads and a table S [K, V]:

    q, k, v, g, a, b = W x + c                    q, k of unit length, some pairs of their components turned by time
    r = S^T q                                     read, before anything is forgotten or written
    alpha = sigmoid(a)                            how much of everything survives
    beta = 2 sigmoid(b)                           1 overwrites what stands under k exactly, 2 flips its sign
    S <- alpha S;  S <- S + beta k (v - S^T k)^T
    stream <- stream + W_out (sigmoid(g) tanh(r))

The stream starts as a linear map of the input and of h, what the unit gives out. The first layer reads both too, every
other the normalised stream, and the normalised stream is what the memory gives out. Normalised means layer norm without
parameters.

The unit mixes the last few inputs. Without it, an input that tells nothing of the task, such as a random previous
action, changes every key, and a policy learns slowly. So the first layer's weights of the input are 0 before training:
its keys begin as functions of h alone. The stream has the input from the start, for what must be answered at once.
Before training all time constants of the unit are 2 steps, and what is to be held longer is for the tables: with units
that are slow from the start, agents counted by them, and failed in episodes longer than those they were trained in
(docs/notebook/defaults.md).

Tables by themselves have no sense of time. Three things give it:

- Half of the pairs of components of keys and queries turn, each with a period of its own (`memory.kernels.delta.
  turning`). A query can then point at a lag: what was written four steps ago. What is written under a key that lies in
  the standing pairs is found at any distance.
- A step reads before it writes, so that what is read was there before: the first layer reads of the steps until the
  last one, and the current one is in the stream.
- A clock is appended to what the first layer reads: +1, -1, +1, ... since the memory began. Gates that see only the
  input cannot count. With the clock an agent can alternate between two actions by time, at any distance; without it, it
  would have to look up what it did at a place like this one.

Gated recurrent unit: `memory.recurrent`. Gated DeltaNet: arXiv 2412.06464; beta up to 2: arXiv 2411.12537; turned
queries and keys: RoPE, arXiv 2104.09864. The tables' recurrence: `memory.kernels.delta`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory, Panel
from palimpsest.memory.kernels.arithmetic.as_built import Arrays, AsBuilt
from palimpsest.memory.kernels.delta.layer import DeltaSizes, delta_layer, delta_layer_torch, delta_weights
from palimpsest.memory.kernels.delta.step import NORM_EPS, step_layers
from palimpsest.memory.kernels.delta.turning import turns
from palimpsest.memory.parts.steps import episode_steps
from palimpsest.memory.parts.tables import head_names, side_by_side
from palimpsest.memory.recurrent import GRU, HiddenState
from palimpsest.refusals import check_flag, check_integer

TIMES_AT_START = (2.0, 500.0)
"""Steps: time constants of a layer's first and last head before training; log-uniform over the heads between them."""


class RewriteState(NamedTuple):
    """State of `RewriteMemory`."""

    table: Tensor
    """[B, L, H, K, V], a table per layer and head."""
    time: Tensor
    """[B] int64, steps since the memory began, modulo the longest period of what turns; 0 at first."""
    h: Tensor
    """[B, G], what the unit in front gave out last."""


class RewriteMemory(Memory):
    """Tables under the gated delta rule, with a forget gate and a rewrite gate per head and step.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream that layers add to.
        num_layers: L, layers; 1 or more.
        num_heads: H, tables per layer.
        key_size: K, rows of a table: it holds K things that do not disturb each other. K // 4 pairs of rows turn.
        value_size: V, columns of a table.
        clock: append a feature that alternates between 1 and -1 to what the tables read.
        front_size: G, units of the gated recurrent unit in front of the tables.
    State:
        `RewriteState`: table [B, L, H, K, V], time [B] and h [B, G].
    """

    turns: Tensor

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 32,
        clock: bool = True,
        front_size: int = 64,
    ) -> None:
        super().__init__(input_size, output_size)
        num_layers = check_integer("num_layers", num_layers, 1)
        num_heads = check_integer("num_heads", num_heads, 1)
        key_size = check_integer("key_size", key_size, 1)
        value_size = check_integer("value_size", value_size, 1)
        clock = check_flag("clock", clock)
        front_size = check_integer("front_size", front_size, 1)
        self.table_shape = (num_layers, num_heads, key_size, value_size)
        self.clock = clock
        self.front = GRU(self.input_size, front_size, horizon=2)
        features = self.input_size + front_size + clock
        self.enter = nn.Linear(features, output_size)
        self.sizes = DeltaSizes(num_heads, key_size, value_size)
        # part of what is saved: parameters that were learned without it have the same names and shapes
        self.register_buffer("turns", torch.from_numpy(turns(key_size)).to(self.enter.weight))
        first = DeltaLayer(features, output_size, self.sizes, self.input_size)
        others = (DeltaLayer(output_size, output_size, self.sizes) for _ in range(1, num_layers))
        self.layers = nn.ModuleList((first, *others))
        self._built = AsBuilt(self)

    def constants(self) -> dict[str, Tensor]:
        """The angles by which keys and queries turn."""
        return {"turns": torch.from_numpy(turns(self.sizes.key_size))}

    def initial_state(self, batch_size: int) -> RewriteState:
        """Empty tables at time 0, and zeros in front."""
        table = torch.zeros(batch_size, *self.table_shape, dtype=self.dtype, device=self.device)
        time = torch.zeros(batch_size, dtype=torch.int64, device=self.device)
        return RewriteState(table, time, self.front.initial_state(batch_size).h[:, 0])

    def step(
        self, x: Tensor, state: RewriteState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, RewriteState]:
        """Map x [B, F] to y [B, D]."""
        self.check_step(x, state)
        x, h = self._beside_front(x, state.h)
        if not torch.is_grad_enabled() and self._built.allows(self, x, state.table, self.turns):
            arrays = self._built.arrays(self, _in_order)
            y, table, time = step_layers(x, arrays, self.sizes, state.table, state.time, self.turns)
            return y, RewriteState(table, time, h)
        no_start = torch.zeros(1, x.shape[0], dtype=torch.bool, device=x.device)
        ys, table, _, _ = self._layers(x.unsqueeze(0), no_start, state.time.unsqueeze(0), state.table)
        return ys[0], RewriteState(table, (state.time + 1) % len(self.turns), h)

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: RewriteState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, RewriteState]:
        """Map x [T, B, F] to y [T, B, D]; only the recurrence goes step by step, all else is done for many at once."""
        self.check_sequence(x, start, state)
        times, last = episode_steps(start, state.time)
        x, h = self._beside_front(x, state.h, start)
        y, table, gates, _ = self._layers(x, start, times, state.table)
        self.watched = {"gates": [(alpha.detach(), beta.detach()) for alpha, beta in gates]}
        return y, RewriteState(table, last % len(self.turns), h)

    def context(self) -> Context:
        """The current input is read directly; the state may carry any earlier one."""
        return Context(1, math.inf)

    def diagnostics(self) -> dict[str, Tensor]:
        """Of the last scan: alpha as "keep" and beta as "rewrite", [T, B, L * H] each."""
        if not self.watched:
            return {}
        keep, rewrite = zip(*self.watched["gates"])
        return {"keep": torch.cat(keep, -1), "rewrite": torch.cat(rewrite, -1)}

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """What every head kept and overwrote, and the tables."""
        gates, names = self.diagnostics(), head_names(*self.table_shape[:2])
        return [
            Panel("kept (α)", gates["keep"][-1, 0], (0, 1), names),
            Panel("overwritten (β)", gates["rewrite"][-1, 0], (0, 2), names),
            Panel("tables: layers down, heads across", side_by_side(after.table[0].detach())),
        ]

    def read_weights(self, x: Tensor, start: Tensor, state: RewriteState) -> Tensor:
        """The weights of values in what is read, before its tanh and its gate; see `Memory.read_weights`."""
        self.check_sequence(x, start, state)
        times, _ = episode_steps(start, state.time)
        x, _ = self._beside_front(x, state.h, start)
        inputs = self._layers(x, start, times, state.table)[3]
        found = [
            delta_weights(read, layer.project, start, self.sizes, times, self.turns)  # type: ignore[arg-type]
            for read, layer in zip(inputs, self.layers)
        ]
        return torch.cat(found, 2).permute(1, 2, 0, 3)

    def _beside_front(self, x: Tensor, h: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x [B, F], or [T, B, F] with `start`, beside what the unit gives out, and the unit's last h [B, G]."""
        given, front = self.front(x, HiddenState(h.unsqueeze(1)), start)
        return torch.cat((x, given), -1), front.h[:, 0]

    def _layers(
        self, x: Tensor, start: Tensor, times: Tensor, table: Tensor
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]], list[Tensor]]:
        """Map x [T, B, F + G] at times [T, B] to y [T, B, D], the last tables, each layer's gates, and its x."""
        if self.clock:
            x = torch.cat((x, (1 - 2 * (times % 2)).to(x.dtype).unsqueeze(-1)), -1)
        read, stream = x, None
        lasts, gates, inputs = [], [], []
        one_layer = delta_layer if self._built.allows(self, x, table, self.turns) else delta_layer_torch
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, DeltaLayer)
            maps = (self.enter, layer.project, layer.leave)
            given = (start, table[:, number], self.sizes, times, self.turns)
            inputs.append(read)
            stream, last, alpha, beta = one_layer(read, stream, maps, *given)
            read = functional.layer_norm(stream, stream.shape[-1:], eps=NORM_EPS)
            lasts.append(last)
            gates.append((alpha, beta))
        return read, torch.stack(lasts, 1), gates, inputs


def _in_order(arrays: dict[str, np.ndarray]) -> Arrays:
    """The parameters of a `RewriteMemory` as `step_layers` takes them: all weights, then all biases, none of front."""
    own = {name: a for name, a in arrays.items() if not name.startswith("front.")}
    return *(a for name, a in own.items() if "weight" in name), *(a for name, a in own.items() if "bias" in name)


class DeltaLayer(nn.Module):
    """The maps into and out of a layer's tables; everything between them has no parameters.

    The first `unread` of the inputs have weights of 0 before training.
    """

    def __init__(self, input_size: int, output_size: int, sizes: DeltaSizes, unread: int = 0) -> None:
        super().__init__()
        self.project = nn.Linear(input_size, sizes.width)
        self.leave = nn.Linear(sizes.heads * sizes.value_size, output_size, bias=False)
        shortest, longest = map(math.log, TIMES_AT_START)
        # a single head is the slowest
        keep = torch.exp(-1 / torch.logspace(longest, shortest, sizes.heads, math.e).flip(0))
        with torch.no_grad():
            if unread:
                self.project.weight[:, :unread] = 0
                bound = (input_size - unread) ** -0.5  # nn.Linear's
                self.project.weight[:, unread:].uniform_(-bound, bound)
            self.project.bias[-2 * sizes.heads :] = torch.cat((torch.logit(keep), torch.zeros(sizes.heads)))
