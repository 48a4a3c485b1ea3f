"""What SB3 tests of seeds: the same one gives the same training, and the same play after it."""

from __future__ import annotations

import numpy as np
import pytest
from situations import MEMORIES, agent


def trained_and_played(memory: str, **kwargs) -> tuple[np.ndarray, np.ndarray]:
    model = agent("Mlp", "Pendulum-v1", memory, n_epochs=2, learning_rate=1e-3, **kwargs).learn(64)
    env = model.get_env()
    obs, states, begun, actions, rewards = env.reset(), None, None, [], []
    for _ in range(40):
        action, states = model.predict(obs, state=states, episode_start=begun, deterministic=False)
        obs, reward, begun, _ = env.step(action)
        actions.append(action)
        rewards.append(reward)
    return np.stack(actions), np.stack(rewards)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    "more", [{}, dict(use_sde=True), dict(memory_carry_over=0.5), dict(sequence_length=4)], ids=str
)
def test_one_seed_one_training(more, memory):
    first, again = trained_and_played(memory, **more), trained_and_played(memory, **more)
    for one, other in zip(first, again):
        np.testing.assert_array_equal(one, other)
    assert (trained_and_played(memory, **{**more, "seed": 1})[0] != first[0]).any()
