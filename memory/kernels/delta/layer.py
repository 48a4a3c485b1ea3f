"""A layer of the rewrite-aware memory: the maps into and out of its tables, and all that lies between.

With x what it reads, and z = W_z x + c = [q, k, v, g] of every head, then a and b of all heads, per head:

    alpha = gate(a),  beta = 2 gate(b)        gate: the sigmoid, or one that is stretched and clipped
    read = gated_delta_scan(q / |q|, k / |k|, v, alpha, beta)
    y = sigmoid(g) bounded(read)              bounded: x / sqrt(mean x^2 + NORM_EPS), or tanh

and stream + W_y y leaves it; the first layer's stream is a map of x too. One function, because on the CPU these
operations cost more than the recurrence when each goes through memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.arithmetic.linear import Linear, is_plain
from palimpsest.memory.kernels.arithmetic.threads import in_parts, part_borders
from palimpsest.memory.kernels.delta.gated_delta import gated_delta_scan
from palimpsest.memory.kernels.delta.layer_loops import STRETCH, compiled
from palimpsest.memory.kernels.delta.loops import SEGMENT
from palimpsest.memory.kernels.delta.read import NORM_EPS

Maps = tuple[Linear, Linear, Linear]


class DeltaForm(NamedTuple):
    """Sizes and forms of a layer."""

    heads: int
    key_size: int
    value_size: int
    hard_gates: bool
    tanh_read: bool
    bound_values: bool

    @property
    def head_width(self) -> int:
        """Numbers per head in z: q, k, v, g."""
        return 2 * self.key_size + 2 * self.value_size

    @property
    def width(self) -> int:
        """Numbers in z."""
        return self.heads * (self.head_width + 2)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """q, k, v, g [T, B, H, 2 K + 2 V], and a, b [T, B, 2 H] of z [T, B, width], as views."""
        heads, gates = z.split((self.heads * self.head_width, 2 * self.heads), -1)
        return heads.unflatten(-1, (self.heads, self.head_width)), gates


def delta_layer(
    x: Tensor, stream: Tensor | None, maps: Maps, start: Tensor, state: Tensor, form: DeltaForm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas above: compiled on the CPU where maps do nothing but map, from torch's operations elsewhere.

    Args:
        x: [T, B, F], what the layer reads.
        stream: [T, B, D], what it adds to; None where it adds to the first of the maps.
        maps: of x to the stream, of x to z, and of what is read to the stream.
        start: [T, B] bool.
        state: [B, H, K, V], the tables before the first step.
        form: sizes and forms.

    Returns:
        The new stream [T, B, D], the last tables [B, H, K, V]; alpha and beta [T, B, H], without gradients.
    """
    plain = compiles(maps, form, x, stream is None) and not torch.is_autocast_enabled("cpu")
    if not (plain and x.numel() > 0 and has_kernels(x, state)):
        return delta_layer_torch(x, stream, maps, start, state, form)
    enter, project, leave = maps
    weights: tuple[Tensor, ...] = (enter.weight, enter.bias, project.weight, project.bias, leave.weight)
    if stream is not None:
        weights = (x.new_empty(0, x.shape[2]), x.new_empty(0), *weights[2:])
    y, last, gates = _DeltaLayer.apply(torch.is_grad_enabled(), form, x, stream, start, state, *weights)
    alpha, beta = gates.chunk(2, -1)
    return y, last, alpha, beta


def compiles(maps: Sequence[nn.Module], form: DeltaForm, x: Tensor, first: bool) -> bool:
    """Whether kernels may compute the maps of a layer that reads x [..., F], now: linear, of its sizes and type.

    The first layer maps x to the stream too.
    """
    enter, project, leave = maps
    if not (is_plain(enter) and is_plain(project) and is_plain(leave)) or leave.bias is not None:
        return False
    # a weight or bias that is computed, or kept as a buffer, is no parameter
    into, read, out = (each._parameters.get("weight") for each in maps)
    entered, projected = (each._parameters.get("bias") for each in (enter, project))
    if into is None or read is None or out is None or entered is None or projected is None:
        return False
    fits = read.shape == (form.width, x.shape[-1]) and out.shape == (len(into), form.heads * form.value_size)
    fits = fits and entered.shape == into.shape[:1] and projected.shape == read.shape[:1]
    fits = fits and (not first or into.shape[1] == x.shape[-1])
    return fits and has_kernels(x, into, read, out, entered, projected)


