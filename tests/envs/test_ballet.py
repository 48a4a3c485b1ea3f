"""Ballet against a twin in plain Python, its pixels against its numbers, and proof of what it needs."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from twins import SplitMix, first_success

from palimpsest import envs
from palimpsest.envs.ballet import Ballet
from palimpsest.envs.ballet_view import COLOURS, DANCE_NAMES, DANCES, GREY, SHAPES

IDS = [f"Palimpsest/Ballet-{n}-{delay}-v0" for n in (2, 4, 8) for delay in (16, 48)]
COMPASS = [(0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1)]
CENTRES = [(5 + 3 * x, 5 + 3 * y) for x, y in COMPASS]


class Twin:
    """One room, plain Python; dancers are a dict from place to (dance, shape, colour)."""

    def __init__(self, dancers: int, delay: int) -> None:
        self.n, self.delay = dancers, delay
        self.choice = 1 + dancers * (16 + delay)
        self.limit = 320 if delay <= 16 else 8 * (16 + delay) + 512

    def reset(self, seed: int | None = None) -> dict:
        if seed is not None:
            self.rng = SplitMix(seed)
        self.order, dances, shapes, colours = (self.some(cards) for cards in (8, 16, 8, 8))
        self.dancers = dict(zip(self.order, zip(dances, shapes, colours)))
        self.target = self.order[self.rng.below(self.n)]
        self.t, self.x, self.y = 0, 5, 5
        return self.see()

    def some(self, cards: int) -> list[int]:
        deck = list(range(cards))
        for k in range(self.n):
            other = k + self.rng.below(cards - k)
            deck[k], deck[other] = deck[other], deck[k]
        return deck[: self.n]

    def positions(self) -> dict[int, tuple[int, int]]:
        found = {p: CENTRES[p] for p in self.dancers}
        if 1 <= self.t < self.choice:
            turn, m = divmod(self.t - 1, 16 + self.delay)
            if m < 16:
                p = self.order[turn]
                step = COMPASS[DANCES[self.dancers[p][0], m]]
                found[p] = (CENTRES[p][0] + step[0], CENTRES[p][1] + step[1])
        return found

    def see(self) -> dict:
        told = [0.0] * 17
        told[0 if self.t < self.choice else 1 + self.dancers[self.target][0]] = 1.0
        seen = [(5 - self.x) / 4, (5 - self.y) / 4]
        where = self.positions()
        for p in range(8):
            about = [0.0] * 19
            if p in where:
                _, shape, colour = self.dancers[p]
                about[:3] = 1.0, (where[p][0] - self.x) / 8, (where[p][1] - self.y) / 8
                about[3 + shape] = about[11 + colour] = 1.0
            seen += about
        return {"told": told, "seen": seen}

    def step(self, action: int) -> tuple[dict, float, bool, bool, bool]:
        moving = self.t >= self.choice
        self.t += 1
        reached = None
        if moving:
            x, y = self.x + COMPASS[action][0], self.y + COMPASS[action][1]
            if x in range(1, 10) and y in range(1, 10):
                self.x, self.y = x, y
                reached = next((p for p in self.dancers if CENTRES[p] == (x, y)), None)
        won = reached == self.target
        over = reached is not None
        return self.see(), float(won), over, self.t >= self.limit and not over, won


def plain(obs: dict) -> dict:
    return {key: part.tolist() for key, part in obs.items()}


@settings(max_examples=25, deadline=None)
@given(
    kwargs=st.fixed_dictionaries(dict(dancers=st.integers(2, 8), delay=st.integers(0, 20))),
    seed=st.integers(0, 2**63),
    skill=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_equals_the_twin(kwargs, seed, skill):
    env, twin = Ballet(**kwargs), Twin(**kwargs)
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    assert plain(obs) == twin.reset(seed)
    for _ in range(3):
        over = False
        while not over:
            action = env.expert_action() if rng.random() < skill else int(rng.integers(8))
            obs, reward, terminated, truncated, info = env.step(action)
            assert (plain(obs), reward, terminated, truncated, info.get("success", False)) == twin.step(action)
            over = terminated or truncated
        assert plain(env.reset()[0]) == twin.reset()


def read_pixels(view: np.ndarray) -> dict[tuple[int, int], object]:
    """(column, row) of a square, from the player's, -> "wall", "player" or (shape, colour)."""
    found: dict[tuple[int, int], object] = {}
    for row, column in itertools.product(range(11), repeat=2):
        square = view[9 * row : 9 * row + 9, 9 * column : 9 * column + 9]
        if not square.any():
            continue
        if (square == GREY).all():
            found[column - 5, row - 5] = "wall"
            continue
        shape = [(square.any(-1) == mask).all() for mask in SHAPES].index(True)
        colour = [(square[square.any(-1)] == c).all() for c in COLOURS].index(True)
        found[column - 5, row - 5] = "player" if (shape, colour) == (8, 8) else (shape, colour)
    return found


