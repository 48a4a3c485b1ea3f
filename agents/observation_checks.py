"""Observations that are not finite, or that the declared space does not hold: the first, and how to say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from torch import Tensor


class Outside(NamedTuple):
    """A number of an observation that its space does not hold."""

    name: str
    value: float
    place: tuple[int, ...]
    """In the tensor that was looked at."""
    low: float
    high: float

    def at(self, step: int, leading: int = 1) -> str:
        """In words, for a tensor whose first `leading` dimensions are followed by those of one observation.

        The last of the leading dimensions is the environment's row.
        """
        inside = f" at index {list(self.place[leading:])}" if self.place[leading:] else ""
        return (
            f"{self.name} is {self.value:g}{inside} in environment row {self.place[leading - 1]} at step {step}, "
            f"outside its space, which is {self.low:g} to {self.high:g} there"
        )


def not_finite(observation: Any, name: str = "observation") -> tuple[str, float, tuple[int, ...]] | None:
    """The first number of an observation's arrays that is not finite: its name, value and place; None for none."""
    for key, array in observation.items() if isinstance(observation, dict) else [("", observation)]:
        if isinstance(array, np.ndarray) and array.dtype.kind == "f" and not np.isfinite(array).all():
            place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            return f"{name}[{key!r}]" if key else name, float(array[place]), place
    return None


def refuse_not_finite(observation: np.ndarray | dict[str, np.ndarray]) -> None:
    """Refuse observations [B, ...] that hold NaN or infinity, naming the key and the row."""
    if found := not_finite(observation):
        name, value, place = found
        raise ValueError(
            f"{name} holds {value} at index {list(place)} (environment row first); observations must be finite: "
            "check the environment, or VecNormalize's statistics"
        )


def outside_space(space: spaces.Space, observations: Any, skip: frozenset[str] = frozenset()) -> Outside | None:
    """The first number in a batch of observations that their space does not hold; NaN is none.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them.
        observations: tree of [..., *shape] arrays or tensors.
        skip: keys of a Dict space that are not looked at; "" stands for any other space.
    """
    for name, part, leaf in _parts(space, observations, skip):
        # in numpy, as torch does not compare unsigned integers wider than a byte
        array = leaf.numpy(force=True) if isinstance(leaf, Tensor) else np.asarray(leaf)
        low, high = _bounds(part)
        if array.dtype.kind == "f":
            low, high = low.astype(array.dtype), high.astype(array.dtype)
        elif array.dtype.kind == "b" or _holds_all(array.dtype, low, high):
            continue
        outside = (array < low) | (array > high)
        if outside.any():
            place = tuple(int(i) for i in np.argwhere(outside)[0])
            inside = place[len(place) - low.ndim :]
            return Outside(name, array[place].item(), place, low[inside].item(), high[inside].item())
    return None


def _parts(space: spaces.Space, observations: Any, skip: frozenset[str]) -> Iterator[tuple[str, spaces.Space, Any]]:
    if not isinstance(space, spaces.Dict):
        if "" not in skip:
            yield "observation", space, observations
        return
    for key, part in space.spaces.items():
        if key not in skip:
            yield f"observation[{key!r}]", part, observations[key]


def _bounds(space: spaces.Space) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest numbers of a space, in its shape."""
    if isinstance(space, spaces.Box):
        return space.low, space.high
    if isinstance(space, spaces.Discrete):
        return np.asarray(space.start), np.asarray(space.start + space.n - 1)
    if isinstance(space, spaces.MultiDiscrete):
        return np.asarray(space.start), np.asarray(space.start + space.nvec - 1)
    assert isinstance(space, spaces.MultiBinary), space
    return np.zeros(space.shape, np.int64), np.ones(space.shape, np.int64)


def _holds_all(dtype: np.dtype, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether bounds leave out no number of an integer type, as 0 to 255 of an image's bytes."""
    limits = np.iinfo(dtype)
    return bool((low <= limits.min).all() and (high >= limits.max).all())
