"""Ours beside the package `popgym`: the same hidden state, the same actions, step by step."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from palimpsest import envs
from palimpsest.envs.actions import random_actions

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of its own spaces, and of pygame, which it imports
    import popgym.envs

LEVELS = ("Easy", "Medium", "Hard")
Copy = Callable[[Any], dict[str, Any]]
"""From the package's environment after its reset: the fields of our state, without the leading row."""


def ours(game: str, level: str, **kwargs: Any) -> Any:
    """Our world, with the arguments of its id."""
    id = f"Palimpsest/POPGym-{game}-{level}-v0"
    return envs.family(id)(**envs.entry(id).presets | kwargs)


def theirs(game: str, level: str) -> Any:
    """The package's environment."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(popgym.envs, f"{game}{level}")()


def with_fields(world: Any, fields: dict[str, Any]) -> dict[str, np.ndarray]:
    """A hidden state of `world`, of one row, with new values in some fields."""
    world.reset(seed=0)
    hidden = world.hidden_state()
    assert fields.keys() <= hidden.keys()
    for name, value in fields.items():
        hidden[name][0] = value
        assert np.array_equal(hidden[name][0], value), name
    return hidden


def assert_same_episodes(game: str, level: str, copy: Copy, episodes: int, lowest: float = -1) -> list[float]:
    """Play both and compare every observation, reward and end; returns the returns.

    A quarter of the episodes is played at random, the others mostly or wholly as our expert plays. No episode returns
    less than `lowest` or more than 1.
    """
    their_env, flat, plain = theirs(game, level), ours(game, level), ours(game, level, flat=False)
    rng = np.random.default_rng(0)
    returns = []
    for episode in range(episodes):
        skill = (0.0, 0.6, 0.95, 1.0)[episode % 4]
        their_obs, _ = their_env.reset(seed=episode)
        hidden = with_fields(flat, copy(their_env))
        for world in (flat, plain):
            obs, _ = world.reset(options={"hidden_state": hidden})
            assert_same_observation(world, obs, their_env, their_obs)
        total, over = 0.0, False
        while not over:
            action = flat.expert_action() if rng.random() < skill else random_actions(flat.action_space, rng, 1)[0]
            their_obs, their_reward, their_terminated, their_truncated, _ = their_env.step(action)
            for world in (flat, plain):
                obs, reward, terminated, truncated, info = world.step(action)
                assert_same_observation(world, obs, their_env, their_obs)
                assert (reward, terminated) == (their_reward, their_terminated)
                assert truncated == (their_truncated and not their_terminated)
                over = terminated or truncated
                assert (info != {}) == over
            total += reward
        assert lowest - 1e-9 <= total <= 1 + 1e-9
        returns.append(total)
    return returns


def assert_same_observation(world: Any, obs: Any, their_env: Any, their_obs: Any) -> None:
    """Our numbers are those of the package, or the one-hots that gymnasium makes of them."""
    space = their_env.observation_space
    if world.rules.flat:
        assert np.array_equal(obs, gym.spaces.flatten(space, their_obs))
        assert obs.dtype == np.float32
    else:
        assert np.array_equal(np.ravel(obs), np.concatenate([np.ravel(part) for part in parts_of(their_obs)]))


def parts_of(their_obs: Any) -> tuple:
    return their_obs if isinstance(their_obs, tuple) else (their_obs,)


def assert_same_spaces(game: str, level: str) -> None:
    """Observation spaces flat and not, and action spaces. A Tuple of Discrete spaces is a MultiDiscrete of ours."""
    their_env, flat, plain = theirs(game, level), ours(game, level), ours(game, level, flat=False)
    space = their_env.observation_space
    assert flat.observation_space == gym.spaces.Box(0, 1, gym.spaces.flatten_space(space).shape, np.float32)
    if isinstance(space, gym.spaces.Tuple):
        space = gym.spaces.MultiDiscrete([part.n for part in space])
    assert np.array_equal(choices_of(plain.observation_space), choices_of(space))
    assert type(plain.observation_space) is type(space)
    assert flat.action_space == plain.action_space
    assert type(flat.action_space) is type(their_env.action_space)
    assert np.array_equal(choices_of(flat.action_space), choices_of(their_env.action_space))


def choices_of(space: Any) -> Any:
    return space.nvec if isinstance(space, gym.spaces.MultiDiscrete) else space.n


def presets(game: str) -> list[tuple[str, str]]:
    """(game, level) of every id of a game, for `parametrize`."""
    found = [id for id in envs.ids() if re.fullmatch(rf"Palimpsest/POPGym-{game}-\w+-v0", id)]
    assert len(found) == len(LEVELS)
    return [(game, level) for level in LEVELS]


def won(
    world: Any, choose: Callable[[Any, Any], np.ndarray], rows: int, seed: int = 0, **arguments: Any
) -> tuple[float, float]:
    """Success and mean return of the first episodes of `rows` rows, played by `choose(world, obs)` -> [B] actions.

    The rows are those of an id with the rules of `world`, or with `arguments`.
    """
    vector = gym.make_vec(
        next(id for id in envs.ids() if envs.family(id) is type(world)),
        rows,
        vectorization_mode="vector_entry_point",
        **(arguments or world_arguments(world)),
    )
    obs, _ = vector.reset(seed=seed)
    returns, success, running = np.zeros(rows), np.zeros(rows, bool), np.ones(rows, bool)
    while running.any():
        obs, reward, terminated, truncated, infos = vector.step(choose(vector.unwrapped.world, obs))
        returns += reward * running
        ended = (terminated | truncated) & running
        if ended.any():
            success[ended] = infos["final_info"]["success"][ended]
        running &= ~ended
    return float(success.mean()), float(returns.mean())


def world_arguments(world: Any) -> dict[str, Any]:
    """The presets of the id whose rules are those of `world`."""
    for id in envs.ids():
        if envs.family(id) is type(world) and type(world)(**envs.entry(id).presets).rules == world.rules:
            return envs.entry(id).presets
    raise AssertionError("not the rules of an id")
