"""Exploration: how pink noise is distributed and kept up, and how long random actions are repeated."""

from __future__ import annotations

import numpy as np
import pytest

from palimpsest.agents.off_policy.exploration import explored, first_parts, pink


def test_pink_noise_is_normal_in_each_step_and_kept_up_over_many():
    rng = np.random.default_rng(0)
    parts = first_parts(4000, 1, rng)
    noise = np.stack([pink(parts, rng)[:, 0] for _ in range(101)])
    np.testing.assert_allclose(noise[[0, 50, 100]].std(1), 1, atol=0.05)
    np.testing.assert_allclose(noise.mean(), 0, atol=0.05)
    # a part with time constant t keeps exp(-lag / t) of its fifth of the variance
    for lag in (1, 10, 100):
        expected = sum(np.exp(-lag / time) for time in (4, 16, 64, 256)) / 5
        assert (noise[0] * noise[lag]).mean() == pytest.approx(expected, abs=0.07)
    assert abs(np.corrcoef(noise[0, :2000], noise[0, 2000:])[0, 1]) < 0.1


def test_random_actions_are_repeated_as_the_zeta_distribution_says():
    rng, rows, repeated = np.random.default_rng(0), 2000, np.zeros((2, 2000), np.int64)
    begun = []
    for _ in range(30):
        free = repeated[1] == 0
        before = repeated[0].copy()
        actions = explored(np.full(rows, 9), 0.5, 4, 6, repeated, rng)
        begins = free & (actions != 9)
        assert begins[free].mean() == pytest.approx(0.5, abs=0.1)
        begun.extend(repeated[1, begins] + 1)
        # who repeats does so whatever the chance, and the same action
        np.testing.assert_array_equal(actions[~free], before[~free])
        np.testing.assert_array_equal(actions[free & ~begins], 9)
    lengths = np.array(begun)
    assert set(lengths) == set(range(1, 7))
    for n in (1, 2, 3):
        assert (lengths == n).mean() == pytest.approx(6 / np.pi**2 / n**2, abs=0.02)


@pytest.mark.parametrize("chance", [0.0, 0.3, 1.0])
def test_without_repetitions_each_step_draws_anew(chance):
    rng, repeated = np.random.default_rng(0), np.zeros((2, 5000), np.int64)
    first, second = (explored(np.full(5000, 9), chance, 3, 1, repeated, rng) for _ in range(2))
    assert (first != 9).mean() == pytest.approx(chance, abs=0.03)
    assert not repeated[1].any()
    both = (first != 9) & (second != 9)
    if both.any():
        assert (first == second)[both].mean() == pytest.approx(1 / 3, abs=0.05)
