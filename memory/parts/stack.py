"""Layers that add to a stream: what the memories have in common that are one mechanism, several times over.

    s_0 = enter(x)
    s_l = s_{l-1} + layer_l(LN(s_{l-1}))      l = 1 .. L
    y = LN(s_L)                               LN without parameters

A memory is then a layer, the name of its state, and its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory, State, Watching


class Layer(Watching):
    """One mechanism of width D: features [..., D] to what is added to the stream [..., D].

    `watched` holds tensors, [N] or [T, B, N] each.
    """

    def initial_state(self, batch_size: int) -> tuple[Tensor, ...]:
        """The parts of the state, batch first."""
        raise NotImplementedError

    def step(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read x [B, D]; what is added [B, D] and the next state. Written as in the equations."""
        raise NotImplementedError

    def scan(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read x [T, B, D] with start [T, B] bool; what is added [T, B, D] and the last state."""
        raise NotImplementedError

    def read_weights(self, x: Tensor, start: Tensor, state: tuple[Tensor, ...]) -> Tensor | None:
        """Those of `Memory.read_weights` for this layer, [T, B, H, T], the last dimension being the write's step."""
        return None

    def forward(
        self, x: Tensor, state: tuple[Tensor, ...], start: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`scan` where there is a start, else `step`."""
        return self.step(x, state) if start is None else self.scan(x, start, state)

    @property
    def like(self) -> Tensor:
        """A parameter: its type and device are the state's."""
        return next(self.parameters())


class Stack(Memory):
    """A memory that is a stack of layers.

    Args:
        input_size: F, features per input.
        output_size: D, width of the stream.
        layers: L layers of that width.
    State:
        `state_type`: each part of a layer's state with L as second dimension, [B, L, ...].
    """

    state_type: ClassVar[Any]

    def __init__(self, input_size: int, output_size: int, layers: Sequence[Layer]) -> None:
        super().__init__(input_size, output_size)
        self.enter = nn.Linear(self.input_size, self.output_size)
        self.layers = nn.ModuleList(layers)

    def initial_state(self, batch_size: int) -> Any:
        """What each layer holds at first, as a rule zeros."""
        parts = [layer.initial_state(batch_size) for layer in self._layers()]
        return self.state_type(*(torch.stack(part, 1) for part in zip(*parts)))

    def step(
        self, x: Tensor, state: Any, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        """Map x [B, F] to y [B, D]."""
        self.check_step(x, state)
        return self._through(x, state, None)

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: Any,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Map x [T, B, F] to y [T, B, D], layer by layer, each for all steps at once."""
        self.check_sequence(x, start, state)
        if x.numel() == 0:
            return x.new_empty(*start.shape, self.output_size), state
        return self._through(x, state, start)

    def context(self) -> Context:
        """One input is read directly; the state may carry any earlier one."""
        return Context(1, math.inf)

    def diagnostics(self) -> dict[str, Tensor]:
        """What the layers watch, side by side: the last dimension is L times as long as a layer's."""
        layers = self._layers()
        return {name: torch.cat([layer.watched[name] for layer in layers], -1) for name in layers[0].watched}

    def read_weights(self, x: Tensor, start: Tensor, state: Any) -> Tensor | None:
        """Those of all layers; None where a layer has none."""
        self.check_sequence(x, start, state)
        stream, found = self.enter(x), []
        for number, layer in enumerate(self._layers()):
            read, own = self._normal(stream), tuple(part[:, number] for part in state)
            weights = layer.read_weights(read, start, own)
            if weights is None:
                return None
            found.append(weights)
            stream = stream + layer(read, own, start)[0]
        return torch.cat(found, 2).permute(1, 2, 0, 3)

    def _through(self, x: Tensor, state: State, start: Tensor | None) -> tuple[Tensor, Any]:
        stream, lasts = self.enter(x), []
        for number, layer in enumerate(self.layers):
            added, last = layer(self._normal(stream), tuple(part[:, number] for part in state), start)
            stream = stream + added
            lasts.append(last)
        return self._normal(stream), self.state_type(*(torch.stack(part, 1) for part in zip(*lasts)))

    def _normal(self, stream: Tensor) -> Tensor:
        return functional.layer_norm(stream, (self.output_size,))

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]
