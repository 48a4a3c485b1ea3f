"""One reduction for each gradient step: the gradients, and the figures that are logged, in one message."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest.agents.workers.group import Alone


def add_up(workers: Alone, parameters: Sequence[Tensor], figures: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Sum gradients over the workers, in place, and means over the parts of a minibatch.

    Args:
        workers: who add up.
        parameters: whose gradients are those of this worker's mean loss times `share`.
        figures: means [] over this worker's part.
        share: the part's share of the minibatch, 0 to 1.

    Returns:
        The figures of the whole minibatch.
    """
    if workers.size == 1:
        return figures
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = torch.stack(list(figures.values())) * share
    flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), means])
    workers.add(flat)
    *sums, means = flat.split([*(gradient.numel() for gradient in gradients), len(figures)])
    for gradient, total in zip(gradients, sums):
        gradient.copy_(total.view_as(gradient))
    return dict(zip(figures, means.unbind()))
