"""Parameters of memax's layers for ours, for `memax_pairs.py`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np
import torch
from memax.equinox.groups import BinaryAlgebra, Resettable
from torch import Tensor, nn

Scan = Callable[[Tensor, Tensor], Tensor]
"""x [T, B, D] and start [T, B] bool to y [T, B, D]."""


class OtherStep(BinaryAlgebra):
    """An algebra of memax with another step."""

    algebra: Any
    other: Any = eqx.field(static=True)

    def __call__(self, carry: Any, new: Any) -> Any:
        return self.other(self.algebra, carry, new)

    def initialize_carry(self, key: Any = None) -> Any:
        return self.algebra.initialize_carry(key)


def with_step(layer: Any, step: Any) -> Any:
    """A layer of memax whose algebra makes another step."""
    return eqx.tree_at(lambda found: found.algebra, layer, Resettable(OtherStep(layer.algebra.algebra, step)))


def tensor(array: Any) -> Tensor:
    """An array of jax as a tensor."""
    return torch.from_numpy(np.array(array))


def copy(mine: nn.Linear, other: Any) -> None:
    """Write the parameters of a linear map of memax into ours; a bias that it lacks is 0."""
    with torch.no_grad():
        mine.weight.copy_(tensor(other.weight))
        if mine.bias is not None:
            mine.bias.copy_(torch.zeros_like(mine.bias) if other.bias is None else tensor(other.bias))


def maps(*theirs: Any) -> list[nn.Linear]:
    """Ours of the same sizes with the same parameters."""
    made = [nn.Linear(each.in_features, _width(each), each.bias is not None) for each in theirs]
    for mine, other in zip(made, theirs):
        copy(mine, other)
    return made


def _width(linear: Any) -> int:
    return math.prod(linear.weight.shape) // linear.in_features


def copy_gates(made: Any, from_input: list[Any], from_state: list[Any]) -> None:
    """Write the maps of gates one below the other, into a network of one layer."""
    w_ih, w_hh, b_ih, b_hh = made.layer_weights(0)
    with torch.no_grad():
        for mine, theirs in ((w_ih, from_input), (w_hh, from_state)):
            mine.copy_(torch.cat([tensor(each.weight) for each in theirs]))
        for mine, theirs in ((b_ih, from_input), (b_hh, from_state)):
            found = [
                torch.zeros(len(each.weight), dtype=mine.dtype) if each.bias is None else tensor(each.bias)
                for each in theirs
            ]
            mine.copy_(torch.cat(found))


def scanned(made: Any) -> Scan:
    """The scan of one of our layers or memories from its initial state."""
    return lambda x, start: made.scan(x, start, made.initial_state(x.shape[1]))[0]
