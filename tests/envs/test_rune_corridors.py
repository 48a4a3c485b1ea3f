"""Rune Multi-Corridor: the Rune T-Maze's twin with four branches, its own words, and what must be known of it."""

from __future__ import annotations

import itertools
import re

import gymnasium as gym
import numpy as np
import pytest
import test_rune_tmaze
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rune_tmaze import resulting
from twins import assert_follows, assert_rows_follow, first_success

from palimpsest.envs.rune_corridors import MIXED, RuneMultiCorridor

ID = "Palimpsest/RuneMultiCorridor-v0"
NAMES = ("rotate", "cancel", "reset", "repeat")
FORWARD = 0


class Twin(test_rune_tmaze.Twin):
    branches = 4
    names = NAMES


def some_kinds():
    return st.lists(st.sampled_from(NAMES), min_size=1, max_size=6).filter({"rotate", "reset"}.intersection)


@settings(max_examples=40, deadline=None)
@given(
    kwargs=st.fixed_dictionaries(dict(length=st.integers(8, 12), runes=st.integers(2, 7), kinds=some_kinds())),
    corridors=st.integers(1, 3),
    seed=st.integers(0, 2**63),
    skill=st.sampled_from([0.0, 0.9, 0.99, 1.0]),
)
def test_equals_the_twin(kwargs, corridors, seed, skill):
    kwargs = kwargs | {"corridors": corridors}
    assert_follows(RuneMultiCorridor(**kwargs), Twin(**kwargs), seed, 250, skill)


def test_many_rows_equal_their_twins():
    kwargs = dict(length=9, runes=6, corridors=2)
    assert_rows_follow(gym.make_vec(ID, 16, **kwargs), [Twin(kinds=MIXED, **kwargs) for _ in range(16)], 500, 0.9)


# O rotate, C cancel, R repeat, digits set the cue
@pytest.mark.parametrize(
    ("first", "sentence", "result"),
    [
        (0, "O", 1),
        (3, "O", 0),
        (1, "OOO", 0),
        (1, "OOOO", 1),
        (0, "OR", 2),
        (0, "ORRR", 0),
        (2, "OC", 2),
        (2, "ORC", 3),
        (0, "2", 2),
        (0, "2O", 3),
        (0, "3O", 0),
        (1, "O3C", 2),  # what was overwritten comes back
        (1, "3R", 3),
        (1, "3OCR", 3),  # repeats the reset below
        (1, "CR", 1),  # nothing to cancel, nothing to repeat
    ],
)
def test_what_sentences_of_runes_mean(first, sentence, result):
    words = {"O": ("rotate", 0), "C": ("cancel", 0), "R": ("repeat", 0)}
    runes = [words[letter] if letter in words else ("reset", int(letter)) for letter in sentence]
    assert resulting(first, runes, 4) == result
    env = RuneMultiCorridor(length=8, runes=7)
    env.reset(seed=0)
    hidden = env.hidden_state()
    hidden["cue"][:] = hidden["first"][:] = first
    hidden["total"][:], hidden["cells"][:] = len(runes), (1 << len(runes)) - 1 << 1
    for k, (kind, value) in enumerate(runes):
        hidden["kind"][0, k], hidden["value"][0, k] = NAMES.index(kind), value
    env.reset(options={"hidden_state": hidden})
    for _ in range(8):
        env.step(FORWARD)
    assert env.step(1 + result)[1:] == (1.0, True, False, reported(True))


