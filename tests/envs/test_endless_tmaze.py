"""Endless T-Maze against a twin in plain Python, and proof that it needs memory and nothing hidden."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import SplitMix, assert_follows, assert_rows_follow, first_success

from palimpsest import envs
from palimpsest.envs.endless_tmaze import EndlessTMaze

ID = "Palimpsest/EndlessTMaze-v0"
FORWARD, LEFT, RIGHT = range(3)
TWO_64 = 1 << 64


class Twin:
    """The rules of arXiv 2601.15086 step by step, one world, plain Python."""

    def __init__(self, corridors: int, length: int, regime: str, normalise_by: str, position: str = "shown") -> None:
        self.n, self.l_max, self.regime, self.normalise_by = corridors, length, regime, normalise_by
        self.position = position

    def reset(self, seed: int | None = None) -> list[float]:
        if seed is not None:
            self.rng = SplitMix(seed)
        self.t, self.passed = 0, 0
        return self.enter()

    def enter(self) -> list[float]:
        self.x = 0
        self.side = (LEFT, RIGHT)[self.rng.below(2)]
        self.l = 1 + self.rng.below(self.l_max) if self.regime == "uniform" else self.l_max
        return self.see()

    def see(self) -> list[float]:
        cue = [float(self.x == 0 and self.side == side) for side in (LEFT, RIGHT)]
        place = float(np.float32(self.x / (self.l_max if self.normalise_by == "l_max" else self.l)))
        return [*cue, float(self.x == self.l) if self.position == "none" else place]

    def step(self, action: int) -> tuple[list[float], float, bool, bool, bool]:
        self.t += 1
        late = self.t >= 6 * (self.l_max + 1) * self.n
        if self.x < self.l:
            if action == FORWARD:
                self.x += 1
            return self.see(), -0.01, False, late, False
        if action != self.side:
            return [0.0, 0.0, self.see()[2]], -1.0, True, False, False
        self.passed += 1
        if self.passed == self.n:
            return [0.0, 0.0, self.see()[2]], 1.0, True, False, True
        return self.enter(), 1.0, False, late, False


def arguments():
    return st.fixed_dictionaries(
        dict(
            corridors=st.integers(1, 6),
            length=st.integers(1, 12),
            regime=st.sampled_from(["fixed", "uniform"]),
            normalise_by=st.sampled_from(["l_max", "length"]),
            position=st.sampled_from(["shown", "none"]),
        )
    )


@settings(max_examples=60, deadline=None)
@given(kwargs=arguments(), seed=st.integers(0, 2**63), skill=st.sampled_from([0.0, 0.9, 0.99, 1.0]))
def test_equals_the_twin(kwargs, seed, skill):
    assert_follows(EndlessTMaze(**kwargs), Twin(**kwargs), seed, 300, skill)


def test_many_rows_equal_their_twins():
    kwargs = dict(corridors=3, length=4, regime="uniform", normalise_by="l_max")
    vector = gym.make_vec(ID, 16, **kwargs)
    twins = [Twin(**kwargs) for _ in range(16)]
    assert_rows_follow(vector, twins, 1500)


@pytest.mark.parametrize(("n", "cells"), [*itertools.product((1, 3, 10), (1, 5, 10))])
def test_a_perfect_fixed_episode(n, cells):
    env = EndlessTMaze(corridors=n, length=cells)
    env.reset(seed=0)
    rewards = []
    while True:
        obs, reward, terminated, truncated, info = env.step(env.expert_action())
        rewards.append(reward)
        if terminated or truncated:
            break
    assert rewards == ([-0.01] * cells + [1.0]) * n
    assert info == reported(True)
    assert obs.tolist() == [0, 0, 1]


def test_wrong_moves_at_the_junction_end_it_where_it_stands():
    env = EndlessTMaze(corridors=2, length=3, regime="uniform")
    for seed in range(30):
        for wrong in ("forward", "other side"):
            env.reset(seed=seed)
            while env.expert_action() == FORWARD:
                before = env.step(FORWARD)[0]
            action = FORWARD if wrong == "forward" else 3 - env.expert_action()
            obs, reward, terminated, truncated, info = env.step(action)
            assert (reward, terminated, truncated, info) == (-1.0, True, False, reported(False))
            assert obs.tolist() == before.tolist()
            assert obs[:2].tolist() == [0, 0]


def test_turns_before_the_junction_stay():
    env = EndlessTMaze(length=2)
    start, _ = env.reset(seed=0)
    for turn in (LEFT, RIGHT):
        obs, reward, *_ = env.step(turn)
        assert reward == -0.01
        assert obs.tolist() == start.tolist()


def test_the_limit_and_what_it_shows():
    env = EndlessTMaze(corridors=2, length=3)
    start, _ = env.reset(seed=0)
    limit = 6 * (3 + 1) * 2
    for t in range(1, limit + 1):
        obs, _, terminated, truncated, info = env.step(LEFT)
        assert (terminated, truncated) == (False, t == limit)
    assert obs.tolist() == start.tolist()
    assert info == reported(False)


def test_a_win_on_the_last_allowed_step_is_a_win():
    env = EndlessTMaze(corridors=1, length=2)
    env.reset(seed=0)
    for _ in range(6 * 3 - 3):
        env.step(LEFT)
    env.step(FORWARD)
    env.step(FORWARD)
    assert env.step(env.expert_action())[1:] == (1.0, True, False, reported(True))


def rows(num_envs: int = 2000, **kwargs):
    vector = gym.make_vec(ID, num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_without_memory_it_is_chance(n):
    """Every map from what is visible to an action that can win at all goes forward before the junction."""
    best = 0.0
    for turn in (LEFT, RIGHT, "either"):
        vector, obs = rows(4000, corridors=n, length=3)
        rng = np.random.default_rng(0)

        def blind(obs, fresh, turn=turn, rng=rng):
            turns = rng.integers(1, 3, len(obs)) if turn == "either" else turn
            return np.where(obs[:, 2] == 1, turns, FORWARD)

        best = max(best, first_success(vector, obs, blind))
    chance = EndlessTMaze(corridors=n).chance_level()
    assert chance == 0.5**n
    assert abs(best - chance) < 0.04


@pytest.mark.parametrize("regime", ["fixed", "uniform"])
@pytest.mark.parametrize("normalise_by", ["l_max", "length"])
def test_a_player_with_two_variables_wins(regime, normalise_by):
    """It sees only observations, and remembers the cue and whether it has tried to turn where it stands."""
    vector, obs = rows(500, corridors=5, length=6, regime=regime, normalise_by=normalise_by)
    cue = np.zeros(500, int)
    tried = np.zeros(500, bool)

    def act(obs, fresh):
        nonlocal cue, tried
        cue = np.where(obs[:, 0] > 0, LEFT, np.where(obs[:, 1] > 0, RIGHT, cue))
        turn = (obs[:, 2] > 0) & ~tried
        tried = turn
        return np.where(turn, cue, FORWARD)

    assert first_success(vector, obs, act) == 1.0


@pytest.mark.parametrize("regime", ["fixed", "uniform"])
def test_without_a_position_memory_alone_is_asked(regime):
    """Between the cue and the junction's flag all is zeros, in corridors of any length."""
    kwargs = dict(corridors=3, length=6, regime=regime, position="none")
    env = EndlessTMaze(**kwargs)
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        over = False
        while not over:
            state = env.hidden_state()
            x, length, cue = (int(state[name][0]) for name in ("x", "length", "cue"))
            assert obs.tolist() == [x == 0 and cue == 0, x == 0 and cue == 1, x == length]
            obs, _, over, *_ = env.step(env.expert_action())
        assert obs.tolist() == [0, 0, 1]
    vector, obs = rows(500, **kwargs)
    cue = np.zeros(500, int)

    def act(obs, fresh):
        nonlocal cue
        cue = np.where(obs[:, 0] > 0, LEFT, np.where(obs[:, 1] > 0, RIGHT, cue))
        return np.where(obs[:, 2] == 1, cue, FORWARD)

    assert first_success(vector, obs, act) == 1.0
    vector, obs = rows(4000, **kwargs)
    assert abs(first_success(vector, obs, lambda obs, _: np.where(obs[:, 2] == 1, LEFT, FORWARD)) - 0.125) < 0.03


