"""A layer of the rewrite-aware memory for acting: one step of `memory.kernels.delta.layer` and the maps around it.

Acting is few rows at a time, for which each of torch's operations takes longer to begin than to do; here a layer is one
call. Loops are those of `memory.kernels.delta.loops` for one step, from the tables before to those after, so that each
table moves through memory once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from torch import Tensor

from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.as_built import Arrays
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS, SUMS
from palimpsest.memory.kernels.arithmetic.products import copy, fill_rows, multiply_turned
from palimpsest.memory.kernels.cells.elementwise import open_gates, sigmoid, tanh
from palimpsest.memory.kernels.delta.layer import DeltaSizes
from palimpsest.memory.kernels.delta.loops import EPS

NORM_EPS = 0.1
"""Added to the variance where the stream is normalised, so that a stream near zero is not blown up to full size."""


def step_layers(
    x: Tensor, beat: Tensor, parameters: Arrays, sizes: DeltaSizes, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of stacked layers without gradients, on the CPU, float32 or float64.

    Args:
        x: [B, F].
        beat: [B, n], n numbers that follow those of x, and change their sign from step to step.
        parameters: contiguous. Weights of the map of x and beat to the stream, [D, F + n], and of each layer's two: of
            what the layer reads to [sizes.width], and of [H * V] to what is added to the stream. Biases of all but the
            last.
        sizes: H, K and V.
        table: [B, L, H, K, V], all tables.

    Returns:
        The stream [B, D], the next tables and the next beat.
    """
    x, beat, before, real = x.contiguous(), beat.contiguous(), table.contiguous(), parameters[0].dtype
    after, stream = np.empty(table.shape, real), np.empty((len(x), len(parameters[0])), real)
    next_beat, L = np.empty(beat.shape, real), table.shape[1]
    weights, biases = parameters[: 2 * L + 1], parameters[2 * L + 1 :]
    step = _compiled(sizes.key_size, sizes.value_size)
    addresses = x.data_ptr(), beat.data_ptr(), before.data_ptr()
    for number in range(L):
        maps = weights[0], biases[0], weights[2 * number + 1], biases[number + 1], weights[2 * number + 2]
        step(number, *addresses, *maps, sizes.heads, after, next_beat, stream)
    return torch.from_numpy(stream), torch.from_numpy(after), torch.from_numpy(next_beat)


@njit(**SUMS, forceinline=True)
def _normalise(stream, out):  # type: ignore[no-untyped-def]
    """Layer norm of rows [B, D] without parameters."""
    D = stream.shape[1]
    real = stream.dtype.type
    for b in range(len(stream)):
        row, into = stream[b], out[b]
        mean, square = real(0), real(0)
        for d in range(D):
            mean += row[d]
        mean /= real(D)
        for d in range(D):
            square += (row[d] - mean) * (row[d] - mean)
        scale = real(1) / np.sqrt(square / real(D) + real(NORM_EPS))
        for d in range(D):
            into[d] = (row[d] - mean) * scale


@njit(**OPTIONS)
def _joined(x_at, beat_at, width, next_beat):  # type: ignore[no-untyped-def]
    """Both, side by side, as rows [B, width]; fill the next beat [B, n]."""
    B, n = next_beat.shape
    F = width - n
    x, beat = array_at(x_at, (B, F), next_beat), array_at(beat_at, (B, n), next_beat)
    both = np.empty((B, width), x.dtype)
    for b in range(B):
        copy(x[b], both[b])
        for i in range(n):
            both[b, F + i], next_beat[b, i] = beat[b, i], -beat[b, i]
    return both


@functools.cache
def _compiled(K: int, V: int) -> Callable[..., None]:
    """The step for tables [K, V]; the sizes are constants, as in `memory.kernels.delta.loops`."""
    KV, width = K * V, 2 * K + 2 * V
    BK = max(n for n in range(1, 17) if K % n == 0)

    @njit(**SUMS)
    def step(  # type: ignore[no-untyped-def]
        number, x_at, beat_at, table_at, enter, enter_bias, project, project_bias, leave, H,
        table, next_beat, stream,
    ):  # fmt: skip
        """One layer, of this number: the first one reads x, and every other the stream [B, D], to which all add.

        x, beat and the tables before are given by address, the rest is filled; see `step_layers`.
        """
        B = len(stream)
        size = B, table.shape[1] * H * KV
        before, after = array_at(table_at, size, stream), table.reshape(size)
        real = stream.dtype.type
        zero, one, two, eps = real(0), real(1), real(2), real(EPS)
        z, y = np.empty((B, len(project)), stream.dtype), np.empty((B, H * V), stream.dtype)
        fill_rows(z, project_bias)
        if number == 0:
            x = _joined(x_at, beat_at, enter.shape[1], next_beat)
            fill_rows(stream, enter_bias)
            multiply_turned(x, enter, stream, True)
            multiply_turned(x, project, z, True)
        else:
            normal = np.empty_like(stream)
            _normalise(stream, normal)
            multiply_turned(normal, project, z, True)
        opened, reads = np.empty(H * V, stream.dtype), np.empty(H * V, stream.dtype)
        result = np.empty(2 * V, stream.dtype)
        for b in range(B):
            gates = z[b, H * width :]
            open_gates(gates)
            for h in range(H):
                s0 = (number * H + h) * KV
                row, old, new = z[b, h * width : (h + 1) * width], before[b, s0 : s0 + KV], after[b, s0 : s0 + KV]
                q_length, k_length = eps, eps
                for i in range(K):
                    q_length += row[i] * row[i]
                    k_length += row[K + i] * row[K + i]
                q_scale, k_scale = one / np.sqrt(q_length), one / np.sqrt(k_length)
                a, rate = gates[h], two * gates[H + h]
                for c in range(0, K, BK):
                    part, uniform = old[c * V : (c + BK) * V], row[c : c + K + BK]
                    for j in range(V):
                        even, odd = zero, zero
                        for i in range(0, BK, 2):
                            even += uniform[K + i] * part[i * V + j]
                        for i in range(1, BK, 2):
                            odd += uniform[K + i] * part[i * V + j]
                        result[V + j] = even + odd + (result[V + j] if c > 0 else zero)
                for c in range(0, K, BK):
                    part, into, uniform = old[c * V : (c + BK) * V], new[c * V : (c + BK) * V], row[c:]
                    for j in range(V):
                        error = row[2 * K + j] - a * k_scale * result[V + j] if c == 0 else result[V + j]
                        write = rate * k_scale * error
                        even, odd = zero, zero
                        for i in range(0, BK, 2):
                            entry = a * part[i * V + j] + uniform[K + i] * write
                            into[i * V + j] = entry
                            even += uniform[i] * entry
                        for i in range(1, BK, 2):
                            entry = a * part[i * V + j] + uniform[K + i] * write
                            into[i * V + j] = entry
                            odd += uniform[i] * entry
                        result[V + j] = error
                        result[j] = q_scale * (even + odd) + (result[j] if c > 0 else zero)
                for j in range(V):
                    reads[h * V + j] = result[j]
                for j in range(V):
                    opened[h * V + j] = row[2 * K + V + j]
            for i in range(H * V):
                y[b, i] = tanh(reads[i]) * sigmoid(opened[i])
        multiply_turned(y, leave, stream, True)

    return step
