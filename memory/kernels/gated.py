"""Gated recurrences with resets: LSTM, GRU and Elman's network.

All are h_t = cell(x_t, h_{t-1}) with h_{t-1} = 0 where start_t is true. Gates, their order and the layout of the
weights are torch's, so that weights can be copied from `nn.LSTM`, `nn.GRU` and `nn.RNN`.

Columns are cut at their starts and the pieces run side by side: see `memory.kernels.gated_pieces`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memory.kernels import gated_cells as cells
from memory.kernels.gated_pieces import blocks, carried_pieces, cut, opening_state

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""weight_ih [G, F], weight_hh [G, H], bias_ih [G], bias_hh [G], as torch has them; G is the gates' number times H."""


class Cell(NamedTuple):
    """One kind of recurrence."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    width: int
    """Columns of `gates` per unit, S / H. The input's product fills the first G of S, the recurrent one the last G."""
    turn: int
    """By how many gates the input's gates are rotated, so that those with both products are neighbours."""
    torch_scan: Callable[..., Any]


LSTM = Cell(cells.lstm_forward, cells.lstm_backward, 4, 0, torch.lstm)
GRU = Cell(cells.gru_forward, cells.gru_backward, 4, 1, torch.gru)
RNN = Cell(cells.rnn_forward, cells.rnn_backward, 1, 0, torch.rnn_tanh)


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


