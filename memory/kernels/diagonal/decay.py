"""Traces that decay and rotate at fixed rates: the recurrence of Fast and Forgetful Memory.

A complex number is a pair of reals. With gamma = a - i b, a = exp(-|alpha|) cos(omega), b = exp(-|alpha|) sin(omega),

    Re S_t = a Re S_{t-1} + b Im S_{t-1} + x_t        where start_t is true, S_{t-1} = 0
    Im S_t = a Im S_{t-1} - b Re S_{t-1}

and with G_t the whole gradient of S_t, dS_t what arrives from outside,

    G_t = dS_t + conj(gamma) G_{t+1}                  where start_{t+1} is true, G_{t+1} = 0
    dx_t = sum_c Re G_t
    da - i db = sum_t G_t conj(S_{t-1})

The published closed form S_t = gamma^t sum_s gamma^-s x_s overflows; here no power of gamma has a negative exponent.

Inside, the parts are planes and the decays run fastest, [2, C, M]: compiled loops take them in vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import literally
from torch import Tensor

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED
from palimpsest.memory.kernels.arithmetic.dispatch import differentiable_once, has_kernels
from palimpsest.memory.kernels.arithmetic.vectors import load, store, zeros_like

_CHUNK = 16
"""Steps that the parallel form joins before it goes on with the chunks' ends; a power of two."""

_LANES = 16
"""Decays that the compiled form takes at once: a register of float32 where registers are wide."""

_FLUSH = 64
"""Steps after which the compiled form adds its sums over time to float64, so that they stay exact at any length."""


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
    return _scan(x, alpha, omega, start, state, has_kernels(x))


