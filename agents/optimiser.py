"""Adam and the clipping of gradients by a norm, for models so small that torch's bookkeeping takes most of the time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_ONE = torch.ones((), device="cpu")


class Adam(torch.optim.Adam):
    """`torch.optim.Adam`, bit by bit, whose fused kernel is called without looking for the right one at every step.

    Arguments are torch's; it is `fused`, on the CPU too, unless they say otherwise.
    """

    def __init__(self, params: Any, *args: Any, **kwargs: Any) -> None:
        fused = not {"foreach", "differentiable"} & kwargs.keys()
        super().__init__(params, *args, **{"fused": fused, **kwargs})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to zero."""
        if set_to_none:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None
        else:
            super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; returns what `closure` does, if there is one."""
        found = [(group, [each for each in group["params"] if each.grad is not None]) for group in self.param_groups]
        if closure is not None or not all(self._is_usual(group, parameters) for group, parameters in found):
            usual = torch.optim.Adam.step
            # hooks of this optimiser are called around this method already
            return (usual.__wrapped__ if getattr(usual, "hooked", False) else usual)(self, closure)  # type: ignore[attr-defined]
        with torch.no_grad():
            for group, parameters in found:
                self._step(group, parameters)
        return None

    def _is_usual(self, group: dict[str, Any], parameters: list[Tensor]) -> bool:
        """Whether `_step` is what torch would do."""
        unusual = group["amsgrad"] or group["capturable"] or group["decoupled_weight_decay"]
        if unusual or not group["fused"] or isinstance(group["lr"], Tensor) or hasattr(self, "grad_scale"):
            return False
        # where a parameter is new, torch makes its means
        return all(self.state[each] for each in parameters) and _are_alike(parameters)

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        states = [self.state[parameter] for parameter in parameters]
        steps = [state["step"] for state in states]
        # a number would be made a tensor for each of them
        torch._foreach_add_(steps, _ONE, alpha=1.0)
        torch._fused_adam_(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=group["maximize"],
        )


def clip_grad_norm(parameters: Sequence[nn.Parameter], max_norm: float) -> Tensor:
    """`nn.utils.clip_grad_norm_`: scale all gradients down together to the Euclidean norm `max_norm`.

    Returns:
        [], the norm before.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not _are_alike(gradients):
        return nn.utils.clip_grad_norm_(parameters, max_norm)
    with torch.no_grad():
        norm = torch._C._nn.flatten_dense_tensors(gradients).norm()
        scale = max_norm / (norm + 1e-6)
        # NaN goes on to the gradients
        if not scale >= 1:
            torch._foreach_mul_(gradients, scale)
    return norm


def _are_alike(tensors: Sequence[Tensor]) -> bool:
    """Whether there are tensors, all dense, on the CPU, float32 or float64."""
    kinds = {(each.dtype, each.layout, each.is_cpu) for each in tensors}
    return kinds in ({(torch.float32, torch.strided, True)}, {(torch.float64, torch.strided, True)})
