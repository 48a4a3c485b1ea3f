"""The rows that an agent of ours is trained and tested in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

import envs
from envs.wrappers import VecPreviousActionReward


def make_environments(
    env_id: str, num_envs: int, seed: int, env_args: Mapping[str, Any], previous_action_reward: bool = False
) -> VecEnv:
    """`envs.make_vec`, with the previous action and reward in the observations where that is asked for.

    Args:
        env_id: a registered gymnasium id.
        num_envs: B, 1 or more.
        seed: row i is reset with seed + i.
        env_args: the environment's arguments.
        previous_action_reward: join them to the observations (`envs.joined.Joined`).

    Raises:
        ValueError: an unknown id, an argument that does not fit, or spaces that they cannot join.
    """
    venv = envs.make_vec(env_id, num_envs, seed=seed, **env_args)
    return VecPreviousActionReward(venv) if previous_action_reward else venv
