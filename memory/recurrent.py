"""The recurrent networks that agents usually get: LSTM, GRU and Elman's network, with resets inside a scan.

Equations in `memory.kernels.cells.gated`; layers are stacked, the output is the last layer's h.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.memory.base import Context, Memory
from palimpsest.memory.kernels.arithmetic.as_built import Arrays, AsBuilt
from palimpsest.memory.kernels.arithmetic.dispatch import in_full_precision, is_transformed
from palimpsest.memory.kernels.cells import gated
from palimpsest.memory.kernels.cells.naive import lstm_naive
from palimpsest.refusals import check_integer


class HiddenState(NamedTuple):
    """State of GRU and RNN."""

    h: Tensor
    """[B, L, D], output of each of L layers."""


class CellState(NamedTuple):
    """State of LSTM."""

    h: Tensor
    """[B, L, D], output of each of L layers, in (-1, 1)."""
    c: Tensor
    """[B, L, D], the cells."""


class Recurrent(Memory):
    """What the three share: weights under torch's names and layout, layers, one state per layer.

    Initial weights and biases are uniform in +-1 / sqrt(D), as torch's modules have them; each class then says what
    lets it remember before it has learned anything, without which no gradient reaches an event 40 steps back.

    Args:
        input_size: F, features per input.
        output_size: D, units of every layer.
        num_layers: L, layers stacked; 1 or more.
    """

    kind: ClassVar[gated.Cell]
    num_gates: ClassVar[int]
    state_type: ClassVar[type[HiddenState] | type[CellState]]

    def __init__(self, input_size: int, output_size: int = 128, num_layers: int = 1) -> None:
        super().__init__(input_size, output_size)
        num_layers = check_integer("num_layers", num_layers, 1)
        self.num_layers = num_layers
        bound = 1 / math.sqrt(output_size)
        G = self.num_gates * output_size
        for layer in range(num_layers):
            sizes = {
                "weight_ih": (G, output_size if layer else input_size),
                "weight_hh": (G, output_size),
                "bias_ih": (G,),
                "bias_hh": (G,),
            }
            for name, size in sizes.items():
                parameter = nn.Parameter(torch.empty(size))
                self.register_parameter(f"{name}_l{layer}", parameter)
                nn.init.uniform_(parameter, -bound, bound)
        self._built = AsBuilt(self)

    def _keep_for(self, horizon: int) -> None:
        """Set the biases of the second gate, the one that keeps.

        Time constants of half of the units are log-uniform in 2 to `horizon` steps, those of the others are 2 steps.
        """
        horizon = check_integer("horizon", horizon, 2)
        slow, D = self.output_size // 2, self.output_size
        with torch.no_grad():
            for layer in range(self.num_layers):
                _, _, bias_ih, bias_hh = self.layer_weights(layer)
                bias_ih[D : D + slow].uniform_(math.log(2), math.log(horizon)).expm1_().log_()
                bias_ih[D + slow : 2 * D].zero_()
                bias_hh[D : 2 * D].zero_()

    def layer_weights(self, layer: int) -> gated.Weights:
        """weight_ih, weight_hh, bias_ih, bias_hh of a layer."""
        w_ih, w_hh, b_ih, b_hh = (
            getattr(self, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        return w_ih, w_hh, b_ih, b_hh

    def initial_state(self, batch_size: int) -> Any:
        """Zeros."""
        zeros = torch.zeros(batch_size, self.num_layers, self.output_size, dtype=self.dtype, device=self.device)
        return self.state_type(*(zeros.clone() for _ in self.state_type._fields))

    def step(
        self, x: Tensor, state: Any, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Map x [B, F] to y [B, D] layer by layer; compiled on the CPU where no gradient is wanted."""
        self.check_step(x, state)
        if not torch.is_grad_enabled() and self._built.allows(self, x, *state):
            y, after = gated.step_layers(self.kind, x, state, self._built.arrays(self, _in_order))
            return y, self.state_type(*after)
        lasts = []
        for layer in range(self.num_layers):
            last = self.cell(x, tuple(s[:, layer] for s in state), self.layer_weights(layer))
            lasts.append(last)
            x = last[0]
        return x, self.state_type(*(torch.stack(s, 1) for s in zip(*lasts)))

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: Any,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Map x [T, B, F] to y [T, B, D] by a kernel per layer; see `memory.kernels.cells.gated`."""
        self.check_sequence(x, start, state)
        lasts = []
        for layer in range(self.num_layers):
            x, last = gated.scan(self.kind, x, start, tuple(s[:, layer] for s in state), self.layer_weights(layer))
            lasts.append(last)
        return x, self.state_type(*(torch.stack(s, 1) for s in zip(*lasts)))

    def context(self) -> Context:
        """One input is read directly; the state may carry any earlier one."""
        return Context(1, math.inf)

    def cell(self, x: Tensor, state: tuple[Tensor, ...], weights: gated.Weights) -> tuple[Tensor, ...]:
        """One step of a layer by torch's cell: x [B, *] and state [B, D] each to the next state, h first."""
        raise NotImplementedError