def torch_decay_scan(x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """`decay_scan` by torch operations alone, parallel in time, on any device."""
    _check(x, alpha, omega, start, state)
    return _scan(x, alpha, omega, start, state, False)


def _scan(
    x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor, compiled: bool
) -> tuple[Tensor, Tensor]:
    if len(x) == 0:
        return x.new_empty(0, *state.shape), state
    states, last = _DecayScan.apply(x, alpha, omega, start, to_planes(state), compiled)
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


def rates(alpha: Tensor, omega: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """The parts of gamma^steps = a - i b, [C, M] each, without a graph.

    The angle is multiplied in float64: omega * steps may be many turns, of which float32 would lose the fraction.
    """
    decay = (-steps * alpha.detach().double().abs()).exp()
    angle = (steps * omega.detach().double())[:, None]
    return (decay * angle.cos()).to(alpha.dtype), (decay * angle.sin()).to(alpha.dtype)


def rate_gradients(alpha: Tensor, a: Tensor, b: Tensor, da: Tensor, db: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of alpha [M] and omega [C] from those of a and b, [C, M] each."""
    d_alpha = -alpha.sign() * (a * da + b * db).sum(0)
    d_omega = (a * db - b * da).sum(1)
    return d_alpha.to(a.dtype), d_omega.to(a.dtype)


class _DecayScan(torch.autograd.Function):
    """(x, alpha, omega, start, state in planes, compiled) -> (states, last), in planes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor, compiled: bool
    ) -> tuple[Tensor, Tensor]:
        a, b = rates(alpha, omega)
        if compiled:
            x, start = x.contiguous(), start.contiguous()
            states = x.new_empty(len(x), *state.shape)
            decay_forward(x.numpy(), a.numpy(), b.numpy(), start.numpy(), state.numpy(), states.numpy())
        else:
            states = _torch_forward(x, alpha, omega, start, state)
        ctx.save_for_backward(alpha, omega, start, state, states, a, b)
        ctx.compiled = compiled
        return states, states[-1].clone()

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, d_states: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        alpha, omega, start, state, states, a, b = ctx.saved_tensors
        if ctx.compiled:
            T, B, _, C, M = states.shape
            dx, carried = states.new_empty(T, B, M), d_last.clone(memory_format=torch.contiguous_format)
            da, db = torch.zeros(2, C, M, dtype=torch.float64)
            arrays = (d_states.contiguous(), states, a, b, start, state, carried, dx, da, db)
            decay_backward(*(array.numpy() for array in arrays))
        else:
            dx, carried, da, db = _torch_backward(d_states, d_last, states, alpha, omega, start, state)
        return dx, *rate_gradients(alpha, a, b, da, db), None, carried, None


# Arrays below are walked through as they lie in memory, whatever their shape: see `memory.kernels.arithmetic.vectors`.


@njit(**INLINED)
def decay_forward(x, a, b, start, opening, states):  # type: ignore[no-untyped-def]
    """Fill states [T, B, 2, C, M]; x [T, B, M], a and b [C, M], start [T, B], opening [B, 2, C, M]."""
    T, B, M = x.shape
    width, nothing = 2 * a.size, np.zeros(2 * a.size, x.dtype)
    for t in range(T):
        for row in range(B):
            token = t * B + row
            if start[t, row]:
                _advance(a, b, nothing, 0, x, token * M, states, token * width)
            elif t > 0:
                _advance(a, b, states, (token - B) * width, x, token * M, states, token * width)
            else:
                _advance(a, b, opening, row * width, x, token * M, states, token * width)


@njit(**INLINED)
def _advance(a, b, before, old, x, token, states, new):  # type: ignore[no-untyped-def]
    """One token: states from `new` on, from what stands in before from `old` on and in x from `token` on."""
    M = a.shape[1]
    whole = M - M % _LANES
    _advance_by(_LANES, 0, whole, a, b, before, old, x, token, states, new)
    _advance_by(1, whole, M, a, b, before, old, x, token, states, new)


@njit(**INLINED)
def _advance_by(count, first, last, a, b, before, old, x, token, states, new):  # type: ignore[no-untyped-def]
    """Decays first to last of every frequency, `count` at a time."""
    literally(count)
    (C, M), N = a.shape, a.size
    # decays inside, at a constant distance from each other: the other way around, addresses cost more than numbers
    for c in range(C):
        for m in range(first, last, count):
            p = c * M + m
            along, across = load(a, p, count), load(b, p, count)
            re, im = load(before, old + p, count), load(before, old + N + p, count)
            store(along * re + across * im + load(x, token + m, count), states, new + p)
            store(along * im - across * re, states, new + N + p)


@njit(**INLINED)
def decay_backward(d_states, states, a, b, start, opening, carried, dx, da, db):  # type: ignore[no-untyped-def]
    """Fill dx [T, B, M], add to da and db [C, M] float64; carried [B, 2, C, M] comes as d_last, goes as d_opening."""
    T, B, M = dx.shape
    width, sum_a, sum_b = 2 * a.size, np.zeros_like(a), np.zeros_like(b)
    for t in range(T - 1, -1, -1):
        for row in range(B):
            token, opens = t * B + row, start[t, row]
            into, carry, outside = token * M, row * width, token * width
            if t > 0:
                before = outside - B * width
                _retreat(a, b, opens, states, before, d_states, outside, carried, carry, dx, into, sum_a, sum_b)
            else:
                _retreat(a, b, opens, opening, carry, d_states, outside, carried, carry, dx, into, sum_a, sum_b)
        if t % _FLUSH == 0:
            da += sum_a
            db += sum_b
            sum_a[:] = 0
            sum_b[:] = 0


@njit(**INLINED)
def _retreat(  # type: ignore[no-untyped-def]
    a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b
):
    """One token: its dx and terms of da and db; conj(gamma) G_{t+1} in carried becomes conj(gamma) G_t."""
    M = a.shape[1]
    whole = M - M % _LANES
    _retreat_by(_LANES, 0, whole, a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b)
    _retreat_by(1, whole, M, a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b)


@njit(**INLINED)
def _retreat_by(  # type: ignore[no-untyped-def]
    count, first, last, a, b, opens, before, old, d_states, outside, carried, carry, dx, into, sum_a, sum_b
):
    """Decays first to last of every frequency, `count` at a time."""
    literally(count)
    (C, M), N = a.shape, a.size
    for m in range(first, last, count):
        nothing = zeros_like(load(dx, into + m, count))
        total = nothing
        for c in range(C):
            p = c * M + m
            re = load(d_states, outside + p, count) + load(carried, carry + p, count)
            im = load(d_states, outside + N + p, count) + load(carried, carry + N + p, count)
            total = total + re
            if opens:
                store(nothing, carried, carry + p)
                store(nothing, carried, carry + N + p)
            else:
                along, across = load(a, p, count), load(b, p, count)
                re_before, im_before = load(before, old + p, count), load(before, old + N + p, count)
                store(load(sum_a, p, count) + (re * re_before + im * im_before), sum_a, p)
                store(load(sum_b, p, count) + (re * im_before - im * re_before), sum_b, p)
                store(along * re - across * im, carried, carry + p)
                store(across * re + along * im, carried, carry + N + p)
        store(total, dx, into + m)


def _torch_forward(x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor) -> Tensor:
    """States in planes: the opening state is part of the first input, then all steps are joined."""
    joined = ~start
    states = torch.complex(x, torch.zeros_like(x))[:, :, None].repeat(1, 1, len(omega), 1)
    states[0] += _where(joined[0], _power(alpha, omega, 1) * torch.complex(state[:, 0], state[:, 1]))
    _join(states, joined, lambda steps: _power(alpha, omega, steps))
    return torch.stack([states.real, states.imag], 2)


def _torch_backward(
    d_states: Tensor, d_last: Tensor, states: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, d_state, da, db. The recurrence of G is that of S, backwards in time and with conj(gamma)."""
    joined = ~start
    G = torch.complex(d_states[:, :, 0], d_states[:, :, 1])
    G[-1] += torch.complex(d_last[:, 0], d_last[:, 1])
    G = G.flip(0)
    # G_t takes from G_{t+1} unless an episode starts at t + 1
    _join(G, joined.roll(-1, 0).flip(0), lambda steps: _power(alpha, omega, steps).conj())
    G = G.flip(0)
    before = torch.cat([state[None], states[:-1]])
    product = _where(joined, G * torch.complex(before[:, :, 0], -before[:, :, 1])).sum((0, 1))
    d_state = _where(joined[0], G[0] * _power(alpha, omega, 1).conj())
    return G.real.sum(2), torch.stack([d_state.real, d_state.imag], 1), product.real, -product.imag


def _power(alpha: Tensor, omega: Tensor, steps: int) -> Tensor:
    """gamma^steps [C, M], complex."""
    a, b = rates(alpha, omega, steps)
    return torch.complex(a, -b)


def _where(mask: Tensor, values: Tensor) -> Tensor:
    """The values [..., C, M] where mask [...] is true, else zeros."""
    return values.masked_fill(~mask[..., None, None], 0)


def _join(states: Tensor, joined: Tensor, power: Callable[[int], Tensor], stride: int = 1) -> None:
    """In place and in the order of t: S_t += gamma^stride S_{t-1} where joined_t is true, parallel in time.

    Doubling inside chunks of `_CHUNK` entries, the same again for the chunks' ends, then every chunk takes in the
    end before it: linear work in about 5 log_16 T parallel operations.

    Args:
        states: [T, B, C, M] complex.
        joined: [T, B] bool; the first row is not read.
        power: gamma to a number of steps, [C, M] complex.
        stride: steps from one entry to the next.
    """
    T = len(joined)
    t = torch.arange(T, device=joined.device)[:, None]
    first = t % _CHUNK == 0
    # how many entries before t, in its chunk, it goes on from
    reach = t - torch.where(joined & ~first, 0, t).cummax(0).values
    distance = 1
    while distance < min(T, _CHUNK):
        states[distance:] += _where(reach[distance:] >= distance, power(stride * distance) * states[:-distance])
        distance *= 2
    if T <= _CHUNK:
        return
    open_chunk = joined[::_CHUNK].repeat_interleave(_CHUNK, 0)[:T] & (reach == t % _CHUNK)
    ends = states[_CHUNK - 1 :: _CHUNK].clone()
    _join(ends, open_chunk[_CHUNK - 1 :: _CHUNK], power, stride * _CHUNK)
    powers = torch.stack([power(stride * (position + 1)) for position in range(_CHUNK)])
    # entries _CHUNK ... T - 1, in chunks that follow ends 0, 1, ...
    chunk, position = (t[:-_CHUNK, 0] // _CHUNK, t[:-_CHUNK, 0] % _CHUNK)
    states[_CHUNK:] += _where(open_chunk[_CHUNK:], powers[position, None] * ends[chunk])
