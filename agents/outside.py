"""Observations that the declared space does not hold: the first of them, and how to say so."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

if TYPE_CHECKING:
    from agents.rollout import RememberingAlgorithm


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


def outside_space(space: spaces.Space, observations: Any, skip: frozenset[str] = frozenset()) -> Outside | None:
    """The first number in a batch of observations that their space does not hold; NaN is none.

    Args:
        space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them.
        observations: tree of [..., *shape] arrays or tensors.
        skip: keys of a Dict space that are not looked at.
    """
    for name, part, leaf in _parts(space, observations, skip):
        tensor = torch.as_tensor(leaf)
        low, high = (torch.as_tensor(bound, device=tensor.device) for bound in _bounds(part))
        if tensor.is_floating_point():
            low, high = low.to(tensor.dtype), high.to(tensor.dtype)
        elif tensor.dtype == torch.bool or _holds_all(tensor.dtype, low, high):
            continue
        outside = (tensor < low) | (tensor > high)
        if outside.any():
            place = tuple(int(i) for i in outside.nonzero()[0])
            inside = place[len(place) - low.ndim :]
            return Outside(name, tensor[place].item(), place, low[inside].item(), high[inside].item())
    return None


def warn_outside(model: RememberingAlgorithm) -> None:
    """Warn, once in a model's life, of an observation in its rollout that the environment's space does not hold.

    What a VecNormalize changes is not looked at: it leaves the space of what it normalises as it was.
    """
    if model._told_of_outside:
        return
    normalize = model.get_vec_normalize_env()
    skip: frozenset[str] = frozenset()
    if normalize is not None and normalize.norm_obs:
        if not isinstance(model.observation_space, spaces.Dict):
            return
        skip = frozenset(normalize.norm_obs_keys or ())
    buffer = model.rollout_buffer
    found = outside_space(model.observation_space, buffer.observations, skip)
    if found is not None:
        model._told_of_outside = True
        step = model.num_timesteps - (buffer.pos - found.place[0]) * model.n_envs
        warnings.warn(f"{found.at(step, 2)}; correct the space or the environment (said once)", stacklevel=2)


def _parts(space: spaces.Space, observations: Any, skip: frozenset[str]) -> Iterator[tuple[str, spaces.Space, Any]]:
    if not isinstance(space, spaces.Dict):
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


def _holds_all(dtype: torch.dtype, low: Tensor, high: Tensor) -> bool:
    """Whether bounds leave out no number of an integer type, as 0 to 255 of an image's bytes."""
    limits = torch.iinfo(dtype)
    return bool((low <= limits.min).all() and (high >= limits.max).all())
