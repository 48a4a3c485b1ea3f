"""The flagship: tables that forget and overwrite by two separate gates, on the gated delta rule.

Per layer and head, with x what the layer reads and a table S [K, V]:

    q, k, v, g, a, b = W x + c                    q, k of unit length
    alpha = gate(a) in [0, 1]                     how much of everything survives
    beta = 2 gate(b) in [0, 2]                    1 overwrites what stands under k exactly, 2 flips its sign
    S <- alpha S;  S <- S + beta k (v - S^T k)^T
    stream <- stream + W_out (sigmoid(g) bounded(S^T q))

The stream starts as a linear map of the input; the first layer reads the input, every other the stream, normalised.
The input ends with a clock: +1, -1, +1, ... since the memory began. Tables have no time of their own, and gates that
see nothing but the input cannot count; with it an agent alternates between two actions by time, at any distance,
where it would otherwise look up what it did in a place like this one.

Gated DeltaNet: arXiv 2412.06464; beta up to 2: arXiv 2411.12537. Kernels: `memory.kernels.delta`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory
from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels
from palimpsest.memory.kernels.arithmetic.linear import Linear
from palimpsest.memory.kernels.arithmetic.views import Arrays, Views
from palimpsest.memory.kernels.delta.layer import STRETCH, DeltaForm, compiles, delta_layer
from palimpsest.memory.kernels.delta.read import NORM_EPS
from palimpsest.memory.kernels.delta.step import step_layers
from palimpsest.memory.recurrent import LSTM, CellState
from palimpsest.refusals import check_choice, check_flag, check_integer

TIMES_AT_START = (20.0, 500.0)
"""Steps: time constants of the first and the last head of a layer before training, log-uniform over the heads."""


class RewriteState(NamedTuple):
    """State of `RewriteMemory`; fields of parts that it was built without have no elements."""

    table: Tensor
    """[B, L, H, K, V], a table per layer and head."""
    tail: Tensor
    """[B, conv_size - 1, F], the last inputs, oldest first, zeros where the episode is younger."""
    h: Tensor
    """[B, 1, controller_size], output of the controller."""
    c: Tensor
    """[B, 1, controller_size], cells of the controller."""
    beat: Tensor
    """[B, 1], the clock at the next input, 1 at first."""


class RewriteMemory(Memory):
    """Delta-rule tables with a forget and a rewrite gate per head and step.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream that layers add to.
        num_layers: L, layers; 1 or more.
        num_heads: H, tables per layer.
        key_size: K, rows of a table: so many things can stand in it without disturbing each other.
        value_size: V, columns of a table.
        controller: None, or "lstm": a small LSTM reads the input, and the layers read the LSTM.
        controller_size: units of the controller.
        gates: "sigmoid", or "hard": stretched by STRETCH to both sides and clipped, so that 0 and 1 (2 for beta)
            are reached.
        read: "norm", reads divided by the root of their mean square (+ NORM_EPS) per head, or "tanh".
        bound_values: squash v by tanh before it is written.
        conv_size: inputs under a causal convolution, feature by feature, before the first layer; 0 for none.
        clock: append to every input one that is 1 and -1 by turns.
    State:
        `RewriteState`: table [B, L, H, K, V]; tail, h, c and beat where convolution, controller and clock are used.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        key_size: int = 16,
        value_size: int = 32,
        controller: str | None = None,
        controller_size: int = 64,
        gates: str = "sigmoid",
        read: str = "tanh",
        bound_values: bool = False,
        conv_size: int = 0,
        clock: bool = True,
    ) -> None:
        super().__init__(input_size, output_size)
        for name, value in (
            ("num_layers", num_layers),
            ("num_heads", num_heads),
            ("key_size", key_size),
            ("value_size", value_size),
            ("controller_size", controller_size),
        ):
            check_integer(name, value, 1)
        conv_size = check_integer("conv_size", conv_size, 0)
        bound_values = check_flag("bound_values", bound_values)
        clock = check_flag("clock", clock)
        check_choice("gates", gates, ("sigmoid", "hard"))
        check_choice("read", read, ("norm", "tanh"))
        if controller is not None:
            check_choice("controller", controller, ("lstm",))
        self.table_shape = (num_layers, num_heads, key_size, value_size)
        self.tail_length = max(conv_size - 1, 0)
        self.taps = nn.Parameter(torch.zeros(conv_size, input_size)) if conv_size else None
        if self.taps is not None:
            nn.init.ones_(self.taps.data[0])
        self.clock = clock
        features = input_size + clock
        self.controller = LSTM(features, controller_size) if controller else None
        features = controller_size if controller else features
        self.enter = Linear(features, output_size)
        self.form = form = DeltaForm(num_heads, key_size, value_size, gates == "hard", read == "tanh", bound_values)
        self.layers = nn.ModuleList(
            DeltaLayer(output_size if layer else features, output_size, form) for layer in range(num_layers)
        )
        self._views = Views()
        self._gates: list[tuple[Tensor, Tensor]] = []

    def initial_state(self, batch_size: int) -> RewriteState:
        """Empty tables, no inputs, a controller at zero."""
        zeros = torch.zeros(batch_size, *self.table_shape, dtype=self.dtype, device=self.device)
        units = self.controller.output_size if self.controller is not None else 0
        h, c = zeros.new_zeros(batch_size, 1, units), zeros.new_zeros(batch_size, 1, units)
        tail = zeros.new_zeros(batch_size, self.tail_length, self.input_size)
        return RewriteState(zeros, tail, h, c, zeros.new_ones(batch_size, self.clock))

    def step(
        self, x: Tensor, state: RewriteState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, RewriteState]:
        """Map x [B, F] to y [B, D]."""
        self.check_step(x, state)
        h, c, tail = state.h, state.c, state.tail
        if self.taps is not None:
            convolved, tail = self._convolve(x.unsqueeze(0), _nowhere(x), tail)
            x = convolved[0]
        arrays = None if torch.is_grad_enabled() or not has_kernels(x, state.table, state.beat) else self._arrays(x)
        if arrays is not None:
            y, table, beat = step_layers(x, state.beat, arrays, self.form, state.table)
            return y, RewriteState(table, tail, h, c, beat)
        x, beat = torch.cat((x, state.beat), 1), -state.beat
        if self.controller is not None:
            x, (h, c) = self.controller.step(x, CellState(h, c))
        ys, table, _ = self._layers(x.unsqueeze(0), _nowhere(x), state.table)
        return ys[0], RewriteState(table, tail, h, c, beat)

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: RewriteState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, RewriteState]:
        """Map x [T, B, F] to y [T, B, D]: everything but the recurrences happens at all steps at once."""
        self.check_sequence(x, start, state)
        x, tail = self._convolve(x, start, state.tail)
        x, beat = self._count(x, start, state.beat)
        h, c = state.h, state.c
        if self.controller is not None:
            x, (h, c) = self.controller.scan(x, start, CellState(h, c))
        y, table, gates = self._layers(x, start, state.table)
        self._gates = [(alpha.detach(), beta.detach()) for alpha, beta in gates]
        return y, RewriteState(table, tail, h, c, beat)

    def context(self) -> Context:
        """One input is read directly (the convolution's are); a table may keep any earlier one."""
        return Context(1 + self.tail_length, math.inf)

    def diagnostics(self) -> dict[str, Tensor]:
        """Show alpha as "keep" and beta as "rewrite" of the last scan, [T, B, L * H] each."""
        if not self._gates:
            return {}
        keep, rewrite = zip(*self._gates)
        return {"keep": torch.cat(keep, -1), "rewrite": torch.cat(rewrite, -1)}

    def _layers(self, x: Tensor, start: Tensor, table: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """The layers over x [T, B, *]: the stream [T, B, D], the last tables, alpha and beta of each layer."""
        stream: Tensor | None = None
        lasts, gates = [], []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, DeltaLayer)
            read = x if stream is None else functional.layer_norm(stream, stream.shape[-1:], eps=NORM_EPS)
            maps = (self.enter, layer.project, layer.leave)
            stream, last, alpha, beta = delta_layer(read, stream, maps, start, table[:, number], self.form)
            lasts.append(last)
            gates.append((alpha, beta))
        assert stream is not None
        return stream, torch.stack(lasts, 1), gates

    def _arrays(self, x: Tensor) -> Arrays | None:
        """The parameters that `step_layers` takes; None where kernels may not compute all from inputs x [B, F]."""
        if self.controller is not None:
            return None
        modules: dict[str, Any] = self._modules
        # found without the long search for a module's attributes
        layers = [layer._modules for layer in modules["layers"]._modules.values()]
        maps = [modules["enter"], *(layer[name] for layer in layers for name in ("project", "leave"))]
        own: list[dict[str, Any]] = [map_._parameters for map_ in maps]
        if any(each.get("bias") is not None for each in own[2::2]):
            return None

        def fit() -> bool:
            first, stream = x.new_empty(0, x.shape[1] + self.clock), x.new_empty(0, self.output_size)
            read = zip(maps[1::2], maps[2::2], [first, *[stream] * len(layers)])
            return all(compiles((maps[0], *own), self.form, given, given is first) for *own, given in read)

        tensors = [*(each.get("weight") for each in own), *(each.get("bias") for each in (own[0], *own[1::2]))]
        return self._views(x, maps, tensors, fit)

    def _convolve(self, x: Tensor, start: Tensor, tail: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j taps[j] x[t - j] over the inputs of the same episode, and the last inputs of it [B, n, F]."""
        if self.taps is None:
            return x, tail
        T, n = len(x), self.tail_length
        past = torch.cat((tail.transpose(0, 1), x))
        opens = torch.cat((start.new_zeros(n, start.shape[1]), start))
        y = x * self.taps[0]
        same = torch.ones_like(start)
        for j in range(1, n + 1):
            same = same & ~opens[n - j + 1 : n - j + 1 + T]
            y = y + torch.where(same.unsqueeze(-1), past[n - j : n - j + T], 0) * self.taps[j]
        # what lies before the last start is forgotten: input i of the tail, if any input after it opens an episode
        later = torch.cat((opens[T + 1 :], opens.new_zeros(min(n, 1), start.shape[1])))
        gone = later.flip(0).cumsum(0).flip(0).bool()
        return y, torch.where(gone.unsqueeze(-1), 0, past[T:]).transpose(0, 1)

    def _count(self, x: Tensor, start: Tensor, beat: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs with the clock's beat appended, [T, B, F + 1], and the beat after them."""
        if not self.clock:
            return x, beat
        t = torch.arange(len(x), device=x.device).unsqueeze(1)
        turns = (1 - 2 * (t % 2)).to(x.dtype)
        opened = torch.where(start, t, -1).cummax(0).values
        beats = turns * torch.where(opened < 0, beat.T, turns.squeeze(1)[opened.clamp(min=0)])
        return torch.cat((x, beats.unsqueeze(-1)), -1), -beats[-1:].T if len(x) else beat


def _nowhere(x: Tensor) -> Tensor:
    """No start [1, B] in a step of x [B, *]."""
    return torch.zeros(1, len(x), dtype=torch.bool, device=x.device)


class DeltaLayer(nn.Module):
    """The maps into and out of a layer's tables; what lies between them has no parameters."""

    def __init__(self, input_size: int, output_size: int, form: DeltaForm) -> None:
        super().__init__()
        self.project = Linear(input_size, form.width)
        self.leave = Linear(form.heads * form.value_size, output_size, bias=False)
        shortest, longest = map(math.log, TIMES_AT_START)
        keep = torch.exp(-1 / torch.logspace(shortest, longest, form.heads, math.e))
        if form.hard_gates:
            keep = (keep + STRETCH) / (1 + 2 * STRETCH)
        with torch.no_grad():
            self.project.bias[-2 * form.heads :] = torch.cat((torch.logit(keep), torch.zeros(form.heads)))
