"""Hide and seek against a twin in plain Python, and proof that it needs memory, rewriting and nothing hidden."""

from __future__ import annotations

import itertools
from fractions import Fraction

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import SplitMix

from palimpsest.envs.hide_and_seek import HideAndSeek

ID = "Palimpsest/HideAndSeek-v0"
TWO_64 = 1 << 64


class Twin:
    """The data sheet as a story: dictionaries of what lies where, one world, plain Python.

    Lists of candidates are kept in the order that makes the draws come out as the kernel's: a candidate that is
    picked gives its place in the list to the first, or to the box that has become empty.
    """

    def __init__(self, rooms: int, boxes: int, objects: int, moves: int) -> None:
        self.rooms, self.boxes, self.objects, self.moves = rooms, boxes, objects, moves

    def reset(self, seed: int | None = None) -> dict:
        if seed is not None:
            self.rng = SplitMix(seed)
        self.unseen = list(range(self.objects))
        self.empty = [(room, box) for room in range(self.rooms) for box in range(self.boxes)]
        self.lies: dict[int, tuple[int, int]] = {}
        self.count = dict.fromkeys(range(self.objects), 0)
        self.asked: int | None = None
        self.story = self.tell()
        return self.see(*next(self.story))

    def tell(self):
        """(kind, object, room, box) of every step; box None at the question."""
        for _ in range(self.objects):
            thing, box = self.pick(self.unseen), self.pick(self.empty)
            self.lies[thing] = box
            yield "put", thing, *box
        hidden = list(self.lies)
        for _ in range(self.moves):
            thing = hidden[self.rng.below(self.objects)]
            old = self.lies[thing]
            yield "taken", thing, *old
            where = self.rng.below(len(self.empty))
            self.lies[thing], self.empty[where] = self.empty[where], old
            self.count[thing] += 1
            yield "put", thing, *self.lies[thing]
        self.asked = hidden[self.rng.below(self.objects)]
        yield "asked", self.asked, self.rng.below(self.rooms), None

    def pick(self, candidates: list):
        where = self.rng.below(len(candidates))
        candidates[0], candidates[where] = candidates[where], candidates[0]
        return candidates.pop(0)

    def see(self, kind, thing, room, box) -> dict:
        seen = [0.0] * (self.objects + self.boxes + 3)
        seen[thing] = 1.0
        if box is not None:
            seen[self.objects + box] = 1.0
        seen[self.objects + self.boxes + ("put", "taken", "asked").index(kind)] = 1.0
        self.room = room
        return {"place": room, "seen": seen}

    def step(self, action: int) -> tuple:
        if self.asked is None:
            return self.see(*next(self.story)), 0.0, False, False, False
        right = divmod(action, self.boxes) == self.lies[self.asked]
        nothing = {"place": self.room, "seen": [0.0] * (self.objects + self.boxes + 3)}
        return nothing, float(right), True, False, right


@st.composite
def arguments(draw):
    rooms, boxes = draw(st.integers(2, 5)), draw(st.integers(1, 5))
    objects = draw(st.integers(1, min(rooms * boxes - 1, 7)))
    return dict(rooms=rooms, boxes=boxes, objects=objects, moves=draw(st.integers(0, 7)))


def plain(obs) -> dict:
    return {"place": int(obs["place"]), "seen": obs["seen"].tolist()}


@settings(max_examples=60, deadline=None)
@given(kwargs=arguments(), seed=st.integers(0, 2**63), skill=st.sampled_from([0.0, 0.9, 1.0]))
def test_equals_the_twin(kwargs, seed, skill):
    env, twin = HideAndSeek(**kwargs), Twin(**kwargs)
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    assert plain(obs) == twin.reset(seed)
    for _ in range(200):
        action = env.expert_action() if rng.random() < skill else int(rng.integers(env.action_space.n))
        times = -1 if twin.asked is None else twin.count[twin.asked]
        assert env.times_moved().tolist() == [times]
        obs, reward, terminated, truncated, info = env.step(action)
        assert (plain(obs), reward, terminated, truncated, info.get("success", False)) == twin.step(action)
        assert obs in env.observation_space
        if terminated:
            assert plain(env.reset()[0]) == twin.reset()


def test_many_rows_equal_their_twins():
    kwargs = dict(rooms=3, boxes=2, objects=4, moves=3)
    vector = gym.make_vec(ID, 16, **kwargs)
    twins = [Twin(**kwargs) for _ in range(16)]
    obs, _ = vector.reset(seed=100)
    rng = np.random.default_rng(0)

    def row(obs, i):
        return {"place": int(obs["place"][i]), "seen": obs["seen"][i].tolist()}

    assert [row(obs, i) for i in range(16)] == [twin.reset(100 + i) for i, twin in enumerate(twins)]
    for _ in range(1000):
        actions = np.where(rng.random(16) < 0.5, vector.expert_action(), rng.integers(6, size=16))
        obs, rewards, terminated, truncated, infos = vector.step(actions)
        for i, twin in enumerate(twins):
            seen, *rest, won = twin.step(int(actions[i]))
            assert rest == [rewards[i], terminated[i], truncated[i]]
            if terminated[i]:
                assert plain(infos["final_obs"][i]) == seen
                assert infos["final_info"]["success"][i] == won
                seen = twin.reset()
            assert row(obs, i) == seen


