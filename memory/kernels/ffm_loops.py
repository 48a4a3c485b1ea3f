"""FFM's scan block by block with its matrix products, and its step, in numba: see `memory.kernels.ffm_scan`.

The maps of x are one row per token, [value, skip, input gate, output gate] of m, D, m and D numbers; `half` is m + D.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from memory.kernels.compiling import INLINED, OPTIONS
from memory.kernels.decay import decay_backward, decay_forward
from memory.kernels.gated_cells import open_gates
from memory.kernels.products import fill_rows, multiply, multiply_turned, pack_into, packed_size

EPSILON = 1e-5
"""Added to the variance by the layer norm of the output."""

SUMS = {**INLINED, "fastmath": {"contract", "reassoc"}}
"""Options of loops that add up a row: in any order, so that they are vectorised."""

BLOCK_ROWS = 256
"""Tokens that a scan takes at once: few enough that what it computes of them stays in the cache."""


@njit(**OPTIONS)
def block_steps(T, B):  # type: ignore[no-untyped-def]
    """Steps of a block."""
    return min(T, max(1, BLOCK_ROWS // B))


@njit(**OPTIONS)
def forward(x, start, to_maps, bias, mix, mix_bias, a, b, borders, normal, scale, y):  # type: ignore[no-untyped-def]
    """Fill y and what `backward` needs.

    Args:
        x: [T, B, F], contiguous.
        start: [T, B] bool.
        to_maps: [F, 2 m + 2 D], packed.
        bias: [2 m + 2 D].
        mix: [2 c m, D], packed; rows as the planes of `memory.kernels.decay`.
        mix_bias: [D].
        a: [c, m], as b the parts of one step's factor.
        b: [c, m].
        borders: [N + 1, B, 2, c, m] for N blocks, comes with the state before the sequence in front; filled with the
            state after every block.
        normal: [T, B, D], filled with LN(z).
        scale: [T, B], filled with 1 / the standard deviation of z.
        y: [T, B, D], to fill.
    """
    T, B, F = x.shape
    D = y.shape[2]
    steps = block_steps(T, B)
    inputs, normals, scales, outputs = x.reshape(-1, F), normal.reshape(-1, D), scale.ravel(), y.reshape(-1, D)
    maps, value, states = _block_memory(steps, bias, borders)
    for begin in range(0, T, steps):
        end = min(begin + steps, T)
        rows, n, number = slice(begin * B, end * B), (end - begin) * B, begin // steps
        flat = _block(inputs[rows], start[begin:end], to_maps, bias, a, b, borders[number], maps, value, states)
        borders[number + 1] = states[end - begin - 1]
        multiply(flat, mix, normals[rows], False)
        output_forward(maps[:n], mix_bias, normals[rows], scales[rows], outputs[rows])


@njit(**OPTIONS)
def backward(  # type: ignore[no-untyped-def]
    x,
    start,
    to_maps,
    bias,
    a,
    b,
    borders,
    normal,
    scale,
    from_maps,
    from_z,
    dy,
    d_state,
    dx,
    d_weight,
    d_bias,
    d_mix,
    d_mix_bias,
    da,
    db,
):
    """Gradients of `forward`, added to d_weight [2 m + 2 D, F], d_bias, d_mix [D, 2 c m], d_mix_bias, da and db.

    The last two are float64. `from_maps` [2 m + 2 D, F] and `from_z` [D, 2 c m] are packed. `d_state` [B, 2, c, m]
    comes with the gradient of the last state and leaves with that of the first one; `dx` [T, B, F] is filled unless it
    is empty. The rest is as in `forward`.
    """
    T, B, F = x.shape
    D, m = dy.shape[2], a.shape[1]
    width = d_mix.shape[1]
    steps = block_steps(T, B)
    inputs, normals, scales, outside = x.reshape(-1, F), normal.reshape(-1, D), scale.ravel(), dy.reshape(-1, D)
    d_inputs = dx.reshape(-1, F)
    maps, value, states = _block_memory(steps, bias, borders)
    d_maps, dz, d_states = np.empty_like(maps), np.empty((steps * B, D), x.dtype), np.empty_like(states)
    d_value = np.empty((steps, B, m), x.dtype)
    packed = np.empty(packed_size(steps * B, max(F, width), x.itemsize), x.dtype)
    for begin in range((T - 1) // steps * steps, -1, -steps):
        end = min(begin + steps, T)
        rows, n, border = slice(begin * B, end * B), (end - begin) * B, borders[begin // steps]
        flat = _block(inputs[rows], start[begin:end], to_maps, bias, a, b, border, maps, value, states)
        _output_backward(outside[rows], maps[:n], normals[rows], scales[rows], dz[:n], d_maps[:n])
        multiply(dz[:n].T, pack_into(flat, packed), d_mix, True)
        _add_rows(dz[:n], d_mix_bias)
        multiply(dz[:n], from_z, d_states.reshape(-1, width)[:n], False)
        decay_backward(
            d_states[: end - begin],
            states[: end - begin],
            a,
            b,
            start[begin:end],
            border,
            d_state,
            d_value[: end - begin],
            da,
            db,
        )
        _value_backward(d_value.reshape(-1, m)[:n], maps[:n], d_maps[:n])
        multiply(d_maps[:n].T, pack_into(inputs[rows], packed), d_weight, True)
        _add_rows(d_maps[:n], d_bias)
        if len(dx) > 0:
            multiply(d_maps[:n], from_maps, d_inputs[rows], False)


@njit(**OPTIONS)
def _block_memory(steps, bias, borders):  # type: ignore[no-untyped-def]
    """Maps, gated values and states of a block."""
    _, B, _, c, m = borders.shape
    maps, value = np.empty((steps * B, len(bias)), bias.dtype), np.empty((steps, B, m), bias.dtype)
    return maps, value, np.empty((steps, B, 2, c, m), bias.dtype)


@njit(**OPTIONS)
def _block(x, start, to_maps, bias, a, b, border, maps, value, states):  # type: ignore[no-untyped-def]
    """Fill maps, value and states of the block with the inputs x [n, F]; the states as rows [n, 2 c m]."""
    n, steps = len(x), len(start)
    m, half = value.shape[2], len(bias) // 2
    values = value.reshape(-1, m)
    fill_rows(maps[:n], bias)
    multiply(x, to_maps, maps[:n], True)
    for row in range(n):
        open_gates(maps[row, half:])
        into, plain, gate = values[row], maps[row, :m], maps[row, half : half + m]
        for i in range(m):
            into[i] = plain[i] * gate[i]
    decay_forward(value[:steps], a, b, start, border, states[:steps])
    return states.reshape(-1, 2 * a.size)[:n]


@njit(**OPTIONS)
def _add_rows(rows, total):  # type: ignore[no-untyped-def]
    """Add rows [n, N] to total [N], summed apart first: a long sequence then loses no more than a short one."""
    part = np.zeros_like(total)
    for n in range(len(rows)):
        row = rows[n]
        for j in range(len(part)):
            part[j] += row[j]
    total += part


@njit(**OPTIONS)
def step(x, weights, biases, alpha, omega, before, S, y):  # type: ignore[no-untyped-def]
    """One step from before to S [B, m, c, 2] and y [B, D].

    Args:
        x: [B, F].
        weights: of value, skip, input gate and output gate, [m or D, F] each; of mix [D, 2 m c], columns m-major.
        biases: [m or D] each, then [D].
        alpha: [m].
        omega: [c].
        before: [B, m, c, 2].
        S: to fill.
        y: to fill.
    """
    (B, D), m = y.shape, len(alpha)
    maps = np.empty((B, 2 * (m + D)), x.dtype)
    first = 0
    for weight, bias in zip(weights[:4], biases[:4]):
        part = maps[:, first : first + len(bias)]
        fill_rows(part, bias)
        multiply_turned(x, weight, part, True)
        first += len(bias)
    mix, mix_bias = weights[4], biases[4]
    traces, z = np.empty((B, mix.shape[1]), x.dtype), np.empty((B, D), x.dtype)
    _step_states(maps, alpha, omega, before.reshape(B, -1), S.reshape(B, -1), traces)
    multiply_turned(traces, mix, z, False)
    output_forward(maps, mix_bias, z, np.empty(B, x.dtype), y)


@njit(**INLINED)
def _step_states(maps, alpha, omega, before, S, traces):  # type: ignore[no-untyped-def]
    """Open the gates of maps; fill S [B, 2 m c], and traces [B, 2 m c] with Re S || Im S for `mix`."""
    m, c, half = len(alpha), len(omega), maps.shape[1] // 2
    N = m * c
    a, b, value = np.empty(N, S.dtype), np.empty(N, S.dtype), np.empty(N, S.dtype)
    cos, sin = np.cos(omega.astype(np.float64)), np.sin(omega.astype(np.float64))
    for i in range(m):
        decayed = np.exp(-abs(np.float64(alpha[i])))
        for j in range(c):
            a[i * c + j], b[i * c + j] = decayed * cos[j], decayed * sin[j]
    for n in range(len(maps)):
        old, new, row = before[n], S[n], traces[n]
        re, im = row[:N], row[N:]
        open_gates(maps[n, half:])
        for i in range(m):
            for j in range(c):
                value[i * c + j] = maps[n, i] * maps[n, half + i]
        for p in range(N):
            re[p] = a[p] * old[2 * p] + b[p] * old[2 * p + 1] + value[p]
        for p in range(N):
            im[p] = a[p] * old[2 * p + 1] - b[p] * old[2 * p]
        for p in range(N):
            new[2 * p] = re[p]
            new[2 * p + 1] = im[p]


@njit(**SUMS)
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
@njit(**SUMS)
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


@njit(**INLINED)
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
