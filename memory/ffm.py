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
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory, Panel
from palimpsest.memory.kernels.arithmetic.as_built import Arrays, AsBuilt
from palimpsest.memory.kernels.diagonal.decay import decay_scan
from palimpsest.memory.kernels.diagonal.ffm_loops import EPSILON, step
from palimpsest.memory.kernels.diagonal.ffm_scan import FFMScan
from palimpsest.refusals import check_above, check_integer


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
        memory_size = check_integer("memory_size", memory_size, 1)
        context_size = check_integer("context_size", context_size, 1)
        max_period = check_above("max_period", max_period, 1)
        self.memory_size = memory_size
        self.context_size = context_size
        self.value = nn.Linear(input_size, memory_size)
        self.input_gate = nn.Linear(input_size, memory_size)
        self.output_gate = nn.Linear(input_size, output_size)
        self.mix = nn.Linear(2 * memory_size * context_size, output_size)
        self.skip = nn.Linear(input_size, output_size)
        self.alpha = nn.Parameter(torch.linspace(0.673, -math.log(0.01) / max_period, memory_size))
        self.omega = nn.Parameter(2 * math.pi / torch.linspace(1, max_period, context_size))
        self._built = AsBuilt(self)

    def initial_state(self, batch_size: int) -> FFMState:
        """Empty traces, [batch_size, m, c, 2]."""
        shape = (batch_size, self.memory_size, self.context_size, 2)
        return FFMState(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def step(
        self, x: Tensor, state: FFMState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, FFMState]:
        """Read x [B, F]; y [B, D] and the next state. Compiled on the CPU where no gradient is wanted."""
        self.check_step(x, state)
        if not torch.is_grad_enabled() and self._built.allows(self, x, state.S):
            return self._act(x, state, self._built.arrays(self, _in_order))
        decays, angles = (-self.alpha.abs()).exp()[:, None], self.omega
        a, b = decays * angles.cos(), decays * angles.sin()
        re_before, im_before = state.S.unbind(-1)
        re = torch.addcmul(self._enter(x).unsqueeze(-1), a, re_before).addcmul(b, im_before)
        im = torch.addcmul(a * im_before, b, re_before, value=-1)
        return self._leave(x, torch.cat([re.flatten(1), im.flatten(1)], -1)), FFMState(torch.stack([re, im], -1))

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: FFMState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, FFMState]:
        """Read x [T, B, F]: compiled, block by block, on the CPU; by torch's operations, parallel in time, elsewhere.

        The gradient is made from y too: where y is changed in place before, torch refuses to differentiate.
        """
        T, B = self.check_sequence(x, start, state)
        if x.numel() == 0:
            return x.new_empty(T, B, self.output_size), state
        if self._built.allows(self, x, state.S):
            maps = self.value, self.input_gate, self.output_gate, self.skip, self.mix
            parameters = [*(each.weight for each in maps), *(each.bias for each in maps), self.alpha, self.omega]
            y, last = FFMScan.apply(torch.is_grad_enabled(), x, start, state.S, *parameters)
            return y, FFMState(last)
        states, last = decay_scan(self._enter(x), self.alpha, self.omega, start, state.S)
        return self._leave(x, states.movedim(-1, 2).flatten(2)), FFMState(last)

    def context(self) -> Context:
        """One input directly, every earlier one through the traces."""
        return Context(1, math.inf)

    def diagnostics(self) -> dict[str, Tensor]:
        """Half-lives ln 2 / |alpha| [m] and periods 2 pi / |omega| [c], in steps."""
        return {
            "half_life_steps": math.log(2) / self.alpha.detach().abs(),
            "period_steps": 2 * math.pi / self.omega.detach().abs(),
        }

    def panels(self, before: Any, after: Any) -> list[Panel]:
        """How long the traces of each half-life are, fastest first, and all traces, columns by period."""
        shown, lengths = self.diagnostics(), after.S[0].detach().norm(dim=2)
        half_life, period = shown["half_life_steps"].sort(), shown["period_steps"].sort()
        names = tuple(f"half-life {steps:.4g}" for steps in half_life.values.tolist())
        lengths = lengths[half_life.indices]
        shortest, longest = period.values[0].item(), period.values[-1].item()
        return [
            Panel("activity of the traces", lengths.norm(dim=1), None, names),
            Panel(f"traces, periods {shortest:.4g} to {longest:.4g} steps", lengths[:, period.indices], None, names),
        ]

    def _act(self, x: Tensor, state: FFMState, arrays: Arrays) -> tuple[Tensor, FFMState]:
        """`step` in one kernel, from the arrays of its parameters."""
        x, before, real = x.contiguous(), state.S.contiguous(), arrays[0].dtype
        S, y = np.empty(before.shape, real), np.empty((len(x), self.output_size), real)
        step(x.data_ptr(), arrays[:5], arrays[5:10], *arrays[10:], before.data_ptr(), S, y)
        return torch.from_numpy(y), FFMState(torch.from_numpy(S))

    def _enter(self, x: Tensor) -> Tensor:
        """What is added to the traces, [..., m], by torch's operations."""
        # under autocast the maps come in half precision; the traces stay in the parameters' type
        return (self.value(x) * self.input_gate(x).sigmoid()).to(self.alpha.dtype)

    def _leave(self, x: Tensor, traces: Tensor) -> Tensor:
        """The output [..., D] from traces [..., 2 m c], real parts first."""
        skip = self.skip(x)
        normal = functional.layer_norm(self.mix(traces), (self.output_size,), eps=EPSILON)
        return torch.lerp(skip, normal.to(skip.dtype), self.output_gate(x).sigmoid())


def _in_order(arrays: dict[str, np.ndarray]) -> Arrays:
    """The parameters of an `FFM` as its compiled step takes them."""
    maps = ("value", "input_gate", "output_gate", "skip", "mix")
    weights, biases = ([arrays[f"{name}.{kind}"] for name in maps] for kind in ("weight", "bias"))
    return *weights, *biases, arrays["alpha"], arrays["omega"]