@settings(max_examples=30, deadline=None)
@given(kwargs=arguments(), seed=st.integers(0, 2**40))
def test_every_episode_has_its_length_and_the_expert_wins(kwargs, seed):
    env = HideAndSeek(**kwargs)
    env.reset(seed=seed)
    rewards = []
    over = False
    while not over:
        obs, reward, terminated, truncated, info = env.step(env.expert_action())
        rewards.append(reward)
        over = terminated or truncated
    assert rewards == [0.0] * (kwargs["objects"] + 2 * kwargs["moves"]) + [1.0]
    assert (terminated, truncated, info) == (True, False, reported(True))
    assert not obs["seen"].any()


class Player:
    """Sees observations alone; a dictionary per row says where each object was put, last or (`first`) first."""

    def __init__(self, vector, first: bool = False) -> None:
        self.N, self.boxes = vector.world.rules.objects, vector.world.rules.boxes
        self.first = first
        self.notes: list[dict[int, int]] = [{} for _ in range(vector.num_envs)]

    def forget(self, rows) -> None:
        for i in rows:
            self.notes[i] = {}

    def act(self, obs) -> np.ndarray:
        things = obs["seen"][:, : self.N].argmax(1)
        boxes = obs["place"] * self.boxes + obs["seen"][:, self.N : self.N + self.boxes].argmax(1)
        put, _, asked = obs["seen"][:, self.N + self.boxes :].T > 0
        actions = np.zeros(len(things), int)
        for i, (thing, box) in enumerate(zip(things.tolist(), boxes.tolist())):
            if asked[i]:
                actions[i] = self.notes[i][thing]
            elif put[i] and not (self.first and thing in self.notes[i]):
                self.notes[i][thing] = box
        return actions


def episodes(vector, act, count: int = 1, forget=lambda rows: None) -> tuple[np.ndarray, np.ndarray]:
    """Success, and how often the object asked for was moved, of `count` episodes of every row."""
    obs, _ = vector.reset(seed=0)
    rows = np.arange(vector.num_envs)
    won, times = [], []
    for _ in range(count):
        for _ in range(vector.world.rules.limit):
            before = vector.world.times_moved()
            obs, _, terminated, truncated, infos = vector.step(act(obs))
        assert terminated.all()
        assert not truncated.any()
        won.append(infos["final_info"]["success"])
        times.append(before)
        forget(rows)
    return np.concatenate(won), np.concatenate(times)


@pytest.mark.parametrize("kwargs", [{}, dict(rooms=2, boxes=1, objects=1), dict(rooms=5, boxes=3, objects=14, moves=9)])
def test_a_player_with_a_dictionary_wins(kwargs):
    vector = gym.make_vec(ID, 200, **kwargs)
    player = Player(vector)
    won, _ = episodes(vector, player.act, 2, player.forget)
    assert won.all()


def near(share: float, level: float, count: int) -> bool:
    """Whether `share` of `count` is within four standard errors of `level`."""
    return abs(share - level) <= 4 * np.sqrt(level * (1 - level) / count) + 1e-12


@pytest.mark.parametrize("kwargs", [dict(), dict(rooms=2, boxes=2, objects=2, moves=1), dict(moves=0)])
def test_without_memory_it_is_chance(kwargs):
    """No answer that may depend on all that the question shows, the object and the room, beats one box in all.

    The best response is estimated on one half of the episodes and tested on the other.
    """
    vector = gym.make_vec(ID, 20_000, **kwargs)
    world = vector.world
    N = world.rules.objects
    obs, _ = vector.reset(seed=0)
    for _ in range(world.rules.question):
        obs, *_ = vector.step(np.zeros(vector.num_envs, int))
    shown = obs["seen"][:, :N].argmax(1) * world.rules.rooms + obs["place"]
    answers = vector.expert_action()
    table = np.zeros((N * world.rules.rooms, world.action_space.n), int)
    half = vector.num_envs // 2
    np.add.at(table, (shown[:half], answers[:half]), 1)
    best = table.argmax(1)[shown[half:]] == answers[half:]
    assert world.chance_level() == 1 / world.action_space.n
    assert near(best.mean(), world.chance_level(), half)
    counts = np.bincount(answers, minlength=world.action_space.n)
    assert (np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())).all()


