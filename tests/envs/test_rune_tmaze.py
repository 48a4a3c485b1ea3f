"""Rune T-Maze against a twin in plain Python, and its runes' meaning in sequences; see also test_rune_players."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import SplitMix, assert_follows, assert_rows_follow

from palimpsest import envs
from palimpsest.envs.rune_tmaze import RuneTMaze
from palimpsest.envs.runes import KINDS, unpacked

FORWARD, LEFT, RIGHT = range(3)
TASKS = ("invert", "cancel", "reset", "repeat", "mixed")


def id_of(task: str) -> str:
    return f"Palimpsest/RuneTMaze-{task}-v0"


def resulting(first: int, runes: list[tuple[str, int]], branches: int = 2) -> int:
    """The cue after `runes`, each (kind, value): first strike out, then let the rest act in order."""
    counting: list[tuple[str, int]] = []
    for rune in runes:
        if rune[0] == "cancel":
            counting = counting[:-1]
        elif rune[0] == "repeat":
            counting = counting + counting[-1:]
        else:
            counting = [*counting, rune]
    cue = first
    for kind, value in counting:
        cue = {"invert": 1 - cue, "rotate": (cue + 1) % branches, "reset": value}[kind]
    return cue


def rows(task: str, num_envs: int = 2000, **kwargs):
    vector = gym.make_vec(id_of(task), num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


class Twin:
    """The rules step by step, one world, plain Python; the cue is worked out anew from all runes met."""

    branches = 2
    names = KINDS

    def __init__(self, length: int, runes: int, kinds: list[str], corridors: int) -> None:
        self.length, self.most, self.kinds, self.n = length, runes, kinds, corridors

    def reset(self, seed: int | None = None) -> list[float]:
        if seed is not None:
            self.rng = SplitMix(seed)
        self.t, self.passed = 0, 0
        return self.enter()

    def enter(self) -> list[float]:
        self.x, self.met = 0, []
        high, low = self.rng.halves()
        total = 1 + self.rng.below(self.most, high)
        self.first = self.rng.below(self.branches, low)
        cells, runes = set(), []
        for last in range(self.length - total, self.length):
            high, low = self.rng.halves()
            x = 1 + self.rng.below(last, high)
            cells.add(last if x in cells else x)
            kind, value = divmod(self.rng.below(self.branches * len(self.kinds), low), self.branches)
            runes.append((self.kinds[kind], value if self.kinds[kind] == "reset" else 0))
        self.runes = dict(zip(sorted(cells), runes, strict=True))
        return self.see()

    @property
    def cue(self) -> int:
        return resulting(self.first, self.met, self.branches)

    def see(self) -> list[float]:
        kind, value = self.runes.get(self.x, ("none", 0))
        shown = self.first if self.x == 0 else value if kind == "reset" else -1
        place = float(np.float32(self.x / self.length))
        shows = [float(shown == branch) for branch in range(self.branches)]
        return [*shows, place, *(float(kind == each) for each in self.names)]

    def step(self, action: int) -> tuple[list[float], float, bool, bool, bool]:
        self.t += 1
        late = self.t >= 6 * (self.length + 1) * self.n
        if self.x < self.length:
            if action == FORWARD:
                self.x += 1
                if self.x in self.runes:
                    self.met.append(self.runes[self.x])
            return self.see(), -0.01, False, late, False
        if action != 1 + self.cue:
            return self.see(), -1.0, True, False, False
        self.passed += 1
        if self.passed == self.n:
            return self.see(), 1.0, True, False, True
        return self.enter(), 1.0, False, late, False


def kinds():
    return st.lists(st.sampled_from(KINDS), min_size=1, max_size=6).filter({"invert", "reset"}.intersection)


@st.composite
def arguments(draw):
    most = draw(st.integers(2, 7))
    return dict(
        length=most + draw(st.integers(1, 6)), runes=most, kinds=draw(kinds()), corridors=draw(st.integers(1, 4))
    )


@settings(max_examples=60, deadline=None)
@given(kwargs=arguments(), seed=st.integers(0, 2**63), skill=st.sampled_from([0.0, 0.9, 0.99, 1.0]))
def test_equals_the_twin(kwargs, seed, skill):
    assert_follows(RuneTMaze(**kwargs), Twin(**kwargs), seed, 250, skill)


@pytest.mark.parametrize("task", TASKS)
def test_many_rows_equal_their_twins(task):
    kwargs = dict(length=9, runes=6, corridors=2)
    vector = gym.make_vec(id_of(task), 16, **kwargs)
    twins = [Twin(kinds=gym.spec(id_of(task)).kwargs["kinds"], **kwargs) for _ in range(16)]
    assert_rows_follow(vector, twins, 500, 0.9)


# I invert, C cancel, R repeat, < and > reset to left and to right
SENTENCES = [
    ("left", "I", "right"),
    ("right", "I", "left"),
    ("left", "II", "left"),
    ("left", ">", "right"),
    ("left", "><", "left"),
    ("left", "I<", "left"),
    ("left", "C", "left"),  # nothing to cancel
    ("left", "R", "left"),  # nothing to repeat
    ("left", "CI", "right"),  # a cancel is not kept for later
    ("left", "RI", "right"),  # nor is a repeat
    ("left", "IC", "left"),
    ("left", "ICC", "left"),  # the second finds nothing; no redo
    ("left", "IIC", "right"),
    ("left", "IICC", "left"),  # two cancels undo two runes
    ("left", "III" + "CC", "right"),
    ("right", "<C", "right"),  # what was overwritten comes back
    ("right", "<>CC", "right"),
    ("right", "I<C", "left"),
    ("left", ">IC", "right"),
    ("left", "IR", "left"),
    ("left", "IRR", "right"),  # repeat of repeat
    ("left", ">R", "right"),  # a reset repeated sets the same cue
    ("left", "I>R", "right"),
    ("left", ">IR", "right"),
    ("left", "IRC", "right"),  # undoes the repetition alone
    ("left", "IRCC", "left"),
    ("left", ">RC", "right"),
    ("left", ">RCC", "left"),
    ("left", "ICR", "left"),  # what was cancelled cannot be repeated
    ("left", "I>CR", "left"),  # repeats the invert below
    ("right", "<IC" + "R", "left"),  # repeats the reset below
    ("left", "RIC", "left"),  # the repeat that did nothing does not count
    ("left", "IRC" + "R", "left"),
    ("left", "I>C" + "RRC", "left"),
]


@pytest.mark.parametrize(("first", "sentence", "result"), SENTENCES)
def test_what_sentences_of_runes_mean(first, sentence, result):
    sides = ("left", "right")
    runes = [
        {"I": ("invert", 0), "C": ("cancel", 0), "R": ("repeat", 0), "<": ("reset", 0), ">": ("reset", 1)}[letter]
        for letter in sentence
    ]
    env = RuneTMaze(length=8, runes=7)
    env.reset(seed=0)
    hidden = env.hidden_state()
    hidden["cue"][:] = hidden["first"][:] = sides.index(first)
    hidden["total"][:], hidden["cells"][:] = len(runes), (1 << len(runes)) - 1 << 1
    for k, (kind, value) in enumerate(runes):
        hidden["kind"][0, k], hidden["value"][0, k] = KINDS.index(kind), value
    env.reset(options={"hidden_state": hidden})
    for _ in range(8):
        env.step(FORWARD)
    assert env.step(1 + sides.index(result))[1:] == (1.0, True, False, reported(True))
    assert resulting(sides.index(first), runes) == sides.index(result)


def test_standing_on_a_rune_shows_it_but_it_acts_once():
    env = RuneTMaze(length=3, runes=2, kinds=["invert"])
    for seed in range(20):
        env.reset(seed=seed)
        env.step(FORWARD)
        for _ in range(2):
            cue, seen = env.hidden_state()["cue"], env.io.obs.tolist()
            for turn in (LEFT, RIGHT, LEFT):
                obs, reward, *_ = env.step(turn)
                assert reward == -0.01
                assert [obs.tolist()] == seen
                assert env.hidden_state()["cue"] == cue
            env.step(FORWARD)
        assert env.step(1 + int(cue[0]))[1] == 1.0


@pytest.mark.parametrize("wrong", ["forward", "other side"])
def test_wrong_moves_at_the_junction_end_it_where_it_stands(wrong):
    env = RuneTMaze(corridors=2)
    for seed in range(20):
        env.reset(seed=seed)
        while env.expert_action() == FORWARD:
            env.step(FORWARD)
        action = FORWARD if wrong == "forward" else 3 - env.expert_action()
        obs, *rest = env.step(action)
        assert rest == [-1.0, True, False, reported(False)]
        assert obs.tolist() == [0, 0, 1, 0, 0, 0, 0]


def every(runes: int, kinds: list[str]):
    """All sentences of up to `runes` runes, with their probabilities."""
    letters = [(kind, value) for kind in kinds for value in (0, 1)]
    for n in range(1, runes + 1):
        for sentence in itertools.product(letters, repeat=n):
            yield sentence, 1 / runes / len(letters) ** n


@settings(max_examples=25, deadline=None)
@given(kinds=kinds().filter(lambda kinds: len(kinds) <= 4), runes=st.integers(2, 4))
def test_what_the_first_cue_is_worth_equals_enumeration(kinds, runes):
    same = sum(chance for sentence, chance in every(runes, kinds) if resulting(0, list(sentence)) == 0)
    for n in (1, 3):
        env = RuneTMaze(length=9, runes=runes, kinds=kinds, corridors=n)
        assert env.first_cue_level() == pytest.approx(max(same, 1 - same) ** n, abs=1e-12)
        assert env.chance_level() == 0.5**n


@pytest.mark.parametrize("kinds", [[kind] for kind in ("invert", "reset")] + [["reset", "repeat"], ["reset", "cancel"]])
@pytest.mark.parametrize("length", [3, 5])
def test_horizons_are_what_played_episodes_show(kinds, length):
    """An event counts if the turn would be another one without it, or with the other cue."""
    env, found = RuneTMaze(length=length, runes=2, kinds=kinds), set()
    for seed in range(200):
        obs, _ = env.reset(seed=seed)
        events, t = [], 0
        while env.expert_action() == FORWARD:
            if env.event_mask(obs):
                events.append((t, [kind for kind, here in zip(KINDS, obs[3:]) if here], int(obs[1])))
            obs, *_ = env.step(FORWARD)
            t += 1
        assert not env.event_mask(obs)
        (_, _, first), *met = events
        runes = [(kind, value) for _, (kind,), value in met]
        turn = resulting(first, runes)
        assert env.expert_action() == 1 + turn
        if resulting(1 - first, runes) != turn:
            found.add(t + 1)
        for k, (when, (kind,), value) in enumerate(met):
            others = [runes[:k] + runes[k + 1 :]]
            if kind == "reset":
                others.append([*runes[:k], ("reset", 1 - value), *runes[k + 1 :]])
            if any(resulting(first, other) != turn for other in others):
                found.add(t - when + 1)
    assert tuple(sorted(found)) == env.memory_horizons()


def test_runes_are_laid_fairly():
    B, length, most = 40_000, 6, 4
    vector = gym.make_vec(id_of("mixed"), B, length=length, runes=most, kinds=[*KINDS])
    vector.reset(seed=0)
    hidden = vector.hidden_state()

    def fair(counts):
        """Chi-squared with d degrees of freedom passes d + 2 √(8 d) + 16 with chance e⁻⁸ at most (Laurent, Massart)."""
        expected, d = counts.sum() / counts.size, counts.size - 1
        return ((counts - expected) ** 2 / expected).sum() < d + 2 * (8 * d) ** 0.5 + 16

    assert fair(np.bincount(hidden["cue"], minlength=2))
    assert fair(np.bincount(hidden["total"])[1:])
    for total in range(1, most + 1):
        group = hidden["total"] == total
        cells = unpacked(hidden["cells"])[group]
        kinds, values = (hidden[name][group, :total] for name in ("kind", "value"))
        choices, counts = np.unique(cells, axis=0, return_counts=True)
        found = sorted(np.flatnonzero(choice).tolist() for choice in choices)
        assert found == [list(c) for c in itertools.combinations(range(1, length), total)]
        assert fair(counts)
        assert fair(np.unique(kinds, axis=0, return_counts=True)[1])
        assert len(np.unique(kinds, axis=0)) == 4**total
        assert fair(np.bincount(values[kinds == KINDS.index("reset")], minlength=2))
        assert not values[kinds != KINDS.index("reset")].any()


def test_names_that_come_twice_are_drawn_twice_as_often():
    vector, _ = rows("cancel", 20_000)
    hidden = vector.hidden_state()
    first = hidden["kind"][:, 0]
    shares = [(first == KINDS.index(kind)).mean() for kind in ("invert", "reset", "cancel", "repeat")]
    assert np.abs(np.array(shares) - [0.4, 0.2, 0.4, 0]).max() < 0.015


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(runes=1), "runes must be an integer, 2 to 1,000; got 1"),
        (dict(runes=2000, length=3000), "runes must be an integer, 2 to 1,000; got 2000"),
        (dict(length=8), "length must be an integer, 9 to 1,000,000; got 8"),
        (dict(length=20.0), "length must be an integer"),
        (dict(corridors=0), "corridors must be an integer, 1 to 1,000,000; got 0"),
        (dict(kinds="invert"), "kinds must be a list of 1 to 16 names out of 'invert', .*; got 'invert'"),
        (dict(kinds=[]), r"kinds must be a list of 1 to 16 names out of .*; got \[\]"),
        (dict(kinds=["invert"] * 17), "kinds must be a list of 1 to 16 names"),
        (dict(kinds=None), "kinds must be a list of 1 to 16 names"),
        (dict(kinds=["inverse"]), r"each of kinds must be one of .*; got 'inverse' \(did you mean 'invert'\?\)"),
        (dict(kinds=["repeat", "cancel"]), "kinds must hold 'invert' or 'reset'"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    for build in (lambda: RuneTMaze(**kwargs), lambda: envs.make_vec(id_of("mixed"), 2, **kwargs)):
        with pytest.raises(ValueError, match=message):
            build()


def test_long_corridors_are_drawn_through_a_window():
    env = RuneTMaze(length=100, runes=60)
    env.reset(seed=3)
    shapes = {env.picture().shape}
    for t in range(100):
        env.step(FORWARD)
        assert env.text().count("@") == 1
        if t % 10 == 0:
            shapes.add(env.picture().shape)
    assert len(shapes) == 1
    assert "*" in env.text()


@pytest.mark.parametrize("length", [3, 20, 49, 2**19, 2**19 + 1, 777_777, 999_983, 1_000_000])
def test_positions_are_the_quotients(length):
    x = np.arange(length + 1)
    found = (x * RuneTMaze(length=length, runes=2).rules.cell).astype(np.float32)
    assert np.array_equal(found, (x / length).astype(np.float32))
