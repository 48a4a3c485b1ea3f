"""Linear maps over sequences, alone or followed by tanh, by the products of `memory.kernels.arithmetic.products`.

A product alone is about as fast as torch's; with tanh it is faster (docs/speed.md). Rows are processed in blocks that
stay in the cache until product, bias and tanh are done.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.arithmetic.elementwise import tanh, tanh_in_place
from palimpsest.memory.kernels.arithmetic.products import (
    add_rows,
    multiply,
    multiply_onto,
    pack,
    pack_into,
    packed_size,
    transpose,
    whole_vectors,
)
from palimpsest.memory.kernels.arithmetic.threads import in_parts, part_borders

FEWEST_ROWS = 256
"""Rows that are worth packing the weight for."""

BLOCK_ROWS = 128
"""Rows of a block."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `functional.linear`, compiled: x [..., F], weight [D, F] and bias [D] or None to [..., D].

    Differentiable once on the CPU.
    """
    if x.numel() < FEWEST_ROWS * x.shape[-1] or not _has_kernel(x, weight, bias):
        return functional.linear(x, weight, bias)
    return _apply(x, weight, bias, False)


def tanh_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The tanh of `linear`, to 2e-7 in float32. Compiled, because torch takes longer for tanh than for a product."""
    if not _has_kernel(x, weight, bias):
        return functional.linear(x, weight, bias).tanh()
    return _apply(x, weight, bias, True)


class Linear(nn.Linear):
    """`nn.Linear` by `linear`."""

    def forward(self, input: Tensor) -> Tensor:
        """Map x [..., F] to [..., D]."""
        return linear(input, self.weight, self.bias)


def is_hooked(*modules: nn.Module) -> bool:
    """Whether a call of one of them does something besides its `forward`, which a kernel would leave out."""
    every = torch.nn.modules.module
    if (
        every._global_forward_hooks
        or every._global_forward_pre_hooks
        or every._global_backward_hooks
        or every._global_backward_pre_hooks
    ):
        return True
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return True
    return False


def is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer and nothing else, so that a kernel may compute it from its parameters."""
    return type(module) in (nn.Linear, Linear) and not is_hooked(module)


def _has_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    # what does not fit is torch's to refuse
    fits = 0 < x.shape[-1] == weight.shape[-1] and (bias is None or bias.shape == weight.shape[:1])
    given = (weight,) if bias is None else (weight, bias)
    return fits and has_kernels(x, *given) and not torch.is_autocast_enabled("cpu")


def _apply(x: Tensor, weight: Tensor, bias: Tensor | None, squashed: bool) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    y = _Linear.apply(rows, weight, bias, squashed) if torch.is_grad_enabled() else _map(rows, weight, bias, squashed)
    return y.view(*x.shape[:-1], len(weight))


def _map(x: Tensor, weight: Tensor, bias: Tensor | None, squashed: bool) -> Tensor:
    N, D = len(x), len(weight)
    y = x.new_empty(N, D)
    added = x.new_zeros(D).numpy() if bias is None else bias.contiguous().numpy(force=True)
    inputs, outputs = x.contiguous().numpy(force=True), y.numpy()
    if N < FEWEST_ROWS:
        map_layers(inputs, (weight.contiguous().numpy(force=True),), (added,), squashed, outputs)
        return y
    packed = pack(weight.detach().t().numpy())
    in_parts(
        lambda first, last: _forward(inputs[first:last], packed, added, squashed, outputs[first:last]),
        part_borders(1, N),
    )
    return y


class _Linear(torch.autograd.Function):
    """(x [N, F], weight [D, F], bias [D] or None, whether the tangent follows) -> [N, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, squashed: bool) -> Tensor:
        y = _map(x, weight, bias, squashed)
        ctx.save_for_backward(x, weight, y if squashed else y.new_empty(0, len(weight)))
        ctx.has_bias, ctx.squashed = bias is not None, squashed
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, y = ctx.saved_tensors
        outside, inputs, outputs = dy.contiguous().numpy(), x.contiguous().numpy(), y.numpy()
        # of no rows where it is not asked for
        dx = x.new_empty(x.shape if ctx.needs_input_grad[0] else (0, x.shape[1]))
        packed = pack(weight.numpy())

        def run(first: int, last: int) -> tuple[Tensor, Tensor]:
            d_weight, d_bias = x.new_zeros(weight.shape), x.new_zeros(len(weight))
            part = slice(first, last)
            arrays = (outside[part], inputs[part], outputs[part], packed, dx.numpy()[part], False)
            _backward(*arrays, d_weight.numpy(), d_bias.numpy())
            return d_weight, d_bias

        (d_weight, d_bias), *others = in_parts(run, part_borders(1, len(x)))
        for other_weight, other_bias in others:
            d_weight += other_weight
            d_bias += other_bias
        return dx if ctx.needs_input_grad[0] else None, d_weight, d_bias if ctx.has_bias else None, None


