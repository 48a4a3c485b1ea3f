"""ONNX forms of torch's operations that `torch.onnx` lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def translations() -> dict[Any, Callable[..., Any]]:
    """For the argument `custom_translation_table` of `torch.onnx.export`."""
    from onnx import numpy_helper
    from onnxscript import opset18 as op

    def prod(x: Any, dim: int, keepdim: bool = False) -> Any:
        return op.ReduceProd(x, op.Constant(value_ints=[dim]), keepdims=int(keepdim))

    def cumprod(x: Any, dim: int) -> Any:
        """Product over j of x_j where j <= i, else of 1; along the last dimension."""
        if dim not in (-1, len(x.shape) - 1):
            raise NotImplementedError(f"cumprod along the last dimension alone; got {dim}")
        rows = op.Unsqueeze(x, op.Constant(value_ints=[-2]))
        n = x.shape[-1]
        earlier = op.Constant(value=numpy_helper.from_array(np.tri(n, dtype=bool)))
        one = op.CastLike(op.Constant(value_float=1.0), x)
        return op.ReduceProd(op.Where(earlier, rows, one), op.Constant(value_ints=[-1]), keepdims=0)

    def sort(x: Any, *, stable: bool = False, dim: int = -1, descending: bool = False) -> Any:
        """TopK of all of them; of equals it puts the first one first."""
        return op.TopK(x, op.Constant(value_ints=[x.shape[dim]]), axis=dim, largest=int(descending), sorted=1)

    return {
        torch.ops.aten.prod.dim_int: prod,
        torch.ops.aten.cumprod.default: cumprod,
        torch.ops.aten.sort.stable: sort,
    }
