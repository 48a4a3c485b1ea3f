"""A device that is not there: tensors that say they are on `meta`, and whose numbers are on the CPU all the same.

Where no GPU is, this finds what fails on one. A tensor that was made on the CPU and meets one of the device, an array
taken from a tensor of the device, a kernel for the CPU: each is an error, as on CUDA. What works computes real numbers,
also where they decide what is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

DEVICE = torch.device("meta")

aten = torch.ops.aten
TAKES_BOTH = {
    *(aten.copy_.default, aten._to_copy.default, aten.copy.default),
    # indices may be on the CPU
    *(aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default),
}
"""Operations whose tensors may be on several devices, as on CUDA."""


class Elsewhere(Tensor):
    """A tensor of the device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        """As Tensor's, whose work no mode sees."""
        return torch.tensor(data, **{"dtype": self.dtype, **kwargs}).to(DEVICE)

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation by the CPU, on tensors of one device."""
    leaves, shape = tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    there = [each for each in tensors if isinstance(each, Elsewhere)]
    # a number may come from the CPU
    here = [each for each in tensors if not isinstance(each, Elsewhere) and (each.ndim or each.device == DEVICE)]
    if there and here and function not in TAKES_BOTH:
        raise RuntimeError(f"{function} got tensors of two devices: {[(type(t).__name__, t.shape) for t in tensors]}")
    asked = kwargs.get("device")
    device = DEVICE if asked is None and there else torch.device(asked or "cpu")
    given, named = tree_unflatten([leaf.held if isinstance(leaf, Elsewhere) else leaf for leaf in leaves], shape)
    if asked is not None:
        named = {**named, "device": torch.device("cpu")}
    result = function(*given, **named)
    if device != DEVICE:
        return result
    known = {id(each.held): each for each in there}

    def sent(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return known[id(leaf)] if id(leaf) in known else Elsewhere(leaf.resolve_conj().resolve_neg())

    return tree_map(sent, result)


@contextmanager
def elsewhere(monkeypatch: Any) -> Iterator[torch.device]:
    """Within it the device is there; modules, whole policies too, move to it by `to`."""
    # as on CUDA, nobody records or watches
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
