"""Which observation and action spaces policies take."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces


def check_spaces(observations: spaces.Space, actions: spaces.Space) -> None:
    """Refuse spaces that no policy can read or act in."""
    parts = observations.spaces if isinstance(observations, spaces.Dict) else {"": observations}
    read = [part for part in parts.values() if isinstance(part, _READ)]
    nested = [part for part in parts.values() if not isinstance(part, (*_READ, spaces.Text))]
    if nested or not read:
        raise ValueError(
            "the observation space must be Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them; got "
            f"{observations}: wrap the environment in FlattenObservation, or in one that builds such a space"
        )
    check_action_space(actions)


_READ = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def check_action_space(space: spaces.Space) -> None:
    """Refuse an action space that no distribution of SB3's covers."""
    if isinstance(space, spaces.Box) and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"the action space must have finite bounds; got {space}: wrap the environment in RescaleAction"
        )
    if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
        raise ValueError(f"the action space must be Discrete, MultiDiscrete, MultiBinary or Box; got {space}")
    if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) and np.any(space.start):
        raise ValueError(
            f"the actions must be counted from 0; got {space}: wrap the environment in gymnasium.wrappers."
            "TransformAction(env, lambda action: action + env.action_space.start, the space without its start)"
        )
