"""The hyperbolic tangent, for which torch takes longer than for the product before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.arithmetic.elementwise import tanh


class Tanh(nn.Tanh):
    """`nn.Tanh`, compiled on the CPU: equal to 4e-7 in float32, to rounding in float64; as it is elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        """Map a tensor of any shape."""
        if not has_kernels(input):
            return super().forward(input)
        return _Tanh.apply(input) if torch.is_grad_enabled() else _forward(input)


class _Tanh(torch.autograd.Function):
    """The compiled form with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _forward(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        dx = torch.empty_like(y)
        _backward_kernel(*(_flat(tensor) for tensor in (dy.contiguous(), y, dx)))
        return dx


def _forward(x: Tensor) -> Tensor:
    x = x.detach().contiguous()
    y = torch.empty_like(x)
    _forward_kernel(_flat(x), _flat(y))
    return y


def _flat(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().reshape(-1)


# error_model and fastmath as in memory.kernels.arithmetic.elementwise, so that the loops are vectorised


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _forward_kernel(x: np.ndarray, y: np.ndarray) -> None:
    for i in range(x.size):
        y[i] = tanh(x[i])


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _backward_kernel(dy: np.ndarray, y: np.ndarray, dx: np.ndarray) -> None:
    for i in range(y.size):
        dx[i] = dy[i] * (y.dtype.type(1) - y[i] * y[i])