def rnn_scan(x: Tensor, start: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Elman's network with resets, one layer: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Arguments and results as in `gru_scan`, with the weights of `nn.RNN`, G = H.
    """
    y, last = scan(RNN, x, start, (h,), weights)
    return y, last[0]


def scan(
    cell: Cell, x: Tensor, start: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One layer of `cell` over x [T, B, F]: h at every step and the last state, [B, H] each.

    By the numba kernels where they can run, by torch's own recurrences elsewhere.
    """
    if start.numel() == 0:
        return x.new_empty(*start.shape, state[0].shape[1]), state
    if not _compiled(x):
        return torch_scan(cell, x, start, state, weights)
    y, *last = _GatedScan.apply(cell, start, x, *weights, *state)
    return y, tuple(last)


def _compiled(x: Tensor) -> bool:
    """Whether the numba kernels can read x."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _projection(cell: Cell, weights: Weights) -> tuple[Tensor, Tensor]:
    """What multiplies x, [F, G], and the biases of all sums, [S], in the order of `gates`."""
    w_ih, w_hh, b_ih, b_hh = weights
    G, H = w_hh.shape
    if cell.width * H == G:
        return w_ih.t(), b_ih + b_hh
    bias = b_hh.new_zeros(cell.width * H)
    bias[:G] += b_ih.roll(cell.turn * H)
    bias[-G:] += b_hh
    return w_ih.roll(cell.turn * H, 0).t(), bias


def _unpacked(packed: Tensor, rows: Tensor | slice) -> Tensor:
    """Packed rows [R, *] in the order of x; `rows` is a slice where that is the packed order."""
    return packed if isinstance(rows, slice) else torch.empty_like(packed).index_copy_(0, rows, packed)


BLOCK_ROWS = 512
"""Rows whose input products and gradients are computed at once: many for speed, few enough for the cache."""


class _GatedScan(torch.autograd.Function):
    """(cell, start, x [T, B, F], weight_ih, weight_hh, bias_ih, bias_hh, *state) -> (y [T, B, H], *last state)."""

    @staticmethod
    def forward(ctx: Any, cell: Cell, start: Tensor, x: Tensor, *weights_and_state: Tensor) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, *state = weights_and_state
        (T, B, F), (G, H) = x.shape, w_hh.shape
        R, S = T * B, cell.width * H
        pieces = cut(start)
        # without a start inside, the packed order is the order of x
        rows = torch.from_numpy(pieces.rows) if len(pieces.carried) > B else slice(None)
        x = x.reshape(R, F)[rows]
        to_gates, bias = _projection(cell, (w_ih, w_hh, b_ih, b_hh))
        back = w_hh.t().contiguous()
        gates = x.new_empty(R, S)
        outputs = [x.new_empty(R, H) for _ in state]
        opening = opening_state(tuple(state), pieces)
        h, before, row_before = opening[0], [o.numpy() for o in opening], 0
        arrays = [a.numpy() for a in (gates, *outputs)]
        begin, active = pieces.begin.tolist(), pieces.active.tolist()
        sums, hs = gates[:, S - G :].split(active), outputs[0].split(active)
        for steps, block in blocks(pieces, BLOCK_ROWS):
            torch.addmm(bias[:G], x[block], to_gates, out=gates[block, :G])
            gates[block, G:] = bias[G:]
            for s in steps:
                n = active[s]
                sums[s].addmm_(h if len(h) == n else h[:n], back)
                cell.forward(n, begin[s], row_before, *arrays, *before)
                h, before, row_before = hs[s], arrays[1:], begin[s]
        ctx.cell, ctx.pieces, ctx.rows, ctx.shape = cell, pieces, rows, (T, B, F)
        ctx.save_for_backward(x, w_ih, w_hh, gates, *opening, *outputs)
        last = torch.from_numpy(pieces.last_row)
        return (_unpacked(outputs[0], rows).view(T, B, H), *(o[last] for o in outputs))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        x, w_ih, w_hh, gates, *states = ctx.saved_tensors
        cell, pieces, (T, B, F) = ctx.cell, ctx.pieces, ctx.shape
        opening, outputs = states[: len(d_last)], states[len(d_last) :]
        (R, S), (G, H) = gates.shape, w_hh.shape
        parts = blocks(pieces, BLOCK_ROWS)
        most = max(block.stop - block.start for _, block in parts)
        dy = dy.reshape(R, H)[ctx.rows].contiguous()
        d, previous = dy.new_empty(most, S), dy.new_empty(most, H)
        last = torch.from_numpy(pieces.last)
        d_state = [torch.zeros_like(o).index_copy_(0, last, g) for o, g in zip(opening, d_last)]
        to_gates = w_ih.roll(cell.turn * H, 0)
        dx = torch.empty_like(x) if ctx.needs_input_grad[2] else None
        d_ih, d_hh, d_bias = torch.zeros_like(w_ih), torch.zeros_like(w_hh), dy.new_zeros(S)
        opening_arrays, output_arrays = [a.numpy() for a in opening], [a.numpy() for a in outputs]
        gates_array, others = gates.numpy(), [a.numpy() for a in (dy, d, previous, *d_state)]
        begin, active = pieces.begin.tolist(), pieces.active.tolist()
        dh = d_state[0][:0]
        for steps, block in reversed(parts):
            sums = d[: block.stop - block.start, S - G :].split(active[steps.start : steps.stop])
            for s in reversed(steps):
                n, row = active[s], begin[s]
                before, row_before = (output_arrays, begin[s - 1]) if s else (opening_arrays, 0)
                cell.backward(n, row, row_before, row - block.start, gates_array, *output_arrays, *before, *others)
                dh = dh if len(dh) == n else d_state[0][:n]
                dh.addmm_(sums[s - steps.start], w_hh)
            d_block = d[: block.stop - block.start]
            d_in, d_back = d_block[:, :G], d_block[:, S - G :]
            d_ih.addmm_(d_in.t(), x[block])
            d_hh.addmm_(d_back.t(), previous[: len(d_block)])
            d_bias += d_block.sum(0)
            if dx is not None:
                torch.mm(d_in, to_gates, out=dx[block])
        if dx is not None:
            dx = _unpacked(dx, ctx.rows).view(T, B, F)
        piece, column = carried_pieces(pieces, dy.device)
        d_first = [g.new_zeros(B, H).index_copy_(0, column, g[piece]) for g in d_state]
        turn = -cell.turn * H
        return None, None, dx, d_ih.roll(turn, 0), d_hh, d_bias[:G].roll(turn), d_bias[S - G :], *d_first


def torch_scan(
    cell: Cell, x: Tensor, start: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same through torch's recurrences over packed sequences: cuDNN on CUDA, differentiable as often as theirs."""
    T, B, F = x.shape
    pieces = cut(start)
    opening = [o.unsqueeze(0) for o in opening_state(state, pieces)]
    with warnings.catch_warnings():
        # parameters of a module of ours do not share one block of memory, which cuDNN only regrets
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        packed, *last = cell.torch_scan(
            x.reshape(T * B, F)[torch.from_numpy(pieces.rows).to(x.device)],
            torch.from_numpy(pieces.active),
            opening if len(opening) > 1 else opening[0],
            weights,
            True,
            1,
            0.0,
            torch.is_grad_enabled(),
            False,
        )
    y = packed[torch.from_numpy(np.argsort(pieces.rows)).to(x.device)].view(T, B, -1)
    ends = torch.from_numpy(pieces.last).to(x.device)
    return y, tuple(s[0, ends] for s in last)
