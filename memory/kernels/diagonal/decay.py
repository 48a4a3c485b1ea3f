"""Traces that decay and rotate at fixed rates: the diagonal recurrence of Fast and Forgetful Memory.

Complex numbers are pairs of reals. With gamma = a - i b, a = exp(-|alpha|) cos(omega), b = exp(-|alpha|) sin(omega),

    Re S_t = a Re S_{t-1} + b Im S_{t-1} + x_t        where start_t is true, S_{t-1} = 0
    Im S_t = a Im S_{t-1} - b Re S_{t-1}

and with G_t the whole gradient of S_t, dS_t the part of it from outside,

    G_t = dS_t + conj(gamma) G_{t+1}                  where start_{t+1} is true, G_{t+1} = 0
    dx_t = sum_c Re G_t
    da - i db = sum_t G_t conj(S_{t-1})

The published closed form S_t = gamma^t sum_s gamma^-s x_s overflows. Here no power of gamma has a negative exponent.

On the CPU the compiled loops run (`decay_loops`), elsewhere torch's operations (`torch_decay`). Both keep the state in
planes [2, C, M]: the decays are contiguous, so that the loops take them in vectors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels, in_full_precision
from palimpsest.memory.kernels.diagonal.decay_loops import decay_backward, decay_forward
from palimpsest.memory.kernels.diagonal.torch_decay import rates, torch_decay_scan


@in_full_precision
def decay_scan(x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """S_t[m, c] = exp(-|alpha[m]|) exp(-i omega[c]) S_{t-1}[m, c] + x_t[m], with S_{t-1} = 0 where start_t is true.

    |alpha| is any number from 0 on; its derivative at 0 is taken as 0. Gradients reach x, alpha, omega and state.

    Args:
        x: [T, B, M] float32 or float64; T may be 0.
        alpha: [M], decay per step.
        omega: [C], radians per step.
        start: [T, B] bool.
        state: [B, M, C, 2] at the first step; real and imaginary part.

    Returns:
        S at every step [T, B, M, C, 2], a view of [T, B, 2, C, M], and the last [B, M, C, 2].

    Raises:
        ValueError: shapes or types do not fit.
    Source: arXiv 2310.04128, the recurrent form of its aggregator.
    """
    _check(x, alpha, omega, start, state)
    if len(x) == 0:
        return x.new_empty(0, *state.shape), state
    scan = _DecayScan.apply if has_kernels(x) else torch_decay_scan
    states, last = scan(x, alpha, omega, start, to_planes(state))
    return from_planes(states), from_planes(last)


def _check(x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor) -> None:
    """Refuse shapes and types that do not fit."""
    if x.ndim != 3 or x.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"x must be [T, B, M] float32 or float64; got {list(x.shape)} {_name(x)}")
    T, B, M = x.shape
    if alpha.shape != (M,) or omega.ndim != 1:
        raise ValueError(f"alpha must be [M] = [{M}] and omega [C]; got {list(alpha.shape)} and {list(omega.shape)}")
    if start.shape != (T, B) or start.dtype != torch.bool:
        raise ValueError(f"start must be [T, B] = [{T}, {B}] bool; got {list(start.shape)} {_name(start)}")
    if state.shape != (B, M, len(omega), 2):
        raise ValueError(
            f"state must be [B, M, C, 2] = [{B}, {M}, {len(omega)}, 2], pairs of reals; got {list(state.shape)}"
        )
    if not x.dtype == alpha.dtype == omega.dtype == state.dtype:
        raise ValueError(
            "x, alpha, omega and state must have one type; "
            f"got {_name(x)}, {_name(alpha)}, {_name(omega)}, {_name(state)}"
        )


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def to_planes(state: Tensor) -> Tensor:
    """[..., M, C, 2] as contiguous [..., 2, C, M]."""
    return state.transpose(-3, -1).contiguous()


def from_planes(planes: Tensor) -> Tensor:
    """[..., 2, C, M] as a view [..., M, C, 2]."""
    return planes.transpose(-3, -1)


def rate_gradients(alpha: Tensor, a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of alpha [M] and omega [C] from those of a and b, [C, M] each."""
    d_alpha = -alpha.sign() * (a * da + b * db).sum(0)
    d_omega = (a * db - b * da).sum(1)
    return d_alpha.to(a.dtype), d_omega.to(a.dtype)


class _DecayScan(torch.autograd.Function):
    """(x, alpha, omega, start, state in planes) -> (states, last), in planes, compiled."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        a, b = rates(alpha, omega)
        x, start = x.contiguous(), start.contiguous()
        states = x.new_empty(len(x), *state.shape)
        decay_forward(x.numpy(), a.numpy(), b.numpy(), start.numpy(), state.numpy(), states.numpy())
        ctx.save_for_backward(alpha, start, state, states, a, b)
        return states, states[-1].clone()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_states: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        alpha, start, state, states, a, b = ctx.saved_tensors
        T, B, _, C, M = states.shape
        dx, carried = states.new_empty(T, B, M), d_last.clone(memory_format=torch.contiguous_format)
        da, db = torch.zeros(2, C, M, dtype=torch.float64)
        arrays = (d_states.contiguous(), states, a, b, start, state, carried, dx, da, db)
        decay_backward(*(array.numpy() for array in arrays))
        return dx, *rate_gradients(alpha, a, b, da, db), None, carried
