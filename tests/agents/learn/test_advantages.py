"""Advantages equal their definition."""

from __future__ import annotations

import functools

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from palimpsest.agents import MemoryPPO
from palimpsest.agents.advantages import (
    CHOICES,
    LATEST,
    TRUSTED,
    _slope,
    averaged,
    chosen_lambda,
    generalized_advantages,
    slope_of_noise,
    slopes_of,
)
from palimpsest.agents.learn.buffers import MemoryRolloutBuffer


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


def filled(rng, size=1.0, **given):
    """A rollout of 12 steps in 5 rows, and the arrays in it: rewards, values of this size, episode starts."""
    T, B = 12, 5
    buffer = MemoryRolloutBuffer(T, spaces.Box(-1, 1, (1,)), spaces.Discrete(2), "cpu", gamma=0.9, n_envs=B, **given)
    rewards, values = rng.normal(size=(2, T, B)).astype(np.float32)
    values *= size
    starts = rng.random((T, B)) < 0.25
    buffer.rewards[:], buffer.episode_starts[:] = rewards, starts
    buffer.columns.old_values[:] = torch.from_numpy(values)
    return buffer, (rewards, values, starts)


def expected_choice(rollouts, smallest, largest):
    """λ by its definition: numpy's regressions over columns that the definition of GAE gives, and sums for noise.

    `rollouts` are (arrays, last_values, dones) of those before the one that λ is for.
    """

    def estimate(lam, arrays, last_values, dones):
        columns = [[array[:, b].tolist() for array in arrays] for b in range(arrays[0].shape[1])]
        ends = zip(last_values.tolist(), dones.tolist())
        return np.ravel([n_step_mixture(*column, *end, 0.9, lam) for column, end in zip(columns, ends)])

    powers = np.arange(2000)
    for i in range(CHOICES if rollouts else 0):
        lam = smallest + i * (largest - smallest) / CHOICES
        noise = np.sum((0.81 * lam * largest) ** powers) / np.sum((0.9 * lam) ** (2 * powers))
        slopes = [np.polyfit(estimate(lam, *each), estimate(largest, *each), 1)[0] / noise for each in rollouts]
        average = slopes[0]
        for slope in slopes[1:]:
            average = (1 - LATEST) * average + LATEST * slope
        if average <= TRUSTED:
            return lam
    return largest


@pytest.mark.parametrize(("smallest", "largest"), [(0.7, 0.95), (0.0, 1.0), (0.5, 0.8)])
def test_the_actor_has_the_smallest_lambda_that_is_trusted_and_the_critic_the_largest(smallest, largest):
    choices, rollouts, slopes = set(), [], []
    for seed in range(24):
        if seed % 3 == 0:
            rollouts, slopes = [], []
        rng = np.random.default_rng(seed)
        buffer, arrays = filled(rng, seed / 80, gae_lambda=largest, min_gae_lambda=smallest, gae_slopes=slopes)
        last_values, dones = rng.normal(size=5).astype(np.float32), np.array([True, False, True, False, False])
        buffer.compute_returns_and_advantage(torch.from_numpy(last_values), dones)
        lam = expected_choice(rollouts, smallest, largest)
        choices.add(round(lam, 3))
        assert buffer.chosen_gae_lambda == pytest.approx(lam)
        rollouts.append((arrays, last_values, dones))
        slopes = averaged(slopes, buffer.found_slopes)
        for b in range(5):
            column = [array[:, b].tolist() for array in arrays]
            advantages, longest = (
                n_step_mixture(*column, float(last_values[b]), bool(dones[b]), 0.9, each) for each in (lam, largest)
            )
            np.testing.assert_allclose(buffer.advantages[:, b], advantages, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(buffer.returns[:, b], longest + arrays[1][:, b], rtol=1e-4, atol=1e-5)
    assert len(choices) > 1


def rollout_of(errors, smallest=0.7):
    """λ that a long rollout chooses for TD errors [T, B], and the slope at `smallest` in units of noise."""
    zeros = np.zeros_like(errors)
    estimate = functools.partial(
        generalized_advantages,
        *(errors, zeros, zeros.astype(bool), zeros[0], zeros[0].astype(bool), 0.99),
    )
    slope = np.polyfit(estimate(smallest).ravel(), estimate(0.95).ravel(), 1)[0]
    chosen = chosen_lambda(smallest, 0.95, slopes_of(estimate, smallest, 0.95, 0.99))
    return chosen, slope / slope_of_noise(smallest, 0.95, 0.99)


def test_errors_that_go_on_need_a_long_lambda_and_those_that_are_taken_back_a_short_one():
    noise = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)
    assert rollout_of(noise)[1] == pytest.approx(1, abs=0.02)
    assert rollout_of(noise)[0] == 0.95
    assert rollout_of(noise[1:] + 0.9 * noise[:-1])[0] == 0.95
    assert rollout_of(noise[1:] - 0.5 * noise[:-1])[0] == 0.7


