"""A layer of the rewrite-aware memory: the maps into and out of its tables, and everything between them.

x is what the layer reads; z = W_z x + c holds [q, k, v, g] of every head, then a and b of all heads. Per head:

    alpha = sigmoid(a),  beta = 2 sigmoid(b)
    q, k turned by time                                           see `memory.kernels.delta.turning`
    read = gated_delta_scan(q / |q|, k / |k|, v, alpha, beta)     each step reads first
    y = sigmoid(g) tanh(read)

and the layer returns stream + W_y y. The first layer's stream is itself a map of x. All of this is one compiled
function, because on the CPU these operations would cost more than the recurrence if each wrote its result to memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.arithmetic.threads import in_parts, part_borders
from palimpsest.memory.kernels.delta.chunked import gated_delta_chunked
from palimpsest.memory.kernels.delta.layer_loops import compiled
from palimpsest.memory.kernels.delta.loops import SEGMENT
from palimpsest.memory.kernels.delta.scan import gated_delta_scan
from palimpsest.memory.kernels.delta.turning import period, turn

Maps = tuple[nn.Linear, nn.Linear, nn.Linear]


class DeltaSizes(NamedTuple):
    """Sizes of a layer's tables: H, K and V."""

    heads: int
    key_size: int
    value_size: int

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
    x: Tensor,
    stream: Tensor | None,
    maps: Maps,
    start: Tensor,
    state: Tensor,
    sizes: DeltaSizes,
    times: Tensor,
    turns: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The equations above: compiled on the CPU, where the maps are not called, and by torch's operations elsewhere.

    Args:
        x: [T, B, F], what the layer reads.
        stream: [T, B, D], what the layer adds to; None for the first layer, which adds to the first map of x.
        maps: linear maps of x to the stream, of x to z, and of y to the stream; the last one has no bias.
        start: [T, B] bool, steps before which a row's tables are reset to zeros.
        state: [B, H, K, V], the tables before the first step.
        sizes: H, K and V.
        times: [T, B] int64, steps since the memory began, or those modulo the longest period.
        turns: the table of `memory.kernels.delta.turning` for K.

    Returns:
        The new stream [T, B, D], the last tables [B, H, K, V], and alpha and beta [T, B, H] without gradients.

    Raises:
        ValueError: maps that do not fit; a kernel would read beyond their end.
    """
    if x.numel() == 0 or not has_kernels(x, state, turns):
        return delta_layer_torch(x, stream, maps, start, state, sizes, times, turns)
    enter, project, leave = maps
    weights: tuple[Tensor, ...] = (enter.weight, enter.bias, project.weight, project.bias, leave.weight)
    _check(x, stream, weights, leave, sizes)
    if turns.shape != (period(sizes.key_size), 2 * (sizes.key_size // 4)):
        raise ValueError(f"turns must be the table for K = {sizes.key_size}; got one of shape {list(turns.shape)}")
    if stream is not None:
        weights = (x.new_empty(0, x.shape[2]), x.new_empty(0), *weights[2:])
    y, last, gates = _DeltaLayer.apply(torch.is_grad_enabled(), sizes, x, stream, start, state, times, turns, *weights)
    alpha, beta = gates.chunk(2, -1)
    return y, last, alpha, beta


def _check(
    x: Tensor, stream: Tensor | None, weights: tuple[Tensor | None, ...], leave: nn.Linear, sizes: DeltaSizes
) -> None:
    D, F, width, read = len(leave.weight), x.shape[-1], sizes.width, sizes.heads * sizes.value_size
    allowed: list[Any] = [(D, F), (D,), (width, F), (width,), (D, read)]
    shapes = [None if each is None else each.shape for each in weights]
    # a layer that adds to a stream does not use the first map
    unused = 0 if stream is None else 2
    fits = shapes[unused:] == allowed[unused:] and leave.bias is None and (stream is None or stream.shape[-1] == D)
    if not fits:
        raise ValueError(
            f"maps must be [D, F], [{width}, F] and [D, {read}] with F = {F}, and have biases, all but the last; "
            f"got weights and biases {', '.join('none' if each is None else str(list(each)) for each in shapes)}"
        )


def delta_layer_torch(
    x: Tensor,
    stream: Tensor | None,
    maps: Maps,
    start: Tensor,
    state: Tensor,
    sizes: DeltaSizes,
    times: Tensor,
    turns: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`delta_layer` in torch operations, on any device."""
    enter, project, leave = maps
    stream = enter(x) if stream is None else stream
    q, k, v, g, alpha, beta = _tokens(x, project, sizes, times, turns)
    read, last = gated_delta_scan(q, k, v, alpha, beta, start, state, normalise=True, read_first=True)
    y = (torch.tanh(read) * torch.sigmoid(g)).flatten(-2)
    return stream + leave(y), last, alpha.detach(), beta.detach()


