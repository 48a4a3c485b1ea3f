"""Room Ballet against a twin in plain Python, and proof of what each of its tasks needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import pytest
from faces import reported
from hypothesis import given, settings
from hypothesis import strategies as st
from twins import SplitMix

from palimpsest import envs
from palimpsest.envs.room_ballet import RoomBalletShortStay
from palimpsest.envs.room_ballet_tasks import TASKS, VIEWS, RoomBalletMultiTask
from palimpsest.memory.parts.allocation import STRATEGIES, Slots, allocate

SHORT, MULTI = "Palimpsest/RoomBallet-ShortStay-v0", "Palimpsest/RoomBallet-MultiTask-v0"
CAPACITY = 9


class Twin:
    """An episode as a list of (room, dance) and a question; what the player sees and gets."""

    def __init__(self, dances: int) -> None:
        self.dances = dances

    def reset(self, seed: int | None = None) -> dict:
        if seed is not None:
            self.rng = SplitMix(seed)
        self.task = None
        self.views = self.draw()
        self.t, self.over = 0, False
        return self.see()

    def see(self) -> dict:
        seen = [0.0] * (self.dances + 1)
        place = self.asked
        if self.t < len(self.views):
            place, dance = self.views[self.t]
            seen[dance] = 1.0
        elif not self.over:
            seen[-1] = 1.0
        return {"place": place, "seen": seen} | ({} if self.task is None else {"task": self.task})

    def step(self, action: int) -> tuple[dict, float, bool, bool, bool]:
        if self.t < len(self.views):
            self.t += 1
            return self.see(), 0.0, False, False, False
        self.over = True
        answer = [dance for place, dance in self.views if place == self.asked][-1]
        return self.see(), float(action == answer), True, False, action == answer


class ShortStayTwin(Twin):
    """A random walk between neighbouring rooms."""

    def __init__(self, views: int, dances: int, side: int) -> None:
        super().__init__(dances)
        self.length, self.side = views, side

    def draw(self) -> list[tuple[int, int]]:
        row, column = (self.rng.below(self.side, half) for half in self.rng.halves())
        dance_of: dict[int, int] = {}
        views = []
        for _ in range(self.length):
            door, dance = self.rng.halves()
            room = row * self.side + column
            dance_of.setdefault(room, self.rng.below(self.dances, dance))
            views.append((room, dance_of[room]))
            doors = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
            doors = [(r, c) for r, c in doors if 0 <= r < self.side and 0 <= c < self.side]
            row, column = doors[self.rng.below(len(doors), door)]
        self.asked = list(dance_of)[self.rng.below(len(dance_of))]
        return views


class MultiTaskTwin(Twin):
    """The visits of each task, with rooms called a (asked for), b, ..., h."""

    def __init__(self, dances: int, task: str) -> None:
        super().__init__(dances)
        self.fixed = task

    def shuffled(self, items: list) -> list:
        items = list(items)
        for last in range(len(items) - 1, 0, -2):
            for t, half in zip((last, last - 1), self.rng.halves()):
                other = self.rng.below(t + 1, half)
                items[t], items[other] = items[other], items[t]
        return items

    def draw(self) -> list[tuple[int, int]]:
        self.task = self.rng.below(4) if self.fixed == "all" else TASKS.index(self.fixed)
        room = dict(zip("abcdefgh", self.shuffled(list(range(8)))))
        if TASKS[self.task] == "fifo":
            visits = self.shuffled(list("aaabbcdef"))
            last = self.rng.below(3)
            visits += ["gahb", "ghab", "ghba"][last] + "bbbbb"
        elif TASKS[self.task] == "lifo":
            visits = self.shuffled(list("aaabbcda"))
            visits += [*self.shuffled(list("befgh")), *"bbbbb"]
        else:
            count = 1 if TASKS[self.task] == "mvfo" else 4 + self.rng.below(3)
            others = list("bcdefgh" * 2)[: VIEWS - count]
            others += self.some("bcdefgh", VIEWS - count - len(others))
            visits = ["a"] * (count - 1) + self.shuffled(others)
            visits = self.shuffled(visits[:8]) + visits[8:]
            visits.insert(8 + self.rng.below(2), "a")
        self.asked = room["a"]
        return list(zip([room[name] for name in visits], self.some(range(self.dances), VIEWS)))

    def some(self, items: Sequence, count: int) -> list:
        """`count` of the items, evenly and independently."""
        pairs = [[items[self.rng.below(len(items), half)] for half in self.rng.halves()] for _ in range(0, count, 2)]
        return [item for pair in pairs for item in pair][:count]


def plain(obs: dict) -> dict:
    return {key: part.tolist() for key, part in obs.items()}


def compare(env, twin: Twin, seed: int, skill: float, episodes: int) -> None:
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    assert plain(obs) == twin.reset(seed)
    for _ in range(episodes):
        over = False
        while not over:
            action = env.expert_action() if rng.random() < skill else int(rng.integers(env.action_space.n))
            obs, reward, terminated, truncated, info = env.step(action)
            assert (plain(obs), reward, terminated, truncated, info.get("success", False)) == twin.step(action)
            over = terminated or truncated
        assert plain(env.reset()[0]) == twin.reset()


dance_counts = st.integers(2, 64)


@settings(max_examples=60, deadline=None)
@given(
    kwargs=st.fixed_dictionaries(dict(views=st.integers(1, 60), dances=dance_counts, side=st.integers(2, 7))),
    seed=st.integers(0, 2**63),
    skill=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_short_stay_equals_the_twin(kwargs, seed, skill):
    compare(RoomBalletShortStay(**kwargs), ShortStayTwin(**kwargs), seed, skill, 10)


@settings(max_examples=60, deadline=None)
@given(
    kwargs=st.fixed_dictionaries(dict(dances=dance_counts, task=st.sampled_from(["all", *TASKS]))),
    seed=st.integers(0, 2**63),
    skill=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_multi_task_equals_the_twin(kwargs, seed, skill):
    compare(RoomBalletMultiTask(**kwargs), MultiTaskTwin(**kwargs), seed, skill, 20)


def rows(id: str, num_envs: int, **kwargs):
    vector = gym.make_vec(id, num_envs, **kwargs)
    return vector, vector.reset(seed=0)[0]


def episodes(id: str, num_envs: int, **kwargs) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The observations of one episode of every row, [T, B] each, and the answers [B] to its question."""
    vector, obs = rows(id, num_envs, **kwargs)
    seen = [obs]
    for _ in range(vector.world.rules.views):
        obs, *_ = vector.step(np.zeros(num_envs, int))
        seen.append(obs)
    assert obs["seen"][:, -1].all()
    return {key: np.stack([o[key] for o in seen]) for key in obs}, vector.expert_action()