def rows(num_envs: int, **kwargs):
    vector = gym.make_vec(ID, num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


def players_success(num_envs: int, blind: str | None = None, **kwargs) -> float:
    """Of players who see observations alone and write down the first cue and the runes, but those of one kind."""
    vector, obs = rows(num_envs, **kwargs)
    first, met = [0] * num_envs, [[] for _ in range(num_envs)]

    def act(obs, fresh):
        actions = np.zeros(num_envs, int)
        for i, seen in enumerate(obs):
            shown = int(seen[:4].argmax())
            if seen[4] == 0:
                first[i], met[i] = shown, []
            met[i] += [(kind, shown) for kind, here in zip(NAMES, seen[5:]) if here and kind != blind]
            actions[i] = 1 + resulting(first[i], met[i], 4) if seen[4] == 1 else FORWARD
        return actions

    return first_success(vector, obs, act)


def watchers_success(latest: bool) -> float:
    """Of a player who remembers the first cue of an episode, or the latest that was shown."""
    vector, obs = rows(8000)
    cue = np.zeros(len(obs), int)

    def act(obs, fresh):
        nonlocal cue
        shown = obs[:, :4].any(1) & (latest | (obs[:, 4] == 0))
        cue = np.where(shown, obs[:, :4].argmax(1), cue)
        return np.where(obs[:, 4] == 1, 1 + cue, FORWARD)

    return first_success(vector, obs, act)


def test_a_player_with_a_list_wins():
    assert players_success(100, corridors=3) == 1.0


def test_who_remembers_less_wins_as_rarely_as_the_docs_say():
    told = RuneMultiCorridor.__doc__.partition("remember too little")[2].partition("Horizons")[0]
    first, last, blind = map(float, re.findall(r"0\.\d\d", told))
    level = RuneMultiCorridor().first_cue_level()
    assert first == round(level, 2)
    # 8,000 episodes: four standard errors of a fraction are 0.022 at most; 1,000: three are 0.047
    assert abs(watchers_success(latest=False) - first) < 0.025
    assert abs(watchers_success(latest=True) - last) < 0.025
    assert abs(max(players_success(1000, kind) for kind in NAMES) - blind) < 0.05


@settings(max_examples=10, deadline=None)
@given(kinds=some_kinds().filter(lambda kinds: len(kinds) <= 3))
def test_what_the_first_cue_is_worth_equals_enumeration(kinds):
    """All sentences of one, two and three runes. The best player adds the most likely number to the first cue."""
    letters = [(kind, value) for kind in kinds for value in range(4)]
    share = np.zeros(4)
    for n in (1, 2, 3):
        for sentence in itertools.product(letters, repeat=n):
            share[resulting(0, list(sentence), 4)] += 1 / 3 / len(letters) ** n
    for n in (1, 3):
        env = RuneMultiCorridor(length=9, runes=3, kinds=kinds, corridors=n)
        assert env.first_cue_level() == pytest.approx(share.max() ** n, abs=1e-12)
        assert env.chance_level() == 0.25**n


def test_without_memory_it_is_chance():
    rng = np.random.default_rng(0)
    for guess in (lambda: rng.integers(1, 5, 4000), lambda: 3):
        vector, obs = rows(4000, length=9)
        success = first_success(vector, obs, lambda obs, _, guess=guess: np.where(obs[:, 4] == 1, guess(), FORWARD))
        assert abs(success - 0.25) < 0.03


def test_events_and_horizons():
    env = RuneMultiCorridor(length=6, runes=2)
    assert env.memory_horizons() == (2, 3, 4, 5, 6, 7)
    assert RuneMultiCorridor(length=6, runes=2, kinds=["reset"]).memory_horizons() == (2, 3, 4, 5, 6)
    for seed in range(20):
        obs, _ = env.reset(seed=seed)
        while env.expert_action() == FORWARD:
            hidden = env.hidden_state()
            assert env.event_mask(obs) == (hidden["x"][0] == 0 or hidden["here"][0] >= 0)
            obs, *_ = env.step(FORWARD)
        assert not env.event_mask(obs)


def test_kinds_that_are_refused():
    for kinds, message in (
        (["invert"], "each of kinds must be one of 'rotate', 'cancel', 'reset', 'repeat'; got 'invert'"),
        (["repeat", "cancel"], "kinds must hold 'rotate' or 'reset', or the cue never changes"),
        ("rotate", "kinds must be a list of 1 to 16 names out of 'rotate', .*; got 'rotate'"),
    ):
        with pytest.raises(ValueError, match=message):
            RuneMultiCorridor(kinds=kinds)


def test_pictures_show_every_branch():
    env = RuneMultiCorridor(length=60, runes=30)
    env.reset(seed=3)
    shapes = {env.picture().shape}
    for t in range(60):
        env.step(FORWARD)
        assert env.text().count("@") == 1
        if t % 10 == 0:
            shapes.add(env.picture().shape)
    assert len(shapes) == 1
    assert env.text().count("*") == 1
    assert env.text().count("o\n") + env.text().endswith("o") == 3
