"""Whether a saved model, its environments and what was given to `load` fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from palimpsest.agents.files.archive import one_line
from palimpsest.agents.tree import tree_map


def check_environments(model: BaseAlgorithm) -> None:
    """Refuse to train a model without environments."""
    if model.env is None:
        raise ValueError(
            f"{type(model).__name__} has no environment to learn in: give one to load(..., env=env), or call "
            "set_env(env) before learn"
        )


def by_one_name(given: Mapping[str, Any], synonyms: Mapping[str, str]) -> dict[str, Any]:
    """Keywords of which each thing has one name.

    Args:
        given: keywords by name; a synonym with the value None says nothing.
        synonyms: other name -> name.

    Raises:
        ValueError: two names of one thing have different values.
    """
    found = dict(given)
    for other, name in synonyms.items():
        value = found.pop(other, None)
        if value is not None and found.setdefault(name, value) != value:
            raise ValueError(f"{other} and {name} are one number; got {value} and {found[name]}: leave one out")
    return found


def check_policy_kwargs(tree: Mapping[str, Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse other policy_kwargs than the file's."""
    saved = tree.get("policy_kwargs", {})
    if "policy_kwargs" in kwargs and kwargs["policy_kwargs"] != saved:
        raise ValueError(
            f"policy_kwargs must be those of the file, {saved}; got {kwargs['policy_kwargs']}. Leave them out"
        )


def check_spaces(env: VecEnv, tree: Mapping[str, Any]) -> None:
    """Refuse environments of other spaces than the model's."""
    try:
        check_for_correct_spaces(env, tree["observation_space"], tree["action_space"])
    except ValueError as error:
        normalized = unwrap_vec_normalize(env) is not None
        hint = "; VecNormalize turns images into floats: leave it out, or give it norm_obs=False" if normalized else ""
        raise ValueError(f"{one_line(error)} (the model's, then env's){hint}") from None


def check_place(tree: Mapping[str, Any], num_envs: int, label: str) -> None:
    """Refuse to continue in the middle of episodes with another number of environments."""
    starts = tree.get("_last_episode_starts")
    if tree.get("_last_obs") is not None and starts is not None and len(starts) != num_envs:
        raise ValueError(
            f"force_reset=False continues in the {len(starts)} environments of {label!r}; got {num_envs}. Give as "
            "many, or leave force_reset out"
        )


def as_state(fresh: Any, saved: Any, label: str) -> Any:
    """A memory state from a file, with the NamedTuples of a fresh state instead of plain tuples."""

    def same_shape(new: torch.Tensor, old: Any) -> torch.Tensor:
        if not isinstance(old, torch.Tensor) or old.shape != new.shape:
            raise ValueError
        return old

    try:
        return tree_map(same_shape, fresh, saved)
    except (TypeError, ValueError):
        raise ValueError(
            f"{label!r} holds a memory state that does not fit this version's memory; start a new run with "
            "--config, resume it with the version that wrote it, or load the model with force_reset=True"
        ) from None
