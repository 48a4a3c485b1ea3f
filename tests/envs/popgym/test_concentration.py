"""Concentration: equal to the package; a perfect memory wins; two colours can be paired without any."""

from __future__ import annotations

import numpy as np
import pytest
from oracle import (
    assert_same_episodes,
    assert_same_observation,
    assert_same_spaces,
    ours,
    presets,
    theirs,
    with_fields,
    won,
)

EVERY = pytest.mark.parametrize(("game", "level"), presets("Concentration"))


def copy(env):
    return {"deck": env.deck_idx_type[env.deck.idx]}


@EVERY
def test_equals_the_package(game, level):
    """Cards face up and cards twice are chosen as well: an expert and a random player hardly do."""
    assert_same_spaces(game, level)
    returns = assert_same_episodes(game, level, copy, 160 if level == "Easy" else 80)
    assert min(returns[3::4]) > 0.55
    assert max(returns[::4]) < 0.5


@EVERY
def test_attempts_that_fail_at_once(game, level):
    """The same card twice, and cards that lie face up: both first and second in an attempt."""

    def clumsy(env, rng):
        up = env.deck["face_up_idx"]
        waiting = env.deck["in_play_idx"]
        chance = rng.random()
        if waiting and chance < 0.3:
            return waiting[0]
        return int(rng.choice(up)) if up and chance < 0.5 else None

    env, world, rng = theirs(game, level), ours(game, level), np.random.default_rng(1)
    for seed in range(40):
        env.reset(seed=seed)
        world.reset(options={"hidden_state": with_fields(world, copy(env))})
        over = False
        while not over:
            action = clumsy(env, rng)
            action = world.expert_action() if action is None else action
            their_obs, *theirs_rest, _ = env.step(action)
            obs, reward, terminated, truncated, _ = world.step(action)
            assert_same_observation(world, obs, env, their_obs)
            assert (reward, terminated) == tuple(theirs_rest[:2])
            assert truncated == (theirs_rest[2] and not terminated)
            over = terminated or truncated


@pytest.mark.parametrize(("level", "mean"), [("Easy", 0.81), ("Medium", 0.81), ("Hard", 0.70)])
def test_a_perfect_memory_wins(level, mean):
    world = ours("Concentration", level)
    assert won(world, lambda world, obs: world.expert(), 1000) == (1, pytest.approx(mean, abs=0.01))


def test_the_expert_looks_only_at_cards_that_it_has_seen():
    """Cards that were not seen yet change places: the expert's choice stays."""
    world, rng = ours("Concentration", "Hard"), np.random.default_rng(0)
    world.reset(seed=0)
    over = False
    while not over:
        action = world.expert_action()
        hidden = np.flatnonzero(~world.state.seen[0])
        world.state.deck[0, hidden] = world.state.deck[0, rng.permutation(hidden)]
        assert world.expert_action() == action
        *_, terminated, truncated, _ = world.step(action)
        over = terminated or truncated


def three_lowest(world, obs):
    """By the observation alone: two of the three lowest cards that are face down, in an order that it shows."""
    up = world.numbers(obs) != world.rules.kinds
    order = np.argsort(up, axis=1, kind="stable")
    highest = up.shape[1] - 1 - up[:, ::-1].argmax(1)
    holes = np.where(up.any(1), highest + 1 - up.sum(1), 0)
    lowest = (up.sum(1) % 2 == 0) | (holes == 1) | (up.sum(1) == up.shape[1] - 1)
    return np.where(lowest, order[:, 0], order[:, 1])


@pytest.mark.parametrize("level", ["Easy", "Medium"])
def test_two_colours_are_paired_without_memory(level):
    world = ours("Concentration", level)
    success, mean = won(world, three_lowest, 2000)
    assert success == pytest.approx(world.chance_level(), abs=0.015)
    assert mean == pytest.approx(0.64, abs=0.01)


@EVERY
def test_turning_over_hidden_cards_at_random(game, level):
    rng = np.random.default_rng(0)

    def choose(world, obs):
        hidden = world.numbers(obs) == world.rules.kinds
        return (hidden * (1 + rng.random(hidden.shape))).argmax(1)

    world = ours(game, level)
    success, mean = won(world, choose, 1000)
    assert success <= world.chance_level()
    assert mean < {"Easy": 0.6, "Medium": 0.6, "Hard": 0}[level]
