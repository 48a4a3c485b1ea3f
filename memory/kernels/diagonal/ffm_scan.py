"""FFM's scan from x to y, compiled: four maps of x, decaying traces and their mix, one block of steps after another.

Equations and names are those of `memory.ffm`; the traces are those of `memory.kernels.diagonal.decay`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once
from palimpsest.memory.kernels.arithmetic.threads import in_parts, part_borders
from palimpsest.memory.kernels.arithmetic.vectors import aligned_empty
from palimpsest.memory.kernels.diagonal import ffm_loops as loops


class FFMScan(torch.autograd.Function):
    """The scan on the CPU, one block of steps after another, state in planes.

    Kept for the backward pass are the maps of x without skip, LN(z), y, and the state before each block. States inside
    a block are computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        recording: bool,
        x: Tensor,
        start: Tensor,
        state: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Y [T, B, D] and the last state [B, m, c, 2].

        `recording` says whether gradients are recorded. `parameters` are the weights of value, input gate, output gate,
        skip and mix [D, 2 m c], m-major; then their biases; then alpha and omega.
        """
        T, B, _ = x.shape
        mix, mix_bias, alpha, omega = parameters[4], *parameters[9:]
        (m, c), D = state.shape[1:3], len(mix)
        keep = recording and any(ctx.needs_input_grad)
        weight, bias = torch.cat(parameters[:4]), torch.cat(parameters[5:9])
        inputs, starts, opening, *given = _arrays((x, start, state, weight, bias, mix, mix_bias, alpha, omega))

        def run(first: int, last: int) -> tuple[np.ndarray, ...]:
            rows = last - first
            kept = aligned_empty(loops.kept_size(T, rows, m, c, D, keep), inputs.dtype)
            y = aligned_empty(T * rows * D, inputs.dtype).reshape(T, rows, D)
            ended = np.empty((rows, m, c, 2), inputs.dtype)
            read = _rows(inputs, first, last), _rows(starts, first, last)
            loops.forward(*read, *given, opening[first:last], kept, ended, y)
            return y, ended, kept

        ctx.borders = part_borders(T, B)
        ys, lasts, kept = zip(*([*map(torch.from_numpy, part)] for part in in_parts(run, ctx.borders)))
        y = _joined(ys, 1)
        if keep:
            ctx.save_for_backward(x, start, weight, mix, alpha, omega, y, *kept)
            ctx.shapes = [each.shape for each in parameters]
        return y, _joined(lasts, 0)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of everything but start, from those of y and of the last state."""
        x, start, weight, mix, alpha, omega, y, *kept = ctx.saved_tensors
        T, _, F = x.shape
        inputs, starts, outputs, outside, ended, *given = _arrays((x, start, y, dy, d_last, weight, mix, alpha, omega))
        sizes = [shape.numel() for shape in ctx.shapes]
        saved = dict(zip(ctx.borders, kept))

        def run(first: int, last: int) -> tuple[np.ndarray, ...]:
            d_state, gradients = ended[first:last].copy(), np.empty(sum(sizes), inputs.dtype)
            dx = np.empty((T if ctx.needs_input_grad[1] else 0, last - first, F), inputs.dtype)
            read = (_rows(each, first, last) for each in (inputs, starts))
            around = (_rows(each, first, last) for each in (outputs, outside))
            loops.backward(*read, *given, saved[first].numpy(), *around, d_state, dx, gradients)
            return d_state, dx, gradients

        d_states, dxs, (own, *others) = zip(*([*map(torch.from_numpy, part)] for part in in_parts(run, ctx.borders)))
        dx = _joined(dxs, 1) if ctx.needs_input_grad[1] else None
        gradients = sum(others, own).split(sizes)
        d_parameters = (each.view(shape) for each, shape in zip(gradients, ctx.shapes))
        return None, dx, None, _joined(d_states, 0), *d_parameters


def _rows(array: np.ndarray, first: int, last: int) -> np.ndarray:
    """Rows first to last of [T, B, ...], contiguous."""
    return np.ascontiguousarray(array[:, first:last])


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)


def _arrays(tensors: Iterable[Tensor]) -> tuple[np.ndarray, ...]:
    return tuple(each.contiguous().numpy(force=True) for each in tensors)
