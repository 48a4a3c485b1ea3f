"""The MiniGridMemory twin against the installed minigrid package, and what its data sheet claims."""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from minigrid.envs.memory import MemoryEnv

from palimpsest.envs.minigrid_memory import MiniGridMemory
from palimpsest.envs.minigrid_rewrite import MiniGridMemoryRewrite
from palimpsest.envs.minigrid_rewrite_env import MemoryRewriteEnv
from palimpsest.envs.minigrid_view import PAD, WALL
from palimpsest.envs.vector import WorldVectorEnv

PRESETS = {
    "S7": (7, False, 7),
    "S9": (9, False, 7),
    "S11": (11, False, 7),
    "S13": (13, False, 7),
    "S13Random": (13, True, 7),
    "S17Random": (17, True, 7),
    "S9-View3": (9, False, 3),
    "S11-View3": (11, False, 3),
}
SETTINGS = PRESETS | {"S7 at 5": (7, False, 5), "S13Random at 5": (13, True, 5), "S13Random at 3": (13, True, 3)}
"""Arguments: size, random_length, view_size."""
LEFT, RIGHT, FORWARD, DONE = 0, 1, 2, 6
EAST, SOUTH, WEST, NORTH = range(4)
KEY, BALL = 5, 6

each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


def layout(env: MemoryEnv) -> tuple[int, int, int]:
    """The hallway's last column, the cue and the northern object (0 key, 1 ball) of the package's maze."""
    end, middle = env.success_pos[0] - 1, env.height // 2
    kinds = [env.grid.get(*cell).encode()[0] - KEY for cell in ((1, middle - 1), (end + 1, middle - 2))]
    return end, kinds[0], kinds[1]


def cells(env: MemoryEnv) -> np.ndarray:
    """The package's grid, coded and padded as the twin's."""
    coded = env.grid.encode().transpose(1, 0, 2)
    return np.pad(coded[..., 0] + 16 * coded[..., 1], PAD, constant_values=WALL).ravel()


def copied(env: MemoryEnv) -> dict[str, Any]:
    """The package's state as one row of the twin's."""
    end, cue, upper = layout(env)
    x, y = map(int, env.agent_pos)
    numbers = dict(steps=env.step_count, x=x, y=y, direction=int(env.agent_dir), end=end, cue=cue, upper=upper)
    return numbers | dict(grid=cells(env), seen=False, over=False, rng=np.uint64(x))


def arguments(setting: tuple) -> dict[str, Any]:
    return dict(zip(("size", "random_length", "view_size"), setting))


def package_env(setting: tuple) -> MemoryEnv:
    return MemoryEnv(size=setting[0], random_length=setting[1], agent_view_size=setting[2])


def twin(setting: tuple, rows: list[dict[str, Any]]) -> tuple[WorldVectorEnv, dict[str, np.ndarray]]:
    """A batch in the given states, and its observations."""
    vector = WorldVectorEnv(MiniGridMemory, len(rows), **arguments(setting))
    like = vector.hidden_state()
    hidden = {name: np.array([row[name] for row in rows], array.dtype) for name, array in like.items()}
    return vector, vector.reset(options={"hidden_state": hidden})[0]


@functools.cache
def package_mazes(setting: tuple) -> dict[tuple[int, int, int], MemoryEnv]:
    """Every maze that the package builds, by its layout."""
    found: dict[tuple[int, int, int], MemoryEnv] = {}
    size, random_length, _ = setting
    wanted = 4 * (size - 6 if random_length else 1)
    for seed in itertools.count():
        env = package_env(setting)
        env.reset(seed=seed)
        found.setdefault(layout(env), env)
        if len(found) == wanted:
            return found
    raise AssertionError


def places(env: MemoryEnv) -> Iterator[tuple[int, int, int]]:
    """Every (x, y, direction) in which the package's player can be while an episode goes on."""
    end, middle = layout(env)[0], env.height // 2
    room = [(x, y) for x in (1, 2, 3) for y in (middle - 1, middle, middle + 1) if (x, y) != (1, middle - 1)]
    hallway = [(x, middle) for x in range(4, end + 2)]
    for (x, y), direction in itertools.product(room + hallway, range(4)):
        yield x, y, direction


