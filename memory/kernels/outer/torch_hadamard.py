"""The recurrence of Stable Hadamard Memory in torch operations, on any device; see `memory.kernels.outer.hadamard`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from palimpsest.memory.kernels.arithmetic.dispatch import in_full_precision

SEGMENT = 16
"""Steps that the backward pass recomputes at a time, so that only the matrices between segments are kept."""


def torch_hadamard_scan(
    theta: Tensor, calibrate: Tensor, value: Tensor, key: Tensor, query: Tensor, start: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """A loop over time, differentiable by autograd. Arguments and results are those of `hadamard_scan`."""
    tokens = (theta, calibrate, value, key, query)
    reads = []
    for first in range(0, len(start), SEGMENT):
        part = slice(first, first + SEGMENT)
        read, state = checkpoint(
            _segment, state, start[part], *(x[part] for x in tokens), use_reentrant=False, preserve_rng_state=False
        )
        reads.append(read)
    return (torch.cat(reads) if reads else torch.empty_like(theta)), state


def _segment(M: Tensor, start: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
    reads = []
    for t in range(len(start)):
        M = torch.where(start[t, :, None, None], torch.zeros_like(M), M)
        theta, calibrate, value, key, query = (x[t] for x in tokens)
        read, M = hadamard_step(theta, calibrate, value, key, query, M)
        reads.append(read)
    return torch.stack(reads), M


@in_full_precision
def hadamard_step(
    theta: Tensor, calibrate: Tensor, value: Tensor, key: Tensor, query: Tensor, M: Tensor
) -> tuple[Tensor, Tensor]:
    """One step without a start: vectors [B, H] and M [B, H, H] to what is read [B, H] and the next M."""
    C = 1 + (theta.unsqueeze(2) * calibrate.unsqueeze(1)).tanh()
    M = M * C + value.unsqueeze(2) * key.unsqueeze(1)
    return (M @ query.unsqueeze(2)).squeeze(2), M