def delta_weights(
    x: Tensor, project: nn.Module, start: Tensor, sizes: DeltaSizes, times: Tensor, turns: Tensor
) -> Tensor:
    """How much of the v of each step a layer reads at each step, [T, B, H, T], the last dimension being the write's.

    Arguments as for `delta_layer`, of a layer whose tables are empty at first; `project` is its second map.
    """
    (T, B, _), H = x.shape, sizes.heads
    q, k, _, _, alpha, beta = _tokens(x, project, sizes, times, turns)
    # every step writes 1 into a column of its own, and a read shows what is left of each
    v = torch.eye(T, dtype=x.dtype, device=x.device)[:, None, None].expand(T, B, H, T)
    state = x.new_zeros(B, H, sizes.key_size, T)
    return gated_delta_chunked(q, k, v, alpha, beta, start, state, normalise=True, read_first=True)[0]


def _tokens(
    x: Tensor, project: nn.Module, sizes: DeltaSizes, times: Tensor, turns: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, g and the gates alpha and beta of x."""
    K, V = sizes.key_size, sizes.value_size
    heads, gates = sizes.split(project(x))
    q, k, v, g = heads.split((K, K, V, V), -1)
    alpha, beta = torch.sigmoid(gates).chunk(2, -1)
    return turn(q, times, turns), turn(k, times, turns), v, g, alpha, 2 * beta


class _DeltaLayer(torch.autograd.Function):
    """The compiled form with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        recording: bool,
        sizes: DeltaSizes,
        x: Tensor,
        stream: Tensor | None,
        start: Tensor,
        state: Tensor,
        times: Tensor,
        turns: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the new stream, the last tables, alpha and beta [T, B, 2 H]; `recording` says if autograd is on."""
        T, B, _ = x.shape
        H, D = sizes.heads, len(weights[-1])
        keep = recording and any(ctx.needs_input_grad)
        x, start, times = x.contiguous(), start.contiguous(), times.contiguous()
        turns = turns.contiguous()
        tables = x.new_empty(1 + -(-T // SEGMENT) * keep, *state.shape)
        tables[0] = state
        z = x.new_empty(T * B * keep, sizes.width)
        y, gates = x.new_empty(T, B, D), x.new_empty(T, B, 2 * H)
        read = x.new_empty(0, B, D) if stream is None else stream.contiguous()
        arrays = (x, read, *weights, start, times, turns, tables.flatten(3), z, gates, y)
        given = tuple(each.detach().numpy() for each in arrays)
        ctx.borders = part_borders(T, B)
        in_parts(lambda first, last: compiled(sizes.key_size, sizes.value_size)[0](first, last, *given), ctx.borders)
        if keep:
            ctx.save_for_backward(x, start, times, turns, tables, z, *weights)
            ctx.sizes, ctx.adds = sizes, stream is not None
        ctx.mark_non_differentiable(gates)
        return y, tables[-1].clone(), gates

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor, d_last: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, start, times, turns, tables, z, *weights = ctx.saved_tensors
        sizes: DeltaSizes = ctx.sizes
        dy, d_state = dy.contiguous(), d_last.clone(memory_format=torch.contiguous_format)
        dx = x.new_empty(x.shape if ctx.needs_input_grad[2] else (0, *x.shape[1:]))
        matrices = (weights[0], weights[2], weights[4])
        arrays = (x, *matrices, start, times, turns, tables.flatten(3), z, dy, d_state.flatten(2), dx)
        given = tuple(each.numpy() for each in arrays)

        def run(first: int, last: int) -> list[Tensor]:
            sums = [x.new_zeros(each.shape) for each in weights]
            compiled(sizes.key_size, sizes.value_size)[1](first, last, *given, *(each.numpy() for each in sums))
            return sums

        parts = in_parts(run, ctx.borders)
        d_weights = (sum(others, own) for own, *others in zip(*parts))
        d_inputs = dx if ctx.needs_input_grad[2] else None, dy if ctx.adds else None
        return None, None, *d_inputs, None, d_state, None, None, *d_weights
