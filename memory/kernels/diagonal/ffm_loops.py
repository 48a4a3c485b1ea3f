"""FFM's scan block by block, matrix products included, and its step, in numba: see `memory.kernels.diagonal.ffm_scan`.

A token is one input of one row. The maps of x are, per token, value and input gate side by side [2 m], output gate [D]
and skip [D]. Each of the three is read and written contiguously, so that the processor can fetch ahead.
"""

from __future__ import annotations

import numpy as np

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS, SUMS
from palimpsest.memory.kernels.arithmetic.elementwise import sigmoid_in_place
from palimpsest.memory.kernels.arithmetic.products import (
    add_rows,
    copy,
    fill_rows,
    multiply,
    multiply_onto,
    multiply_transposed,
    pack,
    pack_into,
    packed_size,
    transpose,
)
from palimpsest.memory.kernels.arithmetic.vectors import aligned
from palimpsest.memory.kernels.diagonal.decay_loops import decay_backward, decay_forward

EPSILON = 1e-5
"""Added to the variance by the layer norm of the output."""

BLOCK_ROWS = 256
"""Tokens in a block: few enough that what is computed from them stays in the cache."""


@njit(**OPTIONS)
def block_steps(T, B):
    """Steps of a block."""
    return min(T, max(1, BLOCK_ROWS // B))


@njit(**OPTIONS)
def kept_size(T, B, m, c, D, every):
    """How many numbers `forward` keeps: those of `every` token for `backward`, or those of one block, then reused."""
    steps = block_steps(T, B)
    return -(-T // steps) * B * 2 * c * m + (T if every else steps) * B * (2 * m + 2 * D + 1)


@njit(**OPTIONS)
def _parts_of(kept, T, B, m, c, D):
    """The kept memory as borders, entry, gate, normal and scale.

    borders [blocks, B, 2, c, m]: the state before every block, in planes. For N tokens, entry [N, 2 m]: value and input
    gate; gate [N, D]: the output gate; normal [N, D]: LN(z); scale [N]: 1 / the standard deviation of z.
    """
    blocks = -(-T // block_steps(T, B))
    first = blocks * B * 2 * c * m
    N = (len(kept) - first) // (2 * m + 2 * D + 1)
    borders, rest = kept[:first].reshape(blocks, B, 2, c, m), kept[first:]
    entry, rest = rest[: N * 2 * m].reshape(N, 2 * m), rest[N * 2 * m :]
    gate, normal, scale = rest[: N * D].reshape(N, D), rest[N * D : 2 * N * D].reshape(N, D), rest[2 * N * D :]
    return borders, entry, gate, normal, scale


@njit(**OPTIONS)
def forward(x, start, weight, bias, mix, mix_bias, alpha, omega, state, kept, last, y):
    """Fill last, y and what `backward` needs.

    Args:
        x: [T, B, F], contiguous.
        start: [T, B] bool.
        weight: [2 m + 2 D, F], rows of value, input gate, output gate and skip.
        bias: [2 m + 2 D].
        mix: [D, 2 m c], columns m-major.
        mix_bias: [D].
        alpha: [m].
        omega: [c].
        state: [B, m, c, 2], before the sequence.
        kept: [`kept_size`], to fill.
        last: [B, m, c, 2], to fill.
        y: [T, B, D], to fill.
    """
    T, B, F = x.shape
    D = y.shape[2]
    steps = block_steps(T, B)
    inputs, outputs = x.reshape(-1, F), y.reshape(-1, D)
    a, b = _rates(alpha, omega)
    tokens, m = steps * B, len(alpha)
    N = 2 * m + D
    borders, entry, gate, normal, scale = _parts_of(kept, T, B, m, len(omega), D)
    to_entry, to_gate, to_skip = pack(weight[: 2 * m].T), pack(weight[2 * m : N].T), pack(weight[N:].T)
    to_z, skip = pack(_from_traces(mix, len(omega))), aligned(tokens * D, x).reshape(tokens, D)
    value = aligned(tokens * m, x).reshape(steps, B, m)
    states = aligned(tokens * 2 * a.size, x).reshape(steps, B, 2, -1, m)
    _to_planes(state, borders[0])
    for begin in range(0, T, steps):
        end = min(begin + steps, T)
        rows, n, number = slice(begin * B, end * B), (end - begin) * B, begin // steps
        place = rows if len(entry) == T * B else slice(0, n)
        entered, opened, normals = entry[place], gate[place], normal[place]
        multiply_onto(bias[: 2 * m], inputs[rows], to_entry, entered)
        multiply_onto(bias[2 * m : N], inputs[rows], to_gate, opened)
        multiply_onto(bias[N:], inputs[rows], to_skip, skip[:n])
        for row in range(n):
            sigmoid_in_place(entered[row, m:])
        sigmoid_in_place(opened.reshape(-1))
        flat = _traces(entered, start[begin:end], a, b, borders[number], value, states)
        if end < T:
            copy(states[end - begin - 1].reshape(-1), borders[number + 1].reshape(-1))
        else:
            _from_planes(states[end - begin - 1], last)
        multiply_onto(mix_bias, flat, to_z, normals)
        output_forward(skip[:n], opened, normals, scale[place], outputs[rows])


@njit(**OPTIONS)
def backward(x, start, weight, mix, alpha, omega, kept, y, dy, d_state, dx, gradients):
    """Fill `gradients` with those of weight, mix, bias, mix_bias, alpha and omega, one after the other.

    `kept` is what `forward` kept of every token, `dy` [T, B, D] the gradient of y. `d_state` [B, m, c, 2] holds that of
    the last state; it is replaced by that of the first one. `dx` [T, B, F] is filled unless it is empty. The rest is as
    in `forward`.
    """
    T, B, F = x.shape
    (D, width), c, m, N = mix.shape, len(omega), len(alpha), len(weight)
    borders, entry, gate, normal, scale = _parts_of(kept, T, B, m, c, D)
    d_weight, rest = gradients[: N * F].reshape(N, F), gradients[N * F :]
    d_mix, rest = rest[: D * width].reshape(D, width), rest[D * width :]
    d_bias, d_mix_bias, d_alpha, d_omega = rest[:N], rest[N : N + D], rest[N + D : N + D + m], rest[N + D + m :]
    steps = block_steps(T, B)
    inputs, outputs, outside, d_inputs = x.reshape(-1, F), y.reshape(-1, D), dy.reshape(-1, D), dx.reshape(-1, F)
    a, b = _rates(alpha, omega)
    da, db = np.zeros((c, m)), np.zeros((c, m))
    from_maps, from_z = pack(weight), pack(_from_traces(mix, c).T)
    d_planes = aligned(width * D, x).reshape(width, D)
    tokens = steps * B
    value, states = aligned(tokens * m, x).reshape(steps, B, m), aligned(tokens * width, x).reshape(steps, B, 2, c, m)
    d_value, d_states = aligned(value.size, x).reshape(value.shape), aligned(states.size, x).reshape(states.shape)
    carried, dz = aligned(B * width, x).reshape(B, 2, c, m), aligned(tokens * D, x).reshape(tokens, D)
    d_maps, packed = aligned(tokens * N, x).reshape(tokens, N), aligned(packed_size(tokens, max(F, D), x.itemsize), x)
    d_weight[:], d_bias[:], d_mix_bias[:] = 0, 0, 0
    _to_planes(d_state, carried)
    for begin in range((T - 1) // steps * steps, -1, -steps):
        end = min(begin + steps, T)
        rows, n, border = slice(begin * B, end * B), (end - begin) * B, borders[begin // steps]
        flat = _traces(entry[rows], start[begin:end], a, b, border, value, states)
        _output_backward(outside[rows], outputs[rows], gate[rows], normal[rows], scale[rows], dz[:n], d_maps[:n])
        multiply(flat.T, pack_into(dz[:n], packed), d_planes, True)
        add_rows(dz[:n], d_mix_bias)
        multiply(dz[:n], from_z, d_states.reshape(-1, width)[:n], False)
        decay_backward(
            d_states[: end - begin],
            states[: end - begin],
            a,
            b,
            start[begin:end],
            border,
            carried,
            d_value[: end - begin],
            da,
            db,
        )
        _value_backward(d_value.reshape(-1, m)[:n], entry[rows], d_maps[:n])
        multiply(d_maps[:n].T, pack_into(inputs[rows], packed), d_weight, True)
        add_rows(d_maps[:n], d_bias)
        if len(dx) > 0:
            multiply(d_maps[:n], from_maps, d_inputs[rows], False)
    _from_planes(carried, d_state)
    reordered = np.empty_like(d_planes)
    _reorder(d_planes, m, reordered)
    transpose(reordered, d_mix)
    for i in range(m):
        total = 0.0
        for j in range(c):
            total += a[j, i] * da[j, i] + b[j, i] * db[j, i]
        d_alpha[i] = -np.sign(alpha[i]) * total
    for j in range(c):
        total = 0.0
        for i in range(m):
            total += a[j, i] * db[j, i] - b[j, i] * da[j, i]
        d_omega[j] = total


@njit(**OPTIONS)
def _rates(alpha, omega):
    """The parts of one step's factor, [c, m] each; see `memory.kernels.diagonal.torch_decay.rates`."""
    a, b = np.empty((len(omega), len(alpha)), alpha.dtype), np.empty((len(omega), len(alpha)), alpha.dtype)
    for i in range(len(alpha)):
        decayed = np.exp(-abs(np.float64(alpha[i])))
        for j in range(len(omega)):
            angle = np.float64(omega[j])
            a[j, i], b[j, i] = decayed * np.cos(angle), decayed * np.sin(angle)
    return a, b


@njit(**OPTIONS)
def _reorder(parts, columns, out):
    """Fill out [2 N, D] from `parts`, two matrices [N / columns, columns] of vectors [D]: each is transposed."""
    half = len(parts) // 2
    rows = half // columns
    for part in range(0, 2 * half, half):
        for i in range(rows):
            for j in range(columns):
                copy(parts[part + i * columns + j], out[part + j * rows + i])


@njit(**OPTIONS)
def _from_traces(mix, c):
    """`mix` [D, 2 m c] transposed, its rows in the order of planes, [2 c m, D]."""
    D, width = mix.shape
    transposed, out = np.empty((width, D), mix.dtype), np.empty((width, D), mix.dtype)
    transpose(mix, transposed)
    _reorder(transposed, c, out)
    return out


@njit(**OPTIONS)
def _to_planes(state, planes):
    """Fill planes [B, 2, c, m] from state [B, m, c, 2]."""
    B, m, c, _ = state.shape
    for row in range(B):
        for i in range(m):
            for j in range(c):
                planes[row, 0, j, i], planes[row, 1, j, i] = state[row, i, j, 0], state[row, i, j, 1]


@njit(**OPTIONS)
def _from_planes(planes, state):
    """Undo `_to_planes`."""
    B, m, c, _ = state.shape
    for row in range(B):
        for i in range(m):
            for j in range(c):
                state[row, i, j, 0], state[row, i, j, 1] = planes[row, 0, j, i], planes[row, 1, j, i]


@njit(**OPTIONS)
def _traces(entry, start, a, b, border, value, states):
    """Fill value and states of a block from its entry [n, 2 m]; returns the states as rows [n, 2 c m]."""
    n, steps, m = len(entry), len(start), value.shape[2]
    values = value.reshape(-1, m)
    for row in range(n):
        into, plain, gate = values[row], entry[row, :m], entry[row, m:]
        for i in range(m):
            into[i] = plain[i] * gate[i]
    decay_forward(value[:steps], a, b, start, border, states[:steps])
    return states.reshape(-1, 2 * a.size)[:n]


@njit(**OPTIONS)
def step(x_at, weights, biases, alpha, omega, before_at, S, y):
    """One step to S [B, m, c, 2] and y [B, D].

    Args:
        x_at: address of x [B, F].
        weights: of value, input gate, output gate and skip, [m or D, F] each; of mix [D, 2 m c], columns m-major.
        biases: [m or D] each, then [D].
        alpha: [m].
        omega: [c].
        before_at: address of the state before, [B, m, c, 2].
        S: to fill.
        y: to fill.
    """
    (B, D), m = y.shape, len(alpha)
    x, before = array_at(x_at, (B, weights[0].shape[1]), y), array_at(before_at, S.shape, y)
    entry, gate, skip = np.empty((B, 2 * m), x.dtype), np.empty((B, D), x.dtype), np.empty((B, D), x.dtype)
    for part, weight, bias in zip((entry[:, :m], entry[:, m:], gate[:, ::1], skip[:, ::1]), weights[:4], biases[:4]):
        fill_rows(part, bias)
        multiply_transposed(x, weight, part, True)
    sigmoid_in_place(gate.reshape(-1))
    mix, mix_bias = weights[4], biases[4]
    traces, z = np.empty((B, mix.shape[1]), x.dtype), np.empty((B, D), x.dtype)
    _step_states(entry, alpha, omega, before.reshape(B, -1), S.reshape(B, -1), traces)
    fill_rows(z, mix_bias)
    multiply_transposed(traces, mix, z, True)
    output_forward(skip, gate, z, np.empty(B, x.dtype), y)


@njit(**INLINED)
def _step_states(entry, alpha, omega, before, S, traces):
    """Fill S [B, 2 m c], and traces [B, 2 m c] with Re S || Im S for `mix`; the input gate's sums become sigmoids."""
    m, c = len(alpha), len(omega)
    N = m * c
    a, b, value = np.empty(N, S.dtype), np.empty(N, S.dtype), np.empty(N, S.dtype)
    cos, sin = np.cos(omega.astype(np.float64)), np.sin(omega.astype(np.float64))
    for i in range(m):
        decayed = np.exp(-abs(np.float64(alpha[i])))
        for j in range(c):
            a[i * c + j], b[i * c + j] = decayed * cos[j], decayed * sin[j]
    for n in range(len(entry)):
        old, new, row = before[n], S[n], traces[n]
        re, im = row[:N], row[N:]
        sigmoid_in_place(entry[n, m:])
        for i in range(m):
            for j in range(c):
                value[i * c + j] = entry[n, i] * entry[n, m + i]
        for p in range(N):
            re[p] = a[p] * old[2 * p] + b[p] * old[2 * p + 1] + value[p]
        for p in range(N):
            im[p] = a[p] * old[2 * p + 1] - b[p] * old[2 * p]
        for p in range(N):
            new[2 * p] = re[p]
            new[2 * p + 1] = im[p]


@njit(**SUMS, forceinline=True)
def output_forward(skips, gates, z, scale, y):
    """Fill y from z [N, D], skip and output gate; z becomes LN(z), scale [N] is filled with 1 / standard deviation."""
    N, D = z.shape
    for n in range(N):
        row, skip, gate, out = z[n], skips[n], gates[n], y[n]
        mean = z.dtype.type(0)
        for d in range(D):
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


# Each loop writes one array. With more, the compiler would need too many checks that arrays do not overlap, and would
# not vectorise the loop.
@njit(**SUMS, forceinline=True)
def _output_backward(dy, y, gates, normal, scale, dz, d_maps):
    """Fill dz and, in d_maps, the gradients of skip and of the sums in the output gate, from dy.

    skip is not needed: the gate's gradient contains (1 - gate) (LN(z) - skip), which equals LN(z) - y.
    """
    N, D = dz.shape
    end = d_maps.shape[1]
    for n in range(N):
        d_gate, d_skip = d_maps[n, end - 2 * D : end - D], d_maps[n, end - D :]
        outside, out, gate, norm, d_norm = dy[n], y[n], gates[n], normal[n], dz[n]
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
            d_gate[d] = outside[d] * gate[d] * (norm[d] - out[d])
        for d in range(D):
            d_norm[d] = factor * (outside[d] * gate[d] - mean - norm[d] * along)


@njit(**INLINED)
def _value_backward(dv, entry, d_maps):
    """Fill, in d_maps, the gradients of value and of the sums in the input gate, from dv [N, m]."""
    N, m = dv.shape
    for n in range(N):
        value, gate = entry[n, :m], entry[n, m:]
        d_value, d_gate, d = d_maps[n, :m], d_maps[n, m : 2 * m], dv[n]
        for i in range(m):
            d_value[i] = d[i] * gate[i]
        for i in range(m):
            d_gate[i] = d_value[i] * value[i] * (1 - gate[i])
