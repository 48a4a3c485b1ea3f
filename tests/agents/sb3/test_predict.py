"""What SB3 tests of `predict`: wrapping, shapes and devices; and what a memory adds, the state."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from situations import MEMORIES, agent, samples
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import DummyVecEnv

from palimpsest.agents.tree import tree_map


@pytest.mark.parametrize("as_id", [False, True])
def test_an_environment_is_wrapped_in_a_monitor_and_a_vec_env(as_id):
    env = "Pendulum-v1" if as_id else gym.make("Pendulum-v1")
    model = agent("Mlp", env).learn(16)
    assert isinstance(model.get_env(), DummyVecEnv)
    assert model.get_env().env_is_wrapped(Monitor) == [True]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("env_id", ["Pendulum-v1", "CartPole-v1"])
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_actions_of_one_observation_and_of_several(env_id, device, memory):
    model = agent("Mlp", env_id, memory, device=device)
    assert model.policy.device.type == get_device(device).type
    env = gym.make(env_id)
    obs, _ = env.reset(seed=0)
    action, state = model.predict(obs)
    assert isinstance(action, np.ndarray)
    assert action.shape == env.action_space.shape
    assert env.action_space.contains(action)
    rows = make_vec_env(env_id, 3, seed=0)
    actions, states = model.predict(rows.reset())
    assert actions.shape == (3, *env.action_space.shape)
    rows.step(actions)
    for kept, batch in ((state, 1), (states, 3)):
        tree_map(lambda part, batch=batch: part.shape[0] == batch or pytest.fail(f"{part.shape}"), kept)


def test_a_subclass_of_a_space_is_one():
    class OwnBox(spaces.Box):
        pass

    space = OwnBox(-1, 1, (2,), np.float32)
    model = agent("Mlp", samples(space, space)).learn(16)
    assert space.contains(model.predict(space.sample())[0])


def test_what_reset_gives_is_told_apart_from_an_observation():
    env = gym.make("CartPole-v1")
    model = agent("Mlp", env)
    with pytest.raises(ValueError, match=r"unpack it, obs, info = env.reset\(\)"):
        model.predict(env.reset())


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_loop_of_sb3_plays_with_its_memory(memory):
    """The loop of RecurrentPPO's documentation: state and episode_start as they came."""
    model = agent("Mlp", make_vec_env("CartPole-v1", 2, seed=0), memory).learn(32)
    env, begun = model.get_env(), np.ones(2, bool)
    obs, states, ends = env.reset(), None, 0
    for _ in range(60):
        actions, states = model.predict(obs, state=states, episode_start=begun, deterministic=False)
        fresh, _ = model.predict(obs, deterministic=True)
        again, _ = model.predict(obs, state=states, episode_start=np.ones(2, bool), deterministic=True)
        np.testing.assert_array_equal(fresh, again)
        obs, _, begun, _ = env.step(actions)
        ends += begun.sum()
    assert ends > 2


def test_a_row_begins_anew_where_its_episode_does():
    model = agent("Mlp", "Pendulum-v1", "lstm")
    obs = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
    first, state = model.predict(obs, deterministic=True)
    mixed, _ = model.predict(obs, state, np.array([True, False]), deterministic=True)
    later, _ = model.predict(obs, state, np.array([False, False]), deterministic=True)
    np.testing.assert_allclose(mixed[0], first[0], rtol=1e-6)
    np.testing.assert_allclose(mixed[1], later[1], rtol=1e-6)
    assert np.abs(mixed[1] - first[1]) > 1e-5