def delta_layer_torch(
    x: Tensor, stream: Tensor | None, maps: Maps, start: Tensor, state: Tensor, form: DeltaForm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`delta_layer` operation by operation."""
    enter, project, leave = maps
    stream = enter(x) if stream is None else stream
    K, V = form.key_size, form.value_size
    heads, gates = form.split(project(x))
    q, k, v, g = heads.split((K, K, V, V), -1)
    alpha, beta = gate(gates, form.hard_gates).chunk(2, -1)
    beta = 2 * beta
    v = torch.tanh(v) if form.bound_values else v
    read, last = gated_delta_scan(q, k, v, alpha, beta, start, state, normalise=True)
    read = torch.tanh(read) if form.tanh_read else mean_square_norm(read)
    y = (read * torch.sigmoid(g)).flatten(-2)
    return stream + leave(y), last, alpha.detach(), beta.detach()


def gate(x: Tensor, hard: bool) -> Tensor:
    """The sigmoid; if `hard`, stretched by STRETCH to both sides and clipped, so that it reaches 0 and 1."""
    opened = torch.sigmoid(x)
    return (opened * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1) if hard else opened


def mean_square_norm(x: Tensor) -> Tensor:
    """Divide x by sqrt(mean x^2 + NORM_EPS) over the last axis: near zero a mere factor, not noise at full size."""
    return functional.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


class _DeltaLayer(torch.autograd.Function):
    """The compiled form with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        recording: bool,
        form: DeltaForm,
        x: Tensor,
        stream: Tensor | None,
        start: Tensor,
        state: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The new stream, the last tables, and alpha and beta [T, B, 2 H]; `recording`: whether autograd is on."""
        T, B, _ = x.shape
        H, D = form.heads, len(weights[-1])
        keep = recording and any(ctx.needs_input_grad)
        x, start = x.contiguous(), start.contiguous()
        borders = x.new_empty(1 + -(-T // SEGMENT) * keep, *state.shape)
        borders[0] = state
        z = x.new_empty(T * B * keep, form.width)
        y, gates = x.new_empty(T, B, D), x.new_empty(T, B, 2 * H)
        read = x.new_empty(0, B, D) if stream is None else stream.contiguous()
        arrays = (x, read, *weights, start, borders.flatten(3), z, gates, y)
        x_, read_, *maps_, start_, borders_, z_, gates_, y_ = (each.detach().numpy() for each in arrays)
        how = (form.hard_gates, form.bound_values)
        given = (x_, read_, *maps_, start_, *how, borders_, z_, gates_, y_)
        ctx.borders = part_borders(T, B)
        in_parts(lambda first, last: _loops(form)[0](first, last, *given), ctx.borders)
        if keep:
            ctx.save_for_backward(x, start, borders, z, *weights)
            ctx.form, ctx.adds = form, stream is not None
        ctx.mark_non_differentiable(gates)
        return y, borders[-1].clone(), gates

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor, d_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, start, borders, z, *weights = ctx.saved_tensors
        form: DeltaForm = ctx.form
        dy, d_state = dy.contiguous(), d_last.clone(memory_format=torch.contiguous_format)
        dx = x.new_empty(x.shape if ctx.needs_input_grad[2] else (0, *x.shape[1:]))
        matrices = (weights[0], weights[2], weights[4])
        arrays = (x, *matrices, start, borders.flatten(3), z, dy, d_state.flatten(2), dx)
        x_, *matrices_, start_, borders_, z_, dy_, d_state_, dx_ = (each.numpy() for each in arrays)
        given = (x_, *matrices_, start_, form.hard_gates, form.bound_values, borders_, z_, dy_, d_state_, dx_)

        def run(first: int, last: int) -> list[Tensor]:
            sums = [x.new_zeros(each.shape) for each in weights]
            _loops(form)[1](first, last, *given, *(each.numpy() for each in sums))
            return sums

        parts = in_parts(run, ctx.borders)
        d_weights = (sum(others, own) for own, *others in zip(*parts))
        return None, None, dx if ctx.needs_input_grad[2] else None, dy if ctx.adds else None, None, d_state, *d_weights


def _loops(form: DeltaForm) -> tuple[Callable[..., None], Callable[..., None]]:
    return compiled(form.key_size, form.value_size, form.tanh_read)
