"""What SB3 tests of state-dependent exploration."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from situations import MEMORIES, agent, assert_finite


class Actions(gym.Wrapper):
    """Keeps the actions that arrive."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.taken: list[np.ndarray] = []

    def step(self, action):
        self.taken.append(action)
        return super().step(action)


def test_it_needs_actions_of_a_box():
    with pytest.raises(ValueError, match="only be used with continuous actions"):
        agent("Mlp", "CartPole-v1", use_sde=True)


def test_squashed_actions_need_it():
    with pytest.raises((ValueError, AssertionError), match="use_sde=True"):
        agent("Mlp", "Pendulum-v1", policy_kwargs={"squash_output": True})


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("use_expln", [False, True])
@pytest.mark.parametrize("squash_output", [False, True])
def test_noise_that_depends_on_the_state(use_expln, squash_output, memory):
    env = Actions(gym.make("Pendulum-v1"))
    arguments = dict(log_std_init=-2, use_expln=use_expln, squash_output=squash_output)
    model = agent("Mlp", env, memory, arguments, use_sde=True, sde_sample_freq=4, clip_range_vf=0.1).learn(48)
    assert_finite(model)
    stored, taken = model.rollout_buffer.actions[:, 0], np.stack(env.taken)[-16:]
    if squash_output:
        assert np.abs(stored).max() < 1
        np.testing.assert_allclose(taken, 2 * stored, rtol=1e-5)
    else:
        np.testing.assert_allclose(taken, stored.clip(-2, 2), rtol=1e-6)
    model.policy.reset_noise()
    assert model.predict(env.observation_space.sample())[0].shape == (1,)


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_noise_stays_until_it_is_drawn_anew(memory):
    model = agent("Mlp", "Pendulum-v1", memory, use_sde=True)
    obs = np.zeros(3, np.float32)
    first, again = (model.predict(obs)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    model.policy.reset_noise()
    assert (model.predict(obs)[0] != first).all()


def test_the_gradient_is_that_of_a_normal_distribution_of_actions():
    """That of log p with respect to σ is (noise² - σ²) / σ³, and σ² = Σ latent² deviation²."""
    policy = agent("Mlp", "Pendulum-v1", policy_kwargs={"log_std_init": -1.0}, use_sde=True).policy
    distribution = policy.action_dist
    latent = torch.rand(1, policy.log_std.shape[0])
    mean, log_std = torch.zeros(1, 1), torch.full_like(policy.log_std, -1.0).requires_grad_()
    distribution.proba_distribution(mean, log_std, latent)
    action = torch.tensor([[0.3]])
    (found,) = torch.autograd.grad(distribution.log_prob(action).sum(), log_std)
    deviations = log_std.detach().exp()
    variance = latent.square() @ deviations.square() + 1e-6
    sigma = variance.sqrt()
    wanted = (action.square() - variance) / sigma**3 * (latent.square().T * deviations.square()) / sigma
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
