"""Fast and Forgetful Memory: complex traces with learned decay and frequency (arXiv 2310.04128).

v_t = value(x_t) * sigmoid(input_gate(x_t))                          [m]
S_t = exp(-|alpha|) exp(-i omega)^T * S_{t-1} + v_t 1_c^T            [m, c], complex
z_t = mix([Re S_t || Im S_t])                                        [D], each part flattened m-major
g_t = sigmoid(output_gate(x_t))                                      [D]
y_t = LN(z_t) * g_t + skip(x_t) * (1 - g_t)                          LN without parameters
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.memory.base import Context, Memory
from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels
from palimpsest.memory.kernels.arithmetic.views import Arrays, Views
from palimpsest.memory.kernels.diagonal.ffm_loops import EPSILON, step
from palimpsest.memory.kernels.diagonal.ffm_scan import FFMScan, torch_scan
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
        self._views = Views()
        self.omega = nn.Parameter(2 * math.pi / torch.linspace(1, max_period, context_size))

    def initial_state(self, batch_size: int) -> FFMState:
        """Empty traces, [batch_size, m, c, 2]."""
        shape = (batch_size, self.memory_size, self.context_size, 2)
        return FFMState(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def step(
        self, x: Tensor, state: FFMState, place: Tensor | None = None, strategy: Tensor | None = None
    ) -> tuple[Tensor, FFMState]:
        """Read x [B, F]; y [B, D] and the next state. Compiled on the CPU where no gradient is wanted."""
        self.check_step(x, state)
        if not torch.is_grad_enabled() and has_kernels(x, state.S):
            arrays = self._views(x, (), self._parameters_of_a_step(), self._is_as_built)
            if arrays is not None:
                return self._act(x, state, arrays)
        m, D = self.memory_size, self.output_size
        value, gates, skip = functional.linear(x, *self._input_maps()).split([m, m + D, D], -1)
        input_gate, output_gate = gates.sigmoid().split([m, D], -1)
        decays, angles = (-self.alpha.abs()).exp()[:, None], self.omega
        a, b = decays * angles.cos(), decays * angles.sin()
        re_before, im_before = state.S.unbind(-1)
        re = torch.addcmul((value * input_gate).unsqueeze(-1), a, re_before).addcmul(b, im_before)
        im = torch.addcmul(a * im_before, b, re_before, value=-1)
        z = self.mix(torch.cat([re.flatten(1), im.flatten(1)], -1))
        y = torch.lerp(skip, functional.layer_norm(z, (D,), eps=EPSILON), output_gate)
        return y, FFMState(torch.stack([re, im], -1))

    def scan(
        self,
        x: Tensor,
        start: Tensor,
        state: FFMState,
        place: Tensor | None = None,
        strategy: Tensor | None = None,
    ) -> tuple[Tensor, FFMState]:
        """Read x [T, B, F]: compiled, block by block, on the CPU; parallel in time elsewhere.

        The gradient is made from y too: where y is changed in place before, torch refuses to differentiate.
        """
        T, B = self.check_sequence(x, start, state)
        if x.numel() == 0:
            return x.new_empty(T, B, self.output_size), state
        m, c = self.memory_size, self.context_size
        maps = (*self._maps(), self.mix)
        parameters = [*(each.weight for each in maps), *(each.bias for each in maps), self.alpha, self.omega]
        # what does not fit is torch's to refuse
        if self._compiles(x, state) and self._fits(parameters):
            y, last = FFMScan.apply(torch.is_grad_enabled(), x, start, state.S, *parameters)
            return y, FFMState(last)
        mix = self.mix.weight.view(-1, 2, m, c).transpose(2, 3).flatten(1)
        y, last = torch_scan(x, *self._input_maps(), mix, self.mix.bias, self.alpha, self.omega, start, state.S)
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

    def _act(self, x: Tensor, state: FFMState, arrays: Arrays) -> tuple[Tensor, FFMState]:
        """`step` in one kernel, from the arrays of its parameters."""
        x, before, real = x.contiguous(), state.S.contiguous(), arrays[0].dtype
        S, y = np.empty(before.shape, real), np.empty((len(x), self.output_size), real)
        step(x.data_ptr(), arrays[:5], arrays[5:10], *arrays[10:], before.data_ptr(), S, y)
        return torch.from_numpy(y), FFMState(torch.from_numpy(S))

    def _parameters_of_a_step(self) -> list[Tensor | None]:
        """Weights, biases, alpha and omega, found without the long search for a module's attributes."""
        modules: dict[str, Any] = self._modules
        own = [modules[name]._parameters for name in ("value", "input_gate", "output_gate", "skip", "mix")]
        alpha, omega = self._parameters.get("alpha"), self._parameters.get("omega")
        return [*(each.get("weight") for each in own), *(each.get("bias") for each in own), alpha, omega]

    def _is_as_built(self) -> bool:
        return self._fits(self._parameters_of_a_step())

    def _fits(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether parameters, in the order of `_parameters_of_a_step`, have the sizes that kernels take."""
        F, D, m, c = self.input_size, self.output_size, self.memory_size, self.context_size
        rows = (m, m, D, D)
        sizes = [*((n, F) for n in rows), (D, 2 * m * c), *((n,) for n in (*rows, D)), (m,), (c,)]
        return [each.shape for each in tensors if each is not None] == sizes

    def _compiles(self, x: Tensor, state: FFMState) -> bool:
        """Whether the kernels take this input."""
        return has_kernels(x, self.alpha, state.S)

    def _maps(self) -> tuple[nn.Linear, ...]:
        """The four maps of x, in the order in which kernels take them."""
        return self.value, self.input_gate, self.output_gate, self.skip

    def _input_maps(self) -> tuple[Tensor, Tensor]:
        """The four maps of x as one: weight [2 m + 2 D, F] and bias."""
        return torch.cat([map_.weight for map_ in self._maps()]), torch.cat([map_.bias for map_ in self._maps()])
