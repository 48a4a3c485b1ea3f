"""What SB3 tests of spaces: what an agent can observe and do, and the dtypes of its actions."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from situations import MEMORIES, agent, assert_finite, samples
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

BOX = spaces.Box(-1, 1, (2,), np.float32)
DOUBLE = spaces.Box(-1, 1, (2,), np.float64)
SQUARE = spaces.Box(-1, 1, (2, 2), np.float32)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    "space", [spaces.MultiDiscrete([4, 3]), spaces.MultiBinary(8), spaces.MultiBinary((3, 2))], ids=str
)
@pytest.mark.parametrize("actions", [BOX, spaces.Discrete(4)], ids=["box", "discrete"])
def test_whole_numbers_are_observed(space, actions, memory):
    env = samples(space, actions)
    model = agent("Mlp", env, memory, gamma=0.5).learn(32)
    assert_finite(model)
    mean, _ = evaluate_policy(model, env, n_eval_episodes=2, warn=False)
    assert mean == 1 + 2 + 3 + 4 + 5


@pytest.mark.parametrize("use_sde", [False, True])
def test_actions_of_two_dimensions(use_sde):
    """With state-dependent exploration too."""
    model = agent("Mlp", samples(BOX, SQUARE), use_sde=use_sde, sde_sample_freq=2).learn(32)
    assert model.rollout_buffer.actions.shape == (16, 1, 2, 2)
    assert SQUARE.contains(model.predict(BOX.sample())[0])


@pytest.mark.parametrize("memory", MEMORIES)
def test_many_states_are_observed(memory):
    model = agent("Mlp", make_vec_env("FrozenLake-v1", 2, seed=0), memory).learn(64)
    assert_finite(model)
    assert model.predict(np.int64(3))[0].shape == ()


@pytest.mark.parametrize("actions", [BOX, DOUBLE], ids=["float32", "float64"])
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(
    "observations", [BOX, DOUBLE, spaces.Dict(a=BOX, b=BOX), spaces.Dict(a=BOX, b=DOUBLE)], ids=str
)
def test_an_action_has_the_dtype_of_its_space(observations, actions, squash):
    policy = "MultiInput" if isinstance(observations, spaces.Dict) else "Mlp"
    extra = {"use_sde": True, "policy_kwargs": {"squash_output": True}} if squash else {}
    model = agent(policy, samples(observations, actions), **extra).learn(16)
    for deterministic in (False, True):
        action, _ = model.predict(observations.sample(), deterministic=deterministic)
        assert action.dtype == actions.dtype
        assert actions.contains(action)


@pytest.mark.parametrize(
    "actions",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(3), spaces.MultiBinary((2, 3))],
    ids=str,
)
def test_actions_of_whole_numbers_are_in_their_space(actions):
    """Of two dimensions too, which SB3 refuses."""
    model = agent("Mlp", samples(BOX, actions)).learn(16)
    for deterministic in (False, True):
        action, _ = model.predict(BOX.sample(), deterministic=deterministic)
        assert action.shape == actions.shape
        assert actions.contains(action)


def test_spaces_of_other_kinds_are_refused():
    for space in (spaces.Text(4), spaces.Tuple((BOX, BOX)), spaces.Dict(a=spaces.Dict(b=BOX))):
        with pytest.raises(ValueError, match="the observation space must be Box"):
            agent("MultiInput", gym.wrappers.TimeLimit(Plain(space), 5))


class Plain(gym.Env):
    """An environment of which only the spaces are asked."""

    action_space = spaces.Discrete(2)

    def __init__(self, observation_space: spaces.Space) -> None:
        self.observation_space = observation_space