@settings(max_examples=20, deadline=None)
@given(kwargs=arguments())
def test_horizons_are_what_played_episodes_show(kwargs):
    env = EndlessTMaze(**kwargs)
    found = set()
    for seed in range(60):
        obs, _ = env.reset(seed=seed)
        t, over = 0, False
        while not over:
            if env.event_mask(obs):
                shown = t
            action = env.expert_action()
            if action != FORWARD:
                found.add(t - shown + 1)
            obs, _, terminated, truncated, _ = env.step(action)
            t, over = t + 1, terminated or truncated
    assert found <= set(env.memory_horizons())
    if kwargs["regime"] == "fixed" or kwargs["length"] <= 3:
        assert found == set(env.memory_horizons())


def test_draws_are_fair():
    vector, _ = rows(50_000, corridors=1, length=7, regime="uniform")
    hidden = vector.hidden_state()
    joint = np.zeros((2, 7))
    np.add.at(joint, (hidden["cue"], hidden["length"] - 1), 1)
    expected = 50_000 / 14
    # chi-squared with 13 degrees of freedom passes 40 once in 7,000 times
    assert ((joint - expected) ** 2 / expected).sum() < 40


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(corridors=0), "corridors must be an integer, 1 to 1,000,000; got 0"),
        (dict(corridors=2.0), "corridors must be an integer"),
        (dict(corridors=True), "corridors must be an integer"),
        (dict(length="10"), "length must be an integer, 1 to 1,000,000; got '10'"),
        (
            dict(regime="unifrom"),
            r"regime must be one of 'fixed', 'uniform'; got 'unifrom' \(did you mean 'uniform'\?\)",
        ),
        (dict(position=None), "position must be one of 'shown', 'none'; got None"),
        (dict(normalise_by=3), "normalise_by must be one of 'l_max', 'length'; got 3"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    for build in (lambda: EndlessTMaze(**kwargs), lambda: envs.make_vec(ID, 2, **kwargs)):
        with pytest.raises(ValueError, match=message):
            build()


def test_long_corridors_are_drawn_through_a_window():
    env = EndlessTMaze(corridors=1, length=100)
    env.reset(seed=0)
    shapes = {env.picture().shape}
    for _ in range(100):
        env.step(FORWARD)
        shapes.add(env.picture().shape)
        assert env.text().count("@") == 1
    assert len(shapes) == 1
    assert "*" in env.text()
