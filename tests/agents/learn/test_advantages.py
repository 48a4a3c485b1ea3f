"""Advantages equal their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from palimpsest.agents.learn.buffers import MemoryRolloutBuffer, generalized_advantages


def n_step_mixture(rewards, values, starts, last_value, last_done, gamma, lam):
    """GAE of one column as the (1-λ) Σ λ^(n-1) A^(n) mixture of n-step advantages, by its definition."""
    T = len(rewards)
    starts_after = [*starts[1:], last_done]
    values_after = [*values[1:], last_value]
    result = []
    for t in range(T):
        end = next((s for s in range(t, T) if starts_after[s]), None)
        last = T - 1 if end is None else end
        n_step = []
        for n in range(1, last - t + 2):
            total = sum(gamma**i * rewards[t + i] for i in range(n))
            tail = 0.0 if starts_after[t + n - 1] else gamma**n * values_after[t + n - 1]
            n_step.append(total + tail - values[t])
        weights = [(1 - lam) * lam**i for i in range(len(n_step) - 1)] + [lam ** (len(n_step) - 1)]
        result.append(sum(w * a for w, a in zip(weights, n_step)))
    return result


@pytest.mark.parametrize("lam", [0.0, 0.6, 0.95, 1.0])
def test_gae_is_the_mixture_of_n_step_advantages(lam):
    rng = np.random.default_rng(1)
    T, B = 12, 5
    rewards, values = rng.normal(size=(2, T, B)).astype(np.float32)
    starts = rng.random((T, B)) < 0.25
    last_values = rng.normal(size=B).astype(np.float32)
    last_done = np.array([True, False, True, False, False])
    got = generalized_advantages(rewards, values, starts, last_values, last_done, 0.9, lam)
    for b in range(B):
        column = (array[:, b].tolist() for array in (rewards, values, starts))
        want = n_step_mixture(*column, float(last_values[b]), bool(last_done[b]), 0.9, lam)
        np.testing.assert_allclose(got[:, b], want, rtol=1e-4, atol=1e-5)


def filled(rng, **given):
    """A rollout of 12 steps in 5 rows, and the arrays in it: rewards, values, episode starts."""
    T, B = 12, 5
    buffer = MemoryRolloutBuffer(T, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), "cpu", gamma=0.9, n_envs=B, **given)
    rewards, values = rng.normal(size=(2, T, B)).astype(np.float32)
    starts = rng.random((T, B)) < 0.25
    buffer.rewards[:], buffer.episode_starts[:] = rewards, starts
    buffer.columns.old_values[:] = torch.from_numpy(values)
    return buffer, (rewards, values, starts)


@pytest.mark.parametrize(("actor", "critic"), [(0.8, 0.95), (0.95, 0.3), (0.0, 1.0), (0.7, None)])
def test_the_returns_have_the_lambda_of_the_critic(actor, critic):
    rng = np.random.default_rng(2)
    buffer, arrays = filled(rng, gae_lambda=actor, critic_gae_lambda=critic)
    last_values, dones = rng.normal(size=5).astype(np.float32), np.array([True, False, True, False, False])
    buffer.compute_returns_and_advantage(torch.from_numpy(last_values), dones)
    for b in range(5):
        column = [array[:, b].tolist() for array in arrays]
        advantages, of_critic = (
            n_step_mixture(*column, float(last_values[b]), bool(dones[b]), 0.9, lam)
            for lam in (actor, actor if critic is None else critic)
        )
        np.testing.assert_allclose(buffer.advantages[:, b], advantages, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(buffer.returns[:, b], of_critic + arrays[1][:, b], rtol=1e-4, atol=1e-5)
