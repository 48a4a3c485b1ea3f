"""From names and KEY=VALUE texts to environments, memories and their arguments, before anything is built."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import memory
from agents.arguments import check_keys, parse_key_values
from agents.config import closest

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec

MADE_BY_US = frozenset({"render_mode", "input_size"})
"""Arguments that a run fills in itself."""


class Given(dict[str, str]):
    """KEY=VALUE texts of the command line whose types are not known yet; any other dict of arguments has its own."""


def environment_arguments(env_id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `arguments` name, for the environment registered under `env_id`.

    Args:
        env_id: a registered gymnasium id, or "module:id".
        arguments: `Given` texts, or values that have their types.

    Raises:
        ValueError: an unknown id or argument (the closest known one is named), a value of another type, an
            environment whose module cannot be imported.
    """
    from gymnasium.envs.registration import load_env_creator

    spec = environment_spec(env_id)
    if spec.entry_point is None:
        raise ValueError(f"environment {env_id!r} has only a vectorised form; one with an entry point is needed")
    try:
        creator = load_env_creator(spec.entry_point) if isinstance(spec.entry_point, str) else spec.entry_point
    except ImportError as error:
        raise ValueError(f"environment {env_id!r} cannot be imported: {error}; install what it needs") from None
    return _arguments(arguments, creator, env_id, spec.kwargs)


def environment_spec(env_id: str) -> EnvSpec:
    """The registration of an id; ValueError with the closest known id where there is none."""
    import gymnasium

    from envs.registration import import_owner

    module, colon, name = env_id.rpartition(":")
    if colon:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise ValueError(f"the module of environment {env_id!r} cannot be imported: {error}") from None
    import_owner(name)
    if name not in gymnasium.registry:
        raise ValueError(
            f"unknown environment {env_id!r}{closest(name, gymnasium.registry)}; any id registered with gymnasium "
            "works, as module:id where a module must be imported first, and train.py list shows ours"
        )
    return gymnasium.registry[name]


def memory_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that `arguments` name, for the memory registered under `name`; see above."""
    memory.entry(name)
    return _arguments(arguments, memory.memory_class(name), f"memory {name!r}")


def _arguments(
    arguments: Mapping[str, Any], target: Callable[..., Any], name: str, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    if isinstance(arguments, Given):
        return parse_key_values([f"{k}={v}" for k, v in arguments.items()], target, MADE_BY_US, name, extra)
    check_keys(arguments, target, MADE_BY_US, name, extra)
    return dict(arguments)
