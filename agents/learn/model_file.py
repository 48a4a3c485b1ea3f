"""Models as files: what of an algorithm is written, and how it is made again without running any of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import torch
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces, get_device
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch.nn.modules.module import register_module_parameter_registration_hook

from palimpsest.agents.files.archive import CorruptFile, one_line, read_tree, write_tree
from palimpsest.agents.learn.rollout import RememberingAlgorithm

ModelT = TypeVar("ModelT", bound=RememberingAlgorithm)
File = str | Path | BinaryIO

PLACE_IN_ROLLOUT = frozenset(
    {
        "_last_obs",
        "_last_episode_starts",
        "_last_original_obs",
        "_last_state",
        "_last_memory_starts",
        "_last_strategy",
        "_return_so_far",
    }
)
"""Attributes that belong to the environments a model was trained in; without these they mean nothing."""

MOST_TIMES, MOST_MORE = 4, 1_000_000
"""Numbers that making a model may register for each one in the file, and beside them: some are replaced at once."""

REBUILT = frozenset({"policy", "lr_schedule", "_given_up"})
"""Attributes that `_setup_model` makes from the others, or that only matter in the middle of a step."""


def save_model(
    model: RememberingAlgorithm,
    file: File,
    exclude: Iterable[str] | None = None,
    include: Iterable[str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as JSON and safetensors; arguments as those of SB3's `save`, and `extra` entries beside it."""
    left_out = {*model._excluded_save_params(), *PLACE_IN_ROLLOUT, *REBUILT, *(exclude or ())} - set(include or ())
    tree = {name: getattr(model, name) for name in vars(model) if name not in left_out}
    aliases = {cls: name for name, cls in model.policy_aliases.items()}
    tree["policy_class"] = aliases.get(model.policy_class, model.policy_class)
    tree["parameters"] = model.get_parameters()
    normalize = model.get_vec_normalize_env()
    tree["vec_normalize"] = None if normalize is None else normalize_statistics(normalize)
    write_tree(file, tree | dict(extra or {}))


def load_model(
    cls: type[ModelT],
    file: File,
    env: GymEnv | None = None,
    device: torch.device | str = "auto",
    custom_objects: Mapping[str, Any] | None = None,
    force_reset: bool = True,
    extra: Iterable[str] = (),
    **kwargs: Any,
) -> tuple[ModelT, dict[str, Any]]:
    """Make a model from a file, and give back its `extra` entries; other arguments as those of SB3's `load`.

    Statistics of a `VecNormalize` that the model was trained under go into the one around `env`, if there is one.

    Raises:
        CorruptFile: the file is torn, altered, or not one of ours.
        ValueError: a class or function that the file knows by name only, spaces that do not fit.
    """
    tree = read_tree(file, custom_objects, get_device(device))
    if not isinstance(tree, dict) or not {"parameters", "policy_class", "observation_space", "action_space"} <= set(
        tree
    ):
        raise CorruptFile(f"{file} holds no model")
    beside = {name: tree.pop(name, None) for name in extra}
    parameters, statistics = tree.pop("parameters"), tree.pop("vec_normalize", None)
    tree |= {name: value for name, value in (custom_objects or {}).items() if name in tree}
    _check_policy_kwargs(tree, kwargs)
    tree |= kwargs
    if env is not None:
        env = cls._wrap_env(env, tree["verbose"])
        check_for_correct_spaces(env, tree["observation_space"], tree["action_space"])
        tree["n_envs"] = env.num_envs
        normalize = unwrap_vec_normalize(env)
        if normalize is not None and statistics is not None:
            restore_normalize(normalize, statistics)
    # a subclass has defaults for the rest
    model = cls(tree["policy_class"], env, device=device, _init_setup_model=False)  # type: ignore[call-arg, arg-type]
    unknown = set(tree) - set(vars(model)) - {"observation_space", "action_space", "n_envs", "rng"}
    if unknown:
        raise CorruptFile(f"{file} names what a {cls.__name__} does not have: {', '.join(sorted(unknown))}")
    vars(model).update(tree, policy_class=model.policy_class)
    try:
        with _no_larger_than(parameters):
            model._setup_model()
        model.set_parameters(parameters, exact_match=True, device=device)
    except (torch.OutOfMemoryError, MemoryError, OSError, ImportError):
        raise  # the machine is at fault
    except Exception as error:
        if kwargs or custom_objects:
            raise  # the caller's arguments may be at fault
        raise CorruptFile(f"{file} describes no model that can be made: {one_line(error)}") from error
    if (rng := tree.get("rng")) is not None:
        model.rng = rng
    if force_reset:
        model._last_obs = None
    if model.use_sde:
        model.policy.reset_noise()
    return model, beside


@contextmanager
def _no_larger_than(parameters: Any) -> Iterator[None]:
    """Refuse to make modules far larger than the parameters [name -> state dict] that are to be put into them.

    A file of a few bytes can ask for a network that fills the memory. What is refused here has cost one parameter at
    most, and nothing where torch's layers make it, which register parameters before they fill them.
    """
    tensors = [tensor for state in parameters.values() for tensor in state.values() if isinstance(tensor, torch.Tensor)]
    left = MOST_TIMES * sum(tensor.numel() for tensor in tensors) + MOST_MORE

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:
        nonlocal left
        left -= 0 if parameter is None else parameter.numel()
        if left < 0:
            raise ValueError(f"it asks for more parameters than it holds, at {type(module).__name__}.{name}")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _check_policy_kwargs(tree: dict[str, Any], kwargs: dict[str, Any]) -> None:
    if "policy_kwargs" in kwargs and kwargs["policy_kwargs"] != tree["policy_kwargs"]:
        raise ValueError(
            f"policy_kwargs must be those of the file, {tree['policy_kwargs']}; got {kwargs['policy_kwargs']}. "
            "Leave them out"
        )


def normalize_statistics(normalize: VecNormalize) -> dict[str, Any]:
    """The running means, variances and counts of observations (by key where they are a Dict) and returns."""
    obs = getattr(normalize, "obs_rms", None)
    parts = obs if isinstance(obs, dict) else {"": obs} if obs is not None else {}
    moments = {key: (rms.mean, rms.var, rms.count) for key, rms in parts.items()}
    returns = normalize.ret_rms
    return {
        "obs": moments,
        "ret": (returns.mean, returns.var, returns.count),
        "returns": np.array(normalize.returns),
    }


def restore_normalize(normalize: VecNormalize, statistics: dict[str, Any]) -> None:
    """Put `normalize_statistics` back; ValueError where the observations are not the same ones."""
    obs = getattr(normalize, "obs_rms", None)
    parts = obs if isinstance(obs, dict) else {"": obs} if obs is not None else {}
    if set(parts) != set(statistics["obs"]):
        raise ValueError(f"the file has statistics for {sorted(statistics['obs'])}; VecNormalize keeps {sorted(parts)}")
    for key, rms in parts.items():
        rms.mean, rms.var, rms.count = statistics["obs"][key]
    normalize.ret_rms.mean, normalize.ret_rms.var, normalize.ret_rms.count = statistics["ret"]
    if len(statistics["returns"]) == normalize.num_envs:
        normalize.returns = statistics["returns"]