class Remembering:
    """Nine entries (time, place, dance). What a full memory drops is said in the plainest words."""

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self.entries: list[tuple[int, int, int | None]] = []
        self.visits: Counter[int] = Counter()

    def store(self, time: int, place: int, dance: int | None) -> None:
        if len(self.entries) == CAPACITY:
            self.entries.remove(self.least_wanted())
        self.entries.append((time, place, dance))
        self.visits[place] += 1

    def least_wanted(self) -> tuple[int, int, int | None]:
        if self.strategy == "fifo":
            return min(self.entries)
        if self.strategy == "lifo":
            return max(self.entries)
        places = sorted({place for _, place, _ in self.entries})
        best = max if self.strategy == "mvfo" else min
        place = best(places, key=lambda p: self.visits[p])
        return min(entry for entry in self.entries if entry[1] == place)

    def last_dance(self, place: int) -> int | None:
        """What a perfect reader finds: the newest dance held of the place, the question's own entry having none."""
        held = [(time, dance) for time, where, dance in self.entries if where == place and dance is not None]
        return max(held)[1] if held else None


def answers(obs: dict[str, np.ndarray], row: int, strategy: str) -> int | None:
    """What the reader of a memory with `strategy` says to the question, from observations alone."""
    memory = Remembering(strategy)
    for t in range(VIEWS + 1):
        seen = obs["seen"][t, row]
        dance = None if seen[-1] else int(seen[:-1].argmax())
        memory.store(t, int(obs["place"][t, row]), dance)
    return memory.last_dance(int(obs["place"][VIEWS, row]))


@pytest.mark.parametrize("task", TASKS)
def test_only_its_own_strategy_solves_a_task(task):
    """With 64 dances a guess is right once in 64 times, so that what is right was remembered."""
    B = 1500
    obs, right = episodes(MULTI, B, task=task, dances=64)
    assert (obs["task"] == TASKS.index(task)).all()
    for strategy in TASKS:
        found = [answers(obs, row, strategy) for row in range(B)]
        success = np.mean([answer == truth for answer, truth in zip(found, right.tolist())])
        if strategy == task:
            assert success == 1.0
        else:
            # chance is 1 / 64 at most; five standard deviations of 1,500 guesses are 0.016
            assert success < 1 / 64 + 0.016


@pytest.mark.parametrize("task", TASKS)
def test_the_entry_asked_for_is_held_by_one_strategy_alone(task):
    """No guess about it: the very entry is in its own strategy's nine, and never in another's."""
    obs, _ = episodes(MULTI, 2000, task=task)
    place = obs["place"].astype(np.int64)
    B = place.shape[1]
    wanted = [np.flatnonzero(place[:VIEWS, b] == place[VIEWS, b])[-1] for b in range(B)]
    start = np.zeros(place.shape, bool)
    for s, strategy in enumerate(TASKS):
        slots = Slots(
            np.full((B, CAPACITY), -1),
            np.zeros((B, CAPACITY), np.int64),
            np.zeros((B, 8), np.int64),
            np.zeros(B, np.int64),
            np.zeros(B, np.int64),
            np.zeros((B, CAPACITY), np.int64),
            np.zeros((B, CAPACITY), np.int64),
        )
        allocate(slots, place, start, np.full(place.shape, s), by_place=False)
        held = (slots.time == np.array(wanted)[:, None]).any(1)
        assert (held == (strategy == task)).all()


