"""FFM's scan from x to y: four maps of x, decaying traces, their mix; compiled in blocks, and by torch operations.

Equations and names are those of `memory.ffm`; the traces are those of `memory.kernels.decay`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from memory.kernels import decay
from memory.kernels import ffm_loops as loops
from memory.kernels.ffm_loops import EPSILON
from memory.kernels.products import pack
from memory.kernels.rows import in_parts, part_borders


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
    block are computed again. That takes about as long as to keep them, and much less memory.
    """

    @staticmethod
    def forward(
        ctx: Any,
        recording: bool,
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
        """Y [T, B, D] and the last state, as `torch_scan` gives them; `recording`: whether autograd is on."""
        T, B, _ = x.shape
        D = len(mix)
        a, b = decay.rates(alpha, omega)
        maps = pack(weight.t().numpy()), bias.numpy(), pack(mix.t().numpy()), mix_bias.numpy(), a.numpy(), b.numpy()

        def run(first: int, last: int) -> tuple[Tensor, ...]:
            rows = last - first
            y, normal, scale = x.new_empty(T, rows, D), x.new_empty(T, rows, D), x.new_empty(T, rows)
            blocks = -(-T // loops.block_steps(T, rows))
            borders = x.new_empty(blocks + 1, *state[first:last].shape)
            borders[0] = state[first:last]
            given = (each[:, first:last].contiguous().numpy() for each in (x, start))
            loops.forward(*given, *maps, *(each.numpy() for each in (borders, normal, scale, y)))
            return y, borders[-1].clone(), borders, normal, scale

        ctx.borders = part_borders(T, B)
        parts = in_parts(run, ctx.borders)
        if recording and any(ctx.needs_input_grad):
            kept = (each for part in parts for each in part[2:])
            ctx.save_for_backward(x, weight, bias, mix, alpha, start, a, b, *kept)
        y, last = (each[0] if len(parts) == 1 else torch.cat(each, d) for d, each in zip((1, 0), zip(*parts)))
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of everything but start, from those of y and of the last state."""
        x, weight, bias, mix, alpha, start, a, b, *kept = ctx.saved_tensors
        T, _, F = x.shape
        maps = pack(weight.t().numpy()), bias.numpy(), a.numpy(), b.numpy()
        back = pack(weight.numpy()), pack(mix.numpy())
        saved = dict(zip(ctx.borders, zip(kept[::3], kept[1::3], kept[2::3])))

        def run(first: int, last: int) -> tuple[Tensor, ...]:
            part = slice(first, last)
            d_state = d_last[part].clone(memory_format=torch.contiguous_format)
            dx = x.new_empty(T if ctx.needs_input_grad[1] else 0, last - first, F)
            sums = [torch.zeros_like(each) for each in (weight, bias, mix)]
            sums += [mix.new_zeros(len(mix)), *torch.zeros(2, *a.shape, dtype=torch.float64)]
            given = (each[:, part].contiguous().numpy() for each in (x, start))
            outside = dy[:, part].contiguous()
            forwards = (each.numpy() for each in saved[first])
            gradients = (each.numpy() for each in (outside, d_state, dx, *sums))
            loops.backward(*given, *maps, *forwards, *back, *gradients)
            return d_state, dx, *sums

        parts = in_parts(run, ctx.borders)
        d_state = torch.cat([part[0] for part in parts])
        dx = torch.cat([part[1] for part in parts], 1) if ctx.needs_input_grad[1] else None
        d_weight, d_bias, d_mix, d_mix_bias, da, db = (sum(each[1:], each[0]) for each in zip(*(p[2:] for p in parts)))
        d_alpha, d_omega = decay.rate_gradients(alpha, a, b, da, db)
        return None, dx, d_weight, d_bias, d_mix, d_mix_bias, d_alpha, d_omega, None, d_state
