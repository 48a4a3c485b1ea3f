"""The Adaptive Memory Allocator: it learns from returns which allocation strategy is best for which task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.parts.allocation import STRATEGIES
from palimpsest.refusals import check_above, check_integer


class StrategyValues(nn.Module):
    """The value of each strategy in each task: Q(task) = W2 relu(W1 onehot(task) + b1) + b2, one value per strategy.

    The strategy with the greatest value is used. Its value is then trained towards the return of the episode. The
    weights and the state of their optimiser (Adam) are buffers, not parameters. So an optimiser over `parameters()`
    never sees them, and `state_dict` restores them exactly.

    Args:
        num_tasks: number of tasks; 1 or more.
        hidden_size: units of the hidden layer.
        learning_rate: Adam's step size.
    Source: arXiv 2402.15160 and its public code (64 units; epsilon from 1.0 to 0.2), there of four strategies.
    """

    W1: Tensor
    b1: Tensor
    W2: Tensor
    b2: Tensor
    mean: Tensor
    mean_square: Tensor
    updates: Tensor

    def __init__(self, num_tasks: int = 1, hidden_size: int = 64, learning_rate: float = 1e-3) -> None:
        super().__init__()
        num_tasks = check_integer("num_tasks", num_tasks, 1)
        hidden_size = check_integer("hidden_size", hidden_size, 1)
        learning_rate = check_above("learning_rate", learning_rate, 0)
        self.num_tasks = num_tasks
        self.learning_rate = learning_rate
        hidden, out = nn.Linear(num_tasks, hidden_size), nn.Linear(hidden_size, len(STRATEGIES))
        for name, weight in zip(("W1", "b1", "W2", "b2"), (*hidden.parameters(), *out.parameters())):
            self.register_buffer(name, weight.detach().clone())
        size = sum(weight.numel() for weight in self._weights())
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("mean_square", torch.zeros(size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def forward(self, task: Tensor) -> Tensor:
        """Values [N, 6] of the six strategies for `task` [N] int64."""
        return self._values(self._weights(), task)

    def choose(self, task: Any, epsilon: float, rng: np.random.Generator) -> Tensor:
        """Choose strategies: with probability `epsilon` any of the six, else the best; ties go to the lowest index.

        Args:
            task: [N] integers, 0 to num_tasks - 1.
            epsilon: 0 to 1; with 0 the draws have no effect.
            rng: source of the draws, two arrays of N per call.

        Returns:
            [N] int64.

        Raises:
            ValueError: a task is out of range.
        """
        task = self._check_task(task)
        greedy = self(task).cpu().numpy().argmax(1)  # numpy's argmax takes the first of equals, torch's may take any
        explored = rng.integers(len(STRATEGIES), size=len(greedy))
        choice = np.where(rng.random(len(greedy)) < epsilon, explored, greedy)
        return torch.from_numpy(choice.astype(np.int64)).to(self.b2.device)

    def update(self, task: Any, strategy: Any, value: Any) -> Tensor:
        """Take one step of Adam on the mean squared error between the values of `strategy` and `value`.

        Args:
            task: [N] integers, 0 to num_tasks - 1.
            strategy: [N] integers, 0 to 5: the strategies that were used.
            value: [N], the returns of their episodes. With N = 0 nothing changes.

        Returns:
            The loss before the step, detached.

        Raises:
            ValueError: a task or a strategy is out of range, or the lengths differ.
        """
        task = self._check_task(task)
        strategy = torch.as_tensor(strategy, device=self.b2.device).long()
        value = torch.as_tensor(value, device=self.b2.device, dtype=self.b2.dtype)
        if not task.shape == strategy.shape == value.shape:
            raise ValueError(
                "task, strategy and value must be [N] each; "
                f"got {list(task.shape)}, {list(strategy.shape)}, {list(value.shape)}"
            )
        if strategy.numel() and not 0 <= int(strategy.min()) <= int(strategy.max()) < len(STRATEGIES):
            raise ValueError(f"strategy must be 0 to {len(STRATEGIES) - 1}; got {strategy.tolist()}")
        if not task.numel():
            return value.new_zeros(())
        weights = [weight.detach().clone().requires_grad_() for weight in self._weights()]
        with torch.enable_grad():
            chosen = self._values(weights, task).gather(1, strategy[:, None]).squeeze(1)
            loss = functional.mse_loss(chosen, value)
            gradients = torch.autograd.grad(loss, weights)
        self._adam(torch.cat([g.flatten() for g in gradients]))
        return loss.detach()

    def _adam(self, gradient: Tensor, decays: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        """Adam with torch's defaults, arXiv 1412.6980, algorithm 1."""
        self.updates += 1
        n = int(self.updates)
        self.mean.lerp_(gradient, 1 - decays[0])
        self.mean_square.lerp_(gradient.square(), 1 - decays[1])
        spread = (self.mean_square / (1 - decays[1] ** n)).sqrt_().add_(epsilon)
        change = self.mean / (1 - decays[0] ** n) / spread
        weights = self._weights()
        for weight, part in zip(weights, change.split([weight.numel() for weight in weights])):
            weight.sub_(self.learning_rate * part.view_as(weight))

    def _weights(self) -> list[Tensor]:
        return [self.W1, self.b1, self.W2, self.b2]

    def _values(self, weights: list[Tensor], task: Tensor) -> Tensor:
        W1, b1, W2, b2 = weights
        hidden = (functional.one_hot(task, self.num_tasks).to(W1.dtype) @ W1.T + b1).relu()
        return hidden @ W2.T + b2

    def _check_task(self, task: Any) -> Tensor:
        task = torch.as_tensor(task, device=self.b2.device).long()
        if task.numel() and not 0 <= int(task.min()) <= int(task.max()) < self.num_tasks:
            raise ValueError(f"task must be 0 to num_tasks - 1 = {self.num_tasks - 1}; got {task.tolist()}")
        return task
