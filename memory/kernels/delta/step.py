"""One step of stacked layers of the rewrite-aware memory, for acting: see `memory.kernels.delta.layer`.

When few rows act, a torch operation takes longer to start than to run, so a whole layer is one call here. The loops are
those of `memory.kernels.delta.loops` for a single step, reading the old tables and writing the new ones, so that each
table passes through memory once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.as_built import Arrays
from palimpsest.memory.kernels.arithmetic.compiling import OPTIONS, SUMS
from palimpsest.memory.kernels.arithmetic.elementwise import sigmoid, sigmoid_in_place, tanh
from palimpsest.memory.kernels.arithmetic.products import copy, fill_rows, multiply_transposed
from palimpsest.memory.kernels.delta.layer import DeltaSizes
from palimpsest.memory.kernels.delta.naive import EPS

NORM_EPS = 0.1
"""Added to the variance where the stream is normalised, so that a stream near zero is not blown up to full size."""


def step_layers(
    x: Tensor, beat: Tensor, parameters: Arrays, sizes: DeltaSizes, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of stacked layers without gradients, on the CPU, float32 or float64.

    Args:
        x: [B, F].
        beat: [B, n], n numbers appended to x, whose sign changes from step to step.
        parameters: contiguous arrays. First the weights: of the map of x and beat to the stream, [D, F + n], then per
            layer that of its input to z, [sizes.width, F + n or D], and that of y to the stream, [D, H V]. Then the
            biases of all these maps but the ones of y.
        sizes: H, K and V.
        table: [B, L, H, K, V], the tables before the step.

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
def _normalise(stream, out):
    """Fill out with the layer norm of stream [B, D], without parameters."""
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
def _joined(x_at, beat_at, width, next_beat):
    """Return x and beat side by side, [B, width], and fill the next beat [B, n]."""
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
    """The step for tables [K, V], compile-time constants as in `memory.kernels.delta.loops`."""
    KV, width = K * V, 2 * K + 2 * V
    # rows of a table that are taken at a time: few enough to stay in registers
    BK = max(n for n in range(1, 17) if K % n == 0)

    @njit(**SUMS)
    def step(
        number, x_at, beat_at, table_at, enter, enter_bias, project, project_bias, leave, H,
        table, next_beat, stream,
    ):  # fmt: skip
        """Layer `number`: the first layer reads x, every other the stream [B, D]; each adds to the stream.

        x, beat and the old tables are given by address; table, next_beat and stream are filled. See `step_layers`.
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
            multiply_transposed(x, enter, stream, True)
            multiply_transposed(x, project, z, True)
        else:
            normal = np.empty_like(stream)
            _normalise(stream, normal)
            multiply_transposed(normal, project, z, True)
        opened, reads = np.empty(H * V, stream.dtype), np.empty(H * V, stream.dtype)
        result = np.empty(2 * V, stream.dtype)  # what is read; S^T k, then the error
        for b in range(B):
            gates = z[b, H * width :]
            sigmoid_in_place(gates)
            for h in range(H):
                s0 = (number * H + h) * KV
                qkvg, old, new = z[b, h * width : (h + 1) * width], before[b, s0 : s0 + KV], after[b, s0 : s0 + KV]
                q_length, k_length = eps, eps
                for i in range(K):
                    q_length += qkvg[i] * qkvg[i]
                    k_length += qkvg[K + i] * qkvg[K + i]
                q_scale, k_scale = one / np.sqrt(q_length), one / np.sqrt(k_length)
                alpha, beta = gates[h], two * gates[H + h]
                for c in range(0, K, BK):
                    # qk[i] and qk[K + i] are query and key of row c + i of the table
                    part, qk = old[c * V : (c + BK) * V], qkvg[c : c + K + BK]
                    for j in range(V):
                        even, odd = zero, zero
                        for i in range(0, BK, 2):
                            even += qk[K + i] * part[i * V + j]
                        for i in range(1, BK, 2):
                            odd += qk[K + i] * part[i * V + j]
                        result[V + j] = even + odd + (result[V + j] if c > 0 else zero)
                for c in range(0, K, BK):
                    part, into, qk = old[c * V : (c + BK) * V], new[c * V : (c + BK) * V], qkvg[c:]
                    for j in range(V):
                        error = qkvg[2 * K + j] - alpha * k_scale * result[V + j] if c == 0 else result[V + j]
                        write = beta * k_scale * error
                        even, odd = zero, zero
                        for i in range(0, BK, 2):
                            entry = alpha * part[i * V + j] + qk[K + i] * write
                            into[i * V + j] = entry
                            even += qk[i] * entry
                        for i in range(1, BK, 2):
                            entry = alpha * part[i * V + j] + qk[K + i] * write
                            into[i * V + j] = entry
                            odd += qk[i] * entry
                        result[V + j] = error
                        result[j] = q_scale * (even + odd) + (result[j] if c > 0 else zero)
                for j in range(V):
                    reads[h * V + j] = result[j]
                for j in range(V):
                    opened[h * V + j] = qkvg[2 * K + V + j]
            for i in range(H * V):
                y[b, i] = tanh(reads[i]) * sigmoid(opened[i])
        multiply_transposed(y, leave, stream, True)

    return step