@njit(**OPTIONS)
def map_layers(x, weights, biases, squashed, out):
    """`map_packed` of rows x [N, F]."""
    map_packed(pack(x.T), weights, biases, squashed, out)


@njit(**OPTIONS)
def map_packed(x, weights, biases, squashed, out):
    """Fill out [N, D] from few rows by linear maps with tangents between them, and at the end if `squashed`.

    The rows come packed, turned: weights are then read as torch lays them out. A row's map does not depend on how many
    rows there are.
    """
    N, last = len(out), len(weights) - 1
    for number in range(len(weights)):
        bias, squash = biases[number], squashed or number < last
        y = np.empty((len(bias), whole_vectors(N, out.itemsize)), out.dtype)
        multiply(weights[number], x, y, False)
        for unit in range(len(bias)):
            _add_number(y[unit], bias[unit], squash)
        if number < last:
            x = pack(y)
        else:
            transpose(y[:, :N], out)


@njit(**OPTIONS)
def _add_number(row, number, squash):
    """Add a number to a row, and take the tangent if `squash`."""
    if squash:
        for j in range(len(row)):
            row[j] = tanh(row[j] + number)
    else:
        for j in range(len(row)):
            row[j] += number


@njit(**OPTIONS)
def layers_forward(x, weights, biases, outputs):
    """`map_packed` of many rows: fill outputs [N, D], one of each map, tangents taken in all but the last."""
    last = len(weights) - 1
    for number in range(len(weights)):
        _forward(x, pack(weights[number].T), biases[number], number < last, outputs[number])
        x = outputs[number]


@njit(**OPTIONS)
def layers_backward(dy, x, weights, outputs, dx, add, d_weights, d_biases):
    """From dy [N, D] of the last of `layers_forward`'s outputs: dx [N, F] and the parameters' as in `_backward`."""
    last = len(weights) - 1
    for number in range(last, -1, -1):
        y = outputs[number] if number < last else np.empty((0, 1), dy.dtype)
        before = outputs[number - 1] if number > 0 else x
        d_before = np.empty(before.shape, dy.dtype) if number > 0 else dx
        added = add and number == 0
        _backward(dy, before, y, pack(weights[number]), d_before, added, d_weights[number], d_biases[number])
        dy = d_before


@njit(**OPTIONS)
def _forward(x, packed, bias, squashed, y):
    """Fill y [N, D] from x [N, F], the transposed weight, packed, and bias [D]."""
    for begin in range(0, len(x), BLOCK_ROWS):
        rows = y[begin : begin + BLOCK_ROWS]
        multiply_onto(bias, x[begin : begin + BLOCK_ROWS], packed, rows)
        if squashed:
            tanh_in_place(rows.reshape(-1))


@njit(**OPTIONS)
def _backward(dy, x, y, packed, dx, add, d_weight, d_bias):
    """Fill dx [N, F], or add to it where `add`, unless it is empty; add to d_weight [D, F] and d_bias [D].

    dy [N, D], x [N, F], the output y [N, D] where the tangent was taken, else empty; the weight, packed.
    """
    (N, D), F = dy.shape, x.shape[1]
    through = np.empty((min(N, BLOCK_ROWS), D), dy.dtype)
    packed_x = np.empty(packed_size(BLOCK_ROWS, F, dy.itemsize), dy.dtype)
    for begin in range(0, N, BLOCK_ROWS):
        end = min(begin + BLOCK_ROWS, N)
        d = dy[begin:end]
        if len(y) > 0:
            d = through[: end - begin]
            for row in range(end - begin):
                _through_tangent(dy[begin + row], y[begin + row], d[row])
        multiply(d.T, pack_into(x[begin:end], packed_x), d_weight, True)
        add_rows(d, d_bias)
        if len(dx) > 0:
            multiply(d, packed, dx[begin:end], add)


@njit(**INLINED)
def _through_tangent(dy, y, d):
    for j in range(len(d)):
        d[j] = dy[j] * (1 - y[j] * y[j])
