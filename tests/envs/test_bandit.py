"""Bandits: indices against the plain definition, the expert against the exact optimum, POPGym's game step by step."""

from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from faces import make, make_rows, reported
from gymnasium import spaces
from twins import SplitMix

from palimpsest import envs
from palimpsest.envs.bandit_index import Indices, indices

BANDIT = "Palimpsest/Bandit-v0"
GAMES = [id for id in envs.ids() if re.search("POPGym-MultiarmedBandit", id)]


def mean_of(wins, pulled):
    return (wins + 1) / (pulled + 2)


@functools.cache
def gain(wins, pulled, left, known):
    """What pulling an arm may gain over one of mean `known` in `left` pulls; below 0 where it is better not to."""
    mean = mean_of(wins, pulled)
    if left == 1:
        return mean - known
    won, lost = gain(wins + 1, pulled + 1, left - 1, known), gain(wins, pulled + 1, left - 1, known)
    return mean - known + mean * max(won, 0) + (1 - mean) * max(lost, 0)


@pytest.mark.parametrize(
    ("wins", "pulled", "left"), [(0, 0, 1), (0, 0, 2), (0, 0, 12), (3, 4, 8), (0, 5, 7), (6, 6, 6)]
)
def test_indices_are_the_known_means_that_are_as_good(wins, pulled, left):
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if gain(wins, pulled, left, middle) > 0 else (low, middle)
    table = Indices(12)
    found = table(np.array(wins), np.array(pulled), np.array(left)) / table.levels
    assert found == pytest.approx(low, abs=1.5 / table.levels)


def test_indices_of_long_horizons():
    """More wins, fewer pulls and a longer future make an arm better; of a single pull the index is the mean."""
    table = indices(40)
    wins, pulled, left = np.array([(w, n, r) for r in range(1, 41) for n in range(41 - r) for w in range(n + 1)]).T
    index = dict(zip(zip(wins, pulled, left), table(wins, pulled, left)))
    for (w, n, r), value in index.items():
        assert value / table.levels >= mean_of(w, n) - 1.01 / table.levels
        assert value >= index.get((w - 1, n, r), 0)
        assert value <= index.get((w, n, r + 1), table.levels)
        if r == 1:
            assert value / table.levels == pytest.approx(mean_of(w, n), abs=1.01 / table.levels)


@functools.cache
def optimum(first, second, left):
    """Mean return of the Bayes-optimal player of two arms; an arm is (wins, pulls)."""
    if left == 0:
        return 0.0
    return max(pull(optimum, first, second, left), pull(optimum, second, first, left))


@functools.cache
def by_index(first, second, left):
    """Mean return of the player who follows the indices."""
    if left == 0:
        return 0.0
    table = indices(PULLS)
    a, b = (int(table(*map(np.array, (*arm, left)))) for arm in (first, second))
    return pull(by_index, first, second, left) if a >= b else pull(by_index, second, first, left)


def pull(value, arm, other, left):
    (wins, pulled), p = arm, mean_of(*arm)
    won, lost = ((wins + 1, pulled + 1), (wins, pulled + 1))
    return p + p * value(*sorted((won, other)), left - 1) + (1 - p) * value(*sorted((lost, other)), left - 1)


PULLS = 25


def returns(id, choose, rows, **kwargs):
    """Of the first episodes of `rows` rows: the returns, the success, and the regrets."""
    vector = make_rows(id, rows, **kwargs)
    obs, _ = vector.reset(seed=0)
    total = np.zeros(rows)
    for _ in range(vector.world.rules.limit):
        obs, reward, *_, infos = vector.step(choose(vector.world, obs))
        total += reward
    return total, infos["final_info"]["success"].mean(), infos["final_info"]["regret"]


def expert(world, obs):
    return world.expert()


def greedy(world, obs):
    """Pull the arm of the highest mean, as far as is known."""
    return mean_of(world.state.wins, world.state.pulled).argmax(1)


def test_the_expert_reaches_the_optimum_of_two_arms():
    best, followed = optimum((0, 0), (0, 0), PULLS), by_index((0, 0), (0, 0), PULLS)
    assert 0.999 * best < followed <= best + 1e-9
    total, _, _ = returns(BANDIT, expert, 20_000, num_arms=2, pulls=PULLS)
    error = total.std() / len(total) ** 0.5
    assert abs(total.mean() - best) < 4 * error
    assert error < 0.003 * best


