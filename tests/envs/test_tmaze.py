"""Active T-Maze against a twin in plain Python, the oracle's worth, and the passive T-Maze."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import SplitMix, assert_follows, assert_rows_follow, first_success

from palimpsest import envs
from palimpsest.envs.endless_tmaze import EndlessTMaze
from palimpsest.envs.tmaze import ActiveTMaze

ID = "Palimpsest/ActiveTMaze-v0"
FORWARD, LEFT, RIGHT, BACK = range(4)


class Twin:
    """The rules step by step, one world, plain Python."""

    def __init__(self, length: int) -> None:
        self.length = length

    def reset(self, seed: int | None = None) -> list[float]:
        if seed is not None:
            self.rng = SplitMix(seed)
        self.t, self.x = 0, 0
        self.side = (LEFT, RIGHT)[self.rng.below(2)]
        return self.see()

    def see(self) -> list[float]:
        cue = [float(self.x == -1 and self.side == side) for side in (LEFT, RIGHT)]
        return [*cue, float(np.float32(self.x / self.length))]

    def step(self, action: int) -> tuple[list[float], float, bool, bool, bool]:
        self.t += 1
        if self.x == self.length and action != BACK:
            won = action == self.side
            return self.see(), 1.0 if won else -1.0, True, False, won
        if action == FORWARD:
            self.x += 1
        elif action == BACK and self.x > -1:
            self.x -= 1
        return self.see(), -0.01, False, self.t == 6 * (self.length + 3), False


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 12), seed=st.integers(0, 2**63), skill=st.sampled_from([0.0, 0.7, 0.95, 1.0]))
def test_equals_the_twin(length, seed, skill):
    assert_follows(ActiveTMaze(length), Twin(length), seed, 300, skill)


def test_many_rows_equal_their_twins():
    vector, twins = gym.make_vec(ID, 16, length=4), [Twin(4) for _ in range(16)]
    assert_rows_follow(vector, twins, 1000)


@pytest.mark.parametrize("length", [1, 2, 10])
def test_a_perfect_episode(length):
    env = ActiveTMaze(length)
    for seed in range(10):
        env.reset(seed=seed)
        rewards, over = [], False
        while not over:
            obs, reward, terminated, truncated, info = env.step(env.expert_action())
            rewards.append(reward)
            over = terminated or truncated
        assert rewards == [-0.01] * (length + 2) + [1.0]
        assert info == reported(True)
        assert obs.tolist() == [0, 0, 1]


def test_the_oracle_answers_every_time_and_nothing_else_does():
    env = ActiveTMaze(3)
    env.reset(seed=0)
    shown = []
    for action in (
        FORWARD,
        BACK,
        BACK,
        BACK,
        LEFT,
        FORWARD,
        FORWARD,
        FORWARD,
        FORWARD,
        BACK,
        BACK,
        BACK,
        BACK,
        FORWARD,
    ):
        obs, _, terminated, *_ = env.step(action)
        assert not terminated
        shown.append(bool(env.event_mask(obs)))
    assert shown == [False, False, True, True, True, *[False] * 7, True, False]


def rows(num_envs: int = 2000, **kwargs):
    vector = gym.make_vec(ID, num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


@pytest.mark.parametrize("turn", [LEFT, RIGHT, "either"])
@pytest.mark.parametrize("waits", [False, True])
def test_without_memory_it_is_chance(turn, waits):
    """At the start half back and half forward, so the oracle is met; at the junction a guess.

    One that `waits` lets only one cue leave the oracle for the junction, the most that it can do about the cue.
    """
    vector, obs = rows(4000, length=3)
    rng = np.random.default_rng(0)

    def blind(obs, fresh):
        turns = rng.integers(1, 3, len(obs)) if turn == "either" else np.full(len(obs), turn)
        at_start = np.where(rng.random(len(obs)) < 0.5, BACK, FORWARD)
        action = np.where(obs[:, 2] == 1, turns, np.where(obs[:, 2] == 0, at_start, FORWARD))
        return np.where(waits & (obs[:, 0] > 0), BACK, action)

    success = first_success(vector, obs, blind)
    assert success < 0.5 + 0.04
    if not waits:
        assert success > 0.5 - 0.04
    assert ActiveTMaze().chance_level() == 0.5


def test_memory_without_the_oracle_is_chance():
    """A player that remembers everything but goes straight on has nothing to remember."""
    vector, obs = rows(4000, length=3)
    assert abs(first_success(vector, obs, lambda obs, _: np.where(obs[:, 2] == 1, LEFT, FORWARD)) - 0.5) < 0.04


def test_a_player_with_one_variable_wins():
    """It sees only observations, and remembers what the oracle said, or that it has not been there."""
    vector, obs = rows(500, length=6)
    cue = np.zeros(500, int)

    def act(obs, fresh):
        nonlocal cue
        cue = np.where(fresh, 0, cue)
        cue = np.where(obs[:, 0] > 0, LEFT, np.where(obs[:, 1] > 0, RIGHT, cue))
        return np.where(cue == 0, BACK, np.where(obs[:, 2] == 1, cue, FORWARD))

    assert first_success(vector, obs, act) == 1.0


@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 12))
def test_horizons_are_what_played_episodes_show(length):
    env, found = ActiveTMaze(length), set()
    for seed in range(10):
        obs, _ = env.reset(seed=seed)
        t, over = 0, False
        while not over:
            if env.event_mask(obs):
                shown = t
            action = env.expert_action()
            if action in (LEFT, RIGHT):
                found.add(t - shown + 1)
            obs, _, terminated, truncated, _ = env.step(action)
            t, over = t + 1, terminated or truncated
    assert tuple(sorted(found)) == env.memory_horizons()


def test_cues_are_fair():
    vector, _ = rows(50_000)
    # four standard deviations
    assert abs(vector.hidden_state()["cue"].mean() - 0.5) < 4 * 0.5 / 50_000**0.5


@pytest.mark.parametrize("length", [0, 1_000_001, 2.0, True, "10"])
def test_lengths_out_of_range_are_refused(length):
    for build in (lambda: ActiveTMaze(length), lambda: envs.make_vec(ID, 2, length=length)):
        with pytest.raises(ValueError, match=f"length must be an integer, 1 to 1,000,000; got {length!r}"):
            build()


def test_long_corridors_are_drawn_through_a_window():
    env = ActiveTMaze(100)
    env.reset(seed=0)
    pictures, texts = [], []
    for t, action in enumerate((BACK, *[FORWARD] * 101)):
        env.step(action)
        if t % 10 == 0:
            pictures.append(env.picture())
        texts.append(env.text())
        assert texts[-1].count("@") == 1
    assert len({picture.shape for picture in pictures}) == 1
    assert "shown" in texts[0]
    assert "?" in texts[1]
    assert "*" in texts[-1]
    assert "?" not in texts[-1]


@pytest.mark.parametrize("length", [1, 10, 30])
def test_the_passive_one_is_one_corridor_of_the_endless(length):
    env = gym.make("Palimpsest/TMaze-v0", length=length).unwrapped
    assert type(env) is EndlessTMaze
    assert env.memory_horizons() == (length + 1,)
    assert env.chance_level() == 0.5
    for seed in range(5):
        obs, _ = env.reset(seed=seed)
        assert env.event_mask(obs)
        rewards, over = [], False
        while not over:
            *_, reward, terminated, truncated, info = env.step(env.expert_action())
            rewards.append(reward)
            over = terminated or truncated
        assert rewards == [-0.01] * length + [1.0]
        assert info == reported(True)
