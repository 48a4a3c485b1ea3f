"""The flagship: tables that forget and overwrite by two separate gates, on the gated delta rule.

Per layer and head, with x what the layer reads and a table S [K, V]:

    q, k, v, g, a, b = W x + c                    q, k of unit length
    alpha = sigmoid(a)                            how much of everything survives
    beta = 2 sigmoid(b)                           1 overwrites what stands under k exactly, 2 flips its sign
    S <- alpha S;  S <- S + beta k (v - S^T k)^T
    stream <- stream + W_out (sigmoid(g) tanh(S^T q))

The stream starts as a linear map of the input. The first layer reads the input, every other the normalised stream.

A clock is appended to the input: +1, -1, +1, ... since the memory began. Tables have no sense of time, and gates that
see only the input cannot count. With the clock an agent can alternate between two actions by time, at any distance;
without it, it would have to look up what it did at a place like this one.

Gated DeltaNet: arXiv 2412.06464; beta up to 2: arXiv 2411.12537. The recurrence: `memory.kernels.delta`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory
from palimpsest.memory.kernels.arithmetic.as_built import Arrays, AsBuilt
from palimpsest.memory.kernels.delta.layer import DeltaSizes, delta_layer, delta_layer_torch
from palimpsest.memory.kernels.delta.step import NORM_EPS, step_layers
from palimpsest.refusals import check_flag, check_integer

TIMES_AT_START = (20.0, 500.0)
"""Steps: time constants of a layer's first and last head before training; log-uniform over the heads between them."""


class RewriteState(NamedTuple):
    """State of `RewriteMemory`."""

    table: Tensor
    """[B, L, H, K, V], a table per layer and head."""
    beat: Tensor
    """[B, 1], the clock at the next input, 1 at first; [B, 0] without a clock."""


class RewriteMemory(Memory):
    """Tables under the gated delta rule, with a forget gate and a rewrite gate per head and step.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream that layers add to.
        num_layers: L, layers; 1 or more.
        num_heads: H, tables per layer.
        key_size: K, rows of a table: it holds K things that do not disturb each other.
        value_size: V, columns of a table.
        clock: append a feature to the input that alternates between 1 and -1.
    State:
        `RewriteState`: table [B, L, H, K, V] and beat [B, 1], [B, 0] without a clock.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 32,
        clock: bool = True,
    ) -> None:
        super().__init__(input_size, output_size)
        num_layers = check_integer("num_layers", num_layers, 1)
        num_heads = check_integer("num_heads", num_heads, 1)
        key_size = check_integer("key_size", key_size, 1)
        value_size = check_integer("value_size", value_size, 1)
        clock = check_flag("clock", clock)
        self.table_shape = (num_layers, num_heads, key_size, value_size)
        self.clock = clock
        features = input_size + clock
        self.enter = nn.Linear(features, output_size)
        self.sizes = DeltaSizes(num_heads, key_size, value_size)
        self.layers = nn.ModuleList(
            DeltaLayer(output_size if layer else features, output_size, self.sizes) for layer in range(num_layers)
        )
        self._gates: list[tuple[Tensor, Tensor]] = []
        self._built = AsBuilt(self)

    def initial_state(self, batch_size: int) -> RewriteState:
        """Empty tables, the clock at 1."""
        table = torch.zeros(batch_size, *self.table_shape, dtype=self.dtype, device=self.device)
        return RewriteState(table, table.new_ones(batch_size, self.clock))

    def step(
        self, x: Tensor, state: RewriteState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, RewriteState]:
        """Map x [B, F] to y [B, D]."""
        self.check_step(x, state)
        if not torch.is_grad_enabled() and self._built.allows(self, x, *state):
            arrays = self._built.arrays(self, _in_order)
            y, table, beat = step_layers(x, state.beat, arrays, self.sizes, state.table)
            return y, RewriteState(table, beat)
        no_start = torch.zeros(1, len(x), dtype=torch.bool, device=x.device)
        ys, table, _ = self._layers(torch.cat((x, state.beat), 1).unsqueeze(0), no_start, state.table)
        return ys[0], RewriteState(table, -state.beat)

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
        x, beat = self._count(x, start, state.beat)
        y, table, gates = self._layers(x, start, state.table)
        self._gates = [(alpha.detach(), beta.detach()) for alpha, beta in gates]
        return y, RewriteState(table, beat)

    def context(self) -> Context:
        """The current input is read directly; a table may keep any earlier one."""
        return Context(1, math.inf)

    def diagnostics(self) -> dict[str, Tensor]:
        """Of the last scan: alpha as "keep" and beta as "rewrite", [T, B, L * H] each."""
        if not self._gates:
            return {}
        keep, rewrite = zip(*self._gates)
        return {"keep": torch.cat(keep, -1), "rewrite": torch.cat(rewrite, -1)}

    def _layers(self, x: Tensor, start: Tensor, table: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Map x [T, B, F + clock] to the stream [T, B, D], the last tables, and alpha and beta of each layer."""
        stream: Tensor | None = None
        lasts, gates = [], []
        one_layer = delta_layer if self._built.allows(self, x, table) else delta_layer_torch
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, DeltaLayer)
            read = x if stream is None else functional.layer_norm(stream, stream.shape[-1:], eps=NORM_EPS)
            maps = (self.enter, layer.project, layer.leave)
            stream, last, alpha, beta = one_layer(read, stream, maps, start, table[:, number], self.sizes)
            lasts.append(last)
            gates.append((alpha, beta))
        assert stream is not None
        return stream, torch.stack(lasts, 1), gates

    def _count(self, x: Tensor, start: Tensor, beat: Tensor) -> tuple[Tensor, Tensor]:
        """Append the clock to x [T, B, F]; also return the beat after the last step, [B, 1]."""
        if not self.clock:
            return x, beat
        t = torch.arange(len(x), device=x.device).unsqueeze(1)
        turns = (1 - 2 * (t % 2)).to(x.dtype)
        opened = torch.where(start, t, -1).cummax(0).values
        beats = turns * torch.where(opened < 0, beat.T, turns.squeeze(1)[opened.clamp(min=0)])
        return torch.cat((x, beats.unsqueeze(-1)), -1), -beats[-1:].T if len(x) else beat


def _in_order(arrays: dict[str, np.ndarray]) -> Arrays:
    """The parameters of a `RewriteMemory` as `step_layers` takes them: all weights, then all biases."""
    return *(a for name, a in arrays.items() if "weight" in name), *(a for name, a in arrays.items() if "bias" in name)


class DeltaLayer(nn.Module):
    """The maps into and out of a layer's tables; everything between them has no parameters."""

    def __init__(self, input_size: int, output_size: int, sizes: DeltaSizes) -> None:
        super().__init__()
        self.project = nn.Linear(input_size, sizes.width)
        self.leave = nn.Linear(sizes.heads * sizes.value_size, output_size, bias=False)
        shortest, longest = map(math.log, TIMES_AT_START)
        keep = torch.exp(-1 / torch.logspace(shortest, longest, sizes.heads, math.e))
        with torch.no_grad():
            self.project.bias[-2 * sizes.heads :] = torch.cat((torch.logit(keep), torch.zeros(sizes.heads)))
