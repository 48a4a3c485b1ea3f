"""Matrix products inside compiled loops, for recurrences that multiply at every step.

out (+)= a b is computed in tiles: 6 rows by a wide panel of columns, or 12 rows by a narrow one. A tile stays in vector
registers of this machine's width over the whole shared axis. b is packed first, panel by panel, in the order in which
tiles read it. Sums run over the shared axis in order, and those of a row do not depend on the number of rows: a row
alone equals the same row in a batch, bit for bit.
"""

from __future__ import annotations

import llvmlite.binding as llvm  # type: ignore[import-untyped]
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.addresses import array_at
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, OPTIONS, as_intrinsic, call

_FEATURES = llvm.get_host_cpu_features()

VECTOR_BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
"""Bytes of a vector register."""

_WIDE = 2 if _FEATURES.get("sse2") and not _FEATURES.get("avx512f") else 4
"""Vectors in a row of a wide panel. 6 rows of sums, one row of the panel and one number of a fit into 16 registers, or
into 32."""

_ROW_BLOCK = 256
"""Rows of a that are multiplied by every panel before the next rows, so that they stay in the cache."""


@as_intrinsic
def multiply_tile(
    typing, a, a_row, a_column, b, at, base, base_row, add, out, row, column, out_row, depth, rows, vectors
):
    """Fill the tile of out at [row, column] with base + rows of a, from `row` on, times the panel at b[at].

    The tile has `rows` rows of `vectors` vectors, which are constants. Strides are in elements. a, b, base and out have
    one type. base is read only where `add`.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(vectors, types.IntegerLiteral)):
        return None
    if not a.dtype == b.dtype == base.dtype == out.dtype:
        return None
    R, V = rows.literal_value, vectors.literal_value
    n = types.intp
    signature = types.void(a, n, n, b, n, base, n, types.boolean, out, n, n, n, n, rows, vectors)

    def generate(context, builder, signature, args):
        number, size = context.get_value_type(out.dtype), out.dtype.bitwidth // 8
        lanes = VECTOR_BYTES // size
        vector = ir.VectorType(number, lanes)
        undefined, first = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
        a_data, b_data, base_data, out_data = (
            context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3, 5, 8)
        )
        _, a_row, a_column, _, at, _, base_row, add, _, row, column, out_row, depth = args[:13]

        def constant(value):
            return ir.Constant(row.type, value)

        def vector_at(data, place):
            return builder.bitcast(builder.gep(data, [place]), vector.as_pointer())

        sums = [[cgutils.alloca_once(builder, vector) for _ in range(V)] for _ in range(R)]
        for held in sums:
            for each in held:
                builder.store(ir.Constant(vector, None), each)
        numbers = [builder.add(row, constant(r)) for r in range(R)]
        begins = [builder.mul(number_, a_row) for number_ in numbers]
        with cgutils.for_range(builder, depth) as loop:
            line = builder.add(at, builder.mul(loop.index, constant(V * lanes)))
            panel = [
                builder.load(vector_at(b_data, builder.add(line, constant(v * lanes))), align=size) for v in range(V)
            ]
            step = builder.mul(loop.index, a_column)
            for begin, held in zip(begins, sums):
                one = builder.load(builder.gep(a_data, [builder.add(begin, step)]))
                one = builder.shuffle_vector(builder.insert_element(undefined, one, first), undefined, everywhere)
                for part, each in zip(panel, held):
                    product = builder.fmul(one, part, flags=("contract",))
                    builder.store(builder.fadd(builder.load(each), product, flags=("contract",)), each)

        def places(data, stride):
            ends = [builder.add(builder.mul(number_, stride), column) for number_ in numbers]
            return [vector_at(data, builder.add(end, constant(v * lanes))) for end in ends for v in range(V)]

        every = [each for held in sums for each in held]
        with builder.if_then(context.is_true(builder, types.boolean, add)):
            for each, place in zip(every, places(base_data, base_row)):
                builder.store(builder.fadd(builder.load(each), builder.load(place, align=size)), each)
        for each, place in zip(every, places(out_data, out_row)):
            builder.store(builder.load(each), place, align=size)
        return context.get_dummy_value()

    return signature, generate


@as_intrinsic
def transpose_square(typing, a, at, a_row, out, to, out_row):
    """Write the transposed square at a[at], with as many rows as a vector has numbers, to out[to].

    Each round interleaves the rows of the lower half with those of the upper half, number by number. That rotates the
    bits of each number's index (row, column) by one. After log2(rows) rounds row and column have changed places.
    Strides are in elements.
    """
    if a.dtype != out.dtype:
        return None
    n = types.intp

    def generate(context, builder, signature, args):
        number, size = context.get_value_type(out.dtype), out.dtype.bitwidth // 8
        lanes = VECTOR_BYTES // size
        vector = ir.VectorType(number, lanes)
        a_data, out_data = (context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 3))
        _, at, a_row, _, to, out_row = args

        def places(data, begin, row):
            starts = (builder.add(begin, builder.mul(row, ir.Constant(row.type, i))) for i in range(lanes))
            return [builder.bitcast(builder.gep(data, [start]), vector.as_pointer()) for start in starts]

        def mask(first):
            order = [i // 2 + first + (i % 2) * lanes for i in range(lanes)]
            return ir.Constant(ir.VectorType(ir.IntType(32), lanes), order)

        rows = [builder.load(place, align=size) for place in places(a_data, at, a_row)]
        halves = mask(0), mask(lanes // 2)
        for _ in range(lanes.bit_length() - 1):
            pairs = list(zip(rows, rows[lanes // 2 :]))
            rows = [builder.shuffle_vector(low, high, half) for low, high in pairs for half in halves]
        for row, place in zip(rows, places(out_data, to, out_row)):
            builder.store(row, place, align=size)
        return context.get_dummy_value()

    return types.void(a, n, n, out, n, n), generate


@njit(**OPTIONS)
def _wide(a, b, at, base, out):
    """The product with one panel of `_WIDE` vectors."""
    m, depth = a.shape
    size = out.itemsize
    a_row, a_column, out_row = a.strides[0] // size, a.strides[1] // size, out.strides[0] // size
    add, base_row = len(base) > 0, base.strides[0] // size if len(base) > 1 else 0
    row = 0
    while row + 6 <= m:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 6, _WIDE)
        row += 6
    if m - row == 5:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 5, _WIDE)
    elif m - row == 4:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 4, _WIDE)
    elif m - row == 3:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 3, _WIDE)
    elif m - row == 2:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 2, _WIDE)
    elif m - row == 1:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 1, _WIDE)


@njit(**OPTIONS)
def _narrow(a, b, at, base, out):
    """The product with one panel of one vector."""
    m, depth = a.shape
    size = out.itemsize
    a_row, a_column, out_row = a.strides[0] // size, a.strides[1] // size, out.strides[0] // size
    add, base_row = len(base) > 0, base.strides[0] // size if len(base) > 1 else 0
    row = 0
    # each addition to a sum waits for the one before; twelve independent sums hide the wait
    while row + 12 <= m:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 12, 1)
        row += 12
    while row + 4 <= m:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 4, 1)
        row += 4
    while row < m:
        multiply_tile(a, a_row, a_column, b, at, base, base_row, add, out, row, 0, out_row, depth, 1, 1)
        row += 1


@njit(**INLINED)
def multiply(a, b, out, add):
    """Fill out [m, n] with a b, or add a b to it where `add`.

    Args:
        a: [m, k], any strides; its type is that of out.
        b: [k, n], packed by `pack`.
        out: [m, n], rows contiguous.
        add: whether to add to out; if not, out is not read.
    """
    _call_product(a, b, b[:0], out, add)


@njit(**INLINED)
def multiply_onto(line, a, b, out):
    """Fill out with a b and add line [n] to every row; the rest as in `multiply`."""
    _call_product(a, b, np.ascontiguousarray(line), out, False)


@as_intrinsic
def _call_product(typing, a, b, line, out, add):
    return call(_product, a, b, line, out, add)


@njit(**OPTIONS)
def _product(a, b, line, out, add):
    """Fill out with a b; plus line in every row if that is not empty; or plus out where `add`."""
    m, depth = a.shape
    n = out.shape[1]
    lanes, whole = VECTOR_BYTES // out.itemsize, whole_vectors(n, out.itemsize)
    lines = line.reshape(1, -1)[: 1 if len(line) > 0 else 0, ::1]
    for begin in range(0, m, _ROW_BLOCK):
        # slices with a step of 1 have one type for every layout, so that tiles are compiled once
        rows, into = a[begin : begin + _ROW_BLOCK, ::1], out[begin : begin + _ROW_BLOCK, ::1]
        onto = into if add else lines
        column = 0
        while column < n:
            wide = column + _WIDE * lanes <= whole
            width = _WIDE * lanes if wide else lanes
            if column + width <= n:
                base, panel = onto[:, column:], into[:, column:]
            else:
                panel = np.empty((len(rows), width), out.dtype)[:, ::1]
                base = panel[:0]
            if wide:
                _wide(rows, b, column * depth, base, panel)
            else:
                _narrow(rows, b, column * depth, base, panel)
            if column + width > n:
                for row in range(len(rows)):
                    for j in range(n - column):
                        held = onto[row if len(onto) > 1 else 0, column + j] if len(onto) > 0 else out.dtype.type(0)
                        into[row, column + j] = panel[row, j] + held
            column += width


@njit(**INLINED)
def transpose(a, out):
    """Fill out [n, m], rows contiguous, with a [m, n] transposed; by squares where the rows of a are contiguous too."""
    _call_transpose(a, out)


@as_intrinsic
def _call_transpose(typing, a, out):
    return call(_transpose, a, out)


@njit(**OPTIONS)
def _transpose(a, out):
    m, n = a.shape
    size = out.itemsize
    lanes = VECTOR_BYTES // size
    a_row, out_row = a.strides[0] // size, out.strides[0] // size
    rows = m - m % lanes if a.strides[1] == size else 0
    columns = n - n % lanes
    for row in range(0, rows, lanes):
        for column in range(0, columns, lanes):
            transpose_square(a, row * a_row + column, a_row, out, column * out_row + row, out_row)
    for row in range(m):
        for column in range(columns if row < rows else 0, n):
            out[column, row] = a[row, column]


@njit(**OPTIONS)
def copy(line, out):
    """Copy line to the beginning of out; several times as fast as an assignment."""
    for j in range(len(line)):
        out[j] = line[j]


@njit(**OPTIONS)
def fill_rows(out, line):
    """Fill every row of out [m, n], rows contiguous, with line [n]."""
    for i in range(len(out)):
        copy(line, out[i])


@njit(**OPTIONS)
def fill_columns(out, line):
    """Fill every column of out [m, n], rows contiguous, with line [m]."""
    for i in range(len(out)):
        row, number = out[i], line[i]
        for j in range(len(row)):
            row[j] = number


@njit(**OPTIONS)
def whole_vectors(n, itemsize):
    """N rounded up to a multiple of the numbers in a vector."""
    lanes = VECTOR_BYTES // itemsize
    return -(-n // lanes) * lanes


@njit(**OPTIONS)
def add_rows(rows, total):
    """Add the sum of rows [n, N] to total [N]. They are summed first, so that a long total loses no precision."""
    part = np.zeros_like(total)
    for n in range(len(rows)):
        row = rows[n]
        for j in range(len(part)):
            part[j] += row[j]
    total += part


@njit(**OPTIONS)
def pack(b):
    """B [k, n], any strides, in the order in which `multiply` reads it; padded with zeros to whole vectors.

    The product may have n columns, or the padding's columns too.
    """
    return pack_into(b, np.empty(packed_size(b.shape[0], b.shape[1], b.itemsize), b.dtype))


@njit(**OPTIONS)
def packed_size(k, n, itemsize):
    """The size of what `pack` makes of [k, n]."""
    return k * whole_vectors(n, itemsize)


@njit(**INLINED)
def pack_into(b, packed):
    """`pack` into given memory of `packed_size` or more, for loops that pack often."""
    _call_pack(b, packed)
    return packed


@as_intrinsic
def _call_pack(typing, b, packed):
    return call(_pack, b, packed)


@njit(**OPTIONS)
def _pack(b, packed):
    k, n = b.shape
    size = b.itemsize
    lanes, whole = VECTOR_BYTES // size, whole_vectors(n, size)
    column = 0
    while column < n:
        width = _WIDE * lanes if column + _WIDE * lanes <= whole else lanes
        panel = packed[column * k : (column + width) * k].reshape(k, width)
        held = min(width, n - column)
        if b.strides[0] <= b.strides[1]:
            _transpose(b[:, column : column + held].T, panel[:, :held])
        elif b.strides[1] == size:
            for i in range(k):
                copy(array_at(b.ctypes.data + i * b.strides[0] + column * size, (held,), packed), panel[i])
        else:
            for i in range(k):
                copy(b[i][column : column + held], panel[i])
        panel[:, held:] = 0
        column += width


@njit(**INLINED)
def multiply_transposed(a, b, out, add):
    """`multiply` by b [n, k] transposed, rows contiguous and not packed: a weight as torch lays it out.

    Each panel is packed just before it is read, so that it is still in the first cache.
    """
    _call_product_transposed(a, b, out, add)


@as_intrinsic
def _call_product_transposed(typing, a, b, out, add):
    return call(_product_transposed, a, b, out, add)


@njit(**OPTIONS)
def _product_transposed(a, b, out, add):
    # not by `call`: panels of few rows are so short that calls by name take a tenth of the time
    width = _WIDE * (VECTOR_BYTES // out.itemsize)
    packed = np.empty(width * b.shape[1], out.dtype)
    for column in range(0, len(b), width):
        _pack(b[column : column + width].T, packed)
        _product(a, packed, packed[:0], out[:, column : column + width], add)
