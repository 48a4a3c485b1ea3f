"""Arrays from addresses, inside kernels. Passing the address of a tensor takes a tenth of the time of making an array.

The caller keeps the tensor alive until the kernel returns.
"""

from __future__ import annotations

from numba import carray, types

from palimpsest.machine_code import njit
from palimpsest.memory.kernels.arithmetic.compiling import INLINED, as_intrinsic


@as_intrinsic
def _pointer(typing, address, like):
    """An address as a pointer to numbers of the type of the array `like`."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return types.CPointer(like.dtype)(types.intp, like), generate


@njit(**INLINED)
def array_at(address, shape, like):
    """The contiguous array at an address, of this shape and of the type of `like`."""
    return carray(_pointer(address, like), shape)
