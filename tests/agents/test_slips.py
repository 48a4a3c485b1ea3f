"""Mistakes that are easily made with a policy that remembers are told in words."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small import small_agent, small_policy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from worlds import Counter, Spaces

from palimpsest.agents import MemoryPPO, MlpMemoryPolicy, MultiInputMemoryPolicy

DICT = spaces.Dict(a=spaces.Box(-1, 1, (2,), np.float32), b=spaces.Discrete(3))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_an_algorithm_without_memory_is_refused_with_the_one_to_use(algorithm):
    class Mine(algorithm):
        pass

    for cls in (algorithm, Mine):
        with pytest.raises(ValueError, match=f"{cls.__name__} cannot train .* use palimpsest"):
            cls(MlpMemoryPolicy, Counter(), n_steps=64, policy_kwargs=small_policy("gru"), device="cpu")


def test_a_policy_alone_and_a_subclass_of_ours_are_made():
    class Mine(MemoryPPO):
        pass

    mine = Mine("MlpMemoryPolicy", Counter(), n_steps=8, batch_size=8, policy_kwargs=small_policy("gru"), device="cpu")
    world = Counter()
    policy = MlpMemoryPolicy(world.observation_space, world.action_space, lambda _: 1e-3, **small_policy("gru"))
    assert mine.policy.memory_name == policy.memory_name == "gru"


def test_what_gymnasium_returns_is_not_taken_for_an_observation():
    model = small_agent(Counter())
    world = Counter()
    pair, step = world.reset(), world.step(0)
    for predict in (model.predict, model.policy.predict):
        for given in (pair, step):
            with pytest.raises(ValueError, match=rf"got a tuple of {len(given)}.*obs, info = env\.reset\(\)"):
                predict(given)
        assert predict(pair[0])[0].shape == ()
        assert predict(DummyVecEnv([Counter]).reset())[0].shape == (1,)
    model = MemoryPPO("MultiInputMemoryPolicy", Spaces(DICT, spaces.Discrete(2)), policy_kwargs=small_policy("gru"))
    with pytest.raises(ValueError, match="got a tuple of 2"):
        model.predict(gym.Wrapper(Spaces(DICT, spaces.Discrete(2))).reset())


B, T = 3, 5


def sequence(policy, *shape: int):
    """Observations, actions and flags with these leading dimensions."""
    flat = {key: torch.zeros(*shape, *space.shape) for key, space in _parts(policy.observation_space).items()}
    obs = flat if isinstance(policy.observation_space, spaces.Dict) else flat[""]
    return obs, torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool)


def _parts(space):
    return space.spaces if isinstance(space, spaces.Dict) else {"": space}


@pytest.mark.parametrize("observations", [spaces.Box(-1, 1, (2,), np.float32), DICT], ids=["box", "dict"])
def test_single_steps_are_not_taken_for_sequences(observations):
    cls = MultiInputMemoryPolicy if observations is DICT else MlpMemoryPolicy
    policy = cls(observations, spaces.Discrete(2), lambda _: 1e-3, **small_policy("gru"))
    state = policy.initial_state(B)
    obs, actions, start = sequence(policy, B)
    words = re.escape(f"actions [{B}], start [{B}]. For a single step add the time")
    with pytest.raises(ValueError, match=words):
        policy.evaluate_actions(obs, actions, state, start)
    whole, whole_actions, whole_start = sequence(policy, T, B)
    for wrong in ((obs, whole_actions, whole_start), (whole, actions, whole_start), (whole, whole_actions, start)):
        with pytest.raises(ValueError, match="must be sequences"):
            policy.evaluate_actions(wrong[0], wrong[1], state, wrong[2])
    assert policy.evaluate_actions(whole, whole_actions, state, whole_start).values.shape == (T, B)
    one = policy.evaluate_actions(*(sequence(policy, 1, B)[:2]), state, sequence(policy, 1, B)[2])
    assert one.values.shape == (1, B)
