"""What surrounds the gated delta rule in a layer, from the projection of its input to the gated read.

Per head, with z = [q, k, v, g] of every head, then a and b of all heads:

    alpha = gate(a),  beta = 2 gate(b)        gate: the sigmoid, or one that is stretched and clipped
    read = gated_delta_scan(q / |q|, k / |k|, v, alpha, beta)
    y = sigmoid(g) bounded(read)              bounded: x / sqrt(mean x^2 + NORM_EPS), or tanh

One function, because on the CPU these small operations cost more than the recurrence when each goes through memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from numba import njit
from torch import Tensor
from torch.nn import functional

from memory.kernels.compiling import OPTIONS
from memory.kernels.delta import gated_delta_scan, scan_backward, scan_forward
from memory.kernels.delta_read import NORM_EPS
from memory.kernels.forms import has_kernels
from memory.kernels.gated_cells import sigmoid

STRETCH = 0.1
"""How far a hard gate's sigmoid reaches beyond 0 and 1 before it is clipped."""


class DeltaForm(NamedTuple):
    """Sizes and forms of a layer."""

    heads: int
    key_size: int
    value_size: int
    hard_gates: bool
    tanh_read: bool
    bound_values: bool

    @property
    def read(self) -> str:
        """The form of `memory.kernels.delta_read`."""
        return "tanh" if self.tanh_read else "norm"

    @property
    def head_width(self) -> int:
        """Numbers per head in z: q, k, v, g."""
        return 2 * self.key_size + 2 * self.value_size

    @property
    def width(self) -> int:
        """Numbers in z."""
        return self.heads * (self.head_width + 2)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """q, k, v, g [T, B, H, 2 K + 2 V], and a, b [T, B, 2 H] of z [T, B, width], as views."""
        heads, gates = z.split((self.heads * self.head_width, 2 * self.heads), -1)
        return heads.unflatten(-1, (self.heads, self.head_width)), gates


def delta_layer(z: Tensor, start: Tensor, state: Tensor, form: DeltaForm) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The formulas above: fused on the CPU, from torch's operations elsewhere.

    Args:
        z: [T, B, form.width] floats.
        start: [T, B] bool.
        state: [B, H, K, V], the tables before the first step.
        form: sizes and forms.

    Returns:
        y [T, B, H * V], the last tables [B, H, K, V]; alpha and beta [T, B, H], without gradients.
    """
    if not has_kernels(z, state):
        return delta_layer_torch(z, start, state, form)
    y, last, alpha, beta = _DeltaLayer.apply(z, start, state, form)
    return y, last, alpha, beta


def delta_layer_torch(
    z: Tensor, start: Tensor, state: Tensor, form: DeltaForm
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`delta_layer` operation by operation."""
    K, V = form.key_size, form.value_size
    heads, gates = form.split(z)
    q, k, v, g = heads.split((K, K, V, V), -1)
    alpha, beta = gate(gates, form.hard_gates).chunk(2, -1)
    beta = 2 * beta
    v = torch.tanh(v) if form.bound_values else v
    read, last = gated_delta_scan(q, k, v, alpha, beta, start, state, normalise=True)
    read = torch.tanh(read) if form.tanh_read else mean_square_norm(read)
    return (read * torch.sigmoid(g)).flatten(-2), last, alpha.detach(), beta.detach()


def gate(x: Tensor, hard: bool) -> Tensor:
    """The sigmoid; if `hard`, stretched by STRETCH to both sides and clipped, so that it reaches 0 and 1."""
    opened = torch.sigmoid(x)
    return (opened * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1) if hard else opened


def mean_square_norm(x: Tensor) -> Tensor:
    """Divide x by sqrt(mean x^2 + NORM_EPS) over the last axis: near zero a mere factor, not noise at full size."""
    return functional.rms_norm(x, x.shape[-1:], eps=NORM_EPS)


