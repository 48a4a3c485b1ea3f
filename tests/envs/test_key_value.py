"""Key-value rewriting against a twin in plain Python, and what players with and without memory win."""

from __future__ import annotations

import itertools
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import SplitMix, assert_follows, assert_rows_follow, first_success

from palimpsest import envs
from palimpsest.envs.key_value import KeyValueRewrite

ID = "Palimpsest/KeyValueRewrite-v0"


class Twin:
    """The rules step by step, one world, plain Python; an event's card and what is drawn for it share 64 bits."""

    def __init__(self, keys: int, values: int, updates: int, queries: int) -> None:
        self.keys, self.values, self.updates, self.queries = keys, values, updates, queries

    def take(self, cards: list, half: int):
        """A card; the last one comes in its place."""
        place = self.rng.below(len(cards), half)
        cards[place], cards[-1] = cards[-1], cards[place]
        return cards.pop()

    def reset(self, seed: int | None = None) -> list[float]:
        if seed is not None:
            self.rng = SplitMix(seed)
        high, low = self.rng.halves()
        key = self.rng.below(self.keys, high)
        others = [k for k in range(self.keys) if k != key]
        self.stream = others + list(range(self.keys)) * (self.updates - 1) + ["query"] * self.queries
        self.to_ask = list(range(self.keys))
        self.last: dict[int, int] = {}
        self.all_right = True
        return self.write(key, low)

    def write(self, key: int, half: int) -> list[float]:
        values = [v for v in range(self.values) if v != self.last.get(key)]
        self.last[key] = values[self.rng.below(len(values), half)]
        self.asked = None
        return self.see(key, self.last[key])

    def see(self, key: int | None = None, value: int | None = None) -> list[float]:
        obs = [float(k == key) for k in range(self.keys)] + [float(v == value) for v in range(self.values)]
        return [*obs, float(value is not None), float(key is not None and value is None)]

    def step(self, action: int) -> tuple[list[float], float, bool, bool, bool]:
        reward = 0.0
        if self.asked is not None:
            right = action == self.last[self.asked]
            self.all_right &= right
            reward = (1.0 if right else -1.0) / (self.queries + self.keys)
        if not self.to_ask:
            return self.see(), reward, True, False, self.all_right
        high, low = self.rng.halves()
        card = self.take(self.stream or self.to_ask, high)
        if card == "query":
            self.asked = [*self.last][self.rng.below(len(self.last), low)]
        elif len(self.to_ask) == self.keys:
            return self.write(card, low), reward, False, False, False
        else:
            self.asked = card
        return self.see(self.asked), reward, False, False, False


def arguments():
    return st.fixed_dictionaries(
        dict(keys=st.integers(1, 7), values=st.integers(2, 6), updates=st.integers(1, 6), queries=st.integers(0, 9))
    )


@settings(max_examples=60, deadline=None)
@given(kwargs=arguments(), seed=st.integers(0, 2**63), skill=st.sampled_from([0.0, 0.9, 1.0]))
def test_equals_the_twin(kwargs, seed, skill):
    assert_follows(KeyValueRewrite(**kwargs), Twin(**kwargs), seed, 150, skill)


def test_many_rows_equal_their_twins():
    kwargs = dict(keys=3, values=3, updates=2, queries=2)
    vector = gym.make_vec(ID, 16, **kwargs)
    twins = [Twin(**kwargs) for _ in range(16)]
    assert_rows_follow(vector, twins, 500)


