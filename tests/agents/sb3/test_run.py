"""What SB3 tests of running PPO: arguments and their refusals, on its environments."""

from __future__ import annotations

import pytest
import torch
from situations import MEMORIES, agent, assert_finite, counters


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_advantages_are_normalised_or_not(normalize_advantage, memory):
    model = agent("Mlp", "CartPole-v1", memory, normalize_advantage=normalize_advantage).learn(32)
    assert_finite(model)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("clip_range_vf", [None, 0.2])
def test_values_are_clipped_or_not(env, clip_range_vf):
    model = agent("Mlp", env, n_epochs=2, clip_range_vf=clip_range_vf).learn(48)
    assert_finite(model)
    assert ("train/clip_range_vf" in model.logger.name_to_value) == (clip_range_vf is not None)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_negative_clip_range_is_refused(env):
    """With a ValueError, where SB3 asserts."""
    with pytest.raises(ValueError, match=r"clip_range_vf must be .*got -0.2"):
        agent("Mlp", env, clip_range_vf=-0.2)


@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_rollouts_of_one_sample(normalize_advantage):
    """SB3 refuses them with normalisation; here a single advantage is left as it is."""
    model = agent("Mlp", "Pendulum-v1", n_steps=1, batch_size=1, normalize_advantage=normalize_advantage).learn(4)
    assert model.num_timesteps == 4
    assert_finite(model)


def test_a_last_minibatch_of_one_sample():
    """SB3 warns of it; here of segments that are shorter than the rollout."""
    with pytest.warns(UserWarning, match="cut into segments of 15 steps"):
        model = agent("Mlp", "Pendulum-v1", n_steps=16, batch_size=15)
    model.learn(16)
    assert_finite(model)


@pytest.mark.parametrize("memory", MEMORIES)
def test_schedules_are_called_with_the_remaining_progress(memory):
    seen = []
    model = agent("Mlp", "CartPole-v1", memory, learning_rate=lambda rest: seen.append(rest) or 1e-3).learn(64)
    assert sorted(set(seen)) == [0, 0.25, 0.5, 0.75, 1]
    assert model.policy.optimizer.param_groups[0]["lr"] == 1e-3


def test_a_batch_of_none_is_the_whole_rollout():
    model = agent("Mlp", counters(2), batch_size=None, n_epochs=3).learn(32)
    assert [batch.actions.shape for batch in model.rollout_buffer.get(None, model.rng)] == [(16, 2)]
    whole = agent("Mlp", counters(2), batch_size=32, n_epochs=3).learn(32)
    for first, second in zip(model.policy.parameters(), whole.policy.parameters()):
        torch.testing.assert_close(first, second, rtol=0, atol=0)
