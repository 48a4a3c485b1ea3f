"""Gated recurrences with resets: LSTM, GRU and Elman's network.

All are h_t = cell(x_t, h_{t-1}) with h_{t-1} = 0 where start_t is true. Gates, their order and the layout of the
weights are torch's, so that weights can be copied from `nn.LSTM`, `nn.GRU` and `nn.RNN`.

Columns are cut at their starts, and the pieces run side by side, longest first:

    t           0 1 2 3 4        pieces  c c c c        c: column 1, from 1
    column 0    a a a b b                a a a          a: column 0, from 0 on the incoming state
    column 1    d c c c c                b b            b: column 0, from 3
    starts at (3, 0), (1, 1)             d              d: column 1, from 0 on the incoming state

No reset is left inside a piece. Step s of all pieces is one matrix product over those longer than s, which are
always the first ones, and there are only as many steps as the longest piece has.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from memory.kernels import gated_cells as cells

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""weight_ih [G, F], weight_hh [G, H], bias_ih [G], bias_hh [G], as torch has them; G is the gates' number times H."""


class Cell(NamedTuple):
    """One kind of recurrence."""

    forward: Callable[..., None]
    backward: Callable[..., None]
    saved: int
    """Numbers per unit that `backward` needs of every step."""
    gradients: int
    """2 where input and recurrent product have different gradients."""
    torch_scan: Callable[..., Any]


LSTM = Cell(cells.lstm_forward, cells.lstm_backward, 6, 1, torch.lstm)
GRU = Cell(cells.gru_forward, cells.gru_backward, 4, 2, torch.gru)
RNN = Cell(cells.rnn_forward, cells.rnn_backward, 0, 1, torch.rnn_tanh)