@pytest.mark.parametrize("dancers", [2, 8])
def test_pixels_show_what_the_numbers_say(dancers):
    kwargs = dict(dancers=dancers, delay=1)
    drawn, twin = Ballet(**kwargs, pixels=True), Twin(**kwargs)
    numbers = Ballet(**kwargs)
    rng = np.random.default_rng(0)
    for seed in range(2):
        obs, _ = drawn.reset(seed=seed)
        symbols, _ = numbers.reset(seed=seed)
        twin.reset(seed)
        over = False
        while not over:
            action = numbers.expert_action() if rng.random() < 0.3 else int(rng.integers(8))
            expected: dict[tuple[int, int], object] = {}
            for x, y in itertools.product(range(11), repeat=2):
                if x in (0, 10) or y in (0, 10):
                    expected[x - twin.x, y - twin.y] = "wall"
            for p, (x, y) in twin.positions().items():
                expected[x - twin.x, y - twin.y] = twin.dancers[p][1:]
            expected[0, 0] = "player"
            visible = {(x, y): what for (x, y), what in expected.items() if max(abs(x), abs(y)) <= 5}
            assert read_pixels(obs["seen"]) == visible
            assert obs["told"].tolist() == symbols["told"].tolist()
            assert drawn.event_mask(obs) == numbers.event_mask(symbols)
            obs, *rest = drawn.step(action)
            symbols, *same = numbers.step(action)
            assert rest == same
            twin.step(action)
            over = rest[1] or rest[2]


def test_shapes_and_colours_can_be_told_apart():
    assert len({shape.tobytes() for shape in SHAPES}) == len({colour.tobytes() for colour in COLOURS}) == 9
    assert all(shape.any() and not shape.all() for shape in SHAPES)
    assert not (COLOURS == GREY).all(1).any()


def test_dances_can_be_told_apart():
    assert DANCES.shape == (len(DANCE_NAMES), 16) == (16, 16)
    assert set(DANCES.ravel().tolist()) == set(range(8))
    differ = (DANCES[:, None] != DANCES).sum(-1)
    assert differ[~np.eye(16, dtype=bool)].min() == 8


