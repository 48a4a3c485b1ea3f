"""Parameters as arrays, for kernels that are called at every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels
from palimpsest.memory.kernels.arithmetic.linear import is_hooked

Arrays = tuple[np.ndarray, ...]
OrderedT = TypeVar("OrderedT")


def _as_they_are(arrays: Arrays) -> Any:
    return arrays


class Views:
    """Arrays of parameters, which share their memory, as long as a kernel may compute what modules do with them.

    Whether it may is found out, and arrays are made, only where a module or a tensor is not what or where it was: both
    take longer than to see that nothing has changed. What stands in the memory is not looked at: arrays follow changes
    in place by themselves. The memory of the last tensors is kept alive, so that no other tensor can come to lie there
    unnoticed.
    """

    def __init__(self) -> None:
        self._last: tuple[list[Any], int, Any] = [], -1, None

    def __call__(
        self,
        x: Tensor,
        modules: Sequence[nn.Module],
        tensors: Sequence[Tensor | None],
        fit: Callable[[], bool],
        order: Callable[[Arrays], OrderedT] = _as_they_are,
    ) -> OrderedT | None:
        """What `order` makes of an array, contiguous and without gradients, of each tensor; None where kernels may not.

        Args:
            x: what is computed from, for which there are kernels.
            modules: what a kernel would leave out the hooks of.
            tensors: parameters; None for one that is missing, as where it is computed from others.
            fit: whether kernels may compute from parameters as they are now.
            order: makes of the arrays what the kernel takes.
        """
        try:
            places = [*map(_ADDRESS, tensors), *map(_SIZE, tensors), *map(_STRIDE, tensors)]
        except TypeError:  # one is missing
            return None
        key = [x.dtype, x.shape[1:], *modules, *map(type, modules), *places]
        last, seen, ordered = self._last
        # every hook that is registered has a number of its own: without a new one, none has come to the modules
        hooks = RemovableHandle.next_id
        if key == last and hooks == seen:
            return ordered
        if is_hooked(*modules):
            return None
        if key == last:
            self._last = key, hooks, ordered
            return ordered
        found = [tensor for tensor in tensors if tensor is not None]
        ordered = None
        if has_kernels(x, *found) and fit():
            ordered = order(tuple(tensor.contiguous().numpy(force=True) for tensor in found))
        # a copy would not follow its tensor
        self._last = (key, hooks, ordered) if all(tensor.is_contiguous() for tensor in found) else ([], -1, None)
        return ordered

    def __reduce__(self) -> Any:
        """A copy, pickled or not, belongs to other tensors."""
        return Views, ()


_ADDRESS: Any = torch.Tensor.data_ptr
_SIZE: Any = torch.Tensor.size
_STRIDE: Any = torch.Tensor.stride
