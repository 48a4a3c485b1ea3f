"""Parameters as arrays, for kernels that are called at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


class Views:
    """Arrays of tensors, which share their memory; made anew only where a tensor is not where it was.

    To wrap a tensor takes longer than to find out that nothing has changed. What stands in the memory is not looked at:
    arrays follow changes in place by themselves. The memory of the last tensors is kept alive, so that no other tensor
    can come to lie there unnoticed.
    """

    def __init__(self) -> None:
        self._last: tuple[list[Any], tuple[np.ndarray, ...]] = [], ()

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[np.ndarray, ...]:
        """An array, contiguous and without gradients, of each of `tensors`, which are on the CPU."""
        places = [(tensor.data_ptr(), tensor.shape, tensor.stride()) for tensor in tensors]
        last, arrays = self._last
        if places != last:
            arrays = tuple(tensor.contiguous().numpy(force=True) for tensor in tensors)
            # a copy would not follow its tensor
            self._last = (places, arrays) if all(tensor.is_contiguous() for tensor in tensors) else ([], ())
        return arrays

    def __reduce__(self) -> Any:
        """A copy, pickled or not, belongs to other tensors."""
        return Views, ()