def test_the_tasks_are_the_memorys_first_strategies_in_their_order():
    assert STRATEGIES[: len(TASKS)] == TASKS


def test_tasks_and_rooms_are_fair():
    vector, _ = rows(MULTI, 40_000)
    hidden = vector.hidden_state()
    joint = np.zeros((4, 8))
    np.add.at(joint, (hidden["task"], hidden["place"][:, -1]), 1)
    expected = 40_000 / 32
    # chi-squared with 31 degrees of freedom passes 70 once in 10,000 times
    assert ((joint - expected) ** 2 / expected).sum() < 70
    assert all(len(set(visits)) == 8 for visits in hidden["place"][:500, :VIEWS].tolist())
    counts = np.bincount(hidden["dance"][:, :VIEWS].ravel(), minlength=8)
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 35


@pytest.mark.parametrize("id", [SHORT, MULTI])
def test_without_memory_it_is_chance(id):
    """Dances are independent of places and tasks, so one constant answer is as good as any map from what is seen."""
    B = 20_000
    obs, right = episodes(id, B)
    chance = gym.make(id).unwrapped.chance_level()
    assert chance == 1 / 8
    # the best answer to each visible question, chosen after the fact, gains little over chance in so many episodes
    asked = obs["place"][-1] * 4 + obs.get("task", np.zeros_like(obs["place"]))[-1]
    best = sum(np.bincount(right[asked == q]).max() for q in np.unique(asked)) / B
    assert chance - 0.01 < best < chance + 0.025


@pytest.mark.parametrize("id", [SHORT, MULTI])
def test_a_player_with_a_dictionary_wins(id):
    obs, right = episodes(id, 500)
    for row in range(500):
        last = {}
        for t in range(len(obs["place"]) - 1):
            last[int(obs["place"][t, row])] = int(obs["seen"][t, row].argmax())
        assert last[int(obs["place"][-1, row])] == right[row]


@pytest.mark.parametrize(
    ("id", "kwargs"),
    [(SHORT, dict(views=3, side=2)), (SHORT, dict(views=8)), (MULTI, {}), *((MULTI, dict(task=t)) for t in TASKS)],
    ids=str,
)
def test_horizons_are_what_played_episodes_show(id, kwargs):
    obs, _ = episodes(id, 3000, **kwargs)
    env = gym.make(id, **kwargs).unwrapped
    shown = env.event_mask(obs)
    assert shown[:-1].all()
    assert not shown[-1].any()
    question = len(obs["place"]) - 1
    events = shown & (obs["place"] == obs["place"][-1])
    last = question - 1 - events[-2::-1].argmax(0)
    assert set((question - last + 1).tolist()) == set(env.memory_horizons())


def test_a_walk_enters_a_neighbouring_room_every_step():
    place = episodes(SHORT, 200, views=100)[0]["place"][:-1]
    row, column = np.divmod(place, 5)
    assert (abs(np.diff(row, axis=0)) + abs(np.diff(column, axis=0)) == 1).all()
    assert len(np.unique(place)) == 25


@pytest.mark.parametrize("id", [SHORT, MULTI])
def test_the_answer_ends_it_and_nothing_else_does(id):
    env = gym.make(id).unwrapped
    for wrong in (False, True):
        env.reset(seed=3)
        for _ in range(env.rules.views):
            obs, reward, terminated, truncated, info = env.step(5)
            assert (reward, terminated, truncated, info) == (0.0, False, False, {})
        action = (env.expert_action() + wrong) % 8
        last, *rest = env.step(action)
        assert rest == [float(not wrong), True, False, reported(not wrong)]
        assert not last["seen"].any()
        assert last["place"] == obs["place"]


@pytest.mark.parametrize(
    ("cls", "kwargs", "message"),
    [
        (RoomBalletShortStay, dict(views=0), "views must be an integer, 1 to 100,000; got 0"),
        (RoomBalletShortStay, dict(dances=1), "dances must be an integer, 2 to 64; got 1"),
        (RoomBalletShortStay, dict(side=1), "side must be an integer, 2 to 32; got 1"),
        (RoomBalletShortStay, dict(side=2.0), "side must be an integer"),
        (RoomBalletMultiTask, dict(dances=65), "dances must be an integer, 2 to 64; got 65"),
        (RoomBalletMultiTask, dict(task="fifi"), r"task must be one of 'all', 'fifo', .*did you mean 'fifo'"),
    ],
)
def test_arguments_out_of_range_are_refused(cls, kwargs, message):
    with pytest.raises(ValueError, match=message):
        cls(**kwargs)


def test_dances_of_two_digits_are_drawn_and_written():
    env = RoomBalletShortStay(dances=64, side=2)
    env.reset(seed=0)
    env.state.dance[:] = 63
    assert "[63]" in env.text()
    one = env.picture()
    env.state.dance[:] = 3
    assert (one != env.picture()).any()
    for _ in range(40):
        env.step(0)
    assert "[?]" in env.text()


def test_every_id_is_listed():
    assert {SHORT, MULTI} <= set(envs.ids())
