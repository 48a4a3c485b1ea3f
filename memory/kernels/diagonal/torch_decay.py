"""The decaying traces of `memory.kernels.diagonal.decay` by torch's operations, parallel in time, on any device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CHUNK = 16
"""Steps that the parallel form joins before it goes on with the chunks' ends; a power of two."""


def torch_forward(x: Tensor, alpha: Tensor, omega: Tensor, start: Tensor, state: Tensor) -> Tensor:
    """States in planes: the opening state is part of the first input, then all steps are joined."""
    joined = ~start
    states = torch.complex(x, torch.zeros_like(x))[:, :, None].repeat(1, 1, len(omega), 1)
    states[0] += _where(joined[0], _power(alpha, omega, 1) * torch.complex(state[:, 0], state[:, 1]))
    _join(states, joined, lambda steps: _power(alpha, omega, steps))
    return torch.stack([states.real, states.imag], 2)


def torch_backward(
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


def rates(alpha: Tensor, omega: Tensor, steps: int = 1) -> tuple[Tensor, Tensor]:
    """The parts of gamma^steps = a - i b, [C, M] each, without a graph.

    The angle is multiplied in float64: omega * steps may be many turns, of which float32 would lose the fraction.
    """
    decay = (-steps * alpha.detach().double().abs()).exp()
    angle = (steps * omega.detach().double())[:, None]
    return (decay * angle.cos()).to(alpha.dtype), (decay * angle.sin()).to(alpha.dtype)


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
