"""What SB3 tests of Dict observations: images, numbers and categories at once, in every wrapper."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from situations import MEMORIES, agent, assert_finite, samples
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecExtractDictObs, VecFrameStack, VecNormalize
from worlds import Spaces

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)
SMALL_CNN = {"features_extractor_kwargs": {"cnn_output_dim": 4}}


def mixed(channels_last: bool) -> spaces.Dict:
    image = spaces.Box(0, 255, (36, 36, 1) if channels_last else (1, 36, 36), np.uint8)
    return spaces.Dict(image=image, vector=VECTOR, category=spaces.Discrete(4))


@pytest.mark.parametrize("policy", ["Mlp", "Cnn"])
def test_a_policy_of_one_array_names_the_right_one(policy):
    with pytest.raises(ValueError, match="use MultiInputMemoryPolicy"):
        agent(policy, BitFlippingEnv(n_bits=4))


@pytest.mark.parametrize("policy", ["Mlp", "Cnn"])
def test_a_policy_of_dicts_names_the_right_ones(policy):
    with pytest.raises(ValueError, match="Use MlpMemoryPolicy or CnnMemoryPolicy"):
        agent("MultiInput", samples(VECTOR))


@pytest.mark.parametrize("memory", MEMORIES)
def test_goals_are_keys_like_others(memory):
    model = agent("MultiInput", BitFlippingEnv(n_bits=4), memory).learn(48)
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=2)
    assert -5 <= mean <= 0


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_dict_of_one_array_learns_as_the_array_does(memory):
    """To the bit: the same network, the same numbers drawn."""
    obs = {"vector": np.array([0.3, -0.7], np.float32)}
    played = []
    for policy in ("MultiInput", "Mlp"):
        env: gym.Env = Spaces(spaces.Dict(vector=VECTOR), ACTIONS)
        model = agent(policy, env if policy == "MultiInput" else gym.wrappers.FlattenObservation(env), memory)
        given = obs if policy == "MultiInput" else obs["vector"]
        before, _ = model.predict(given, deterministic=True)
        model.learn(32)
        played.append([before, model.predict(given, deterministic=True)[0]])
    np.testing.assert_array_equal(*played)
    assert (played[0][0] != played[0][1]).all()


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_images_numbers_and_categories(channels_last, memory):
    env = Spaces(mixed(channels_last), ACTIONS)
    model = agent("MultiInput", env, memory, SMALL_CNN).learn(32)
    assert_finite(model)
    assert model.observation_space["image"].shape == (1, 36, 36)
    evaluate_policy(model, env, n_eval_episodes=1, warn=False)
    action, _ = model.predict(env.observation_space.sample(), deterministic=True)
    assert ACTIONS.contains(action)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_rows_in_processes():
    env = SubprocVecEnv([lambda: Spaces(mixed(False), ACTIONS)] * 2, start_method="fork")
    model = agent("MultiInput", env, policy_kwargs=SMALL_CNN).learn(32)
    env.close()
    assert_finite(model)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_stacked_frames(channels_last, memory):
    def env() -> gym.Env:
        return SimpleMultiObsEnv(random_start=True, discrete_actions=False, channel_last=channels_last)

    venv = VecFrameStack(DummyVecEnv([env]), 3, {"vec": None, "img": "last" if channels_last else "first"})
    model = agent("MultiInput", venv, memory, SMALL_CNN).learn(32)
    assert_finite(model)
    evaluate_policy(model, venv, n_eval_episodes=1, warn=False)


def test_chosen_keys_are_normalised():
    venv = VecNormalize(samples(mixed(False), ACTIONS), norm_obs_keys=["vector"])
    model = agent("MultiInput", venv, policy_kwargs=SMALL_CNN).learn(32)
    assert_finite(model)
    evaluate_policy(model, venv, n_eval_episodes=1, warn=False)


def test_a_normalised_image_is_a_box_of_floats():
    venv = VecNormalize(samples(mixed(False), ACTIONS), norm_obs_keys=["image"])
    model = agent("MultiInput", venv, policy_kwargs=SMALL_CNN).learn(16)
    assert model.observation_space["image"].dtype == np.float32
    assert_finite(model)


def test_a_dict_in_a_dict_is_refused():
    """With a ValueError and the remedy, where SB3 raises NotImplementedError."""
    nested = spaces.Dict(vector=VECTOR, more=spaces.Dict(category=spaces.Discrete(4)))
    with pytest.raises(ValueError, match=r"or a Dict of them.*FlattenObservation"):
        agent("MultiInput", Spaces(nested, ACTIONS))


def test_one_key_of_a_dict():
    model = agent("Mlp", VecExtractDictObs(samples(mixed(False), ACTIONS, 2), "vector")).learn(32)
    assert model.observation_space == VECTOR
    assert_finite(model)
