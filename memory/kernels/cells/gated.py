"""The gated recurrences with resets, public entry: LSTM, GRU and Elman's network.

All are h_t = cell(x_t, h_{t-1}) with h_{t-1} = 0 where start_t is true. Gates, their order and the layout of the
weights are those of torch. Weights of `nn.LSTM`, `nn.GRU` and `nn.RNN` can be copied.

On the CPU the compiled loops run (`loops`), elsewhere torch's recurrences (`torch_gated`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.as_built import Arrays
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.arithmetic.products import pack
from palimpsest.memory.kernels.arithmetic.threads import in_parts, part_borders
from palimpsest.memory.kernels.cells import loops
from palimpsest.memory.kernels.cells.naive import Weights
from palimpsest.memory.kernels.cells.torch_gated import torch_scan


class Cell(NamedTuple):
    """One kind of recurrence."""

    kind: int
    """What `memory.kernels.cells.loops` calls it."""
    width: int
    """Columns of `gates` per unit, S / H. The product of the input fills the first G of S, that of h the last G."""
    turn: int
    """Gates by which the input's gates are rotated, so that the gates that add both products are neighbours."""


LSTM = Cell(loops.LSTM, 4, 0)
GRU = Cell(loops.GRU, 4, 1)
RNN = Cell(loops.RNN, 1, 0)


def lstm_scan(x: Tensor, start: Tensor, h: Tensor, c: Tensor, weights: Weights) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Long short-term memory with resets, one layer (gates i, f, g, o).

        i, f, o = sigmoid(...), g = tanh(...) of W_ih x_t + b_ih + W_hh h_{t-1} + b_hh
        c_t = f c_{t-1} + i g
        h_t = o tanh(c_t)                     where start_t is true, h_{t-1} = c_{t-1} = 0

    Args:
        x: [T, B, F] floats.
        start: [T, B] bool.
        h: [B, H] at the first step.
        c: [B, H] at the first step.
        weights: as in `nn.LSTM`, G = 4 H.

    Returns:
        h at every step [T, B, H], and the last (h, c), [B, H] each.
    """
    y, last = scan(LSTM, x, start, (h, c), weights)
    return y, (last[0], last[1])


def gru_scan(x: Tensor, start: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Gated recurrent unit with resets, one layer (gates r, z, n; the reset gate acts after the product, as in cuDNN).

        r, z = sigmoid(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn))
        h_t = (1 - z) n + z h_{t-1}           where start_t is true, h_{t-1} = 0

    Args:
        x: [T, B, F] floats.
        start: [T, B] bool.
        h: [B, H] at the first step.
        weights: as in `nn.GRU`, G = 3 H.

    Returns:
        h at every step [T, B, H], and the last [B, H].
    """
    y, last = scan(GRU, x, start, (h,), weights)
    return y, last[0]


