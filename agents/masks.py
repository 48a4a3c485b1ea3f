"""Action masks: what an environment allows at its next step. They are found, read and checked here.

An environment tells them in a method `action_masks()`, as for sb3-contrib's MaskablePPO. It returns booleans, flat over
all choices, true for what is allowed:

    Discrete       [n]
    MultiDiscrete  [sum of n_i], one choice after the other
    MultiBinary    [2 n], of each switch first 0, then 1

Importing this module imports neither torch nor stable-baselines3.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from palimpsest.agents.environments import declares

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv

METHOD = "action_masks"


def is_masking_supported(env: gym.Env | VecEnv) -> bool:
    """Whether an environment, or every row of a VecEnv, has `action_masks()`.

    Raises:
        ValueError: some rows have it and others do not.
    """
    if isinstance(env, gym.Env):
        return env.has_wrapper_attr(METHOD)
    if declares(env, METHOD):
        return True
    try:
        having = list(env.env_method("has_wrapper_attr", METHOD))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return False  # a VecEnv without rows that can be asked
    if any(having):
        raise ValueError(
            f"every row must have {METHOD}(), or none; rows {np.flatnonzero(~np.array(having, bool)).tolist()} have "
            "none: add it to them, or train and evaluate with use_masking=False"
        )
    return False


def warn_of_masks(env: VecEnv, algorithm: str) -> None:
    """Warn that an algorithm does not obey the masks of an environment that has some."""
    try:
        has = is_masking_supported(env)
    except ValueError:
        has = True  # some rows have them
    if has:
        warnings.warn(
            f"{algorithm} does not obey the environment's {METHOD}(), and takes actions that it forbids; MemoryPPO "
            "obeys them",
            stacklevel=4,
        )


def get_action_masks(env: gym.Env | VecEnv, step: int | None = None) -> np.ndarray:
    """What an environment allows at its next step.

    Args:
        env: with `action_masks()`.
        step: steps so far, for messages.

    Returns:
        [n] bool of a gymnasium Env, [B, n] bool of a VecEnv.

    Raises:
        ValueError: masks that do not fit the action space, or a row in which nothing is allowed.
    """
    if isinstance(env, gym.Env):
        return checked_masks(env.get_wrapper_attr(METHOD)(), env.action_space, 1, step)[0]
    return checked_masks(env.env_method(METHOD), env.action_space, env.num_envs, step)


def checked_masks(masks: Any, space: spaces.Space, rows: int, step: int | None = None) -> np.ndarray:
    """Masks as an array [B, n] bool.

    Args:
        masks: B rows of n booleans, or of zeros and ones; of a single row n are enough.
        space: of the actions.
        rows: B.
        step: steps so far, for messages.

    Raises:
        ValueError: another shape or other values, a row in which nothing is allowed, or a space without masks.
    """
    sizes = mask_sizes(space)
    n, when = sum(sizes), "" if step is None else f" at step {step}"
    try:
        array = np.asarray(masks)
    except ValueError:
        raise ValueError(
            f"action masks must have {n} booleans in each row; got rows of {[np.size(row) for row in masks]}{when}"
        ) from None
    if array.size != rows * n or (rows != 1 and array.shape[0] != rows):
        raise ValueError(
            f"action masks must be [{rows}, {n}] for {space}, flat over all choices; got {list(array.shape)}{when}"
        )
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(f"action masks must be booleans, true for what is allowed; got {array.dtype} values{when}")
    array = array.astype(bool, copy=False).reshape(rows, n)
    possible = np.logical_or.reduceat(array, np.cumsum([0, *sizes[:-1]]), axis=1)
    if not possible.all():
        row, choice = np.argwhere(~possible)[0].tolist()
        where = f"row {row}" if len(sizes) == 1 else f"choice {choice} of row {row}"
        raise ValueError(
            f"action masks allow nothing in {where}{when}; at least one action must be allowed: end the episode where "
            "there is none"
        )
    return array


def mask_sizes(space: spaces.Space) -> list[int]:
    """How many values each choice of an action has, in the order of a mask; ValueError for a Box."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.reshape(-1).tolist()
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    raise ValueError(
        f"action masks need Discrete, MultiDiscrete or MultiBinary actions; got {space}: use_masking=False leaves the "
        "environment's out"
    )
