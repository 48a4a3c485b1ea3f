"""Refusals of the agent's arguments: what was given, what is allowed, what to do."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from palimpsest.agents.environments import environment_spec
from palimpsest.agents.policy.policies import MemoryActorCriticPolicy
from palimpsest.refusals import check_keys, closest

Check = Callable[[str, Any], None]
"""Refuses a value, naming the argument."""

MOST_UNITS = 1 << 16
"""Widest layer, as the command line has it."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Refuse what `MemoryPPO` cannot be made with, before anything is made; names that it does not have are passed."""
    for name, check in ARGUMENTS.items():
        check(name, given[name])


def check_policy_kwargs(policy: type[Any], given: Mapping[str, Any]) -> None:
    """Refuse what a policy cannot be made with."""
    known: dict[str, Any] = {}
    for cls in policy.__mro__:
        parameters = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        by_name = {key: p for key, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        known |= {key: p for key, p in by_name.items() if key not in _BY_US | known}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    for name, value in given.items():
        if name in _BY_US:
            raise ValueError(f"policy_kwargs cannot hold {name!r}: {_BY_US[name]}; leave it out")
        if name not in known:
            raise ValueError(
                f"policy_kwargs: {policy.__name__} has no argument {name!r}{closest(name, known)}; "
                f"allowed: {', '.join(known)}"
            )
        if name in POLICY_ARGUMENTS:
            POLICY_ARGUMENTS[name](name, value)
    if "input_size" in (given.get("memory_kwargs") or {}):
        raise ValueError(
            "memory_kwargs cannot hold 'input_size': it is the width of what the encoder gives; leave it out"
        )
    defaults = {"features_extractor": policy.default_extractor, "optimizer": known["optimizer_class"].default}
    for kind, default in defaults.items():
        target = given.get(f"{kind}_class") or default
        check_keys(f"{kind}_class {target.__name__}", given.get(f"{kind}_kwargs") or {}, target)


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether `value` is a number, not a truth value, from `low` to `high`; NaN is none."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool) and bool(low <= value <= high)


def is_integer(value: Any, low: float, high: float = math.inf) -> bool:
    """Whether `value` is an integer from `low` to `high`."""
    return isinstance(value, int | np.integer) and is_number(value, low, high)


def _refuse(name: str, allowed: str, value: Any) -> None:
    raise ValueError(f"{name} must be {allowed}; got {value!r}")


def _span(low: float, high: float) -> str:
    return f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:,}"


def _number(low: float, high: float = math.inf) -> Check:
    """A finite number, or the bound itself."""

    def check(name: str, value: Any) -> None:
        if not is_number(value, low, high) or math.isinf(value):
            _refuse(name, f"a number, {_span(low, high)}", value)

    return check


def _integer(low: int, high: float = math.inf) -> Check:
    def check(name: str, value: Any) -> None:
        if not is_integer(value, low, high):
            _refuse(name, f"an integer, {_span(low, high)}", value)

    return check


def _optional(inner: Check) -> Check:
    def check(name: str, value: Any) -> None:
        if value is not None:
            try:
                inner(name, value)
            except ValueError as error:
                raise ValueError(str(error).replace("; got", ", or None; got", 1)) from None

    return check


def _schedule(name: str, value: Any) -> None:
    """A number, or a function of the remaining progress that gives one at the beginning."""
    at_first = value
    if callable(value):
        try:
            at_first = value(1.0)
        except Exception as error:  # a stranger's function may raise anything
            raise ValueError(
                f"{name} must be a function of the remaining progress, 1 to 0; it raises {error!r}"
            ) from None
        if not is_number(at_first, 0) or math.isinf(at_first):
            raise ValueError(f"{name} must be a function that gives numbers, 0 or more; at 1.0 it gives {at_first!r}")
    elif not is_number(at_first, 0) or math.isinf(at_first):
        _refuse(name, "a number, 0 or more, or a function of the remaining progress (1 to 0)", value)


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool | np.bool_):
        _refuse(name, "True or False", value)