def put(env: MemoryEnv, x: int, y: int, direction: int, steps: int = 0) -> MemoryEnv:
    env.agent_pos, env.agent_dir, env.step_count = (x, y), direction, steps
    return env


def equal_obs(ours: Any, i: int, theirs: dict[str, Any]) -> bool:
    return np.array_equal(ours["image"][i], theirs["image"]) and ours["direction"][i] == theirs["direction"]


def sees_cue(env: MemoryEnv) -> bool:
    """Whether the package shows the cue, told by painting it red."""
    cell = (1, env.height // 2 - 1)
    cue = env.grid.get(*cell)
    env.grid.set(*cell, type(cue)("red"))
    image = env.gen_obs()["image"]
    env.grid.set(*cell, cue)
    return bool((np.isin(image[..., 0], (KEY, BALL)) & (image[..., 1] == 0)).any())


@each_setting
def test_every_state_and_action_equal_the_package(setting):
    """Exhaustive: all mazes, all places of the player, all actions. S17Random: the mazes longer than S13Random's."""
    size = setting[0]
    mazes = {key: env for key, env in package_mazes(setting).items() if size < 17 or key[0] > 10}
    cases = [(key, place) for key, env in mazes.items() for place in places(env)]
    rows = [copied(put(mazes[key], *place, steps=k % (5 * size**2))) for k, (key, place) in enumerate(cases)]
    for action in range(7):
        vector, _ = twin(setting, rows)
        after, reward, terminated, truncated, infos = vector.step(np.full(len(rows), action))
        for k, (key, place) in enumerate(cases):
            env = put(mazes[key], *place, steps=k % (5 * size**2))
            if action > FORWARD and k % 41:
                continue  # what does nothing is looked at in one place of 41, to save time
            theirs, *rest, _ = env.step(action)
            assert (reward[k], terminated[k], truncated[k]) == (rest[0], rest[1], rest[2] and not rest[1])
            ended = terminated[k] or truncated[k]
            assert equal_obs(*((infos["final_obs"][k], ..., theirs) if ended else (after, k, theirs)))
            if ended:
                assert infos["final_info"]["success"][k] == (rest[0] > 0)
            else:
                x, y = env.agent_pos
                assert (vector.world.state.x[k], vector.world.state.y[k]) == (x, y)


@each_setting
@pytest.mark.parametrize(("skill", "episodes"), [(1.0, 120), (0.85, 60), (0.5, 20)])
def test_episodes_equal_the_package(setting, skill, episodes):
    rng = np.random.default_rng(setting[0])
    package = [package_env(setting) for _ in range(episodes)]
    first = [env.reset(seed=k)[0] for k, env in enumerate(package)]
    rows = [copied(env) for env in package]
    for row in rows:
        row["seen"] = row["x"] == 1
    vector, obs = twin(setting, rows)
    assert all(equal_obs(obs, k, theirs) for k, theirs in enumerate(first))
    going, won = set(range(episodes)), 0
    while going:
        chosen = np.where(rng.random(episodes) < skill, vector.expert_action(), rng.integers(7, size=episodes))
        obs, reward, terminated, truncated, infos = vector.step(chosen)
        for k in sorted(going):
            theirs, their_reward, their_end, their_cut, _ = package[k].step(int(chosen[k]))
            assert (reward[k], terminated[k]) == (their_reward, their_end)
            assert truncated[k] == (their_cut and not their_end)
            if terminated[k] or truncated[k]:
                going.remove(k)
                won += reward[k] > 0
                assert equal_obs(infos["final_obs"][k], ..., theirs)
            else:
                assert equal_obs(obs, k, theirs)
    assert won == episodes if skill == 1 else won > 0


def test_the_step_limit_equals_the_packages():
    env = MemoryEnv(size=7)
    env.reset(seed=0)
    vector, _ = twin((7, False, 7), [copied(env)])
    for _ in range(5 * 7**2):
        *_, their_end, their_cut, _ = env.step(DONE)
        *_, terminated, truncated, _ = vector.step(np.array([DONE]))
        assert (terminated[0], truncated[0]) == (their_end, their_cut)
    assert truncated[0]


@each_setting
def test_mazes_are_the_packages_and_evenly_drawn(setting):
    B = 20_000
    vector = WorldVectorEnv(MiniGridMemory, B, **arguments(setting))
    vector.reset(seed=0)
    state = vector.world.state
    mazes = package_mazes(setting)
    keys = list(zip(state.end.tolist(), state.cue.tolist(), state.upper.tolist()))
    assert set(keys) == set(mazes)
    for key, env in mazes.items():
        assert np.array_equal(state.grid[keys.index(key)], cells(env))
    counts = [keys.count(key) for key in mazes]
    share = B / len(mazes)
    assert np.abs(np.array(counts) - share).max() < 5 * np.sqrt(share)
    for end in {end for end, *_ in mazes}:
        x = state.x[state.end == end]
        found = np.bincount(x, minlength=end + 1)[1:]
        assert len(found) == end
        assert np.abs(found - len(x) / end).max() < 5 * np.sqrt(len(x) / end)
    assert (state.y == setting[0] // 2).all()
    assert (state.direction == EAST).all()


@pytest.mark.parametrize("name", PRESETS)
def test_ids_are_minigrids(name):
    size, random_length, view_size = PRESETS[name]
    theirs_id, view = f"MiniGrid-Memory{name.partition('-')[0]}-v0", dict(agent_view_size=view_size)
    ours, theirs = (gym.make(f"Palimpsest/MiniGridMemory-{name}-v0").unwrapped, gym.make(theirs_id, **view).unwrapped)
    assert isinstance(ours, MiniGridMemory)
    assert isinstance(theirs, MemoryEnv)
    assert (ours.rules.size, ours.rules.random_length) == (theirs.size, theirs.random_length) == (size, random_length)
    assert ours.rules.view_size == theirs.agent_view_size == view_size
    assert ours.rules.limit == theirs.max_steps
    assert ours.action_space == theirs.action_space
    for key, space in ours.observation_space.items():
        assert space == theirs.observation_space[key]


@each_setting
def test_events_are_sights_of_the_cue(setting):
    mazes = package_mazes(setting)
    cases = [(env, place) for env in mazes.values() for place in places(env)]
    cases = cases[:: 1 + 2 * (len(cases) // 1500)]
    vector, obs = twin(setting, [copied(put(env, *place)) for env, place in cases])
    shown = np.array([sees_cue(put(env, *place)) for env, place in cases])
    assert np.array_equal(vector.event_mask(obs), shown)
    assert 0 < shown.mean() < 1
    vector.step(np.full(len(cases), DONE))
    assert np.array_equal(vector.world.state.seen, shown)
    last = MiniGridMemory(*setting)
    for seed in range(8):
        last.reset(seed=seed)
        while True:
            obs, _, over, *_ = last.step(last.expert_action())
            if over:
                break
        assert not last.event_mask(obs)


class Player:
    """Looks for the cue, remembers it, walks to the junction: from observations alone."""

    def __init__(self, view: int) -> None:
        self.cue, self.turned, self.near, self.middle = 0, False, view - 1, view // 2

    def act(self, image: np.ndarray, direction: int, cue_shown: bool) -> int:
        near, middle = self.near, self.middle
        if cue_shown and not self.cue:
            found = np.argwhere(np.isin(image[..., 0], (KEY, BALL)))  # by column; the cue is behind when looking east
            self.cue = int(image[*(found[found[:, 1].argmax()] if direction == EAST else found[0]), 0])
        if not self.cue:
            return (LEFT, RIGHT, FORWARD, LEFT)[direction]
        if self.turned:
            if near > 2 or image[middle, near - 2, 0] == self.cue:
                return FORWARD
            return LEFT if image[middle, near - 1, 0] != WALL & 15 or direction in (EAST, WEST) else FORWARD
        if direction != EAST:
            return LEFT if direction == SOUTH else RIGHT
        if image[middle, near - 1, 0] != WALL & 15:
            return FORWARD
        self.turned = True
        return LEFT if near == 2 or image[middle - 2, near, 0] == self.cue else RIGHT


@each_setting
def test_nothing_hidden_is_needed(setting):
    world = MiniGridMemory(*setting)
    for seed in range(60):
        obs, _ = world.reset(seed=seed)
        player, over = Player(setting[2]), False
        while not over:
            action = player.act(obs["image"], int(obs["direction"]), bool(world.event_mask(obs)))
            assert not setting[1] or setting[2] != 3 or action == world.expert_action()
            obs, _, over, cut, info = world.step(action)
            assert not cut
        assert info["success"]


@pytest.mark.parametrize("view_size", [3, 5, 7])
@pytest.mark.parametrize("end", [4, 5, 6, 7, 8, 10])
def test_the_expert_takes_the_fewest_steps(end, view_size):
    """Breadth-first search in the package: see the cue, only then enter the junction, and reach the matching side.

    In views of 3 cells the player cannot know this side before it has looked: it is two turns later if that is wrong.
    """
    setting = 13, True, view_size
    env = package_mazes(setting)[end, 1, 0]
    late = 2 if view_size == 3 else 0
    shown = {place: sees_cue(put(env, *place)) for place in places(env)}

    def after(place: tuple[int, int, int], action: int) -> tuple[int, int, int]:
        put(env, *place).step(action)
        return int(env.agent_pos[0]), int(env.agent_pos[1]), env.agent_dir

    moves = {place: [after(place, action) for action in (LEFT, RIGHT, FORWARD)] for place in shown}
    for x in range(1, end + 1):
        start = (x, 6, EAST), x == 1
        queue, distance = deque([start]), {start: 0}
        while True:
            place, seen = queue.popleft()
            if seen and place[:2] == env.success_pos:
                break
            for there in moves.get(place, []):
                then = there, seen or shown.get(there, False)
                if then not in distance and (then[1] or there[0] <= end):
                    distance[then] = distance[place, seen] + 1
                    queue.append(then)
        vector, _ = twin(setting, [copied(put(env, *start[0])) | {"seen": x == 1}])
        for _ in range(distance[place, seen] + late - 1):
            assert not vector.step(vector.expert_action())[2]
        assert vector.step(vector.expert_action())[1] > 0


@each_setting
def test_horizons_are_those_of_played_episodes(setting):
    vector = WorldVectorEnv(MiniGridMemory, 600, **arguments(setting))
    obs, _ = vector.reset(seed=0)
    last = np.full(600, -1)
    going, found = np.ones(600, bool), set()
    for t in itertools.count():
        last = np.where(vector.event_mask(obs), t, last)
        actions, state = vector.expert_action(), vector.world.state
        looked = actions != FORWARD if setting[2] > 3 else state.direction == NORTH
        recall = going & (state.x == state.end + 1) & looked
        found |= set((t - last + 1)[recall].tolist())
        obs, _, terminated, *_ = vector.step(actions)
        going &= ~terminated
        if not going.any():
            break
    assert tuple(sorted(found)) == vector.memory_horizons()


@pytest.mark.parametrize("size", [5, 8, 12, 103, 7.0, True])
def test_sizes_that_are_refused(size):
    with pytest.raises(ValueError, match="size must be"):
        MiniGridMemory(size)


def test_random_length_is_a_bool():
    with pytest.raises(ValueError, match="random_length must be True or False"):
        MiniGridMemory(7, random_length=1)


@pytest.mark.parametrize("view_size", [1, 2, 4, 6, 9, -3, 3.0, True, "7", None])
def test_views_that_are_refused(view_size):
    for make in (MiniGridMemory, MiniGridMemoryRewrite, MemoryRewriteEnv):
        with pytest.raises(ValueError, match=f"view_size must be 3, 5 or 7, .*; got {view_size!r}"):
            make(view_size=view_size)
