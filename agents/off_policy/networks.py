"""Networks that learn, and the target networks that follow them."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from palimpsest.agents.learn.numerics import ADVICE, NotFinite
from palimpsest.agents.off_policy.policy import ReplayPolicy

PolicyT = TypeVar("PolicyT", bound=ReplayPolicy)


def target_of(network: PolicyT) -> PolicyT:
    """A target network: a copy for which no gradient is computed. It scales observations as the network does.

    Weights that the network is given later are its own too (`ReplayPolicy.load_state_dict`).
    """
    network.followers = ()
    target = copy.deepcopy(network)
    network.followers = (target,)
    target.observation_scales = network.observation_scales
    target.requires_grad_(False)
    target.train(False)
    return target


def follow(target: nn.Module, network: nn.Module, tau: float) -> None:
    """Move a target network towards its network by `tau`; running statistics are copied, as in SB3."""
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(network.parameters()), tau)
        for (name, its), own in zip(target.named_buffers(), network.buffers()):
            if "running_" in name:
                its.copy_(own)


def clip_and_step(
    parameters: Iterable[Tensor], loss: Tensor, optimizer: Any, max_grad_norm: float, step: int
) -> Tensor:
    """One step down the gradient of a loss, which is there already, clipped to a norm; returns that norm before.

    Raises:
        NotFinite: the loss or the norm is not finite; no parameter has changed.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    if not torch.isfinite(loss.detach() + norm):
        raise NotFinite(
            f"the loss is {loss.item()} and the norm of its gradient {norm.item()} at step {step}; {ADVICE}",
            "off-policy update",
            {"step": step},
        )
    optimizer.step()
    return norm
