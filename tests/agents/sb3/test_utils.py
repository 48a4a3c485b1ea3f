"""What SB3 tests of evaluation and of its helpers, with a policy that has a memory."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from situations import MEMORIES, agent, counters, samples
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from worlds import Counter


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_monitor_is_added_once(wrapped):
    env = gym.make("Pendulum-v1")
    model = agent("Mlp", Monitor(env) if wrapped else env)
    assert model.get_env().env_is_wrapped(Monitor) == [True]
    inner = model.get_env().envs[0]
    assert not isinstance(inner.env, Monitor)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("direct", [False, True], ids=["model", "policy"])
def test_a_model_or_its_policy_is_evaluated(direct, memory):
    model = agent("Mlp", counters(1), memory)
    player, seen = model.policy if direct else model, []

    def look(names, _globals):
        assert names["model"] is player
        assert names["new_observations"] is not names["observations"]
        seen.append(names["new_observations"][0, 1])

    env = model.get_env()
    assert evaluate_policy(player, env, 2, callback=look, return_episode_rewards=True) == ([3.0, 3.0], [3, 3])
    assert seen == [1, 2, 0, 1, 2, 0]
    with pytest.raises(AssertionError, match="below threshold"):
        evaluate_policy(player, env, 1, reward_threshold=4.0)
    with pytest.warns(UserWarning, match="not wrapped with a ``Monitor``"):
        evaluate_policy(player, Counter(), 1)


@pytest.mark.parametrize("n_envs", [1, 2, 5, 7])
def test_as_many_episodes_as_asked(n_envs):
    ended = []
    model = agent("Mlp", counters(1))
    evaluate_policy(model, counters(n_envs), 6, callback=lambda names, _: ended.append(names["done"]))
    assert sum(ended) == 6


class NoReward(gym.RewardWrapper):
    def reward(self, reward):
        return reward * 0


class EndsAtOnce(gym.Wrapper):
    """Says after each step that the episode is over, and goes on in it."""

    def __init__(self, env):
        super().__init__(env)
        self.over = True

    def reset(self, **kwargs):
        if self.over:
            self.obs, _ = self.env.reset(**kwargs)
        return self.obs, {}

    def step(self, action):
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.over = terminated or truncated
        return self.obs, reward, True, truncated, info


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("rows", ["one", "dummy", "processes"])
def test_what_a_monitor_saw_is_what_counts(rows):
    model = agent("Mlp", counters(1))

    def evaluated(wrapper, monitored):
        def env():
            return wrapper(Monitor(Counter()) if monitored else Counter())

        if rows == "one":
            made = env()
        else:
            made = DummyVecEnv([env] * 2) if rows == "dummy" else SubprocVecEnv([env] * 2, start_method="fork")
        found = evaluate_policy(model, made, 3, return_episode_rewards=True, warn=False)
        made.close()
        return found

    assert evaluated(gym.Wrapper, True) == ([3.0] * 3, [3] * 3)
    assert evaluated(NoReward, False)[0] == [0.0] * 3
    assert evaluated(NoReward, True)[0] == [3.0] * 3
    assert evaluated(EndsAtOnce, False)[1] == [1] * 3
    assert evaluated(EndsAtOnce, True)[1] == [3] * 3


@pytest.mark.parametrize("memory", ["lstm", "rewrite"])
def test_an_evaluation_is_the_same_in_one_row_and_in_three(memory):
    """A memory is kept row by row."""
    model = agent("Mlp", "Pendulum-v1", memory, policy_kwargs={"ortho_init": False}).learn(32)
    alone = [
        evaluate_policy(model, make_vec_env("Pendulum-v1", 1, seed=seed), 1, return_episode_rewards=True)[0][0]
        for seed in range(3)
    ]
    together, _ = evaluate_policy(model, make_vec_env("Pendulum-v1", 3, seed=0), 3, return_episode_rewards=True)
    np.testing.assert_allclose(sorted(together), sorted(alone), rtol=1e-4)


SPACES = {
    "box": (spaces.Box(-1, 1, (2,)), np.ones(2, np.float32)),
    "number": (spaces.Box(-1, 1, ()), np.ones((), np.float32)),
    "discrete": (spaces.Discrete(2), np.ones((), np.int64)),
    "choices": (spaces.MultiDiscrete([2, 3]), np.ones(2, np.int64)),
    "switches": (spaces.MultiBinary(3), np.ones(3, np.int8)),
    "image": (spaces.Box(0, 255, (3, 32, 32), np.uint8), np.ones((3, 32, 32), np.uint8)),
    "image, channels last": (spaces.Box(0, 255, (3, 32, 32), np.uint8), np.ones((32, 32, 3), np.uint8)),
    "dict": (
        spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(2)),
        {"a": np.ones(2, np.float32), "b": np.ones((), np.int64)},
    ),
}


@pytest.mark.parametrize("case", SPACES)
def test_one_observation_is_told_from_a_batch(case):
    space, one = SPACES[case]
    policy = agent("MultiInput" if case == "dict" else "Mlp", samples(space)).policy
    batch = {key: part[np.newaxis] for key, part in one.items()} if case == "dict" else one[np.newaxis]
    assert not policy.is_vectorized_observation(one)
    assert policy.is_vectorized_observation(batch)
    assert policy.predict(one)[0].shape == ()
    assert policy.predict(batch)[0].shape == (1,)


@pytest.mark.parametrize(
    ("case", "shape"), [("box", (1, 1, 2)), ("box", (3,)), ("discrete", (1, 2)), ("choices", (2, 1)), ("image", (32,))]
)
def test_other_shapes_are_refused(case, shape):
    space, _ = SPACES[case]
    model = agent("Mlp", samples(space))
    with pytest.raises(ValueError, match="shape"):
        model.predict(np.ones(shape, space.dtype))


def test_observations_of_one_kind_in_a_batch_and_another_alone_are_refused():
    space, one = SPACES["dict"]
    model = agent("MultiInput", samples(space))
    with pytest.raises(ValueError, match=r"as many rows.*got \{'a': 3, 'b': 1\}"):
        model.predict({"a": np.ones((3, 2), np.float32), "b": one["b"]})
