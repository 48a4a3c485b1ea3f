"""FFM's scan from x to y: four maps of x, decaying traces, their mix; compiled in blocks, and by torch operations.

Equations and names are those of `memory.ffm`; the traces are those of `memory.kernels.decay`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from memory.kernels import decay

EPSILON = 1e-5
"""Added to the variance by the layer norm of the output."""

BLOCK = 512
"""Tokens that the compiled scan takes at once: few enough that what it computes of them stays in the cache."""


def torch_scan(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mix: Tensor,
    mix_bias: Tensor,
    alpha: Tensor,
    omega: Tensor,
    start: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """The scan by torch operations; all of it in memory at once, gradients by autograd.

    Args:
        x: [T, B, F].
        weight: [2 m + 2 D, F], rows of value, skip, input gate and output gate.
        bias: [2 m + 2 D].
        mix: [D, 2 c m], columns as the planes of `memory.kernels.decay`.
        mix_bias: [D].
        alpha: [m].
        omega: [c].
        start: [T, B] bool.
        state: [B, m, c, 2].

    Returns:
        y [T, B, D] and the last state.
    """
    m, D = len(alpha), len(mix)
    value, skip, gates = functional.linear(x, weight, bias).split([m, D, m + D], -1)
    input_gate, output_gate = gates.sigmoid().split([m, D], -1)
    # under autocast the maps come in half precision; the traces stay in the parameters' type
    states, last = decay.decay_scan((value * input_gate).to(alpha.dtype), alpha, omega, start, state)
    z = functional.linear(decay.to_planes(states).flatten(2), mix, mix_bias)
    return torch.lerp(skip, functional.layer_norm(z, (D,), eps=EPSILON).to(skip.dtype), output_gate), last


class FFMScan(torch.autograd.Function):
    """`torch_scan` on the CPU, blocks of steps one after the other, state in planes.

    Kept for the backward pass are LN(z) and the state at every block's border; the maps of x and the states inside a
    block are computed again. That takes about as long as to keep them, and a fifth of the memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mix: Tensor,
        mix_bias: Tensor,
        alpha: Tensor,
        omega: Tensor,
        start: Tensor,
        state: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Y [T, B, D] and the last state, as `torch_scan` gives them."""
        T, B, _ = x.shape
        D = len(mix)
        x, start = x.contiguous(), start.contiguous()
        a, b = decay.rates(alpha, omega)
        normal, y, scale = x.new_empty(T * B, D), x.new_empty(T, B, D), x.new_empty(T * B)
        block = _Block(x, start, weight, bias, a, b)
        y_rows, normal_rows, scale_rows = y.view(-1, D).numpy(), normal.numpy(), scale.numpy()
        columns, mix_bias_row = mix.t().contiguous(), mix_bias.detach().numpy()
        borders = [state]
        for t in range(0, T, block.steps):
            rows = slice(t * B, min(t + block.steps, T) * B)
            states = block.compute(t, borders[-1])
            borders.append(states[-1].clone())
            torch.mm(states.view(-1, mix.shape[1]), columns, out=normal[rows])
            output_forward(block.maps.numpy(), mix_bias_row, normal_rows[rows], scale_rows[rows], y_rows[rows])
        ctx.save_for_backward(x, weight, bias, mix, alpha, start, normal, scale, a, b, *borders[:-1])
        return y, borders[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of everything but start, from those of y and of the last state."""
        x, weight, bias, mix, alpha, start, normal, scale, a, b, *borders = ctx.saved_tensors
        T, B, F = x.shape
        m, D = len(alpha), len(mix)
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        d_mix, d_mix_bias = torch.zeros_like(mix), mix.new_zeros(D)
        da, db = torch.zeros(2, *a.shape, dtype=torch.float64).numpy()
        d_state = d_last.clone(memory_format=torch.contiguous_format)
        block = _Block(x, start, weight, bias, a, b)
        n = block.steps * B
        d_maps_all, dz_all, dv_all = x.new_empty(n, len(weight)), x.new_empty(n, D), x.new_empty(n, m)
        d_states_all = x.new_empty(block.steps, *d_state.shape)
        dy_rows, normal_rows, scale_rows = dy.contiguous().view(-1, D).numpy(), normal.numpy(), scale.numpy()
        for t, border in zip(reversed(range(0, T, block.steps)), reversed(borders)):
            rows = slice(t * B, min(t + block.steps, T) * B)
            n = rows.stop - rows.start
            d_maps, dz, dv, d_states = d_maps_all[:n], dz_all[:n], dv_all[:n], d_states_all[: n // B]
            states = block.compute(t, border)
            maps = block.maps.numpy()
            _output_backward(dy_rows[rows], maps, normal_rows[rows], scale_rows[rows], dz.numpy(), d_maps.numpy())
            d_mix.addmm_(dz.t(), states.view(n, -1))
            d_mix_bias += dz.sum(0)
            torch.mm(dz, mix, out=d_states.view(n, -1))
            block.back(t, border, d_states, d_state, dv, da, db)
            _value_backward(dv.numpy(), maps, d_maps.numpy())
            d_weight.addmm_(d_maps.t(), x.view(-1, F)[rows])
            d_bias += d_maps.sum(0)
            if dx is not None:
                torch.mm(d_maps, weight, out=dx.view(-1, F)[rows])
        d_alpha, d_omega = decay.rate_gradients(alpha, a, b, torch.from_numpy(da), torch.from_numpy(db))
        return dx, d_weight, d_bias, d_mix, d_mix_bias, d_alpha, d_omega, None, d_state


class _Block:
    """The maps and states of a few steps, in memory that the next block uses again."""

    def __init__(self, x: Tensor, start: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> None:
        T, self.batch, F = x.shape
        self.steps = min(T, max(1, BLOCK // self.batch))
        C, self.m = a.shape
        self.x, self.start = x.view(-1, F), start.numpy()
        self.columns, self.bias = weight.t().contiguous(), bias
        self.a, self.b = a.numpy(), b.numpy()
        self._maps = x.new_empty(self.steps * self.batch, len(weight))
        self._value = x.new_empty(self.steps * self.batch, self.m)
        self._states = x.new_empty(self.steps, self.batch, 2, C, self.m)
        self.maps, self.states = self._maps, self._states

    def compute(self, t: int, border: Tensor) -> Tensor:
        """The states [steps, B, 2, C, m] from step t on, which follow `border`; the gated maps are in `maps`."""
        x = self.x[t * self.batch : (t + self.steps) * self.batch]
        n = len(x)
        m, gates = self.m, self._maps.shape[1] // 2
        self.maps = torch.addmm(self.bias, x, self.columns, out=self._maps[:n])
        self.maps[:, gates:].sigmoid_()
        value = torch.mul(self.maps[:, :m], self.maps[:, gates : gates + m], out=self._value[:n])
        self.states = self._states[: n // self.batch]
        decay.decay_forward(
            value.view(-1, self.batch, m).numpy(),
            self.a,
            self.b,
            self.start[t : t + self.steps],
            border.numpy(),
            self.states.numpy(),
        )
        return self.states

    def back(
        self, t: int, border: Tensor, d_states: Tensor, d_state: Tensor, dv: Tensor, da: np.ndarray, db: np.ndarray
    ) -> None:
        """The way back through the states that `compute` left: fills dv, adds to da, db, carries d_state on."""
        decay.decay_backward(
            d_states.numpy(),
            self.states.numpy(),
            self.a,
            self.b,
            self.start[t : t + self.steps],
            border.numpy(),
            d_state.numpy(),
            dv.view(-1, self.batch, self.m).numpy(),
            da,
            db,
        )


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def step_states(maps, alpha, omega, before, S, traces):  # type: ignore[no-untyped-def]
    """One step from before to S [N, m, c, 2]; traces [2 m c, N] is filled with Re S || Im S for `mix`."""
    N, m, c, _ = S.shape
    half = maps.shape[1] // 2
    a, b = np.empty((m, c), S.dtype), np.empty((m, c), S.dtype)
    for i in range(m):
        for j in range(c):
            decayed = np.exp(-abs(np.float64(alpha[i])))
            a[i, j] = decayed * np.cos(np.float64(omega[j]))
            b[i, j] = decayed * np.sin(np.float64(omega[j]))
    for n in range(N):
        for i in range(m):
            value = maps[n, i] * maps[n, half + i]
            for j in range(c):
                re, im = before[n, i, j, 0], before[n, i, j, 1]
                S[n, i, j, 0] = a[i, j] * re + b[i, j] * im + value
                S[n, i, j, 1] = a[i, j] * im - b[i, j] * re
                traces[i * c + j, n] = S[n, i, j, 0]
                traces[(m + i) * c + j, n] = S[n, i, j, 1]


@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def output_forward(maps, bias, z, scale, y):  # type: ignore[no-untyped-def]
    """From z less its bias: z becomes LN(z), scale [N] 1 / its standard deviation, y the output; N tokens."""
    N, D = z.shape
    half = maps.shape[1] // 2
    for n in range(N):
        row, skip, gate, out = z[n], maps[n, half - D : half], maps[n, 2 * half - D :], y[n]
        mean = z.dtype.type(0)
        for d in range(D):
            row[d] += bias[d]
            mean += row[d]
        mean /= D
        square = z.dtype.type(0)
        for d in range(D):
            square += (row[d] - mean) ** 2
        factor = z.dtype.type(1 / np.sqrt(square / D + EPSILON))
        scale[n] = factor
        for d in range(D):
            row[d] = (row[d] - mean) * factor
        for d in range(D):
            out[d] = skip[d] + gate[d] * (row[d] - skip[d])


# One array is written in each loop: with more, the check that they do not overlap gets too long for the compiler,
# and the loop stays scalar.
@njit(cache=True, error_model="numpy", fastmath={"contract", "reassoc"})
def _output_backward(dy, maps, normal, scale, dz, d_maps):  # type: ignore[no-untyped-def]
    """From dy to dz and the gradients of skip and of what the output gate's sigmoid takes."""
    N, D = dz.shape
    half = maps.shape[1] // 2
    for n in range(N):
        skip, gate = maps[n, half - D : half], maps[n, 2 * half - D :]
        d_skip, d_gate = d_maps[n, half - D : half], d_maps[n, 2 * half - D :]
        outside, norm, d_norm = dy[n], normal[n], dz[n]
        mean = dz.dtype.type(0)
        along = dz.dtype.type(0)
        for d in range(D):
            through = outside[d] * gate[d]
            mean += through
            along += through * norm[d]
        mean /= D
        along /= D
        factor = scale[n]
        for d in range(D):
            d_skip[d] = outside[d] - outside[d] * gate[d]
        for d in range(D):
            d_gate[d] = d_skip[d] * gate[d] * (norm[d] - skip[d])
        for d in range(D):
            d_norm[d] = factor * (outside[d] * gate[d] - mean - norm[d] * along)


@njit(cache=True, error_model="numpy", fastmath={"contract"})
def _value_backward(dv, maps, d_maps):  # type: ignore[no-untyped-def]
    """From dv [N, m] to the gradients of value and of what the input gate's sigmoid takes."""
    N, m = dv.shape
    half = maps.shape[1] // 2
    for n in range(N):
        value, gate = maps[n, :m], maps[n, half : half + m]
        d_value, d_gate, d = d_maps[n, :m], d_maps[n, half : half + m], dv[n]
        for i in range(m):
            d_value[i] = d[i] * gate[i]
        for i in range(m):
            d_gate[i] = d_value[i] * value[i] * (1 - gate[i])
