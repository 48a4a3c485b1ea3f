"""Whether modules still are what they were built as, so that kernels may compute from their parameters what they do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from palimpsest.memory.kernels.arithmetic.dispatch import has_kernels

Arrays = tuple[np.ndarray, ...]
Layout = dict[str, tuple[type, dict[str, torch.Size]]]
"""Of each module, by name: its class and the shapes of its own parameters."""

OrderedT = TypeVar("OrderedT")

_HOOKS = {
    "_forward_hooks": "forward hook",
    "_forward_pre_hooks": "forward pre-hook",
    "_backward_hooks": "backward hook",
    "_backward_pre_hooks": "backward pre-hook",
}


class AsBuilt:
    """What a tree of modules was when it was built, and whether it still is.

    A kernel computes from parameters what modules make of them. It would miss a hook, a module of another class and a
    parameter that is computed from others. So kernels compute only while the tree is as it was built: the same classes,
    parameters of the same names and shapes, no hooks. Values may change, and parameters may be replaced by others.

    Looking at a whole tree takes long beside a step of acting. While all is as it was built it is done again only if a
    hook was registered anywhere, or if a module or parameter whose work kernels do was replaced or moved.

    Args:
        root: the tree as it is built.
        parts: names of those submodules of the root whose work kernels do; None for all. The others are called.
        remedy: what the warning about a change says last: how to choose torch's operations.
    """

    _seen: tuple[int, list[Any], list[int], list[Any], list[int]]
    _objects: list[Any]
    _difference: str
    _ordered: Any

    def __init__(
        self,
        root: nn.Module,
        parts: tuple[str, ...] | None = None,
        remedy: str = "`with memory.kernels.torch_only():` chooses this",
    ) -> None:
        self._layout = _layout(root)
        self._parts = parts
        self._remedy = remedy
        self._told = False
        self._forget()

    def holds(self, root: nn.Module) -> bool:
        """Whether the tree is as it was built."""
        hooks, owners, objects, parameters, addresses = self._seen
        unchanged = (
            # what was found may be gone again, as a hook that is removed
            not self._difference
            # as many hooks were ever registered, by whomever
            and hooks == RemovableHandle.next_id
            and [*map(id, chain.from_iterable(map(_VALUES, owners)))] == objects
            and [*map(_ADDRESS, parameters)] == addresses
            and all(map(_IS_CONTIGUOUS, parameters))
        )
        if not unchanged:
            self.look(root)
        return not self._difference

    def allows(self, root: nn.Module, x: Tensor, *others: Tensor) -> bool:
        """Whether kernels compute from these tensors and the tree's parameters; warns if only the tree forbids it."""
        return has_kernels(x, *others) and (self.holds(root) or self.warn())

    def warn(self) -> bool:
        """Say what was found and what follows from it, the first time; always False."""
        if not self._told:
            self._told = True
            warnings.warn(
                f"{self._difference}: torch's operations compute from now on, which is slower, and call every module "
                f"and hook; {self._remedy} (said once)",
                stacklevel=3,
            )
        return False

    def arrays(self, root: nn.Module, order: Callable[[dict[str, np.ndarray]], OrderedT]) -> OrderedT:
        """What `order` makes of the parameters, as arrays by name; for a tree that `holds`.

        They are gathered once for as long as the tree is unchanged. They share the memory of the parameters, and so
        follow changes of values by themselves.
        """
        if self._ordered is None:
            named = root.named_parameters(remove_duplicate=False)
            self._ordered = order({name: each.numpy(force=True) for name, each in named})
        return self._ordered

    def look(self, root: nn.Module) -> None:
        """Look at the whole tree. `holds` does so by itself, but would not see that a `forward` was replaced."""
        self._ordered = None
        self._difference = _difference(root, self._layout)
        trees = [root] if self._parts is None else [root.get_submodule(part) for part in self._parts]
        modules = [root, *chain.from_iterable(tree.modules() for tree in trees)]
        owners = [owner for each in modules for owner in (each._modules, each._parameters) if owner]
        # held here, so that no other object can take the place of one unnoticed
        self._objects = [*chain.from_iterable(map(_VALUES, owners))]
        parameters = [*chain.from_iterable(tree.parameters() for tree in trees)]
        self._seen = (
            RemovableHandle.next_id,
            owners,
            [*map(id, self._objects)],
            parameters,
            [*map(_ADDRESS, parameters)],
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to other modules, at which nobody has looked."""
        return {name: getattr(self, name) for name in ("_layout", "_parts", "_remedy", "_told")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    def _forget(self) -> None:
        self._seen = -1, [], [], [], []
        self._objects = []
        self._difference = ""
        self._ordered = None


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module computes from its parameters what torch's class `kind` does, and nobody watches it by a hook."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    own = type(module) is not kind or "forward" in vars(module)
    return not (hooks or own or torch.nn.modules.module._has_any_global_hook())


def is_matrix(module: nn.Module) -> bool:
    """Whether a module does nothing but multiply by its weight, so that the weight may be multiplied elsewhere.

    Where it does something else, as one that is pruned, adapted or hooked, it must be called. This looks at one module
    and on any device, where `AsBuilt` looks at a tree whose work numba does.
    """
    return is_plain(module, nn.Linear) and module._parameters["bias"] is None


_VALUES: Any = dict.values
_ADDRESS: Any = Tensor.data_ptr
_IS_CONTIGUOUS: Any = Tensor.is_contiguous


def _layout(root: nn.Module) -> Layout:
    return {
        name: (type(module), {key: each.shape for key, each in module.named_parameters(recurse=False)})
        for name, module in root.named_modules()
    }


def _difference(root: nn.Module, built: Layout) -> str:
    """The first thing that is not as it was built, in words; "" for nothing, and where nothing is compiled."""
    if not all(each.is_cpu for each in root.parameters()):
        return ""
    if torch.nn.modules.module._has_any_global_hook():
        return "a hook is registered for all modules"
    now = _layout(root)
    if missing := built.keys() - now.keys():
        return f"module {min(missing)!r} is gone"
    for name, module in root.named_modules():
        called = f"module {name!r}" if name else type(root).__name__
        for attribute, kind in _HOOKS.items():
            # the root's own hooks run where it is called, whatever computes inside
            if name and getattr(module, attribute):
                return f"{called} has a {kind}"
        if name not in built:
            return f"{called} was added"
        if name and "forward" in vars(module):
            return f"{called} has a forward of its own"
        (was, had), (is_, has) = built[name], now[name]
        if is_ is not was:
            return f"{called} is a {is_.__name__}, built as a {was.__name__}"
        if has != had:
            return f"{called} has parameters {_told(has)}, built with {_told(had)}"
    kinds = {str(each.dtype) for each in root.parameters()}
    if len(kinds) > 1:
        return f"parameters of {type(root).__name__} are of several types, {', '.join(sorted(kinds))}"
    for name, each in root.named_parameters():
        if not each.is_contiguous():
            return f"parameter {name!r} is not contiguous"
    return ""


def _told(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "none"
