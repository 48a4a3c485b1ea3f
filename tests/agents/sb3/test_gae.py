"""What SB3 tests of advantages: by hand where values are constant, and over episodes that only a limit ends."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from situations import MEMORIES, agent
from stable_baselines3.common.callbacks import BaseCallback

from palimpsest.agents import MlpMemoryPolicy

STEPS = 8


class RewardAtEnd(gym.Env):
    """Eight steps, the last of which gives 1."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == STEPS
        return self.observation_space.sample(), float(over), over, False, {}


class Endless(gym.Env):
    """Four states in a ring and a reward of 1 at every step."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        self.state = (self.state + 1) % 4
        return self.state, 1.0, False, False, {}


class ConstantValue(MlpMemoryPolicy):
    """A critic that says the same of everything."""

    value = 0.0

    def forward(self, *args, **kwargs):
        actions, values, log_prob, state = super().forward(*args, **kwargs)
        return actions, torch.full_like(values, self.value), log_prob, state


class ByHand(BaseCallback):
    """Compares the rollout's advantages with sums over each episode, written out."""

    rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model, value = self.model, self.model.policy.value
        decay = model.gamma * model.gae_lambda
        deltas = [(model.gamma - 1) * value] * (STEPS - 1) + [1 - value]
        episode = [sum(decay**k * delta for k, delta in enumerate(deltas[t:])) for t in range(STEPS)]
        buffer = model.rollout_buffer
        expected = np.tile(episode, buffer.size() // STEPS)
        np.testing.assert_allclose(buffer.advantages.flatten(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(buffer.returns.flatten(), expected + value, rtol=1e-5, atol=1e-6)
        assert buffer.episode_starts.flatten().tolist() == ([True] + [False] * (STEPS - 1)) * (len(expected) // STEPS)
        self.rollouts += 1


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("gae_lambda", [1.0, 0.9])
@pytest.mark.parametrize("gamma", [1.0, 0.99])
@pytest.mark.parametrize("episodes", [1, 3])
def test_advantages_of_constant_values(gae_lambda, gamma, episodes, memory):
    n_steps = STEPS * episodes
    model = agent(
        ConstantValue, RewardAtEnd(), memory, n_steps=n_steps, batch_size=n_steps, gamma=gamma, gae_lambda=gae_lambda
    )
    compared = ByHand()
    model.learn(n_steps, compared)
    model.policy.value = 1.0
    model.learn(n_steps, compared)
    assert compared.rollouts == 2


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_an_episode_that_a_limit_ends_has_the_value_of_an_endless_one(memory):
    """Five, as 1 is earned at each step and γ is 0.8; without the value of what follows the limit it would be 4.2."""
    env = gym.wrappers.TimeLimit(Endless(), STEPS)
    model = agent("Mlp", env, memory, gamma=0.8, learning_rate=0.02, n_steps=32, batch_size=32, n_epochs=8).learn(480)
    obs, _ = model.policy.obs_to_tensor(np.array([0]))
    value = model.policy.predict_values(obs, model.policy.initial_state(1)).item()
    assert value == pytest.approx(5, abs=0.4)
