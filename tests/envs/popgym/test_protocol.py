"""Observations of the published protocol: our wrapper tells what the package's three wrappers tell."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from oracle import ours, theirs, with_fields

from palimpsest.envs.actions import random_actions
from palimpsest.envs.wrappers import PreviousActionReward

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from popgym.wrappers import Antialias, Flatten, PreviousAction


@pytest.mark.parametrize("game", ["RepeatPrevious", "Autoencode", "Battleship", "MineSweeper"])
def test_previous_action_and_antialias(game):
    """The first action of the package is 0, ours is none; its flag is two numbers, ours is one."""
    theirs_env, world = theirs(game, "Easy"), ours(game, "Easy")
    their_env = Flatten(Antialias(PreviousAction(theirs_env)))
    env, rng = PreviousActionReward(world, antialias=True), np.random.default_rng(0)
    size = int(np.sum(getattr(world.action_space, "nvec", getattr(world.action_space, "n", None))))
    for seed in range(10):
        their_obs, _ = their_env.reset(seed=seed)
        obs, _ = env.reset(options={"hidden_state": with_fields(world, copy(game, theirs_env))})
        parts = np.split(their_obs, [-2 - size, -2])
        assert np.array_equal(obs, np.concatenate([parts[0], np.zeros(size), [1, 0]]))
        assert parts[2].tolist() == [0, 1]
        over, steps = False, 0
        while not over:
            action = random_actions(world.action_space, rng, 1)[0]
            their_obs, *_ = their_env.step(action)
            obs, reward, terminated, truncated, _ = env.step(action)
            parts = np.split(their_obs, [-2 - size, -2])
            assert np.array_equal(obs, np.concatenate([*parts[:2], [0, np.float32(reward)]]))
            assert parts[2].tolist() == [1, 0]
            over, steps = terminated or truncated, steps + 1
    assert env.observation_space.shape == (obs.size,)


def copy(game, env):
    if game == "Battleship":
        return {"ship": env.board.ravel() > 0}
    if game == "MineSweeper":
        mine = env.hidden_grid.ravel() == 1
        return {"mine": mine, "left": (~mine).sum()}
    return {"deck": env.deck.suits_idx[env.deck.idx[::-1]]}
