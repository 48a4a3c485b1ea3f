"""The diagonal recurrence h_t = a_t h_{t-1} + b_t, every channel for itself.

With G_t the whole gradient of h_t, dh_t what arrives from outside,

    G_t  = dh_t + a_{t+1} G_{t+1}                     where start_{t+1} is true, G_{t+1} = 0
    db_t = G_t
    da_t = G_t h_{t-1}                                where start_t is true, da_t = 0

and the conjugates of a and h there where they are complex.

On the CPU the compiled loops run (`diagonal_loops`), elsewhere torch's operations (`torch_diagonal`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.arithmetic.threads import in_parts, over_rows, part_borders
from palimpsest.memory.kernels.diagonal.diagonal_loops import backward, forward
from palimpsest.memory.kernels.diagonal.torch_diagonal import torch_diagonal_scan


@in_full_precision
def diagonal_scan(a: Tensor, b: Tensor, start: Tensor, state: Tensor, paired: bool = False) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t-1} + b_t with h_{t-1} = 0 where start_t is true. Gradients reach a, b and state.

    Args:
        a: [T, B, N], or [N] where it is the same at every step of every row.
        b: [T, B, N] float32 or float64; T may be 0.
        start: [T, B] bool.
        state: [B, N], h before the first step.
        paired: all numbers are complex. N is even: the first half of N holds the real parts, the second half the
            imaginary parts.

    Returns:
        h at every step [T, B, N], and the last [B, N].

    Raises:
        ValueError: shapes or types do not fit.
    """
    _check(a, b, start, state, paired)
    if b.numel() == 0:
        return b, state
    a = a if a.ndim == 3 else a[None, None]
    if has_kernels(b, a, state):
        h, last = _DiagonalScan.apply(a, b, start, state, paired)
        return h, last
    if paired:
        h, last = torch_diagonal_scan(as_complex(a), as_complex(b), start, as_complex(state))
        return torch.cat([h.real, h.imag], -1), torch.cat([last.real, last.imag], -1)
    return torch_diagonal_scan(a, b, start, state)


def as_complex(pairs: Tensor) -> Tensor:
    """Complex numbers [..., N / 2] from their real parts, then imaginary parts [..., N]."""
    return torch.complex(*pairs.chunk(2, -1))


def _check(a: Tensor, b: Tensor, start: Tensor, state: Tensor, paired: bool) -> None:
    """Refuse shapes and types that do not fit."""
    if b.ndim != 3 or b.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"b must be [T, B, N] float32 or float64; got {list(b.shape)} {b.dtype}")
    T, B, N = b.shape
    if paired and N % 2:
        raise ValueError(f"b must be [T, B, N] with an even N where numbers are paired; got {list(b.shape)}")
    if a.shape not in ((T, B, N), (N,)):
        raise ValueError(f"a must be [T, B, N] = [{T}, {B}, {N}] or [N]; got {list(a.shape)}")
    if start.shape != (T, B) or start.dtype != torch.bool:
        raise ValueError(f"start must be [T, B] = [{T}, {B}] bool; got {list(start.shape)} {start.dtype}")
    if state.shape != (B, N):
        raise ValueError(f"state must be [B, N] = [{B}, {N}]; got {list(state.shape)}")
    if not a.dtype == b.dtype == state.dtype:
        raise ValueError(f"a, b and state must have one type; got {a.dtype}, {b.dtype}, {state.dtype}")


class _DiagonalScan(torch.autograd.Function):
    """(a [T, B, N] or [1, 1, N], b, start, state) -> (h, last), compiled."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor, state: Tensor, paired: bool) -> tuple[Tensor, Tensor]:
        a, b, start, state = (each.contiguous() for each in (a, b, start, state))
        h = torch.empty_like(b)
        over_rows(forward, *start.shape, *(each.numpy() for each in (a, b, start, state, h)), paired)
        ctx.paired = paired
        ctx.save_for_backward(a, start, state, h)
        return h, h[-1].clone()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, dh: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        a, start, state, h = ctx.saved_tensors
        db, carried = torch.empty_like(h), d_last.clone(memory_format=torch.contiguous_format)
        given = [each.numpy() for each in (a, start, state, h, dh.contiguous(), carried)]
        varies = a.shape == h.shape
        da = torch.empty_like(a)

        def run(first: int, last: int) -> Tensor:
            # the gradient of a factor that all steps share is a sum over time: in float64 it stays exact
            own = da if varies else torch.zeros(a.shape, dtype=torch.float64)
            backward(first, last, *given, own.numpy(), db.numpy(), varies, ctx.paired)
            return own

        first, *others = in_parts(run, part_borders(*start.shape))
        return da if varies else sum(others, first).to(a.dtype), db, None, carried, None
