"""A device that is not there: tensors that say they are on `meta`, and whose numbers are on the CPU all the same.

Where no GPU is, this finds what fails on one. A tensor that was made on the CPU and meets one of the device, an array
taken from a tensor of the device, a kernel for the CPU: each is an error, as on CUDA. What works computes real numbers,
also where they decide what is computed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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

    def numpy(self, *, force: bool = False) -> Any:
        """As Tensor's on CUDA."""
        if not force:
            raise TypeError("can't convert a tensor of another device to numpy; use Tensor.cpu() first")
        return self.detach().cpu().numpy()

    def data_ptr(self) -> int:
        """What tells two tensors of a file apart."""
        return self.held.data_ptr()

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
    met: list[Tensor] = []
    given, named = _held(args, met), {name: _held(each, met) for name, each in kwargs.items()}
    there = {id(each.held): each for each in met if isinstance(each, Elsewhere)}
    # a number may come from the CPU
    here = [each for each in met if not isinstance(each, Elsewhere) and each.ndim]
    assert all(each.device != DEVICE for each in here), "a tensor without numbers was made behind the mode"
    if there and here and function not in TAKES_BOTH:
        raise RuntimeError(f"{function} got tensors of two devices: {[(type(t).__name__, t.shape) for t in met]}")
    asked = kwargs.get("device")
    if asked is not None:
        named["device"] = torch.device("cpu")
    result = function(*given, **named)
    sent = torch.device(asked) == DEVICE if asked is not None else bool(there)
    return _sent(result, there) if sent else result


def _held(tree: Any, met: list[Tensor]) -> Any:
    """`tree` with the tensors that have the numbers; those that it had are added to `met`."""
    if isinstance(tree, Tensor):
        met.append(tree)
        return tree.held if isinstance(tree, Elsewhere) else tree
    return type(tree)(_held(each, met) for each in tree) if type(tree) in (list, tuple) else tree


def _sent(tree: Any, known: dict[int, Elsewhere]) -> Any:
    """`tree` with tensors of the device; what was changed in place is what it was."""
    if isinstance(tree, Tensor):
        return known[id(tree)] if id(tree) in known else Elsewhere(tree.resolve_conj().resolve_neg())
    return type(tree)(_sent(each, known) for each in tree) if type(tree) in (list, tuple) else tree


def _made(make: Any, data: Any, device: Any = None, **kwargs: Any) -> Tensor:
    """`torch.tensor` and `torch.as_tensor`, whose work on a device no mode sees."""
    made = make(data, **kwargs)
    return made if device is None else made.to(device)


@contextmanager
def elsewhere(monkeypatch: Any) -> Iterator[torch.device]:
    """Within it the device is there; modules, whole policies too, move to it by `to`."""
    # as on CUDA, nobody records or watches
    monkeypatch.setattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
    for name in ("tensor", "as_tensor"):
        monkeypatch.setattr(torch, name, functools.partial(_made, getattr(torch, name)))
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        with _Mode():
            yield DEVICE
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
