"""LSTM, GRU and Elman's network as plain loops over time: slow, and what every other form is tested against.

Gates, their order and the layout of the weights are those of `nn.LSTM`, `nn.GRU` and `nn.RNN`. Before every step the
state is set to zeros where start is true. On any device and in any dtype, differentiable by autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
"""weight_ih [G, F], weight_hh [G, H], bias_ih [G], bias_hh [G], as torch has them; G is the number of gates times H."""


def lstm_naive(
    x: Tensor, start: Tensor, h: Tensor, c: Tensor, weights: Weights
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Arguments and results are those of `memory.kernels.lstm_scan`."""
    w_ih, w_hh, b_ih, b_hh = weights
    steps = []
    for x_t, start_t in zip(x, start[..., None]):
        h, c = torch.where(start_t, 0, h), torch.where(start_t, 0, c)
        i, f, g, o = (x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        steps.append(h)
    return _stacked(steps, x, h), (h, c)


def gru_naive(x: Tensor, start: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of `memory.kernels.gru_scan`."""
    w_ih, w_hh, b_ih, b_hh = weights
    steps = []
    for x_t, start_t in zip(x, start[..., None]):
        h = torch.where(start_t, 0, h)
        r, z, n = (x_t @ w_ih.T + b_ih).chunk(3, -1)
        r_h, z_h, n_h = (h @ w_hh.T + b_hh).chunk(3, -1)
        z = (z + z_h).sigmoid()
        n = (n + (r + r_h).sigmoid() * n_h).tanh()
        h = (1 - z) * n + z * h
        steps.append(h)
    return _stacked(steps, x, h), h


def rnn_naive(x: Tensor, start: Tensor, h: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Arguments and results are those of `gru_naive`, with the weights of `nn.RNN`."""
    w_ih, w_hh, b_ih, b_hh = weights
    steps = []
    for x_t, start_t in zip(x, start[..., None]):
        h = torch.where(start_t, 0, h)
        h = (x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh).tanh()
        steps.append(h)
    return _stacked(steps, x, h), h


def _stacked(steps: list[Tensor], x: Tensor, h: Tensor) -> Tensor:
    return torch.stack(steps) if steps else x.new_empty(0, *h.shape)
