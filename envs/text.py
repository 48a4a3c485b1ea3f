"""Remove text keys (MiniGrid's `mission`) from Dict observations. No policy reads them; DummyVecEnv refuses them."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from palimpsest.envs.declared import Hiding


def is_text(space: spaces.Space) -> bool:
    """Whether a space holds strings: gymnasium's Text, or a space such as MiniGrid's MissionSpace."""
    return space.dtype is not None and np.dtype(space.dtype).kind in "SU"


def has_text(space: spaces.Space) -> bool:
    """Whether a Dict space has text keys."""
    return isinstance(space, spaces.Dict) and any(is_text(part) for part in space.spaces.values())


def without_text(space: spaces.Space) -> spaces.Space:
    """A Dict space without its text keys; any other space as it is."""
    if not isinstance(space, spaces.Dict):
        return space
    return spaces.Dict({key: part for key, part in space.spaces.items() if not is_text(part)})


class DropText(Hiding, gym.ObservationWrapper):
    """An environment without the text keys of its Dict observations. What it declares holds as before."""

    hides = ()

    def __init__(self, env: gym.Env) -> None:
        gym.ObservationWrapper.__init__(self, env)
        self.observation_space = without_text(env.observation_space)

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The observation without its text keys."""
        return {key: observation[key] for key in self.observation_space.spaces}  # type: ignore[attr-defined]


def check_storable(space: gym.Space) -> None:
    """Refuse what SB3 cannot store: a space without a shape, by itself or inside a Dict or Tuple."""
    parts = getattr(space, "spaces", {"": space})
    if any(part.shape is None for part in (parts.values() if hasattr(parts, "values") else parts)):
        raise ValueError(
            "the observation space must be Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of them; got "
            f"{space}: flatten it (--wrapper flatten), or wrap the environment in one that builds such a space"
        )
