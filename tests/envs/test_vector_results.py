"""What a VectorEnv hands out belongs to the caller."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

IDS = ("Palimpsest/EndlessTMaze-v0", "Palimpsest/HideAndSeek-v0")


def arrays(results):
    obs, rewards, terminated, truncated, _ = results
    return [*(obs.values() if isinstance(obs, dict) else [obs]), rewards, terminated, truncated]


@pytest.mark.parametrize("env_id", IDS)
def test_what_was_handed_out_stays(env_id):
    env = gym.make_vec(env_id, 16, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(60):
        results = env.step(rng.integers(env.single_action_space.n, size=16))
        kept.append((results, [part.copy() for part in arrays(results)], repr(results[-1])))
    for results, copies, infos in kept:
        assert all(np.array_equal(part, copy) for part, copy in zip(arrays(results), copies))
        assert repr(results[-1]) == infos


@pytest.mark.parametrize("env_id", IDS)
def test_infos_that_are_read_late_tell_of_their_own_step(env_id):
    early, late = (gym.make_vec(env_id, 16, vectorization_mode="vector_entry_point") for _ in range(2))
    rng = np.random.default_rng(0)
    early.reset(seed=0)
    late.reset(seed=0)
    told, unread = [], []
    for _ in range(60):
        action = rng.integers(early.single_action_space.n, size=16)
        told.append(repr(early.step(action)[-1]))
        unread.append(late.step(action)[-1])
    assert any(text != "{}" for text in told)
    assert [repr(infos) for infos in unread] == told


@pytest.mark.parametrize("env_id", IDS)
def test_rows_that_a_partial_reset_leaves_show_where_they_are(env_id):
    env = gym.make_vec(env_id, 6, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    mask = np.arange(6) % 2 == 0
    for _ in range(5):
        before = env.step(np.zeros(6, int))[0]
        expected = arrays((before, *[np.zeros(0)] * 3, {}))[:-3]
        kept = [part[~mask].copy() for part in expected]
        for part in expected:
            part[...] = 0  # it is the caller's own, and the environment does not look at it again
        after = env.reset(options={"reset_mask": mask})[0]
        shown = arrays((after, *[np.zeros(0)] * 3, {}))[:-3]
        assert all(np.array_equal(part[~mask], rest) for part, rest in zip(shown, kept))
