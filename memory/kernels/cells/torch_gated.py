"""The gated recurrences by torch's own, on any device: cuDNN on CUDA.

Sequences are cut at their starts, and the pieces run side by side: see `memory.kernels.cells.pieces`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.cells import loops
from palimpsest.memory.kernels.cells.naive import Weights
from palimpsest.memory.kernels.cells.pieces import cut

_RECURRENCES: dict[int, Callable[..., Any]] = {loops.LSTM: torch.lstm, loops.GRU: torch.gru, loops.RNN: torch.rnn_tanh}


def torch_scan(
    kind: int, x: Tensor, start: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`kernels.cells.gated.scan` for T and B of 1 or more; differentiable as often as torch's own recurrences."""
    T, B, F = x.shape
    pieces = cut(start)
    number, row = pieces.continuing
    opening = [s.new_zeros(1, int(pieces.active[0]), s.shape[1]).index_copy(1, number, s[None, row]) for s in state]
    with warnings.catch_warnings():
        # cuDNN warns that the weights do not lie in one block of memory, as those of `nn.LSTM` do; it copies them
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        packed, *last = _RECURRENCES[kind](
            x.reshape(T * B, F)[pieces.order],
            pieces.active.cpu(),
            opening if len(opening) > 1 else opening[0],
            weights,
            True,
            1,
            0.0,
            torch.is_grad_enabled(),
            False,
        )
    y = packed[pieces.order.argsort()].view(T, B, -1)
    return y, tuple(s[0, pieces.last] for s in last)
