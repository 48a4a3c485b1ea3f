"""The plain environments that benchmarks compare with keep the rules of the compiled ones, step by step."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from twins import SplitMix

from palimpsest import envs
from palimpsest.envs.registration import entry, family
from palimpsest.envs.runes import unpacked

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from plain import PLAIN
from plain.hide_and_seek import PlainHideAndSeek
from plain.key_value import ASK, WRITE, PlainKeyValueRewrite
from plain.room_ballet import PlainRoomBalletShortStay
from plain.rune_tmaze import PlainRuneTMaze

CASES = [
    ("EndlessTMaze", {}),
    ("EndlessTMaze", dict(corridors=3, length=4, regime="uniform")),
    ("EndlessTMaze", dict(corridors=2, length=4, position="none")),
    ("ActiveTMaze", dict(length=3)),
    ("RuneTMaze", dict(length=9, runes=6, corridors=3)),
    ("RuneTMaze", dict(kinds=("invert", "reset", "repeat"))),
    ("RuneMultiCorridor", dict(corridors=2)),
    ("Bandit", dict(num_arms=3, pulls=20)),
    ("KeyValueRewrite", {}),
    ("KeyValueRewrite", dict(keys=3, values=2, updates=5, queries=0)),
    ("ColorCubes", {}),
    ("ColorCubes", dict(grid=3, cubes=4, phases=2, teleport=0.4, hide_colours=True)),
    ("ColorCubes", dict(grid=2, cubes=1, phases=4)),
    ("Ballet", dict(dancers=4, delay=3)),
    ("RoomBalletShortStay", dict(views=12, dances=3, side=3)),
    ("RoomBalletMultiTask", {}),
    ("HideAndSeek", {}),
    ("HideAndSeek", dict(rooms=2, boxes=2, objects=3, moves=5)),
]


class Stream(SplitMix):
    """The worlds' generator with the methods of numpy's that the plain environments call."""

    def __init__(self, seed: int, listing: bool) -> None:
        super().__init__(seed)
        self.listing = listing
        """Draw without replacement from a list of what is left, not by exchanging cards of a deck."""

    def integers(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        if size is None:
            return low + self.below(high - low)
        pairs = [[low + self.below(high - low, half) for half in self.halves()] for _ in range(0, size, 2)]
        return np.array(pairs, int).ravel()[:size]

    def random(self):
        return (self.bits() >> 11) / 2**53

    def choice(self, n, size, replace):
        assert not replace
        deck, chosen = list(range(n)), []
        for k in range(size):
            if self.listing:
                chosen.append(deck.pop(self.below(len(deck))))
            else:
                other = k + self.below(n - k)
                deck[k], deck[other] = deck[other], deck[k]
                chosen.append(deck[k])
        return np.array(chosen)

    def permutation(self, items):
        items = list(range(items)) if isinstance(items, int) else list(items)
        for last in range(len(items) - 1, 0, -2):
            for t, half in zip((last, last - 1), self.halves()):
                other = self.below(t + 1, half)
                items[t], items[other] = items[other], items[t]
        return np.array(items)


def copy_runes(plain, hidden, t):
    """The corridor that begins at step t."""
    now = {name: array[0] for name, array in hidden[t].items()}
    if t > 0 and now["corridor"] == hidden[t - 1]["corridor"][0]:
        return False
    total = now["total"]
    cells = np.flatnonzero(unpacked(now["cells"][None])[0]).tolist()
    plain.runes = dict(zip(cells, zip(now["kind"][:total].tolist(), now["value"][:total].tolist()), strict=True))
    plain.cue = int(now["first"])
    return True


def copy_stream(plain, hidden, t):
    """All writes and queries of the episode."""
    if t == 0:
        shown = [(int(h["kind"][0]), int(h["key"][0])) for h in hidden[:-1]]
        plain.events = [(kind, key, int(h["value"][0, key])) for (kind, key), h in zip(shown, hidden)]
    return t == 0


def copy_boxes(plain, hidden, t):
    """Where all objects are put, and what is asked for."""
    if t == 0:
        n, box = plain.n, [h["box"][0].tolist() for h in hidden]
        plain.objects, plain.boxes = hidden[n]["object"][0].tolist(), list(box[n - 1])
        moved = [int(hidden[n + 2 * k]["slot"][0]) for k in range(plain.count)]
        plain.moves = [(k, box[n + 2 * m].index(box[n + 2 * m + 1][k])) for m, k in enumerate(moved)]
        plain.asked, plain.asked_in = (int(hidden[plain.question][name][0]) for name in ("slot", "room"))
    return t == 0


def copy_walk(plain, hidden, t):
    """All rooms and dances, and the room asked for."""
    if t == 0:
        *plain.views, (plain.asked, plain.answer) = zip(*(hidden[0][name][0].tolist() for name in ("place", "dance")))
    return t == 0


COPY = {
    "RuneTMaze": copy_runes,
    "RuneMultiCorridor": copy_runes,
    "KeyValueRewrite": copy_stream,
    "RoomBalletShortStay": copy_walk,
    "HideAndSeek": copy_boxes,
}
"""Families whose plain form draws in another order: what it drew is replaced by what the world drew."""


def same(obs, plain_obs):
    if isinstance(obs, dict):
        assert obs.keys() == plain_obs.keys()
        return all(np.array_equal(obs[key], plain_obs[key]) for key in obs)
    return obs.dtype == plain_obs.dtype and np.array_equal(obs, plain_obs)


def worlds():
    return {entry(env_id).target.partition(":")[2]: family(env_id) for env_id in envs.ids()}


@pytest.mark.parametrize(("name", "kwargs"), CASES)
def test_equals_the_world(name, kwargs):
    world, plain, rng = worlds()[name](**kwargs), PLAIN[name](**kwargs), np.random.default_rng(0)
    for seed in range(12):
        skill = (0.0, 0.6, 0.95, 1.0)[seed % 4]
        hidden, episode = [], []
        obs, _ = world.reset(seed=seed)
        first, over = obs, False
        while not over:
            hidden.append(world.hidden_state())
            action = world.expert_action() if rng.random() < skill else int(rng.integers(world.action_space.n))
            obs, reward, terminated, truncated, info = world.step(action)
            info.pop("is_success", None)  # `success` under another name
            over = terminated or truncated
            episode.append((action, obs, (reward, terminated, truncated, info)))
        hidden.append(world.hidden_state())

        copy = COPY.get(name, lambda plain, hidden, t: False)
        plain.np_random = np.random.default_rng(seed) if name in COPY else Stream(seed, name == "ColorCubes")
        plain_obs, _ = plain.reset()
        assert same(first, plain._observe() if copy(plain, hidden, 0) else plain_obs)
        for t, (action, obs, rest) in enumerate(episode):
            plain_obs, *plain_rest = plain.step(action)
            assert tuple(plain_rest) == rest
            if t + 1 < len(episode) and copy(plain, hidden, t + 1):
                plain_obs = plain._observe()
            assert same(obs, plain_obs)
            assert plain_obs in plain.observation_space


def test_every_family_has_one_with_arguments_that_its_presets_fit():
    assert PLAIN.keys() == worlds().keys()
    for env_id in envs.ids():
        env = PLAIN[entry(env_id).target.partition(":")[2]](**entry(env_id).presets)
        env.reset(seed=0)
        assert env.action_space == family(env_id)(**entry(env_id).presets).action_space


def test_drawn_streams_keep_the_rules():
    plain = PlainKeyValueRewrite(keys=3, values=3, updates=4, queries=5)
    for seed in range(100):
        plain.reset(seed=seed)
        last, written = {}, {}
        for kind, key, value in plain.events:
            if kind == WRITE:
                assert value != last.get(key)
                last[key] = value
                written[key] = written.get(key, 0) + 1
            assert last[key] == value
        assert written == dict.fromkeys(range(3), 4)
        kinds = [kind for kind, *_ in plain.events]
        assert kinds[0] == WRITE
        assert kinds.count(ASK) == 5 + 3
        assert sorted(key for _, key, _ in plain.events[-3:]) == [0, 1, 2]
        assert kinds[-3:] == [ASK] * 3


def test_drawn_runes_and_boxes_keep_the_rules():
    runes, boxes = PlainRuneTMaze(length=9, runes=6), PlainHideAndSeek(rooms=2, boxes=3, objects=4, moves=6)
    totals = set()
    for seed in range(100):
        runes.reset(seed=seed)
        totals.add(len(runes.runes))
        assert set(runes.runes) <= set(range(1, 9))
        boxes.reset(seed=seed)
        assert sorted(boxes.objects) == list(range(4))
        assert sorted(boxes.boxes) == list(range(6))
        assert all(k < 4 <= empty < 6 for k, empty in boxes.moves)
    assert totals == set(range(1, 7))


def test_drawn_walks_keep_the_rules():
    plain = PlainRoomBalletShortStay(views=20, dances=4, side=3)
    for seed in range(100):
        plain.reset(seed=seed)
        rooms = [divmod(room, 3) for room, _ in plain.views]
        assert len(rooms) == 20
        assert all(0 <= row < 3 and 0 <= column < 3 for row, column in rooms)
        assert all(abs(r - row) + abs(c - column) == 1 for (r, c), (row, column) in itertools.pairwise(rooms))
        assert len(set(plain.views)) == len(set(rooms))
        assert {dance for _, dance in plain.views} <= set(range(4))
        assert (plain.asked, plain.answer) in plain.views
