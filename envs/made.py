"""One environment of an id, or a sentence that says why there is none."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator
from gymnasium.error import DependencyNotInstalled


def made(id: str, kwargs: Mapping[str, Any]) -> gym.Env:
    """`gymnasium.make`, whose errors are sentences.

    Args:
        id: a registered id.
        kwargs: the environment's arguments.

    Raises:
        ValueError: an argument is missing, or the environment raised something else, which is the error's cause.
        OSError, DependencyNotInstalled: the environment raised it.
    """
    check_given(id, kwargs)
    try:
        return gym.make(id, **kwargs)
    except (ValueError, OSError, DependencyNotInstalled):
        raise
    except Exception as error:  # an environment may raise anything
        root: BaseException = error
        while isinstance(root.__cause__, Exception):
            root = root.__cause__
        message = " ".join(str(root).split()) or type(root).__name__
        raise ValueError(f"environment {id!r} cannot be made: {message}") from root


def check_given(id: str, kwargs: Mapping[str, Any]) -> None:
    """Refuse to make an environment without an argument that has no default.

    Raises:
        ValueError: one is missing; it names all of them.
    """
    spec = gym.registry.get(id.rpartition(":")[2])
    if spec is None or spec.entry_point is None:
        return
    creator: Any = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    try:
        parameters = inspect.signature(creator).parameters.values()
    except (TypeError, ValueError):  # one without a signature says itself what it needs
        return
    by_name = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = [each.name for each in by_name if each.default is each.empty]
    missing = [name for name in needed if name not in kwargs and name not in spec.kwargs]
    if missing:
        flags = " ".join(f"{name}=..." for name in missing)
        raise ValueError(
            f"environment {id!r} needs {', '.join(map(repr, missing))}, which {'have' if missing[1:] else 'has'} no "
            f"default; got {', '.join(map(repr, kwargs)) or 'no arguments'}: give --env-args {flags}"
        )
