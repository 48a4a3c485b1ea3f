"""Which observation and action spaces policies take, observations as floats, and the keys that memories read.

SB3 takes MultiDiscrete and MultiBinary spaces of one dimension, and Discrete observations that count from 0. Here they
may have any shape and any start. Some memories read two keys of a Dict beside the features: "place" and "task".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatdim
from stable_baselines3.common.preprocessing import is_image_space, maybe_transpose
from stable_baselines3.common.utils import is_vectorized_observation
from torch import Tensor
from torch.nn import functional

from palimpsest.memory.base import Memory


def check_spaces(observations: spaces.Space, actions: spaces.Space) -> None:
    """Refuse spaces that no policy can read or act in."""
    parts = observations.spaces if isinstance(observations, spaces.Dict) else {"": observations}
    read = [part for part in parts.values() if isinstance(part, _READ)]
    nested = [part for part in parts.values() if not isinstance(part, (*_READ, spaces.Text))]
    if nested or not read:
        raise ValueError(
            "the observation space must be Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them; got "
            f"{observations}: wrap the environment in FlattenObservation (--wrapper flatten), or in one that builds "
            "such a space"
        )
    check_action_space(actions)


_READ = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_action_space(space: spaces.Space) -> None:
    """Refuse an action space that no distribution of SB3's covers."""
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"the action space must have finite bounds; got {space}: give the environment finite ones, or wrap it in "
            "gymnasium.wrappers.TransformAction(env, lambda action: action, a Box of finite bounds)"
        )
    if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        raise ValueError(
            f"the actions of a Box must be floats; got {space}: make it a MultiDiscrete, or round in a wrapper whose "
            "action_space is a Box of floats"
        )
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
        raise ValueError(f"the action space must be Discrete, MultiDiscrete, MultiBinary or Box; got {space}")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        raise ValueError(
            f"the actions must be counted from 0; got {space}: wrap the environment in gymnasium.wrappers."
            "TransformAction(env, lambda action: action + env.action_space.start, the space without its start)"
        )


def flat_action_space(space: spaces.Space) -> spaces.Space:
    """The same numbers in one dimension: what SB3's distributions take. A Discrete space is one already."""
    if isinstance(space, spaces.Box):
        return spaces.Box(space.low.reshape(-1), space.high.reshape(-1), dtype=space.dtype)
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.reshape(-1))
    if isinstance(space, spaces.MultiBinary):
        return spaces.MultiBinary(int(np.prod(space.shape)))
    return space


def flattened(space: spaces.Space) -> spaces.Space:
    """The space of what `preprocess` makes of one observation, in one dimension, where SB3 cannot flatten `space`."""
    if (space.shape == () and isinstance(space, spaces.Box)) or isinstance(space, spaces.MultiDiscrete):
        return spaces.Box(-np.inf, np.inf, (flatdim(space),), np.float32)
    return space


def preprocess(obs: Any, space: spaces.Space, normalize_images: bool = True) -> Any:
    """Observations as floats, ready for a features extractor.

    Args:
        obs: tree of [N, *shape].
        space: theirs.
        normalize_images: whether images of bytes are divided by 255, as in SB3.

    Returns:
        Box and MultiBinary: [N, *shape] float32, a scalar as [N, 1]. Discrete and MultiDiscrete: one-hots, [N, width],
        the width being the sum of the numbers of values. Dict: a dict of these.
    """
    if isinstance(space, spaces.Dict):
        return {key: preprocess(obs[key], part, normalize_images) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return _one_hot(obs, np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot(obs, space.nvec.reshape(-1), space.start.reshape(-1))
    floats = obs.float() if obs.ndim > 1 else obs.float().unsqueeze(1)
    return floats / 255.0 if normalize_images and is_image_space(space) else floats


def _one_hot(obs: Tensor, sizes: np.ndarray, starts: np.ndarray) -> Tensor:
    """The values [N, ...], one after the other, each as a one-hot of its size, counted from its start."""
    values = obs.long().reshape(obs.shape[0], -1) - torch.as_tensor(starts, dtype=torch.int64, device=obs.device)
    parts = [functional.one_hot(value, int(size)).float() for value, size in zip(values.unbind(1), sizes)]
    return torch.cat(parts, dim=1)


def as_batch(observation: Any, space: spaces.Space) -> tuple[np.ndarray, bool]:
    """Observations [N, *shape], images channels first, and whether they came as a batch, not as one [*shape].

    Raises:
        ValueError: the shape is neither.
    """
    array, shape = np.asarray(observation), tuple(space.shape)  # type: ignore[arg-type]
    if array.ndim - len(shape) not in (0, 1):
        raise _other_shape(shape, array.shape)
    array = maybe_transpose(array, space)
    if isinstance(space, spaces.MultiDiscrete):  # SB3 takes those of one dimension alone
        if shape not in (array.shape, array.shape[1:]):
            raise _other_shape(shape, array.shape)
        batch = array.shape != shape
    else:
        batch = is_vectorized_observation(array, space)
    return array.reshape(-1, *shape), batch


def _other_shape(shape: tuple[int, ...], given: tuple[int, ...]) -> ValueError:
    return ValueError(f"observations must be of shape {shape} or [N, ...] of it; got {given}")


def check_place(memory: Memory, name: str, space: spaces.Space) -> None:
    """Refuse observations that do not say where the agent is to a memory that asks.

    Raises:
        ValueError: `memory`, of this name, has several places and the space no Discrete key "place" for them.
    """
    if memory.num_places == 1:
        return
    allowed = f"a Discrete observation key 'place' with n <= num_places={memory.num_places}"
    place = space.spaces.get("place") if isinstance(space, spaces.Dict) else None
    if not isinstance(place, spaces.Discrete) or place.n > memory.num_places:
        raise ValueError(
            f"memory {name!r} with num_places={memory.num_places} needs {allowed}; got {space}. "
            "Add the key, or set num_places=1"
        )


def place_of(obs: Tensor | dict[str, Tensor], memory: Memory, space: spaces.Space) -> Tensor | None:
    """Where each agent is, int64 with the shape of the batch, from 0; None where the memory does not ask."""
    if memory.num_places == 1:
        return None
    assert isinstance(obs, dict)
    assert isinstance(space, spaces.Dict)
    place = space.spaces["place"]
    assert isinstance(place, spaces.Discrete)
    return obs["place"].long() - int(place.start)


def task_of(obs: Tensor | dict[str, Tensor], batch_size: int) -> Tensor:
    """The task that each row is about, int64 [B] on the CPU; zeros where there is no key "task"."""
    task = obs.get("task") if isinstance(obs, dict) else None
    if task is None:
        return torch.zeros(batch_size, dtype=torch.int64)
    return (task.argmax(-1) if task.ndim > 1 else task).long().cpu()


def greedy_strategy(memory: Memory, obs: Tensor | dict[str, Tensor], batch_size: int) -> Tensor | None:
    """The allocation strategy [B] int64 that an adaptive allocator takes for best; None for other memories."""
    values = getattr(memory, "strategy_values", None)
    if values is None:
        return None
    choice = values.choose(task_of(obs, batch_size), 0.0, np.random.default_rng(0))
    return torch.as_tensor(choice, device=memory.device)