@pytest.mark.parametrize("kwargs", [{}, dict(rooms=2, boxes=2, objects=2, moves=3), dict(moves=32)])
def test_first_places_alone_win_as_often_as_documented(kwargs):
    vector = gym.make_vec(ID, 4000, **kwargs)
    player = Player(vector, first=True)
    won, times = episodes(vector, player.act)
    assert near(won.mean(), vector.world.first_place_level(), len(won))
    assert won[times == 0].all()
    assert not won[times == 1].any()
    assert won[times >= 1].mean() < 0.5


def test_first_place_level_of_the_docstring():
    assert f"{HideAndSeek().first_place_level():.4f} by default" in HideAndSeek.__doc__


@pytest.mark.parametrize(("boxes", "objects", "moves"), [*itertools.product((3, 4), (1, 2), range(4))])
def test_first_place_level_is_exact(boxes, objects, moves):
    """Every way that the moves can go, each as likely, the first object being asked for without loss."""

    def level(places: tuple[int, ...], left: int) -> Fraction:
        if left == 0:
            return Fraction(places[0] == 0)
        empty = [box for box in range(boxes) if box not in places]
        ways = [(*places[:k], box, *places[k + 1 :]) for k in range(objects) for box in empty]
        return sum((level(way, left - 1) for way in ways), Fraction(0)) / len(ways)

    env = HideAndSeek(rooms=boxes, boxes=1, objects=objects, moves=moves)
    assert env.first_place_level() == pytest.approx(float(level(tuple(range(objects)), moves)), abs=1e-12)


def test_draws_are_fair():
    """Objects moved and asked for, and the boxes of a first move, come equally often."""
    vector = gym.make_vec(ID, 40_000, rooms=3, boxes=2, objects=3, moves=1)
    obs, _ = vector.reset(seed=0)
    first = obs["seen"][:, :3].argmax(1), obs["place"] * 2 + obs["seen"][:, 3:5].argmax(1)
    for step in range(5):
        obs, *_ = vector.step(np.zeros(40_000, int))
        if step == 2:
            taken = obs["seen"][:, :3].argmax(1)
    asked, room = obs["seen"][:, :3].argmax(1), obs["place"]
    pairs = (taken * 3 + asked, asked * 3 + room, first[0] * 6 + first[1])
    for pair, cells in zip(pairs, (9, 9, 18)):
        counts = np.bincount(pair, minlength=cells)
        assert len(counts) == cells
        assert (np.abs(counts - counts.mean()) < 5 * np.sqrt(counts.mean())).all()
    assert near((vector.world.times_moved() == 1).mean(), 1 / 3, 40_000)


@settings(max_examples=25, deadline=None)
@given(kwargs=arguments())
def test_horizons_are_what_played_episodes_show(kwargs):
    vector = gym.make_vec(ID, 400, **kwargs)
    N = kwargs["objects"]
    obs, _ = vector.reset(seed=0)
    last = np.full((400, N), -1)
    for t in range(vector.world.rules.question):
        put = np.flatnonzero(vector.event_mask(obs))
        last[put, obs["seen"][put, :N].argmax(1)] = t
        obs, *_ = vector.step(np.zeros(400, int))
    asked = obs["seen"][:, :N].argmax(1)
    found = set((vector.world.rules.question - last[np.arange(400), asked] + 1).tolist())
    declared = set(vector.memory_horizons())
    assert found <= declared
    if N * (kwargs["moves"] + 1) <= 9:
        assert found == declared
    assert not vector.event_mask(obs).any()


def test_what_is_hidden_is_drawn_apart():
    env = HideAndSeek(rooms=2, boxes=2, objects=2, moves=1, render_mode="ansi")
    env.reset(seed=3)
    texts = [env.render()]
    for _ in range(5):
        env.step(env.expert_action())
        texts.append(env.render())
    assert [text.count("(") for text in texts] == [0, 1, 1, 1, 2, 2]
    assert [text.count("@") for text in texts] == [1] * 6
    assert "is put into" in texts[0]
    assert "is taken out of" in texts[2]
    assert "where is object" in texts[4]
    assert "over" in texts[5]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(rooms=1), "rooms must be an integer, 2 to 100; got 1"),
        (dict(rooms=2.0), "rooms must be an integer, 2 to 100"),
        (dict(boxes=0), "boxes must be an integer, 1 to 100; got 0"),
        (dict(objects=16), "objects must be an integer, 1 to 15; got 16"),
        (dict(objects=0), "objects must be an integer, 1 to 15; got 0"),
        (dict(moves=-1), "moves must be an integer, 0 to 1,000,000; got -1"),
        (dict(moves=True), "moves must be an integer"),
    ],
)
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        HideAndSeek(**kwargs)
