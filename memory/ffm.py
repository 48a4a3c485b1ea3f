"""Fast and Forgetful Memory: complex traces with learned decay and frequency (arXiv 2310.04128).

v_t = value(x_t) * sigmoid(input_gate(x_t))                          [m]
S_t = exp(-|alpha|) exp(-i omega)^T * S_{t-1} + v_t 1_c^T            [m, c], complex
z_t = mix([Re S_t || Im S_t])                                        [D], each part flattened m-major
g_t = sigmoid(output_gate(x_t))                                      [D]
y_t = LN(z_t) * g_t + skip(x_t) * (1 - g_t)                          LN without parameters
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from memory.base import Context, Memory, check_at_least
from memory.kernels import decay

_EPSILON = 1e-5
_BLOCK = 512
"""Tokens that the compiled scan takes at once: few enough that what it computes of them stays in the cache."""


class FFMState(NamedTuple):
    """Traces, as pairs of reals."""

    S: Tensor
    """[B, m, c, 2], real and imaginary part."""


class FFM(Memory):
    """Fast and Forgetful Memory: every input is added to m x c traces that decay and rotate at their own rates.

    Nothing erases on demand: decay and frequency are learned, and do not depend on the input.

    Where the paper and its public code differ: traces rotate by exp(-i omega) as in the paper (exp(+i omega) in the
    code, the conjugate); |alpha| stands where the code clamps alpha to a range that keeps its closed form from
    overflowing, and the recurrence is computed without that closed form; Re S and Im S are two blocks, as in the paper
    (interleaved in the code: a permutation of the columns of `mix`); everything is in the module's dtype (complex128
    inside, in the code). The output gate and the initial alpha and omega are the code's; the first omega, 2 pi, is no
    rotation at integer steps until it is trained.

    Args:
        input_size: F, features per input.
        output_size: D, features per output.
        memory_size: m, decays; 1 or more.
        context_size: c, frequencies; 1 or more.
        max_period: steps of the longest initial period, after which the slowest initial trace has decayed to 0.01;
            more than 1.
    State:
        S [B, m, c, 2] in the module's dtype, zeros at first.
    Source: arXiv 2310.04128, section 4; output gate and initial values from the authors' code.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int = 128,
        memory_size: int = 32,
        context_size: int = 4,
        max_period: float = 1024,
    ) -> None:
        super().__init__(input_size, output_size)
        check_at_least("memory_size", memory_size, 1)
        check_at_least("context_size", context_size, 1)
        if isinstance(max_period, bool) or not isinstance(max_period, int | float) or not 1 < max_period < math.inf:
            raise ValueError(f"max_period must be a finite number of steps above 1; got {max_period!r}")
        self.memory_size = memory_size
        self.context_size = context_size
        self.value = nn.Linear(input_size, memory_size)
        self.input_gate = nn.Linear(input_size, memory_size)
        self.output_gate = nn.Linear(input_size, output_size)
        self.mix = nn.Linear(2 * memory_size * context_size, output_size)
        self.skip = nn.Linear(input_size, output_size)
        self.alpha = nn.Parameter(torch.linspace(0.673, -math.log(0.01) / max_period, memory_size))
        self.omega = nn.Parameter(2 * math.pi / torch.linspace(1, max_period, context_size))

    def initial_state(self, batch_size: int) -> FFMState:
        """Empty traces, [batch_size, m, c, 2]."""
        shape = (batch_size, self.memory_size, self.context_size, 2)
        return FFMState(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def step(
        self, x: Tensor, state: FFMState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, FFMState]:
        """Read x [B, F]; y [B, D] and the next state. Compiled on the CPU where no gradient is wanted."""
        if not torch.is_grad_enabled() and self._compiles(x):
            return self._act(x, state)
        m, D = self.memory_size, self.output_size
        value, skip, gates = functional.linear(x, *self._input_maps()).split([m, D, m + D], -1)
        input_gate, output_gate = gates.sigmoid().split([m, D], -1)
        decays, angles = (-self.alpha.abs()).exp()[:, None], self.omega
        a, b = decays * angles.cos(), decays * angles.sin()
        re_before, im_before = state.S.unbind(-1)
        re = torch.addcmul((value * input_gate).unsqueeze(-1), a, re_before).addcmul(b, im_before)
        im = torch.addcmul(a * im_before, b, re_before, value=-1)
        z = self.mix(torch.cat([re.flatten(1), im.flatten(1)], -1))
        y = torch.lerp(skip, functional.layer_norm(z, (D,), eps=_EPSILON), output_gate)
        return y, FFMState(torch.stack([re, im], -1))

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: FFMState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, FFMState]:
        """Read x [T, B, F]: compiled, block by block, on the CPU; parallel in time elsewhere."""
        T, B = self.check_sequence(x, start)
        if x.numel() == 0:
            return x.new_empty(T, B, self.output_size), state
        m, c = self.memory_size, self.context_size
        mix = self.mix.weight.view(-1, 2, m, c).transpose(2, 3).flatten(1)
        arguments = (x, *self._input_maps(), mix, self.mix.bias, self.alpha, self.omega, start)
        if self._compiles(x):
            y, last = _Scan.apply(*arguments, decay.to_planes(state.S))
            return y, FFMState(decay.from_planes(last))
        y, last = torch_scan(*arguments, state.S)
        return y, FFMState(last)

    def context(self) -> Context:
        """One input directly, every earlier one through the traces."""
        return Context(1, math.inf)

    def diagnostics(self) -> dict[str, Tensor]:
        """Half-lives ln 2 / |alpha| [m] and periods 2 pi / |omega| [c], in steps."""
        return {
            "half_life_steps": math.log(2) / self.alpha.detach().abs(),
            "period_steps": 2 * math.pi / self.omega.detach().abs(),
        }

    def _act(self, x: Tensor, state: FFMState) -> tuple[Tensor, FFMState]:
        """`step` between two matrix products and two kernels."""
        weight, bias = self._input_maps()
        maps = torch.addmm(bias, x, weight.t())
        maps[:, maps.shape[1] // 2 :].sigmoid_()
        before = state.S.contiguous()
        S, traces = torch.empty_like(before), x.new_empty(self.mix.in_features, len(x))
        arrays = (maps, self.alpha, self.omega, before, S, traces)
        _step_states(*(array.detach().numpy() for array in arrays))
        # at the sizes of acting, this order of factors is about twice as fast as traces times the transposed weight
        z = torch.mm(self.mix.weight, traces).t().contiguous()
        y, scale = torch.empty_like(z), x.new_empty(len(x))
        _output_forward(*(array.detach().numpy() for array in (maps, self.mix.bias, z, scale, y)))
        return y, FFMState(S)

    def _compiles(self, x: Tensor) -> bool:
        """Whether the kernels take this input."""
        return x.device.type == "cpu" and x.dtype == self.alpha.dtype and x.dtype in (torch.float32, torch.float64)

    def _input_maps(self) -> tuple[Tensor, Tensor]:
        """The four maps of x as one: weight [2 m + 2 D, F] and bias, rows in the order in which they are used."""
        maps = (self.value, self.skip, self.input_gate, self.output_gate)
        return torch.cat([map_.weight for map_ in maps]), torch.cat([map_.bias for map_ in maps])


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
    return torch.lerp(skip, functional.layer_norm(z, (D,), eps=_EPSILON).to(skip.dtype), output_gate), last


class _Scan(torch.autograd.Function):
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
            _output_forward(block.maps.numpy(), mix_bias_row, normal_rows[rows], scale_rows[rows], y_rows[rows])
        ctx.save_for_backward(x, weight, bias, mix, alpha, start, normal, scale, a, b, *borders[:-1])
        return y, borders[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
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
        self.steps = min(T, max(1, _BLOCK // self.batch))
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
def _step_states(maps, alpha, omega, before, S, traces):  # type: ignore[no-untyped-def]
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
def _output_forward(maps, bias, z, scale, y):  # type: ignore[no-untyped-def]
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
        factor = z.dtype.type(1 / np.sqrt(square / D + _EPSILON))
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
