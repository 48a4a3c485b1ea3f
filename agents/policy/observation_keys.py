"""Keys of a Dict observation that some memories read beside the features: "place" and "task"."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from palimpsest.memory.base import Memory


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