@pytest.mark.parametrize(("arms", "pulls", "published"), [(5, 10, 6.6), (10, 10, 6.6), (5, 100, 78.3), (10, 100, 82.8)])
def test_the_expert_is_the_gittins_player_of_rl2(arms, pulls, published):
    """Table 1 of arXiv 1611.02779, over 1,000 bandits."""
    total, _, _ = returns(BANDIT, expert, 1000, num_arms=arms, pulls=pulls)
    assert total.mean() == pytest.approx(published, abs=4 * total.std() / 1000**0.5 + 0.05)


def test_the_expert_beats_others():
    rng = np.random.default_rng(0)
    good, success, regret = returns(BANDIT, expert, 2000)
    assert success >= 0.75
    for choose in (greedy, lambda world, obs: rng.integers(5, size=2000)):
        bad, less, more = returns(BANDIT, choose, 2000)
        assert bad.mean() < good.mean() - 1
        assert less < success - 0.1
        assert more.mean() > regret.mean() + 1
        assert bad.mean() + more.mean() == pytest.approx(good.mean() + regret.mean(), abs=1)
    assert bad.mean() == pytest.approx(50, abs=1.5)


def test_players_without_memory():
    rng = np.random.default_rng(0)

    def win_stay(world, obs):
        last, other = obs[:, :-1].argmax(1), rng.integers(1, 5, 4000)
        return np.where(obs[:, -1] > 0, last, (last + other) % 5)

    _, success, _ = returns(BANDIT, win_stay, 4000)
    assert success == pytest.approx(make(BANDIT).chance_level(), abs=0.03)
    _, success, _ = returns(GAMES[0], lambda world, obs: (obs[:, 1] == 0).astype(int), 4000)
    assert success == pytest.approx(make(GAMES[0]).chance_level(), abs=0.02)
    assert 0.1 <= success <= 0.15


def test_regret_and_success_by_hand():
    env = make(BANDIT, num_arms=3, pulls=3)
    env.reset(seed=0)
    hidden = env.hidden_state()
    hidden["mean"][0] = 1.0, 0.0, 0.5
    obs, _ = env.reset(options={"hidden_state": hidden})
    assert obs.tolist() == [0, 0, 0, 0]
    assert env.step(1)[0].tolist() == [0, 1, 0, 0]
    assert env.hidden_state()["regret"].tolist() == [1]
    assert env.step(2)[2:] == (False, False, {})
    assert env.hidden_state()["regret"].tolist() == [1.5]
    obs, reward, *end = env.step(0)
    assert (obs.tolist(), reward, end) == ([1, 0, 0, 1], 1, [False, True, reported(True) | {"regret": 1.5}])
    hidden = env.hidden_state()
    assert hidden["pulled"].tolist() == [[1, 1, 1]]
    assert hidden["regret"].tolist() == [1.5]


class Told:
    """The generator of the package's environment: it draws what our world draws."""

    def __init__(self, rng):
        self.stream = SplitMix(0)
        self.stream.state = int(rng[0])

    def random(self):
        return (self.stream.bits() >> 11) / 2**53


@pytest.mark.parametrize("id", GAMES)
def test_equals_the_package(id):
    envs_of = pytest.importorskip("popgym.envs")
    theirs = getattr(envs_of, re.sub(r".*POPGym-(\w+)-(\w+)-v0", r"\1\2", id))()
    flat, plain, rng = make(id), make(id, flat=False), np.random.default_rng(0)
    assert plain.observation_space == theirs.observation_space
    assert flat.action_space == theirs.action_space
    totals = []
    for seed in range(8):
        flat.reset(seed=seed)
        theirs.reset(seed=seed)
        hidden = flat.hidden_state()
        assert plain.reset(options={"hidden_state": hidden})[0] == 0
        theirs.bandits, theirs.np_random = hidden["mean"][0], Told(hidden["rng"])
        total, over = 0.0, False
        while not over:
            action = flat.expert_action() if rng.random() < seed / 4 else int(rng.integers(flat.action_space.n))
            their_obs, their_reward, *their_end, _ = theirs.step(action)
            for world in (flat, plain):
                obs, reward, *end, info = world.step(action)
                assert reward == their_reward
                assert end == their_end
                seen = spaces.flatten(theirs.observation_space, their_obs) if world is flat else their_obs
                assert np.array_equal(obs, seen)
                assert obs.dtype == (np.float32 if world is flat else np.int64)
            total, over = total + reward, end[1]
        totals.append(total)
        assert info.keys() == {"success", "is_success", "regret"}
    assert np.abs(totals).max() <= 1
    assert np.mean(totals[4:]) > np.mean(totals[:2]) + 0.3
    assert flat.hidden_state()["steps"][0] == theirs.max_episode_length