def rows(num_envs: int, **kwargs):
    vector = gym.make_vec(IDS[0], num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


def towards(seen: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The direction of the dancer of `place` [B] as `seen` [B, 154] has it."""
    ahead = np.sign(seen[np.arange(len(seen))[:, None], 3 + 19 * place[:, None] + np.arange(2)]).astype(int)
    return (ahead[:, None] == np.array(COMPASS)).all(-1).argmax(1)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_without_memory_it_is_chance(n):
    """Whatever tells dancers apart at the choice is independent of who dances what."""
    for rule in ("first place", "by the name", "lowest colour"):
        vector, obs = rows(4000, dancers=n, delay=0)

        def blind(obs, fresh, rule=rule):
            about = obs["seen"][:, 2:].reshape(-1, 8, 19)
            there = about[..., 0] > 0
            if rule == "first place":
                place = there.argmax(1)
            elif rule == "by the name":
                rank = (obs["told"][:, 1:].argmax(1) % n)[:, None]
                place = (there & (there.cumsum(1) - 1 == rank)).argmax(1)
            else:
                place = np.where(there, about[..., 11:].argmax(-1), 9).argmin(1)
            return towards(obs["seen"], place)

        assert abs(first_success(vector, obs, blind) - 1 / n) < 0.04
        assert vector.chance_level() == 1 / n


@pytest.mark.parametrize(("dancers", "delay"), [(2, 16), (8, 16), (8, 3), (4, 48)])
def test_a_player_with_a_dictionary_wins(dancers, delay):
    """It notes, step by step, which place's dancer stands where, looks the moves up among the dances, and walks."""
    names = {tuple(moves): d for d, moves in enumerate(DANCES.tolist())}
    env = Ballet(dancers=dancers, delay=delay)
    for seed in range(25):
        obs, _ = env.reset(seed=seed)
        moves: dict[int, list[int]] = {}
        over = False
        while not over:
            about = obs["seen"][2:].reshape(8, 19)
            action = 0
            if obs["told"][0]:
                for p in np.flatnonzero(about[:, 0]).tolist():
                    off = tuple((8 * about[p, 1:3] - 3 * np.array(COMPASS[p])).tolist())
                    if off != (0, 0):
                        moves.setdefault(p, []).append(COMPASS.index(off))
            else:
                place = {names[tuple(danced)]: p for p, danced in moves.items()}[int(obs["told"][1:].argmax())]
                action = int(towards(obs["seen"][None], np.array([place]))[0])
            obs, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
        assert (reward, terminated) == (1.0, True)
        assert len(moves) == dancers


@pytest.mark.parametrize("dancers", [2, 5, 8])
def test_the_expert_finds_its_way_from_everywhere(dancers):
    """From any free cell it reaches the dancer asked for, around the others."""
    vector, _ = rows(81 * 8, dancers=dancers, delay=0)
    world = vector.world
    cells = np.array([cell for cell in itertools.product(range(1, 10), repeat=2) for _ in range(8)])
    state = world.state
    state.steps[:] = world.rules.choice
    state.x[:], state.y[:] = cells.T
    taken = [(x, y) in {CENTRES[p] for p in np.flatnonzero(d >= 0)} for (x, y), d in zip(cells.tolist(), state.dance)]
    waiting = ~np.array(taken)
    for _ in range(12):
        _, _, terminated, _, infos = vector.step(vector.expert_action())
        if infos:
            assert infos["final_info"]["success"][waiting & terminated].all()
        waiting &= ~terminated
    assert not waiting.any()


@pytest.mark.parametrize(("n", "delay"), [(2, 16), (4, 48), (8, 1), (3, 0)])
def test_horizons_are_what_played_episodes_show(n, delay):
    env = Ballet(dancers=n, delay=delay)
    found = set()
    for seed in range(12 * n):
        obs, _ = env.reset(seed=seed)
        target, t = env.state.target[0], 0
        danced = []
        while obs["told"][0]:
            if env.event_mask(obs) and (obs["seen"][2 + 19 * target : 5 + 19 * target] != still(target)).any():
                danced.append(t)
            obs, *_ = env.step(0)
            t += 1
        assert len(danced) == 16
        assert t == 1 + n * (16 + delay)
        found.add(t - danced[-1] + 1)
    assert found == set(env.memory_horizons())


def still(place: int) -> list[float]:
    return [1.0, 3 * COMPASS[place][0] / 8, 3 * COMPASS[place][1] / 8]


@pytest.mark.parametrize("pixels", [False, True])
def test_events_are_moves(pixels):
    n, delay = 3, 5
    env = Ballet(dancers=n, delay=delay, pixels=pixels)
    obs, _ = env.reset(seed=0)
    mask = [bool(env.event_mask(obs))]
    for _ in range(n * (16 + delay) + 2):
        obs, *_ = env.step(2)
        mask.append(bool(env.event_mask(obs)))
    assert mask == [False, *([True] * 16 + [False] * delay) * n, False, False]


@pytest.mark.parametrize("id", IDS)
def test_presets_have_the_published_timing(id):
    env = gym.make(id).unwrapped
    n, delay = map(int, id.split("-")[1:3])
    assert env.rules.limit == {16: 320, 48: 1024}[delay]
    assert env.chance_level() == 1 / n
    obs, _ = env.reset(seed=1)
    t = 0
    while obs["told"][0]:
        obs, reward, terminated, truncated, _ = env.step(3)
        assert (reward, terminated, truncated) == (0.0, False, False)
        t += 1
    assert t == 1 + n * (16 + delay)
    assert obs["seen"][:2].tolist() == [0, 0]
    taken = [env.step(env.expert_action()) for _ in range(3)]
    assert taken[-1][1:] == (1.0, True, False, reported(True))


def test_draws_are_fair():
    B = 40_000
    vector, _ = rows(B, dancers=4)
    hidden = vector.hidden_state()
    named = hidden["dance"][np.arange(B), hidden["target"]]
    joint = np.zeros((8, 16))
    np.add.at(joint, (hidden["target"], named), 1)
    # chi-squared with 127 degrees of freedom passes 190 once in 5,000 times
    assert ((joint - B / 128) ** 2 / (B / 128)).sum() < 190
    turn = (hidden["order"] == hidden["target"][:, None]).argmax(1)
    assert (abs(np.bincount(turn) - B / 4) < 4 * (B * 3 / 16) ** 0.5).all()
    there = hidden["dance"] >= 0
    assert (there.sum(1) == 4).all()
    for name in ("shape", "colour", "dance"):
        values = np.sort(hidden[name][there].reshape(B, 4), 1)
        assert (np.diff(values, axis=1) > 0).all()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(dancers=1), "dancers must be an integer, 2 to 8; got 1"),
        (dict(dancers=9), "dancers must be an integer, 2 to 8; got 9"),
        (dict(dancers="4"), "dancers must be an integer"),
        (dict(delay=-1), "delay must be an integer, 0 to 10,000; got -1"),
        (dict(pixels=1), "pixels must be True or False; got 1"),
    ],
)
def test_arguments_out_of_range_are_refused(kwargs, message):
    for build in (lambda: Ballet(**kwargs), lambda: envs.make_vec(IDS[0], 2, **kwargs)):
        with pytest.raises(ValueError, match=message):
            build()


def test_pictures_name_the_dance_and_mark_its_dancer():
    env = Ballet()
    env.reset(seed=0)
    assert "watch 0/65" in env.text()
    pictures = []
    for _ in range(65):
        pictures.append(env.picture()[24:].tobytes())
        assert env.text().count("*") == env.text().count("@") == 1
        env.step(0)
    # two dances of two cells or more each, and all at rest
    assert len(set(pictures)) >= 5
    assert env.text().startswith(DANCE_NAMES[env.state.dance[0, env.state.target[0]]])


def test_pixels_pass_every_face():
    check_env(gym.make(IDS[0], pixels=True).unwrapped)
    sb3_check_env(gym.make(IDS[0], pixels=True).unwrapped)
    venv = envs.make_vec(IDS[0], 3, seed=0, pixels=True)
    obs = venv.reset()
    assert obs["seen"].shape == (3, 99, 99, 3)
    assert obs["seen"].dtype == np.uint8
    vector = gym.make_vec(IDS[0], 3, pixels=True)
    assert (vector.reset(seed=0)[0]["seen"] == obs["seen"]).all()