class _DeltaLayer(torch.autograd.Function):
    """The fused form with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, start: Tensor, state: Tensor, form: DeltaForm
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        last = state.clone(memory_format=torch.contiguous_format)
        y, *saved = _forward(z.detach(), start, last, form, any(ctx.needs_input_grad))
        alpha, beta = saved[1:3]
        ctx.save_for_backward(*saved, start)
        ctx.form = form
        ctx.mark_non_differentiable(alpha, beta)
        return y, last, alpha, beta

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, d_last: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        z, alpha, beta, errors, kept, start = ctx.saved_tensors
        form: DeltaForm = ctx.form
        K, V = form.key_size, form.value_size
        dz, dy = z.new_empty(z.shape), dy.unflatten(-1, (form.heads, V))
        heads, _gates = form.split(z)
        d_heads, d_gates = form.split(dz)
        given = (heads, alpha, beta, start, errors, kept, True, dy, d_last)
        d_alpha, d_beta, d_state = scan_backward(*given, d_heads, form.read)
        gradients = (alpha.numpy(), beta.numpy(), d_alpha.numpy(), d_beta.numpy())
        _open_gates_backward(*gradients, form.hard_gates, d_gates.numpy())
        if form.bound_values:
            d_heads[..., 2 * K : 2 * K + V] *= 1 - heads[..., 2 * K : 2 * K + V].square()
        return dz, None, d_state, None


def _forward(
    z: Tensor, start: Tensor, table: Tensor, form: DeltaForm, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Advance `table` in place; y, z as the recurrence saw it, alpha, beta, and what `scan_forward` returns."""
    T, B, _ = z.shape
    H, K, V = form.heads, form.key_size, form.value_size
    z = z.clone() if form.bound_values else z.contiguous()
    heads, gates = form.split(z)
    if form.bound_values:
        heads[..., 2 * K : 2 * K + V].tanh_()
    alpha, beta = z.new_empty(T, B, H), z.new_empty(T, B, H)
    _open_gates(gates.numpy(), form.hard_gates, alpha.numpy(), beta.numpy())
    y, errors, kept = scan_forward(heads, alpha, beta, start, table, True, keep, form.read)
    return y.flatten(-2), z, alpha, beta, errors, kept


@njit(**OPTIONS)
def _open_gates(gates, hard, alpha, beta):  # type: ignore[no-untyped-def]
    """Fill alpha and beta [T, B, H] from gates [T, B, 2 H]; see `gate`."""
    T, B, H = alpha.shape
    number = alpha.dtype.type
    zero, one, two, stretch = number(0), number(1), number(2), number(STRETCH)
    for t in range(T):
        for b in range(B):
            for h in range(H):
                keep, rewrite = sigmoid(gates[t, b, h]), sigmoid(gates[t, b, H + h])
                if hard:
                    keep = min(max(keep * (one + two * stretch) - stretch, zero), one)
                    rewrite = min(max(rewrite * (one + two * stretch) - stretch, zero), one)
                alpha[t, b, h] = keep
                beta[t, b, h] = two * rewrite


@njit(**OPTIONS)
def _open_gates_backward(alpha, beta, d_alpha, d_beta, hard, d_gates):  # type: ignore[no-untyped-def]
    """The gradient of `_open_gates`, from what the gates became."""
    T, B, H = alpha.shape
    number = alpha.dtype.type
    zero, one, two, stretch = number(0), number(1), number(2), number(STRETCH)
    reach = one + two * stretch
    for t in range(T):
        for b in range(B):
            for h in range(H):
                keep, rewrite = alpha[t, b, h], beta[t, b, h] / two
                if hard:
                    keep_opened, opened = (keep + stretch) / reach, (rewrite + stretch) / reach
                    keep = reach * keep_opened * (one - keep_opened) if zero < keep < one else zero
                    rewrite = reach * opened * (one - opened) if zero < rewrite < one else zero
                else:
                    keep, rewrite = keep * (one - keep), rewrite * (one - rewrite)
                d_gates[t, b, h] = d_alpha[t, b, h] * keep
                d_gates[t, b, H + h] = d_beta[t, b, h] * two * rewrite
