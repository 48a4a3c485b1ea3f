"""Wrappers of gymnasium environments by name: `frame-stack=4`, or `my_module:Wrapper` for one of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import gymnasium as gym

from palimpsest.imports import imported
from palimpsest.refusals import closest, refuse

Wrap = Callable[[gym.Env], gym.Env]


class Named(NamedTuple):
    """A wrapper with a name."""

    meaning: str
    """Half a sentence."""
    wrap: Callable[..., gym.Env]
    """The environment, and the value after "=" if there is one -> the wrapped environment."""
    takes: str = ""
    """What stands after "=": "N" for an integer of 1 or more, "N,N" for indices; "" for nothing."""


def _flatten(env: gym.Env) -> gym.Env:
    from gymnasium.wrappers import FlattenObservation

    from palimpsest.envs.text import DropText, has_text

    return FlattenObservation(DropText(env) if has_text(env.observation_space) else env)


def _frame_stack(env: gym.Env, count: int) -> gym.Env:
    """The last `count` observations; of images along the channels, so that they stay images."""
    import numpy as np
    from gymnasium import spaces
    from gymnasium.wrappers import FrameStackObservation, TransformObservation

    stacked = FrameStackObservation(env, count)
    space = env.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return stacked

    def joined(frames: Any) -> np.ndarray:
        return np.concatenate(list(frames), axis=-1)

    low, high = (np.concatenate([bound] * count, axis=-1) for bound in (space.low, space.high))
    return TransformObservation(stacked, joined, spaces.Box(low, high, dtype=space.dtype.type))


def _time_limit(env: gym.Env, steps: int) -> gym.Env:
    """In fewer steps another success may be the best one without memory."""
    from gymnasium.wrappers import TimeLimit

    from palimpsest.envs.declared import Hiding

    return Hiding(TimeLimit(env, steps), ("chance_level",))


def _previous_action_reward(env: gym.Env) -> gym.Env:
    from palimpsest.envs.wrappers import PreviousActionReward

    return PreviousActionReward(env)


def _keep_observations(env: gym.Env, indices: list[int]) -> gym.Env:
    from palimpsest.envs.wrappers import KeepObservations

    return KeepObservations(env, indices)


def _minigrid_image(env: gym.Env) -> gym.Env:
    from gymnasium import spaces
    from minigrid.wrappers import ImgObsWrapper

    if not (isinstance(env.observation_space, spaces.Dict) and "image" in env.observation_space.spaces):
        raise ValueError("only observations with an entry 'image', as MiniGrid's, have a view; leave it out")
    return ImgObsWrapper(env)


def _minigrid_pixels(env: gym.Env) -> gym.Env:
    from minigrid.wrappers import RGBImgPartialObsWrapper

    if not hasattr(env.unwrapped, "get_frame"):
        raise ValueError(
            "only the environments of the package minigrid, as MiniGrid-MemoryS7-v0, draw the view (get_frame); choose "
            "one of them, or minigrid-image"
        )
    return _minigrid_image(RGBImgPartialObsWrapper(env))


NAMED: dict[str, Named] = {
    "flatten": Named("one vector of numbers: of a Tuple, a Dict or an image", _flatten),
    "frame-stack": Named("the last N observations at once", _frame_stack, "N"),
    "time-limit": Named("truncate an episode after N steps", _time_limit, "N"),
    "previous-action-reward": Named("the previous action and reward beside the observation", _previous_action_reward),
    "keep-observations": Named("only the numbers of an observation with these indices", _keep_observations, "N,N"),
    "minigrid-image": Named("MiniGrid's view alone, as codes of objects", _minigrid_image),
    "minigrid-pixels": Named("MiniGrid's view alone, as a picture; not of our own", _minigrid_pixels),
}
"""Name -> wrapper."""


def spelled() -> str:
    """The names as they are given, in one line."""
    return ", ".join(f"{name}={named.takes}" if named.takes else name for name, named in NAMED.items())


def wrapped(env: gym.Env, wrappers: Iterable[str]) -> gym.Env:
    """`env` in the named wrappers, the first of them innermost.

    Raises:
        ValueError: an unknown name, a value that is not allowed, or a wrapper that does not take this environment.
    """
    for text in wrappers:
        wrap = found(text)
        try:
            outer = wrap(env)
        except Exception as error:  # a wrapper may raise anything where an environment does not fit
            message = " ".join(str(error).split())
            raise ValueError(
                f"wrapper {text!r} does not take {env} with observations {env.observation_space}: "
                f"{type(error).__name__}: {message}"
            ) from error
        if not isinstance(outer, gym.Env):
            raise ValueError(f"wrapper {text!r} must return a gymnasium environment; got {type(outer).__name__}")
        env = outer
    return env


def found(text: str) -> Wrap:
    """The wrapper of a name, with its value, or of "module:Wrapper".

    Raises:
        ValueError: an unknown name, a value that is not allowed, or a module without it.
    """
    if ":" in text:
        module, own = imported(text, "wrapper")
        wrap = getattr(module, own, None)
        if not callable(wrap):
            known = [key for key, value in vars(module).items() if isinstance(value, type)]
            raise ValueError(
                f"module {module.__name__!r} has no wrapper {own!r}{closest(own, known)}; name a class or a function "
                "in it that takes an environment and returns one"
            )
        return wrap
    name, equals, value = text.partition("=")
    named = NAMED.get(name)
    if named is None:
        raise ValueError(f"unknown wrapper {text!r}{closest(name, NAMED)}; known: {spelled()}, or module:Wrapper")
    if bool(equals) != bool(named.takes):
        form = f"{name}={named.takes}" if named.takes else name
        raise ValueError(f"wrapper {name!r} must read {form}; got {text!r}")
    if not named.takes:
        return named.wrap
    parts = value.split(",")
    one = named.takes == "N"
    if not all(part.isdecimal() and len(part) < 10 for part in parts) or (one and (len(parts) > 1 or not int(value))):
        refuse(f"N of wrapper {name!r}", "an integer, 1 or more" if one else "indices separated by commas", value)
    given = int(value) if one else [int(part) for part in parts]
    return lambda env: named.wrap(env, given)
