"""What an environment declares of its own observations, and the wrappers under which that no longer holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorObservationWrapper, VectorWrapper
from gymnasium.wrappers import FlattenObservation

DECLARED = ("memory_horizons", "chance_level", "event_mask")
"""What an environment declares of its whole observation. It does not hold for a part, nor for more than that."""


def refuse_declared(name: str, hidden: Sequence[str] = DECLARED) -> None:
    """AttributeError for a name that is hidden."""
    if name in hidden:
        raise AttributeError(f"{name!r} is declared of whole observations of the environment; other ones are seen here")


class Hiding(gym.Wrapper):
    """A gymnasium wrapper that hides what the environment declares, unless the wrapper has it itself.

    Args:
        env: the environment.
        hides: names of `DECLARED`.
    """

    hides: Sequence[str] = DECLARED

    def __init__(self, env: gym.Env, hides: Sequence[str] = DECLARED) -> None:
        super().__init__(env)
        self.hides = hides

    def has_wrapper_attr(self, name: str) -> bool:
        """Whether this wrapper has the attribute, or the environment has it and it is not hidden."""
        return hasattr(self, name) or (name not in self.hides and self.env.has_wrapper_attr(name))

    def get_wrapper_attr(self, name: str) -> Any:
        """An attribute of this wrapper or of the environment; AttributeError if it is hidden."""
        if not hasattr(self, name):
            refuse_declared(name, self.hides)
        return super().get_wrapper_attr(name)


class _Looked(type):
    """The class of `ChangesObservations`, which looks at a wrapper."""

    def __instancecheck__(cls, wrapper: Any) -> bool:
        if not isinstance(wrapper, gym.Wrapper) or isinstance(wrapper, Hiding | FlattenObservation):
            return False
        changes = isinstance(wrapper, gym.ObservationWrapper)
        return changes or wrapper.observation_space != wrapper.env.observation_space


class ChangesObservations(metaclass=_Looked):
    """Its instances are gymnasium's wrappers, whoever wrote them, whose observations tell more, less, or other things.

    A `Hiding` wrapper says itself what holds. FlattenObservation tells the same. SB3's `env_is_wrapped` takes this
    class, so that it looks at the wrappers of rows in other processes too.
    """


def undone(env: gym.Env) -> tuple[str, ...]:
    """The names of `DECLARED` that do not hold for what is seen of an environment in its wrappers."""
    flat = False
    while isinstance(env, gym.Wrapper):
        if isinstance(env, ChangesObservations):
            return DECLARED
        flat |= isinstance(env, FlattenObservation)
        env = env.env
    return ("event_mask",) if flat else ()


def hides(wrapper: VectorWrapper, name: str) -> bool:
    """Whether a wrapper of a gymnasium VectorEnv hides `name`, or makes it untrue by other observations."""
    if name not in DECLARED:
        return name in getattr(wrapper, "hides", ())
    same = wrapper.single_observation_space == wrapper.env.single_observation_space
    changes = isinstance(wrapper, VectorObservationWrapper) or not same
    return name in getattr(wrapper, "hides", DECLARED if changes else ())
