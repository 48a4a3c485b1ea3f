"""The control without memory: a feed-forward layer.

y_t = tanh(W x_t + b)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from palimpsest.memory.base import Context, Memory


class NoState(NamedTuple):
    """A state without tensors: nothing is kept."""


class Memoryless(Memory):
    """No memory: every output is a function of its own input alone, y_t = tanh(W x_t + b).

    The score of an agent with it is the score that the task allows without memory.

    Args:
        input_size: F, features per input.
        output_size: D, features per output.
    State:
        None: `NoState()` for any batch size.
    """

    def __init__(self, input_size: int, output_size: int = 128) -> None:
        super().__init__(input_size, output_size)
        self.layer = nn.Linear(input_size, output_size)

    def initial_state(self, batch_size: int) -> NoState:
        """An empty state, for any `batch_size`."""
        return NoState()

    def step(
        self, x: Tensor, state: NoState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, NoState]:
        """Map x [B, F] to y [B, D]."""
        self.check_step(x, state)
        return self.layer(x).tanh(), state

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: NoState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, NoState]:
        """Map x [T, B, F] to y [T, B, D] in one matrix product."""
        self.check_sequence(x, start, state)
        return self.layer(x).tanh(), state

    def context(self) -> Context:
        """The current input alone."""
        return Context(1, 1)