def _named(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        _refuse(name, "a dict of arguments by name", value)


def _path(name: str, value: Any) -> None:
    if not isinstance(value, str | PathLike) or not str(value).strip() or "\0" in str(value):
        _refuse(name, "a directory's path", value)


def _name(name: str, value: Any) -> None:
    if not isinstance(value, str):
        _refuse(name, "a string", value)


def _class_of(base: type) -> Check:
    def check(name: str, value: Any) -> None:
        if not (isinstance(value, type) and issubclass(value, base)):
            _refuse(name, f"a subclass of {base.__module__.partition('.')[0]}'s {base.__name__}", value)

    return check


def _epsilons(name: str, value: Any) -> None:
    if not isinstance(value, tuple | list) or len(value) != 2 or not all(is_number(part, 0, 1) for part in value):
        _refuse(name, "two numbers, 0 to 1, at the beginning and at the end", value)


def _is_widths(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(is_integer(part, 1, MOST_UNITS) for part in value)


def _widths(name: str, value: Any) -> None:
    if not _is_widths(value):
        _refuse(name, f"a list of layers' widths, integers, 1 to {MOST_UNITS:,}", value)


def _heads(name: str, value: Any) -> None:
    both = isinstance(value, dict) and set(value) <= {"pi", "vf"} and all(map(_is_widths, value.values()))
    if not both and not _is_widths(value):
        _refuse(
            name,
            f"a list of layers' widths, integers, 1 to {MOST_UNITS:,}, or a dict of such lists under 'pi' and 'vf'",
            value,
        )


def _environment(name: str, value: Any) -> None:
    if isinstance(value, str):
        environment_spec(value)
    elif value is not None and not isinstance(value, gym.Env | VecEnv):
        _refuse(
            name, "a gymnasium Env, a VecEnv of stable-baselines3 (envs.make_vec gives one) or a registered id", value
        )


def _device(name: str, value: Any) -> None:
    if not isinstance(value, str | torch.device):
        _refuse(name, "'auto', 'cpu', 'cuda' or 'cuda:N'", value)
    check_device(value)


ARGUMENTS: dict[str, Check] = {
    "env": _environment,
    "learning_rate": _schedule,
    "n_steps": _integer(1, 10**6),
    "batch_size": _integer(1),
    "n_epochs": _integer(1),
    "gamma": _number(0, 1),
    "gae_lambda": _number(0, 1),
    "clip_range": _schedule,
    "clip_range_vf": _optional(_schedule),
    "normalize_advantage": _flag,
    "min_advantage_std": _number(0),
    "ent_coef": _schedule,
    "vf_coef": _number(0),
    "max_grad_norm": _number(0),
    "use_sde": _flag,
    "sde_sample_freq": _integer(-1),
    "target_kl": _optional(_number(0)),
    "memory_carry_over": _number(0, 1),
    "memory_aux_coef": _number(0),
    "strategy_epsilon": _epsilons,
    "stats_window_size": _integer(1),
    "tensorboard_log": _optional(_path),
    "policy_kwargs": _optional(_named),
    "verbose": _integer(0, 2),
    "seed": _optional(_integer(0, 2**32 - 1)),
    "device": _device,
}
"""What each argument of `MemoryPPO` may be; `check_policy` reads the policy."""

POLICY_ARGUMENTS: dict[str, Check] = {
    "memory": _name,
    "memory_kwargs": _optional(_named),
    "share_memory": _flag,
    "encoder_arch": _widths,
    "net_arch": _optional(_heads),
    "activation_fn": _class_of(nn.Module),
    "ortho_init": _flag,
    "log_std_init": _number(-100, 100),
    "full_std": _flag,
    "use_expln": _flag,
    "squash_output": _flag,
    "features_extractor_class": _optional(_class_of(BaseFeaturesExtractor)),
    "features_extractor_kwargs": _optional(_named),
    "share_features_extractor": _flag,
    "normalize_images": _flag,
    "optimizer_class": _class_of(torch.optim.Optimizer),
    "optimizer_kwargs": _optional(_named),
}
"""What each of a policy's own arguments may be."""

_BY_US = {
    "self": "it is no argument",
    "observation_space": "it is the environment's",
    "action_space": "it is the environment's",
    "lr_schedule": "it is MemoryPPO's learning_rate",
    "use_sde": "it is an argument of MemoryPPO",
    "reconstruct": "it follows from MemoryPPO's memory_aux_coef",
}


def check_spaces(observations: spaces.Space, actions: spaces.Space) -> None:
    """Refuse spaces that no policy here reads or acts in."""
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


def check_device(device: torch.device | str) -> torch.device | str:
    """Refuse a device that is not there; `auto` is left to SB3."""
    if device == "auto":
        return device
    try:
        wanted = torch.device(device)
        known = wanted.type in ("cpu", "cuda", "mps")
    except RuntimeError:
        known = False
    if not known:
        raise ValueError(f"unknown device {device!r}; use 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices; "
            "use device='cpu' or 'auto'"
        )
    return wanted


def check_policy(policy: Any, aliases: Mapping[str, type]) -> None:
    """Refuse what is neither a policy's name nor a `MemoryActorCriticPolicy`."""
    if isinstance(policy, str) and policy in aliases:
        return
    if isinstance(policy, type) and issubclass(policy, MemoryActorCriticPolicy):
        return
    raise ValueError(
        f"policy must be one of {', '.join(map(repr, aliases))} or a subclass of MemoryActorCriticPolicy; "
        f"got {policy!r}"
    )
