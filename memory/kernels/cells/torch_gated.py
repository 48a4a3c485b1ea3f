"""The gated recurrences by torch's own, on any device: cuDNN on CUDA.

Columns are cut at their starts, and the pieces run side by side: see `memory.kernels.cells.pieces`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.memory.kernels.cells import loops
from palimpsest.memory.kernels.cells.naive import Weights
from palimpsest.memory.kernels.cells.pieces import cut, opening_state

_RECURRENCES: dict[int, Callable[..., Any]] = {loops.LSTM: torch.lstm, loops.GRU: torch.gru, loops.RNN: torch.rnn_tanh}


def torch_scan(
    kind: int, x: Tensor, start: Tensor, state: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`memory.kernels.cells.gated.scan`, differentiable as often as torch's recurrences are."""
    T, B, F = x.shape
    pieces = cut(start)
    opening = [o.unsqueeze(0) for o in opening_state(state, pieces)]
    with warnings.catch_warnings():
        # parameters of a module of ours do not share one block of memory, which cuDNN only regrets
        warnings.filterwarnings("ignore", message="RNN module weights are not part of single contiguous chunk")
        packed, *last = _RECURRENCES[kind](
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