@pytest.mark.parametrize(("smallest", "largest"), [(None, 0.9), (0.9, 0.9), (1.0, 0.9)])
def test_one_lambda_is_that_of_sb3(smallest, largest):
    buffer, arrays = filled(np.random.default_rng(3), gae_lambda=largest, min_gae_lambda=smallest)
    buffer.compute_returns_and_advantage(torch.zeros(5), np.zeros(5, dtype=bool))
    assert buffer.chosen_gae_lambda == largest
    np.testing.assert_array_equal(buffer.returns, buffer.advantages + arrays[1])


def test_advantages_that_are_all_the_same_tell_nothing():
    zeros = np.zeros((4, 2), np.float32)
    found = slopes_of(lambda lam: zeros, 0.5, 0.9, 0.99)
    assert np.isnan(found).all()
    assert averaged([], found) == []
    before = [0.95, 0.92, 0.89, 0.95, 0.95]
    assert averaged(before, found) == before
    assert chosen_lambda(0.5, 0.9, before) == pytest.approx(0.66)
    assert chosen_lambda(0.5, 0.9, []) == 0.9


def test_rollouts_without_differences_do_not_count():
    env = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
    given = dict(n_steps=32, batch_size=64, n_epochs=1, policy_kwargs=dict(memory="gru"), seed=0, device="cpu")
    model = MemoryPPO("MlpMemoryPolicy", env, min_gae_lambda=0.5, min_advantage_std=100.0, **given)
    model.learn(128)
    assert len(model.rollout_buffer.found_slopes) == CHOICES
    assert model.gae_slopes == []


def test_a_file_and_a_continued_training_keep_the_averages(tmp_path):
    env = DummyVecEnv([lambda: gymnasium.make("CartPole-v1")] * 2)
    given = dict(n_steps=32, batch_size=64, n_epochs=1, policy_kwargs=dict(memory="gru"), seed=0, device="cpu")
    model = MemoryPPO("MlpMemoryPolicy", env, min_gae_lambda=0.5, **given)
    model.learn(128)
    assert len(model.gae_slopes) == CHOICES
    assert model.rollout_buffer.gae_slopes is model.gae_slopes
    model.save(tmp_path / "model")
    loaded = MemoryPPO.load(tmp_path / "model", env)
    assert loaded.gae_slopes == model.gae_slopes
    loaded.learn(64, reset_num_timesteps=False)
    assert loaded.gae_slopes != model.gae_slopes
    assert loaded.rollout_buffer.gae_slopes is loaded.gae_slopes


def test_workers_choose_by_the_whole():
    errors = np.random.default_rng(4).normal(size=(64, 4)).astype(np.float32)
    estimates = [
        functools.partial(
            generalized_advantages,
            *(part, 0 * part, np.zeros_like(part, bool), 0 * part[0], np.zeros_like(part[0], bool), 0.99),
        )
        for part in (errors, errors[:, :1], errors[:, 1:])
    ]
    slopes = [_slope(each(0.9), each(0.5), lambda sums: sums) for each in estimates]
    of_parts: list[np.ndarray] = []
    for each in estimates[1:]:
        _slope(each(0.9), each(0.5), lambda sums: of_parts.append(sums) or sums)
    assert _slope(estimates[1](0.9), estimates[1](0.5), lambda sums: sum(of_parts)) == pytest.approx(slopes[0])
    assert slopes[1] != pytest.approx(slopes[0])