def _in_order(arrays: dict[str, np.ndarray]) -> Arrays:
    """The parameters as `gated.step_layers` takes them, which is the order in which they were made."""
    return tuple(arrays.values())


class LSTM(Recurrent):
    """Long short-term memory with a forget gate.

    Forget biases start so that the time constants of half of the cells are log-uniform in 2 to `horizon` steps, and
    those of the others 2 steps, as all are in `nn.LSTM`, the one in sb3-contrib. Slow cells hold a cue: where half of
    it is gone after one step, it changes h by 1e-7 of itself 40 steps later, and an agent does not find it. Fast cells
    control: slow ones alone sum their inputs up until tanh saturates, and CartPole without velocities is not learned
    (docs/from-recurrent-ppo.md). The paper's are uniform, which starts most cells slow, and it sets the input gate's
    biases to the opposite, which writes a cue too faintly; here those stay torch's.

    Args:
        input_size: F, features per input.
        output_size: D, units of every layer.
        num_layers: L, layers stacked; 1 or more.
        horizon: longest time constant of the cells before training, in steps; 2 or more.
    State:
        h, c [B, L, D].
    Source: Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000; biases: after
    arXiv 1804.11188.
    """

    kind = gated.LSTM
    num_gates = 4
    state_type = CellState

    def __init__(self, input_size: int, output_size: int = 128, num_layers: int = 1, horizon: int = 128) -> None:
        super().__init__(input_size, output_size, num_layers)
        self._keep_for(horizon)

    @in_full_precision
    def cell(self, x: Tensor, state: tuple[Tensor, ...], weights: gated.Weights) -> tuple[Tensor, ...]:
        """One step of a layer."""
        if is_transformed():  # vmap cannot run torch's
            return lstm_naive(x[None], x.new_zeros(1, len(x), dtype=torch.bool), state[0], state[1], weights)[1]
        return torch.lstm_cell(x, state, *weights)


class GRU(Recurrent):
    """Gated recurrent unit; its reset gate acts after the recurrent product, as in torch and cuDNN.

    Args:
        input_size: F, features per input.
        output_size: D, units of every layer.
        num_layers: L, layers stacked; 1 or more.
        horizon: longest time constant of the units before training, in steps; 2 or more.
    State:
        h [B, L, D].
    Source: arXiv 1406.1078, in the form of its version 1 (the reset gate after the product); the update gate's biases
    start as the LSTM's forget biases do: after arXiv 1804.11188, for half of the units.
    """

    kind = gated.GRU
    num_gates = 3
    state_type = HiddenState

    def __init__(self, input_size: int, output_size: int = 128, num_layers: int = 1, horizon: int = 128) -> None:
        super().__init__(input_size, output_size, num_layers)
        self._keep_for(horizon)

    @in_full_precision
    def cell(self, x: Tensor, state: tuple[Tensor, ...], weights: gated.Weights) -> tuple[Tensor, ...]:
        """One step of a layer."""
        return (torch.gru_cell(x, state[0], *weights),)


class RNN(Recurrent):
    """Elman's network: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    W_hh starts as the identity and the biases at zero: at first what is small stays as it is, in the same units, so
    that one reading of it serves at any distance.

    Args:
        input_size: F, features per input.
        output_size: D, units of every layer.
        num_layers: L, layers stacked; 1 or more.
    State:
        h [B, L, D].
    Source: Elman 1990; identity start: arXiv 1504.00941, there with ReLU.
    """

    kind = gated.RNN
    num_gates = 1
    state_type = HiddenState

    def __init__(self, input_size: int, output_size: int = 128, num_layers: int = 1) -> None:
        super().__init__(input_size, output_size, num_layers)
        for layer in range(num_layers):
            _, weight_hh, bias_ih, bias_hh = self.layer_weights(layer)
            nn.init.eye_(weight_hh)
            nn.init.zeros_(bias_ih)
            nn.init.zeros_(bias_hh)

    @in_full_precision
    def cell(self, x: Tensor, state: tuple[Tensor, ...], weights: gated.Weights) -> tuple[Tensor, ...]:
        """One step of a layer."""
        return (torch.rnn_tanh_cell(x, state[0], *weights),)
