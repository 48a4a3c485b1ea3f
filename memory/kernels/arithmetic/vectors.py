"""Vectors of numbers as values in compiled loops, for loops that the compiler may not vectorise by itself.

    row = load(x, at, 32)         the 32 numbers of x from index `at` in memory on, whatever the shape of x
    row = a * row + other         number by number; a may be a single number; a * b + c may be one instruction
    store(row, x, at)

Any count is possible: the compiler spreads a vector over registers. So a matrix of few columns is a loop over its rows.
The sum across one vector is slow. Many sums at once are cheaper: `fold` each vector to the width of a register, `store`
them one after the other, then `sum_rows` adds up each of them.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, models, register_model, type_callable

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, as_intrinsic
from palimpsest.memory.kernels.arithmetic.products import VECTOR_BYTES

_LINE_BYTES = 64
"""Bytes of a cache line."""


class Vector(types.Type):
    """The type of a vector: `count` numbers of one type."""

    def __init__(self, real: types.Float, count: int) -> None:
        self.real, self.count = real, count
        super().__init__(f"Vector({real}, {count})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, _ir_type(kind))


def _ir_type(kind: Vector) -> ir.VectorType:
    return ir.VectorType(ir.FloatType() if kind.real == types.float32 else ir.DoubleType(), kind.count)


def _lower(function: Any, instruction: str) -> None:
    """Let `function` of two vectors, or of a vector and a number, be an instruction."""

    @type_callable(function)
    def of_arguments(context):
        def result(a, b):
            vector = a if isinstance(a, Vector) else b
            fits = isinstance(vector, Vector) and {a, b} <= {vector, vector.real}
            return vector if fits else None

        return result

    def generate(context, builder, signature, args):
        kind = signature.return_type
        a, b = (x if isinstance(t, Vector) else _spread(builder, kind, x) for x, t in zip(args, signature.args))
        return getattr(builder, instruction)(a, b, flags=("contract",))

    for pair in ((Vector, Vector), (types.Float, Vector), (Vector, types.Float)):
        lower_builtin(function, *pair)(generate)


def _spread(builder, kind, x):
    vector, first = _ir_type(kind), ir.Constant(ir.IntType(32), 0)
    undefined = ir.Constant(vector, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), kind.count), None)
    return builder.shuffle_vector(builder.insert_element(undefined, x, first), undefined, everywhere)


_lower(operator.add, "fadd")
_lower(operator.sub, "fsub")
_lower(operator.mul, "fmul")
_lower(operator.truediv, "fdiv")


def _place(context, builder, array_type, array, at, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


@as_intrinsic
def load(typing, array, at, count):
    """`count` numbers, a constant, of a contiguous array from index `at` in memory on."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    kind = Vector(array.dtype, count.literal_value)

    def generate(context, builder, signature, args):
        place = _place(context, builder, signature.args[0], args[0], args[1], _ir_type(kind))
        return builder.load(place, align=array.dtype.bitwidth // 8)

    return kind(array, types.intp, count), generate


@as_intrinsic
def store(typing, vector, array, at):
    """Write a vector into a contiguous array from index `at` in memory on."""
    if vector.real != array.dtype:
        return None

    def generate(context, builder, signature, args):
        place = _place(context, builder, signature.args[1], args[1], args[2], _ir_type(vector))
        builder.store(args[0], place, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(vector, array, types.intp), generate


@as_intrinsic
def root(typing, vector):
    """The square roots of a vector's numbers."""

    def generate(context, builder, signature, args):
        name = f"llvm.sqrt.v{vector.count}f{vector.real.bitwidth}"
        of = ir.FunctionType(_ir_type(vector), [_ir_type(vector)])
        return builder.call(cgutils.get_or_insert_function(builder.module, of, name), args)

    return vector(vector), generate


@as_intrinsic
def zeros_like(typing, vector):
    """A vector of zeros."""
    return vector(vector), lambda context, builder, signature, args: ir.Constant(_ir_type(vector), None)


@njit(**INLINED)
def aligned(count, like):
    """`count` zeros of the type of `like`, beginning at a cache line.

    Loads and stores of a register that cross two lines take twice as long.
    """
    memory = np.zeros(count + _LINE_BYTES // like.itemsize, like.dtype)
    skipped = -memory.ctypes.data % _LINE_BYTES // like.itemsize
    return memory[skipped : skipped + count]


def aligned_empty(count: int, dtype: Any) -> np.ndarray:
    """`aligned` outside kernels, not filled. Numpy asks the system for large pages; torch does not."""
    memory = np.empty(count + _LINE_BYTES // np.dtype(dtype).itemsize, dtype)
    skipped = -memory.__array_interface__["data"][0] % _LINE_BYTES // memory.itemsize
    return memory[skipped : skipped + count]


def lanes_of(itemsize: int) -> int:
    """Numbers of `itemsize` bytes that a register holds."""
    return VECTOR_BYTES // itemsize


@as_intrinsic
def fold(typing, vector):
    """A vector of the width of a register with the same sum."""
    lanes = lanes_of(vector.real.bitwidth // 8)
    kind = Vector(vector.real, lanes)

    def generate(context, builder, signature, args):
        zeros, total = ir.Constant(_ir_type(vector), None), None
        for first in range(0, vector.count, lanes):
            # indices beyond the vector select zeros
            order = [min(first + lane, vector.count) for lane in range(lanes)]
            part = builder.shuffle_vector(args[0], zeros, ir.Constant(ir.VectorType(ir.IntType(32), lanes), order))
            total = part if total is None else builder.fadd(total, part, flags=("contract",))
        return total

    return kind(vector), generate


@as_intrinsic
def sum_rows(typing, rows, count, out, to):
    """Write the sums of `count` rows, a constant, of a register's width each, contiguous in memory, to out[to] on.

    Whole registers are written: `count` is rounded up. Halves of two rows are added into one register, then quarters of
    two of those, and so on. That takes log2(width) additions per register, not per row.
    """
    if not (isinstance(count, types.IntegerLiteral) and rows.dtype == out.dtype):
        return None
    size = rows.dtype.bitwidth // 8
    lanes = lanes_of(size)
    kind = Vector(rows.dtype, lanes)

    def generate(context, builder, signature, args):
        vector = _ir_type(kind)
        indices = ir.VectorType(ir.IntType(32), lanes)
        zeros = ir.Constant(vector, None)

        def at(array, number):
            return _place(context, builder, signature.args[array], args[array], number, vector)

        def added(one, other, half):
            """Of each block of 2 halves: one's halves added, then other's."""
            low = [i - i % (2 * half) + i % half + (lanes if i % (2 * half) >= half else 0) for i in range(lanes)]
            orders = (ir.Constant(indices, [i + shift for i in low]) for shift in (0, half))
            return builder.fadd(*(builder.shuffle_vector(one, other, order) for order in orders))

        def number(n):
            return ir.Constant(args[3].type, n)

        for first in range(0, count.literal_value, lanes):
            held = [
                builder.load(at(0, number((first + i) * lanes)), align=size)
                if first + i < count.literal_value
                else zeros
                for i in range(lanes)
            ]
            while len(held) > 1:
                half = len(held) // 2
                held = [added(one, other, half) for one, other in zip(held[:half], held[half:])]
            builder.store(held[0], at(2, builder.add(args[3], number(first))), align=size)
        return context.get_dummy_value()

    return types.void(rows, count, out, types.intp), generate
