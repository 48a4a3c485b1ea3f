"""The fully observed twin: what is shown is the hidden state of that very step, on both faces, ends included."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from faces import same

from palimpsest import envs
from palimpsest.agents.environments import chance_level, longest_horizon
from palimpsest.agents.worlds.vectors import make_environments
from palimpsest.envs.observed import Observed, numbers
from palimpsest.envs.wrappers import FullyObserved

CASES = [
    ("Palimpsest/EndlessTMaze-v0", dict(corridors=2, length=2)),
    ("Palimpsest/RuneTMaze-mixed-v0", dict(length=9)),
    ("Palimpsest/CartPoleNoVel-v0", {}),
    ("Palimpsest/MiniGridMemory-S7-v0", {}),
]


@pytest.mark.parametrize(("env_id", "kwargs"), CASES)
def test_rows_equal_single_environments(env_id, kwargs):
    B = 4
    venv = envs.make_vec(env_id, B, seed=3, fully_observed=True, **kwargs)
    singles = [FullyObserved(gym.make(env_id, **kwargs)) for _ in range(B)]
    assert venv.observation_space == singles[0].observation_space
    obs = venv.reset()
    for i, single in enumerate(singles):
        assert same(_row(obs, i), single.reset(seed=3 + i)[0])
    rng, ended = np.random.default_rng(0), 0
    for _ in range(300):
        actions = rng.integers(venv.action_space.n, size=B)
        obs, rewards, dones, infos = venv.step(actions)
        for i, single in enumerate(singles):
            one, reward, terminated, truncated, info = single.step(int(actions[i]))
            assert np.float32(reward) == rewards[i]
            assert (terminated or truncated) == dones[i]
            if dones[i]:
                ended += 1
                assert same(infos[i]["terminal_observation"], one)
                assert infos[i]["success"] == info["success"]
                assert infos[i]["TimeLimit.truncated"] == truncated
                one, _ = single.reset()
            assert same(_row(obs, i), one)
            assert one in single.observation_space
    assert ended > B


def _row(obs, i):
    return {key: part[i] for key, part in obs.items()} if isinstance(obs, dict) else obs[i]


def test_the_state_is_shown_by_hand():
    hidden = {
        "rng": np.array([7, 8], np.uint64),
        "steps": np.array([3, 4]),
        "cells": np.array([[5], [2**63]], np.uint64),
        "deck": np.array([[1, -1], [2, 0]], np.int8),
        "over": np.array([False, False]),
    }
    shown = numbers(hidden)
    assert shown.dtype == np.float32
    assert shown.shape == (2, 1 + 64 + 2)
    assert shown[0].tolist() == [3, 1, 0, 1, *[0] * 61, 1, -1]
    assert shown[1].tolist() == [4, *[0] * 63, 1, 2, 0]
    observed = Observed(gym.spaces.Box(0, 1, (2,), np.float32), hidden)
    assert observed.join(np.float32([[0, 1]]), shown[:1]).tolist() == [[0, 1, *shown[0].tolist()]]
    with pytest.raises(ValueError, match="must not have the key 'hidden_state' yet"):
        Observed(gym.spaces.Dict({"hidden_state": gym.spaces.Discrete(2)}), hidden)


def test_it_declares_no_need_of_memory_and_continues_from_a_snapshot():
    venv = make_environments("Palimpsest/EndlessTMaze-v0", 3, 0, dict(length=3), fully_observed=True)
    assert chance_level(venv) is longest_horizon(venv) is None
    venv.reset()
    for _ in range(5):
        venv.step(np.zeros(3, np.int64))
    snapshot = venv.snapshot()
    played = [venv.step(np.full(3, action))[0] for action in (0, 1, 0)]
    venv.restore(snapshot)
    for action, obs in zip((0, 1, 0), played, strict=True):
        assert same(venv.step(np.full(3, action))[0], obs)


def test_foreign_environments_have_no_hidden_state():
    with pytest.raises(ValueError, match=r"which only environments of envs.ids\(\) have; got 'CartPole-v1'"):
        envs.make_vec("CartPole-v1", 2, fully_observed=True)
    with pytest.raises(ValueError, match="needs a world with hidden_state"):
        FullyObserved(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="fully_observed must be True or False; got 1"):
        envs.make_vec("Palimpsest/EndlessTMaze-v0", 2, fully_observed=1)
