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
from palimpsest.memory.kernels.delta.turning import period

NORM_EPS = 0.1
"""Added to the variance where the stream is normalised, so that a stream near zero is not blown up to full size."""


def step_layers(
    x: Tensor, parameters: Arrays, sizes: DeltaSizes, table: Tensor, time: Tensor, turns: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One step of stacked layers without gradients, on the CPU, float32 or float64.

    Args:
        x: [B, F].
        parameters: contiguous arrays. First the weights: of the map of the input to the stream, [D, F or F + 1], then
            per layer that of what it reads to z, [sizes.width, F, F + 1 or D], and that of y to the stream, [D, H V].
            Then the biases of all these maps but the ones of y. With F + 1 the clock is appended to x.
        sizes: H, K and V.
        table: [B, L, H, K, V], the tables before the step.
        time: [B] int64, steps since the memory began, modulo the longest period.
        turns: the table of `memory.kernels.delta.turning` for K.

    Returns:
        The normalised stream [B, D], the next tables and the next time.
    """
    x, before, time, turns = x.contiguous(), table.contiguous(), time.contiguous(), turns.contiguous()
    B, F = x.shape
    L, D, real = table.shape[1], len(parameters[0]), parameters[0].dtype
    after, next_time = np.empty(table.shape, real), np.empty(B, np.int64)
    stream, normal = np.empty((B, D), real), np.empty((B, D), real)
    weights, biases = parameters[: 2 * L + 1], parameters[2 * L + 1 :]
    step = _compiled(sizes.key_size, sizes.value_size)
    given = x.data_ptr(), F, before.data_ptr(), time.data_ptr(), turns.data_ptr()
    for number in range(L):
        maps = weights[0], biases[0], weights[2 * number + 1], biases[number + 1], weights[2 * number + 2]
        step(number, *given, *maps, sizes.heads, after, next_time, stream, normal)
    return torch.from_numpy(normal), torch.from_numpy(after), torch.from_numpy(next_time)


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
def _with_clock(x, time, width):
    """Return x [B, F] itself if that is its width, else with the clock as its last column, [B, F + 1]."""
    B, F = x.shape
    if width == F:
        return x
    both = np.empty((B, width), x.dtype)
    for b in range(B):
        copy(x[b], both[b])
        both[b, F] = 1 - 2 * (time[b] & 1)
    return both


@functools.cache
def _compiled(K: int, V: int) -> Callable[..., None]:
    """The step for tables [K, V], compile-time constants as in `memory.kernels.delta.loops`."""
    KV, width, R, P = K * V, 2 * K + 2 * V, K // 4, period(K)
    # rows of a table that are taken at a time: few enough to stay in registers
    BK = max(n for n in range(1, 17) if K % n == 0)

    @njit(**SUMS)
    def step(
        number, x_at, F, table_at, time_at, turns_at, enter, enter_bias, project, project_bias, leave, H,
        table, next_time, stream, normal,
    ):  # fmt: skip
        """Layer `number`: the first reads x, every other `normal`; each adds to the stream [B, D], and normalises it.

        x, the old tables, their time and the turns are given by address; what comes after H is filled. See
        `step_layers`.
        """
        B = len(stream)
        time, turns = array_at(time_at, (B,), next_time), array_at(turns_at, (P * 2 * R,), stream)
        size = B, table.shape[1] * H * KV
        before, after = array_at(table_at, size, stream), table.reshape(size)
        real = stream.dtype.type
        zero, one, two, eps = real(0), real(1), real(2), real(EPS)
        z, y = np.empty((B, len(project)), stream.dtype), np.empty((B, H * V), stream.dtype)
        fill_rows(z, project_bias)
        if number == 0:
            for b in range(B):
                next_time[b] = (time[b] + 1) & (P - 1)
            x = _with_clock(array_at(x_at, (B, F), stream), time, enter.shape[1])
            fill_rows(stream, enter_bias)
            multiply_transposed(x, enter, stream, True)
            multiply_transposed(x, project, z, True)
        else:
            multiply_transposed(normal, project, z, True)
        opened, reads = np.empty(H * V, stream.dtype), np.empty(H * V, stream.dtype)
        result = np.empty(2 * V, stream.dtype)  # what is read; S^T k, then the error
        for b in range(B):
            gates = z[b, H * width :]
            sigmoid_in_place(gates)
            angle = (time[b] & (P - 1)) * 2 * R
            cos, sin = turns[angle : angle + R], turns[angle + R : angle + 2 * R]
            for h in range(H):
                s0 = (number * H + h) * KV
                qkvg, old, new = z[b, h * width : (h + 1) * width], before[b, s0 : s0 + KV], after[b, s0 : s0 + KV]
                for i in range(R):
                    q, q_other, k, k_other = qkvg[i], qkvg[R + i], qkvg[K + i], qkvg[K + R + i]
                    qkvg[i], qkvg[R + i] = cos[i] * q - sin[i] * q_other, sin[i] * q + cos[i] * q_other
                    qkvg[K + i], qkvg[K + R + i] = cos[i] * k - sin[i] * k_other, sin[i] * k + cos[i] * k_other
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
                        even, odd, k_even, k_odd = zero, zero, zero, zero
                        for i in range(0, BK, 2):
                            even += qk[i] * part[i * V + j]
                            k_even += qk[K + i] * part[i * V + j]
                        for i in range(1, BK, 2):
                            odd += qk[i] * part[i * V + j]
                            k_odd += qk[K + i] * part[i * V + j]
                        result[j] = even + odd + (result[j] if c > 0 else zero)
                        result[V + j] = k_even + k_odd + (result[V + j] if c > 0 else zero)
                for c in range(0, K, BK):
                    part, into, qk = old[c * V : (c + BK) * V], new[c * V : (c + BK) * V], qkvg[c:]
                    for j in range(V):
                        error = qkvg[2 * K + j] - alpha * k_scale * result[V + j] if c == 0 else result[V + j]
                        write = beta * k_scale * error
                        for i in range(BK):
                            into[i * V + j] = alpha * part[i * V + j] + qk[K + i] * write
                        result[V + j] = error
                for j in range(V):
                    reads[h * V + j] = q_scale * result[j]
                for j in range(V):
                    opened[h * V + j] = qkvg[2 * K + V + j]
            for i in range(H * V):
                y[b, i] = tanh(reads[i]) * sigmoid(opened[i])
        multiply_transposed(y, leave, stream, True)
        _normalise(stream, normal)

    return step