def lstm_scan(
    x: Tensor, start: Tensor, h: Tensor, c: Tensor, weights: Weights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
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
    y, last = _scan(LSTM, x, start, (h, c), weights)
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
    y, last = _scan(GRU, x, start, (h,), weights)
    return y, last[0]


def rnn_scan(x: Tensor, start: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Elman's network with resets, one layer: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Arguments and results as in `gru_scan`, with the weights of `nn.RNN`, G = H.
    """
    y, last = _scan(RNN, x, start, (h,), weights)
    return y, last[0]


def _scan(
    cell: Cell, x: Tensor, start: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The numba kernels where they can run, torch's own recurrences elsewhere."""
    if start.numel() == 0:
        return x.new_empty(*start.shape, state[0].shape[1]), state
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return torch_scan(cell, x, start, state, weights)
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    y, *last = _GatedScan.apply(cell, start, functional.linear(x, weight_ih, bias_ih), weight_hh, bias_hh, *state)
    return y, tuple(last)


class Pieces(NamedTuple):
    """Columns cut at their starts, longest piece first."""

    first: np.ndarray
    """[N] int64, the row of each piece's first input among the T * B rows."""
    active: np.ndarray
    """[length of the longest] int64, how many pieces are longer than s."""
    carried: np.ndarray
    """[N] bool, whether a piece continues the incoming state."""
    last: np.ndarray
    """[B] int64, the piece that ends each column."""


@njit(cache=True)
def _cut(start):  # type: ignore[no-untyped-def]
    """The fields of `Pieces` for `start` [T, B] bool with T, B >= 1."""
    T, B = start.shape
    first = np.empty(T * B, np.int64)
    length = np.empty(T * B, np.int64)
    ends_column = np.empty(T * B, np.int64)
    count = 0
    for b in range(B):
        opened = 0
        for t in range(1, T + 1):
            if t == T or start[t, b]:
                first[count] = opened * B + b
                length[count] = t - opened
                ends_column[count] = b if t == T else -1
                opened = t
                count += 1
    active = np.zeros(length[:count].max(), np.int64)
    for p in range(count):
        active[length[p] - 1] += 1
    for s in range(len(active) - 2, -1, -1):
        active[s] += active[s + 1]
    # a counting sort: pieces of length l follow the active[l] longer ones, in the order of the columns
    place = np.append(active, 0)
    ordered = np.empty(count, np.int64)
    carried = np.empty(count, np.bool_)
    last = np.empty(B, np.int64)
    for p in range(count):
        slot = place[length[p]]
        place[length[p]] += 1
        ordered[slot] = first[p]
        carried[slot] = first[p] < B and not start[0, first[p]]
        if ends_column[p] >= 0:
            last[ends_column[p]] = slot
    return ordered, active, carried, last


def cut(start: Tensor) -> Pieces:
    """Cut the columns of `start` [T, B] bool, T and B >= 1."""
    return Pieces(*_cut(start.detach().cpu().numpy()))


def _opening(state: tuple[Tensor, ...], pieces: Pieces) -> list[Tensor]:
    """[N, H] each: the incoming state where a piece continues it, zeros where an episode starts."""
    carried = torch.from_numpy(np.flatnonzero(pieces.carried)).to(state[0].device)
    column = torch.from_numpy(pieces.first[pieces.carried]).to(state[0].device)
    return [s.new_zeros(len(pieces.first), s.shape[1]).index_copy(0, carried, s[column]) for s in state]


class _GatedScan(torch.autograd.Function):
    """(cell, start, inputs [T, B, G], weight_hh, bias_hh, *state) -> (y [T, B, H], *last state)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, cell: Cell, start: Tensor, inputs: Tensor, weight: Tensor, bias: Tensor, *state: Tensor
    ) -> tuple[Tensor, ...]:
        T, B, G = inputs.shape
        H = weight.shape[1]
        pieces = cut(start)
        opening = _opening(state, pieces)
        carried = [s.clone() for s in opening]
        recurrent = inputs.new_empty(len(pieces.first), G)
        saved = inputs.new_empty(T * B, cell.saved * H)
        y = inputs.new_empty(T * B, H)
        arrays = [
            a.detach().numpy() for a in (inputs.contiguous().view(T * B, G), recurrent, bias, saved, y, *carried)
        ]
        transposed = weight.t().contiguous()
        n = 0
        for s, count in enumerate(pieces.active.tolist()):
            if count != n:
                n = count
                before, product = carried[0][:n], recurrent[:n]
            torch.mm(before, transposed, out=product)
            cell.forward(s, n, pieces.first, B, *arrays)
        ctx.cell, ctx.pieces, ctx.shape = cell, pieces, (T, B, G, H)
        ctx.save_for_backward(weight, saved, y, *opening)
        last = torch.from_numpy(pieces.last)
        return (y.view(T, B, H), *(s[last] for s in carried))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        T, B, G, H = ctx.shape
        weight, saved, y, *opening = ctx.saved_tensors
        pieces: Pieces = ctx.pieces
        through = dy.new_empty(len(pieces.first), G)
        previous = dy.new_empty(T * B, H)
        gradients = [dy.new_empty(T * B, G) for _ in range(ctx.cell.gradients)]
        last = torch.from_numpy(pieces.last)
        d_carried = [torch.zeros_like(o).index_copy_(0, last, d) for o, d in zip(opening, d_last)]
        tensors = (saved, y, *opening, previous, dy.contiguous().view(T * B, H), through, *d_carried, *gradients)
        arrays = [a.numpy() for a in tensors]
        n = 0
        for s in range(len(pieces.active) - 1, -1, -1):
            if pieces.active[s] != n:
                n = int(pieces.active[s])
                before, product = d_carried[0][:n], through[:n]
            ctx.cell.backward(s, n, pieces.first, B, *arrays)
            before.addmm_(product, weight)
        d_inputs, d_recurrent = gradients[0], gradients[-1]
        carried = torch.from_numpy(np.flatnonzero(pieces.carried))
        column = torch.from_numpy(pieces.first[pieces.carried])
        d_state = [d.new_zeros(B, H).index_copy_(0, column, d[carried]) for d in d_carried]
        return None, None, d_inputs.view(T, B, G), d_recurrent.t() @ previous, d_recurrent.sum(0), *d_state


def torch_scan(
    cell: Cell, x: Tensor, start: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same through torch's recurrences over packed sequences: cuDNN on CUDA, differentiable as often as theirs."""
    T, B, F = x.shape
    pieces = cut(start)
    rows = np.concatenate([pieces.first[:n] + s * B for s, n in enumerate(pieces.active)])
    opening = [o.unsqueeze(0) for o in _opening(state, pieces)]
    with warnings.catch_warnings():
        # parameters of a module of ours do not share one block of memory, which cuDNN only regrets
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        packed, *last = cell.torch_scan(
            x.reshape(T * B, F)[torch.from_numpy(rows).to(x.device)],
            torch.from_numpy(pieces.active),
            opening if len(opening) > 1 else opening[0],
            weights,
            True,
            1,
            0.0,
            torch.is_grad_enabled(),
            False,
        )
    y = packed[torch.from_numpy(np.argsort(rows)).to(x.device)].view(T, B, -1)
    ends = torch.from_numpy(pieces.last).to(x.device)
    return y, tuple(s[0, ends] for s in last)