def rows(num_envs: int, **kwargs):
    vector = gym.make_vec(ID, num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


def read(obs: np.ndarray, keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Key, value, whether it is a write, whether it is a query; each [B]."""
    return obs[:, :keys].argmax(1), obs[:, keys:-2].argmax(1), obs[:, -2] > 0, obs[:, -1] > 0


def play(kwargs: dict, seed: int) -> tuple[list, float, dict]:
    """An expert's episode from observations: (write or query, key, value or answer), its return and last info."""
    env = KeyValueRewrite(**kwargs)
    obs, _ = env.reset(seed=seed)
    told, total, over, info = [], 0.0, False, {}
    while not over:
        (key,), (value,), (written,), (asked,) = read(obs[None], kwargs["keys"])
        assert written != asked
        action = env.expert_action()
        told.append(("write", int(key), int(value)) if written else ("query", int(key), action))
        obs, reward, over, truncated, info = env.step(action)
        assert not truncated
        total += reward
    assert not obs.any()
    return told, total, info


@settings(max_examples=60, deadline=None)
@given(kwargs=arguments(), seed=st.integers(0, 2**40))
def test_an_episode_is_as_described(kwargs, seed):
    keys, updates, queries = kwargs["keys"], kwargs["updates"], kwargs["queries"]
    told, total, info = play(kwargs, seed)
    assert total == pytest.approx(1, abs=1e-12)
    assert info == reported(True)
    assert len(told) == keys * (updates + 1) + queries
    assert told[0][0] == "write"
    assert Counter(key for kind, key, _ in told if kind == "write") == dict.fromkeys(range(keys), updates)
    assert sorted(key for _, key, _ in told[-keys:]) == list(range(keys))
    assert {kind for kind, _, _ in told[-keys:]} == {"query"}
    assert sum(kind == "query" for kind, _, _ in told) == queries + keys
    last: dict[int, int] = {}
    for kind, key, value in told:
        assert (last.get(key) == value) == (kind == "query")
        last[key] = value


def test_orders_are_equally_likely():
    kwargs = dict(keys=2, values=2, updates=2, queries=1)
    vector, obs = rows(24_000, **kwargs)
    order = np.zeros(24_000, int)
    for _ in range(5):
        key, _, _, asked = read(obs, 2)
        order = 3 * order + np.where(asked, 2, key)
        obs, *_ = vector.step(np.zeros(24_000, int))
    _, counts = np.unique(order, return_counts=True)
    # six orders of the writes, four places for the query
    assert len(counts) == 24
    # chi-squared with 23 degrees of freedom passes 60 once in 25,000 times
    assert ((counts - 1000) ** 2 / 1000).sum() < 60


def test_values_are_uniform_at_the_first_write_and_at_the_last():
    vector, obs = rows(12_000, keys=1, values=4, updates=5, queries=0)
    for t in range(5):
        if t in (0, 4):
            counts = np.bincount(read(obs, 1)[1], minlength=4)
            # chi-squared with 3 degrees of freedom passes 21 once in 10,000 times
            assert ((counts - 3000) ** 2 / 3000).sum() < 21
        obs, *_ = vector.step(np.zeros(12_000, int))


class Player:
    """Sees observations alone; what it keeps for every key is `rule(kept or -1, new)`."""

    def __init__(self, B: int, keys: int, rule) -> None:
        self.keys, self.rule, self.kept = keys, rule, np.full((B, keys), -1)

    def __call__(self, obs: np.ndarray, fresh: np.ndarray) -> np.ndarray:
        self.kept[fresh] = -1
        key, value, written, _ = read(obs, self.keys)
        at = np.arange(len(obs)), key
        self.kept[at] = np.where(written, self.rule(self.kept[at], value), self.kept[at])
        return self.kept[at]


@pytest.mark.parametrize(
    "kwargs", [{}, dict(keys=12, values=9, updates=20, queries=30), dict(keys=1, values=2, updates=1, queries=0)]
)
def test_a_player_with_a_dictionary_wins(kwargs):
    vector, obs = rows(200, **kwargs)
    keys = vector.world.rules.keys
    assert first_success(vector, obs, Player(200, keys, lambda kept, new: new)) == 1.0


@pytest.mark.parametrize(("keys", "values", "queries"), [(1, 2, 0), (2, 2, 0), (2, 3, 0), (2, 2, 3)])
def test_without_memory_it_is_chance(keys, values, queries):
    """A player without memory answers by the key: every such player, and one that guesses."""
    R, best = 3000, 0.0
    level = KeyValueRewrite(keys=keys, values=values).chance_level()
    assert level == pytest.approx(values**-keys)
    rng = np.random.default_rng(0)
    for answers in [*itertools.product(range(values), repeat=keys), None]:
        vector, obs = rows(R, keys=keys, values=values, updates=3, queries=queries)

        def blind(obs, fresh, answers=answers):
            return rng.integers(values, size=R) if answers is None else np.array(answers)[read(obs, keys)[0]]

        found = first_success(vector, obs, blind)
        best = max(best, found)
        assert found < level + 4 * np.sqrt(level * (1 - level) / R)
    if queries == 0:
        assert best > level - 4 * np.sqrt(level * (1 - level) / R)


def by_overwrites(vector, obs, act, steps: int) -> dict[int, float]:
    """Share of right answers for every number of overwrites, as the class says to measure it."""
    right: Counter = Counter()
    asked: Counter = Counter()
    fresh = np.ones(vector.num_envs, bool)
    for _ in range(steps):
        overwrites = vector.world.overwrites()
        obs, reward, terminated, _, _ = vector.step(act(obs, fresh))
        fresh = terminated
        asked.update(overwrites[overwrites >= 0].tolist())
        right.update(overwrites[(overwrites >= 0) & (reward > 0)].tolist())
    return {n: right[n] / asked[n] for n in sorted(asked)}


def test_success_by_number_of_overwrites():
    kwargs = dict(keys=3, values=4, updates=4, queries=12)
    vector, obs = rows(300, **kwargs)
    rewriting = by_overwrites(vector, obs, Player(300, 3, lambda kept, new: new), 100)
    assert rewriting == dict.fromkeys(range(4), 1.0)
    vector, obs = rows(300, **kwargs)
    first = by_overwrites(vector, obs, Player(300, 3, lambda kept, new: np.where(kept < 0, new, kept)), 100)
    # who keeps the first value is never right after one overwrite, then a third of the rest of the time
    assert first[0] == 1
    assert first[1] == 0
    assert first[2] == pytest.approx(1 / 3, abs=0.04)
    assert first[3] == pytest.approx(2 / 9, abs=0.04)


def test_overwrites_can_be_counted_from_observations_and_are_told_on_every_face():
    vector, obs = rows(5, keys=3, updates=5, queries=6)
    venv = envs.make_vec(ID, 5, seed=0, keys=3, updates=5, queries=6)
    venv.reset()
    count = np.full((5, 3), -1)
    for _ in range(100):
        key, _, written, asked = read(obs, 3)
        count[np.flatnonzero(written), key[written]] += 1
        expected = np.where(asked, count[np.arange(5), key], -1)
        assert vector.world.overwrites().tolist() == expected.tolist()
        assert np.concatenate(venv.env_method("overwrites")).tolist() == expected.tolist()
        actions = vector.expert_action()
        obs, _, terminated, *_ = vector.step(actions)
        venv.step(actions)
        count[terminated] = -1


@settings(max_examples=25, deadline=None)
@given(kwargs=arguments())
def test_horizons_are_what_played_episodes_show(kwargs):
    found = set()
    for seed in range(10):
        told, *_ = play(kwargs, seed)
        for t, (kind, key, _) in enumerate(told):
            if kind == "query":
                shown = max(s for s in range(t) if told[s][:2] == ("write", key))
                found.add(t - shown + 1)
    assert found <= set(KeyValueRewrite(**kwargs).memory_horizons())


@pytest.mark.parametrize(("keys", "updates", "queries"), [(1, 3, 0), (1, 2, 2), (2, 1, 0), (2, 2, 0), (3, 1, 1)])
def test_every_horizon_occurs(keys, updates, queries):
    kwargs = dict(keys=keys, values=2, updates=updates, queries=queries)
    vector, obs = rows(3000, **kwargs)
    last, found = np.zeros((3000, keys), int), set()
    for t in range(keys * (updates + 1) + queries):
        key, _, written, asked = read(obs, keys)
        assert (vector.event_mask(obs) == written).all()
        last[np.flatnonzero(written), key[written]] = t
        found |= set((t - last[np.flatnonzero(asked), key[asked]] + 1).tolist())
        obs, *_ = vector.step(vector.expert_action())
    assert found == set(vector.memory_horizons())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(keys=0), "keys must be an integer, 1 to 64; got 0"),
        (dict(keys=4.0), "keys must be an integer, 1 to 64; got 4.0"),
        (dict(values=1), "values must be an integer, 2 to 64; got 1"),
        (dict(updates=0), "updates must be an integer, 1 to 10,000; got 0"),
        (dict(queries=-1), "queries must be an integer, 0 to 100,000; got -1"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    for build in (lambda: KeyValueRewrite(**kwargs), lambda: envs.make_vec(ID, 2, **kwargs)):
        with pytest.raises(ValueError, match=message):
            build()


def test_many_keys_are_drawn_through_a_window():
    env = KeyValueRewrite(keys=64, values=64, updates=1)
    env.reset(seed=0)
    shape = env.picture().shape
    for t in range(128):
        env.step(env.expert_action())
        if t % 16 == 15:
            assert env.picture().shape == shape
    assert env.text().count("after 1 of 1 writes") == 64
