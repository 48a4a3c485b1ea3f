"""What SB3 tests of training and evaluation: layers that differ between the two, as batch normalisation and dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from situations import MEMORIES, agent
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn


class Normalising(BaseFeaturesExtractor):
    """Batch normalisation and dropout."""

    def __init__(self, observation_space):
        super().__init__(observation_space, observation_space.shape[0])
        self.batch_norm, self.dropout = nn.BatchNorm1d(self.features_dim), nn.Dropout(0.5)

    def forward(self, observations):
        return self.dropout(self.batch_norm(observations.flatten(1)))


def model_of(env: str, memory: str):
    return agent("Mlp", env, memory, {"features_extractor_class": Normalising}, learning_rate=0.01)


def statistics(model) -> torch.Tensor:
    norm = model.policy.features_extractor.batch_norm
    return torch.stack([norm.bias.detach(), norm.running_mean, norm.running_var]).clone()


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_training_moves_the_statistics(env, memory):
    model = model_of(env, memory)
    before = statistics(model)
    model.learn(32)
    assert (statistics(model) != before).all()


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_acting_does_not(env, memory):
    model = model_of(env, memory)
    before = statistics(model)
    _, callback = model._setup_learn(total_timesteps=32)
    for _ in range(2):
        model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, n_rollout_steps=model.n_steps)
        assert not model.policy.training
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_predicting_neither_moves_them_nor_drops_anything(env, memory):
    model = model_of(env, memory)
    model.policy.set_training_mode(True)
    before, obs = statistics(model), model.get_env().reset()
    first, state = model.predict(obs, deterministic=True)
    for _ in range(5):
        again, its_state = model.predict(obs, deterministic=True)
        np.testing.assert_array_equal(first, again)
        for part, other in zip(state, its_state):
            np.testing.assert_array_equal(part, other)
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_values_that_bootstrap_are_those_of_evaluation(memory):
    """Two rollouts from one state of the world and of torch's generator give one set of advantages."""
    found = []
    for _ in range(2):
        model = model_of("Pendulum-v1", memory)
        _, callback = model._setup_learn(total_timesteps=16)
        model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, model.n_steps)
        found.append(model.rollout_buffer.advantages.copy())
    np.testing.assert_array_equal(*found)