@in_full_precision
def scan(
    cell: Cell, x: Tensor, start: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer of `cell` over x [T, B, F]: h at every step and the last state, [B, H] each.

    Compiled on the CPU, by torch's recurrences elsewhere.
    """
    T, B, H = *start.shape, weights[1].shape[1]
    if x.shape != (T, B, weights[0].shape[1]) or any(s.shape != (B, H) for s in state):
        raise ValueError(
            f"x must be [T, B, F] = [{T}, {B}, {weights[0].shape[1]}] and the state [B, H] = [{B}, {H}], as start and "
            f"the weights are; got {list(x.shape)} and {', '.join(str(list(s.shape)) for s in state)}"
        )
    G = (cell.width - cell.turn) * H
    if [each.shape for each in weights] != [(G, x.shape[2]), (G, H), (G,), (G,)]:
        raise ValueError(
            f"weights must be [G, F], [G, H], [G] and [G] with F = {x.shape[2]}, H = {H}, G = {G}; "
            f"got {', '.join(str(list(each.shape)) for each in weights)}"
        )
    if start.numel() == 0:
        return x.new_empty(T, B, H), state
    if not has_kernels(x, weights[0], *state):
        return torch_scan(cell.kind, x, start, state, weights)
    y, *last = _GatedScan.apply(cell, start, torch.is_grad_enabled(), x, *weights, *state)
    return y, tuple(last)


def step_layers(cell: Cell, x: Tensor, state: tuple[Tensor, ...], weights: Arrays) -> tuple[Tensor, list[Tensor]]:
    """One compiled step of stacked layers, without gradients.

    Args:
        cell: LSTM, GRU or RNN.
        x: [B, F].
        state: [B, L, H] each.
        weights: the `Weights` of all layers, one after the other.

    Returns:
        y [B, H] and the next state. Nothing is checked: the caller has asked `has_kernels`, and the shapes fit.
    """
    y, before = x.contiguous(), [s.contiguous() for s in state]
    (B, L, H), real = before[0].shape, weights[0].dtype
    after = [np.empty((B, L, H), real) for _ in before]
    for layer in range(L):
        given, out = y, np.empty((B, H), real)
        own = weights[4 * layer : 4 * layer + 4]
        # only the LSTM reads the second part of a state; the others are given the first one twice
        old = before[0].data_ptr(), before[-1].data_ptr()
        loops.step(cell.kind, layer, given.data_ptr(), *own, *old, after[0], after[-1], out)
        y = torch.from_numpy(out)
    return y, [torch.from_numpy(s) for s in after]


def _projection(cell: Cell, weights: Weights) -> tuple[Tensor, Tensor]:
    """The weight that x is multiplied by, [F, G], and the biases [S], in the order of `gates`."""
    w_ih, w_hh, b_ih, b_hh = weights
    G, H = w_hh.shape
    if cell.width * H == G:
        return w_ih.t(), b_ih + b_hh
    bias = b_hh.new_zeros(cell.width * H)
    bias[:G] += b_ih.roll(cell.turn * H)
    bias[-G:] += b_hh
    return w_ih.roll(cell.turn * H, 0).t(), bias


class _GatedScan(torch.autograd.Function):
    """(cell, start, recording, x [T, B, F], *Weights, *state) -> (y [T, B, H], *last state), compiled.

    `recording` says whether gradients are recorded; `needs_input_grad` is true under no_grad as well.
    """

    @staticmethod
    def forward(
        ctx: Any, cell: Cell, start: Tensor, recording: bool, x: Tensor, *weights_and_state: Tensor
    ) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, *state = weights_and_state
        keep = recording and any(ctx.needs_input_grad)
        (T, B, _), H = x.shape, w_hh.shape[1]
        to_gates, bias = _projection(cell, (w_ih, w_hh, b_ih, b_hh))
        weights = pack(to_gates.numpy()), pack(w_hh.t().numpy()), bias.numpy()

        def run(first: int, last: int) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
            rows = last - first
            moving = [s[first:last].clone(memory_format=torch.contiguous_format) for s in state]
            kept = T if keep and cell.kind != loops.RNN else loops.block_steps(T, rows)
            gates = x.new_empty(kept, rows, len(bias))
            y = x.new_empty(T, rows, H)
            cells = x.new_empty(T if keep and len(state) > 1 else 0, rows, H)
            h, c = (*moving, x.new_empty(rows, 0))[:2]
            given = x[:, first:last].contiguous(), start[:, first:last].contiguous()
            arrays = (a.numpy() for a in given), (a.numpy() for a in (h, c, gates, y, cells))
            loops.forward(cell.kind, *arrays[0], *weights, *arrays[1])
            return moving, y, gates, cells

        ctx.cell, ctx.borders = cell, part_borders(T, B)
        parts = in_parts(run, ctx.borders)
        y = parts[0][1] if len(parts) == 1 else torch.cat([part[1] for part in parts], 1)
        if keep:
            ctx.save_for_backward(x, start, w_ih, w_hh, y, *state, *(a for part in parts for a in part[2:]))
        return y, *(torch.cat(s) for s in zip(*(part[0] for part in parts)))

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dy: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        x, start, w_ih, w_hh, y, *saved = ctx.saved_tensors
        cell: Cell = ctx.cell
        state, kept = saved[: len(d_last)], saved[len(d_last) :]
        T, (G, H) = len(x), w_hh.shape
        weights = pack(w_ih.roll(cell.turn * H, 0).numpy()), pack(w_hh.numpy())
        by_part = dict(zip(ctx.borders, zip(kept[::2], kept[1::2])))

        def run(first: int, last: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
            gates, cells = by_part[first]
            part = slice(first, last)
            d_state = [g[part].clone(memory_format=torch.contiguous_format) for g in d_last]
            nothing = x.new_empty(last - first, 0)
            h, c = (*(s[part].contiguous() for s in state), nothing)[:2]
            dh, dc = (*d_state, nothing)[:2]
            dx = x.new_empty(T if ctx.needs_input_grad[3] else 0, last - first, x.shape[2])
            sums = [x.new_zeros(size) for size in (w_ih.shape, w_hh.shape, cell.width * H)]
            given = [a[:, part].contiguous() for a in (x, start)]
            outputs = gates, y[:, part].contiguous(), cells, dy[:, part].contiguous()
            arrays = [[a.numpy() for a in group] for group in (given, (h, c, *outputs, dh, dc, dx, *sums))]
            loops.backward(cell.kind, *arrays[0], *weights, *arrays[1])
            return d_state, dx, sums

        parts = in_parts(run, ctx.borders)
        dx = torch.cat([part[1] for part in parts], 1) if ctx.needs_input_grad[3] else None
        d_ih, d_hh, d_bias = (sum(each[1:], each[0]) for each in zip(*(part[2] for part in parts)))
        d_first = (torch.cat(s) for s in zip(*(part[0] for part in parts)))
        turn = -cell.turn * H
        d_biases = d_bias[:G].roll(turn), d_bias[len(d_bias) - G :]
        return None, None, None, dx, d_ih.roll(turn, 0), d_hh, *d_biases, *d_first
