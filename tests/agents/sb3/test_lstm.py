"""What sb3-contrib tests of RecurrentPPO: its LSTM's arguments under our names, and training with them."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from situations import MEMORIES, agent, assert_finite, samples
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv
from stable_baselines3.common.evaluation import evaluate_policy

from palimpsest.agents import MemoryPPO
from palimpsest.memory.recurrent import LSTM

FORMS = {
    "RecurrentPPO's default": (dict(share_memory=False), 1),
    "shared_lstm": (dict(share_memory=True), 1),
    "two layers": (dict(share_memory=False, memory_kwargs=dict(output_size=4, num_layers=2)), 2),
    "shared, two layers": (dict(share_memory=True, memory_kwargs=dict(output_size=4, num_layers=2)), 2),
    "two extractors": (dict(share_memory=False, share_features_extractor=False), 1),
}


class AsDict(gym.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict(obs=env.observation_space)

    def observation(self, observation):
        return {"obs": observation}


class WithoutVelocities(gym.ObservationWrapper):
    """CartPole's position and angle: what moves how fast must be remembered."""

    def __init__(self, env):
        super().__init__(env)
        space = env.observation_space
        self.observation_space = spaces.Box(space.low[::2], space.high[::2])

    def observation(self, observation):
        return observation[::2]


def arguments(form: str) -> dict:
    given, layers = FORMS[form]
    return {"memory_kwargs": dict(output_size=4, num_layers=layers)} | given


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_lstm(form):
    model = agent("Mlp", "CartPole-v1", "lstm", arguments(form)).learn(32)
    memories, (given, layers) = model.policy.memories(), FORMS[form]
    assert len(memories) == (1 if given["share_memory"] else 2)
    assert all(type(memory) is LSTM and memory.num_layers == layers for memory in memories)
    assert_finite(model)


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_lstm_on_images(form):
    env = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3)
    more = {"features_extractor_kwargs": {"features_dim": 8}}
    assert_finite(agent("Cnn", env, "lstm", arguments(form) | more, n_epochs=2).learn(32))


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_lstm_on_dicts(form):
    env = make_vec_env("CartPole-v1", 1, seed=0, wrapper_class=AsDict)
    model = agent("MultiInput", env, "lstm", arguments(form)).learn(32)
    evaluate_policy(model, env, 2, warn=False)
    assert_finite(model)


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("lstm_hidden_size", "output_size"),
        ("n_lstm_layers", "num_layers"),
        ("shared_lstm", "share_memory"),
        ("enable_critic_lstm", "share_memory"),
        ("lstm_kwargs", "memory_kwargs"),
    ],
)
def test_names_of_recurrent_ppo_are_refused_with_ours(name, here):
    with pytest.raises(
        ValueError, match=f"has no argument '{name}', which is RecurrentPPO's; in its place is .*{here}"
    ):
        agent("Mlp", "CartPole-v1", policy_kwargs={name: 1})


def test_dropout_within_a_memory_is_refused():
    """The update reads the rollout again and must see what acting saw."""
    with pytest.raises(ValueError, match="dropout"):
        agent("Mlp", "CartPole-v1", policy_kwargs={"memory_kwargs": {"dropout": 0.5}})


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy", "MlpPolicy"])
def test_names_of_their_policies_are_refused_with_ours(policy):
    with pytest.raises(ValueError, match=r"policy must be one of 'MlpMemoryPolicy'.*got"):
        MemoryPPO(policy, "CartPole-v1")


def test_one_memory_and_two_extractors_are_refused():
    with pytest.raises(ValueError, match="share_memory=False"):
        agent("Mlp", "CartPole-v1", policy_kwargs=dict(share_memory=True, share_features_extractor=False))


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_it_runs(env, memory):
    assert_finite(agent("Mlp", env, memory).learn(32))


@pytest.mark.parametrize("memory", MEMORIES)
def test_it_runs_without_velocities(memory):
    check_env(WithoutVelocities(gym.make("CartPole-v1")), skip_render_check=True)
    model = agent("Mlp", make_vec_env("CartPole-v1", 2, seed=0, wrapper_class=WithoutVelocities), memory).learn(64)
    assert_finite(model)


@pytest.mark.parametrize("memory", MEMORIES)
def test_actions_of_two_dimensions(memory):
    actions = spaces.Box(-1, 1, (2, 2), np.float32)
    model = agent("Mlp", samples(spaces.Box(-1, 1, (10,), np.float32), actions), memory, n_epochs=2).learn(32)
    evaluate_policy(model, model.get_env(), 2, warn=False)
    assert_finite(model)
