"""Linear maps over sequences by the products of `memory.kernels.products`.

The library behind torch's own products uses less than half of what some processors can do; these use the widest
vectors that there are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from memory.kernels.products import add_product, multiply, pack
from memory.kernels.rows import in_parts, part_borders

FEWEST_ROWS = 256
"""Rows that are worth packing the weight for."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `functional.linear`, and faster: x [..., F], weight [D, F] and bias [D] or None to [..., D].

    Differentiable once on the CPU.
    """
    known = x.dtype in (torch.float32, torch.float64) and x.dtype == weight.dtype
    if x.device.type != "cpu" or not known or x.numel() < FEWEST_ROWS * x.shape[-1] or torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map x [..., F] to [..., D]."""
        return linear(input, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    """(x [N, F], weight [D, F], bias [D] or None) -> [N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        N, D = len(x), len(weight)
        out = x.new_empty(N, D) if bias is None else bias.expand(N, D).contiguous()
        packed = pack(weight.t().numpy())
        rows = x.contiguous().numpy(), out.numpy()

        def run(first: int, last: int) -> None:
            multiply(rows[0][first:last], packed, rows[1][first:last], bias is not None)

        in_parts(run, part_borders(1, N))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()
        outside, inputs = dy.numpy(), x.contiguous().numpy()
        dx = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        packed = pack(weight.numpy()) if dx is not None else None

        def run(first: int, last: int) -> Tensor:
            d_weight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
            add_product(outside[first:last], inputs[first:last], d_weight.numpy())
            if dx is not None:
                multiply(outside[first:last], packed, dx.numpy()[first:last], False)
            return d_weight

        first, *others = in_parts(run, part_borders(1, len(x)))
        return dx, sum(others, first), dy.sum(0) if ctx.has_bias else None
