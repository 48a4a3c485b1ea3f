"""Limit the divergence between the updated policy and the policy that acted, and undo a step that exceeds it."""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = ("exp_avg", "momentum_buffer")
"""Names of the running mean of gradients in the state of torch's optimisers."""


class DivergenceLimit:
    """Ends the passes over a rollout at 1.5 times the target divergence, as SB3 does, and undoes too large a step.

    One step is enough to ruin a policy: if it reverses the action at a single place, agents may stay there for ever.
    So the last step is undone if it alone raised the divergence by more than the target.

    Args:
        optimizer: the optimiser that takes the steps.
        target_kl: target divergence, in nats.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, target_kl: float) -> None:
        self.target_kl = target_kl
        self.passed = False
        """Whether the divergence has exceeded the limit."""
        self.rejected = False
        """Whether the step that exceeded it was undone."""
        self._before = 0.0
        self._last_step = LastStep(optimizer)

    def check(self, kl: float) -> bool:
        """Take the divergence, in nats, before a step or after the last one, and return `passed`."""
        rise, self._before = kl - self._before, kl
        self.passed = kl > 1.5 * self.target_kl
        if not self.passed:
            self._last_step.keep()
        elif rise > self.target_kl:
            self.rejected = self._last_step.undo()
        return self.passed


class LastStep:
    """A copy of the parameters, and of the optimiser's running means of their gradients, from before its last step.

    The running means of squared gradients are not restored. They hold the gradient of the step that was too large, so
    the next steps are shorter. Otherwise, with a learning rate that is too high, every step would be undone for ever.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        # keys are tensors, because the optimiser makes its means only when a parameter first has a gradient
        self._kept: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the current values. Call this before each step."""
        tensors = self._tensors()
        for tensor in tensors:
            if tensor not in self._kept:
                self._kept[tensor] = torch.empty_like(tensor)
        torch._foreach_copy_([self._kept[tensor] for tensor in tensors], tensors)

    @torch.no_grad()
    def undo(self) -> bool:
        """Restore the values of the last `keep`. Without one, change nothing and return False."""
        if self._kept:
            for tensor in self._tensors():
                kept = self._kept.get(tensor)
                tensor.zero_() if kept is None else tensor.copy_(kept)
        return bool(self._kept)

    def _tensors(self) -> list[Tensor]:
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        states = [self.optimizer.state.get(each, {}) for each in parameters]
        return parameters + [state[name] for state in states for name in DIRECTIONS if state.get(name) is not None]
