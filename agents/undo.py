"""One idea: a step of the optimiser can be taken back."""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = ("exp_avg", "momentum_buffer")
"""What torch's optimisers call their running mean of gradients."""


class LastStep:
    """Parameters, and the optimiser's running means of their gradients, as they were before its last step.

    Its running means of squares stay as they are when a step is undone: they have seen a gradient that leads too far,
    so that a learning rate that is always too high shortens its steps instead of being refused for ever.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._kept: list[Tensor] = []

    def keep(self) -> None:
        """Remember how things are now; to be called before each step."""
        now = self._tensors()
        if len(now) != len(self._kept):
            self._kept = [tensor.clone() for tensor in now]
        else:
            for kept, tensor in zip(self._kept, now):
                kept.copy_(tensor)

    def undo(self) -> None:
        """Set everything back to the last `keep`; without one, nothing happens."""
        now = self._tensors()
        for tensor, kept in zip(now, self._kept):
            tensor.copy_(kept)
        if self._kept:
            # the optimiser has means since its first step only, which then is the one undone
            for tensor in now[len(self._kept) :]:
                tensor.zero_()

    def _tensors(self) -> list[Tensor]:
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        states = [self.optimizer.state.get(each, {}) for each in parameters]
        means = [state[name] for state in states for name in DIRECTIONS if state.get(name) is not None]
        return [each.detach() for each in parameters] + means
