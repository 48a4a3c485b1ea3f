"""What SB3 tests of learning: to do what is seen, in each kind of action, ninety times of a hundred."""

from __future__ import annotations

import numpy as np
import pytest
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from palimpsest.agents import MemoryPPO

pytestmark = [
    pytest.mark.learning,
    pytest.mark.filterwarnings("ignore:batch_size=64 is less than n_steps", "ignore:Evaluation environment is not"),
]


def mean_reward(env, memory: str, steps: int, seed: int, share_memory: bool = True, **kwargs) -> float:
    """After training with the arguments of SB3's test."""
    venv = DummyVecEnv([lambda: env])
    arguments = dict(n_epochs=4, n_steps=256, batch_size=64, seed=seed, device="cpu")
    policy = dict(memory=memory, share_memory=share_memory)
    model = MemoryPPO("MlpMemoryPolicy", venv, policy_kwargs=policy, **arguments, **kwargs).learn(steps)
    obs = venv.reset()
    assert np.shape(model.predict(obs)[0]) == np.shape(obs)
    return float(evaluate_policy(model, venv, n_eval_episodes=20)[0])


@pytest.mark.parametrize(
    ("env", "memory", "steps"),
    [
        (IdentityEnv, "none", 1200),
        (IdentityEnv, "lstm", 1200),
        (IdentityEnv, "rewrite", 1200),
        (IdentityEnvMultiDiscrete, "rewrite", 1200),
        (IdentityEnvMultiBinary, "rewrite", 2400),
    ],
)
def test_whole_numbers(env, memory, steps):
    """A memory must learn to forget first: twice the steps of SB3's test where actions are several flags."""
    assert mean_reward(env(4), memory, steps, seed=0, gamma=0.4, learning_rate=0.002) >= 90


@pytest.mark.parametrize("memory", ["none", "rewrite"])
def test_numbers(memory):
    """With a memory each for actor and critic, as RecurrentPPO has by default."""
    env = IdentityEnvBox(eps=0.5)
    assert mean_reward(env, memory, 1000, seed=0, share_memory=False, learning_rate=0.001) >= 90
