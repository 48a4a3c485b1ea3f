"""How far an update may lead from the policy that acted, and how a step that leads too far is taken back."""

from __future__ import annotations

import torch
from torch import Tensor

DIRECTIONS = ("exp_avg", "momentum_buffer")
"""What torch's optimisers call their running mean of gradients."""


class DivergenceLimit:
    """Ends the passes over a rollout at 1.5 times a divergence, as SB3 does, and undoes a step that leaps beyond.

    One step is enough to lose a policy: where it turns the choice at a single place round, agents may stand there for
    ever. So where the last step alone raised the divergence by more than the target, it is taken back.

    Args:
        optimizer: what takes the steps.
        target_kl: nats.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, target_kl: float) -> None:
        self.target_kl = target_kl
        self.passed = False
        """Whether the divergence has been beyond the limit."""
        self.rejected = False
        """Whether the step that led there was taken back."""
        self._before = 0.0
        self._last_step = LastStep(optimizer)

    def check(self, kl: float) -> bool:
        """Take note of the divergence, in nats, before a step or after the last one; the result is `passed`."""
        rise, self._before = kl - self._before, kl
        self.passed = kl > 1.5 * self.target_kl
        if not self.passed:
            self._last_step.keep()
        elif rise > self.target_kl:
            self.rejected = self._last_step.undo()
        return self.passed


class LastStep:
    """Parameters, and the optimiser's running means of their gradients, as they were before its last step.

    Its running means of squares stay as they are when a step is undone: they have seen a gradient that leads too far,
    so that a learning rate that is always too high shortens its steps instead of being refused for ever.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        # by the tensors themselves: the optimiser makes its means when a parameter first has a gradient
        self._kept: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def keep(self) -> None:
        """Remember how things are now; to be called before each step."""
        tensors = self._tensors()
        for tensor in tensors:
            if tensor not in self._kept:
                self._kept[tensor] = torch.empty_like(tensor)
        torch._foreach_copy_([self._kept[tensor] for tensor in tensors], tensors)

    @torch.no_grad()
    def undo(self) -> bool:
        """Set everything back to the last `keep`; False where there was none, and nothing happens."""
        if self._kept:
            for tensor in self._tensors():
                kept = self._kept.get(tensor)
                tensor.zero_() if kept is None else tensor.copy_(kept)
        return bool(self._kept)

    def _tensors(self) -> list[Tensor]:
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        states = [self.optimizer.state.get(each, {}) for each in parameters]
        return parameters + [state[name] for state in states for name in DIRECTIONS if state.get(name) is not None]
