"""MiniGridMemoryRewrite: the batched world against the MiniGridEnv with the same rules, and what both claim."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from minigrid.core.grid import Grid
from minigrid.manual_control import ManualControl
from minigrid.minigrid_env import MiniGridEnv
from minigrid.wrappers import FullyObsWrapper, ImgObsWrapper, RGBImgPartialObsWrapper, ViewSizeWrapper

from palimpsest.envs.minigrid_rewrite import HEIGHT, MIDDLE, MiniGridMemoryRewrite
from palimpsest.envs.minigrid_rewrite_env import MemoryRewriteEnv
from palimpsest.envs.minigrid_view import PAD, WALL
from palimpsest.envs.vector import WorldVectorEnv

LEFT, RIGHT, FORWARD, DONE = 0, 1, 2, 6
EAST, SOUTH, WEST, NORTH = range(4)
KEY, BALL = 5, 6
SETTINGS = [(0, 7, False, 7), (1, 9, True, 7), (3, 7, False, 7), (4, 12, True, 7), (1, 9, True, 3), (2, 8, False, 5)]

each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def kind(thing: Any) -> int:
    """0 for a key, 1 for a ball."""
    return int(thing.encode()[0]) - KEY


def copied(env: MemoryRewriteEnv) -> dict[str, Any]:
    """The MiniGridEnv's state as one row of the batched world's."""
    coded = env.grid.encode().transpose(1, 0, 2)
    x, y = map(int, env.agent_pos)
    return dict(
        rng=np.uint64(0),
        steps=env.step_count,
        x=x,
        y=y,
        direction=int(env.agent_dir),
        shown=env.shown,
        junction=env.junction,
        upper=kind(env.grid.get(env.junction, 1)),
        niches=env.niches,
        cues=[kind(cue) for cue in env.cues],
        grid=np.pad(coded[..., 0] + 16 * coded[..., 1], PAD, constant_values=WALL).ravel(),
        over=False,
    )


def twin(setting: tuple, rows: list[dict[str, Any]]) -> tuple[WorldVectorEnv, dict[str, np.ndarray]]:
    """A batch in the given states, and its observations."""
    vector = WorldVectorEnv(MiniGridMemoryRewrite, len(rows), **arguments(setting))
    like = vector.hidden_state()
    hidden = {name: np.array([row[name] for row in rows], array.dtype) for name, array in like.items()}
    return vector, vector.reset(options={"hidden_state": hidden})[0]


def arguments(setting: tuple) -> dict[str, Any]:
    return dict(zip(("replacements", "length", "random_length", "view_size"), setting))


def equal_obs(ours: Any, i: Any, theirs: dict[str, Any]) -> bool:
    return np.array_equal(ours["image"][i], theirs["image"]) and ours["direction"][i] == theirs["direction"]


def compare(setting: tuple, seeds: range, skill: float, most: int) -> list[bool]:
    """Play both side by side from the same starts; which episodes were won."""
    rng = np.random.default_rng(0)
    episodes = len(seeds)
    package = [MemoryRewriteEnv(**arguments(setting)) for _ in seeds]
    first = [env.reset(seed=seed)[0] for env, seed in zip(package, seeds)]
    vector, obs = twin(setting, [copied(env) for env in package])
    assert all(equal_obs(obs, k, theirs) for k, theirs in enumerate(first))
    going, won, shown = set(range(episodes)), [False] * episodes, [0] * episodes
    for _ in range(most):
        chosen = np.where(rng.random(episodes) < skill, vector.expert_action(), rng.integers(7, size=episodes))
        obs, reward, terminated, truncated, infos = vector.step(chosen)
        for k in sorted(going):
            theirs, their_reward, their_end, their_cut, _ = package[k].step(int(chosen[k]))
            assert (reward[k], terminated[k]) == (their_reward, their_end)
            assert truncated[k] == (their_cut and not their_end)
            if terminated[k] or truncated[k]:
                going.remove(k)
                won[k] = bool(infos["final_info"]["success"][k])
                assert won[k] == (their_reward > 0)
                assert equal_obs(infos["final_obs"][k], ..., theirs)
            else:
                assert equal_obs(obs, k, theirs)
                assert vector.world.state.shown[k] == package[k].shown
                if package[k].shown > shown[k]:
                    shown[k] += 1
                    assert np.array_equal(vector.world.state.grid[k], copied(package[k])["grid"])
        if not going:
            break
    return won


@each_setting
@pytest.mark.parametrize(("skill", "episodes", "most"), [(1.0, 30, 100), (0.85, 15, 1000), (0.4, 6, 150)])
def test_episodes_are_equal(setting, skill, episodes, most):
    won = compare(setting, range(episodes), skill, most)
    assert all(won) if skill == 1 else skill < 0.5 or any(won)


@settings(max_examples=15, deadline=None)
@given(
    setting=st.tuples(st.integers(0, 6), st.integers(7, 15), st.booleans(), st.sampled_from([3, 5, 7])),
    seed=st.integers(0, 2**31),
    skill=st.sampled_from([0.2, 0.8, 1.0]),
)
def test_episodes_are_equal_for_any_arguments(setting, seed, skill):
    compare(setting, range(seed, seed + 2), skill, 120)


@pytest.mark.parametrize("view_size", [3, 5, 7])
def test_every_place_and_action_are_equal(view_size):
    """Also where no player of the other tests goes: all cells, directions and actions, after each replacement."""
    setting = (2, 7, False, view_size)
    env = MemoryRewriteEnv(*setting)
    env.reset(seed=1)
    rows, results = [], []
    for shown in range(3):
        if shown:
            while env.shown < shown:
                env.step(FORWARD)
        grid, last = env.grid.copy(), env.niches[shown + 1] if shown < 2 else env.junction + 1
        free = [(x, y) for x in range(1, last) for y in range(HEIGHT) if grid.get(x, y) is None]
        free = [(x, y) for x, y in free if x < env.junction or y == MIDDLE]
        env.step_count = 10
        here = copied(env)
        for (x, y), direction, action in itertools.product(free, range(4), (*range(3), shown + 3)):
            env.grid, env.shown, env.step_count = grid.copy(), shown, 10
            env.agent_pos, env.agent_dir = (x, y), direction
            rows.append(here | dict(x=x, y=y, direction=direction))
            obs, *rest, _ = env.step(action)
            results.append((action, obs, rest, env.shown))
        env.grid, env.shown, env.agent_pos, env.agent_dir = grid, shown, (env.niches[shown], MIDDLE), EAST
    vector, _ = twin(setting, rows)
    obs, reward, terminated, _, infos = vector.step(np.array([action for action, *_ in results]))
    assert terminated.any()
    for k, (_, theirs, (their_reward, their_end, _), shown) in enumerate(results):
        assert (reward[k], terminated[k]) == (their_reward, their_end)
        assert equal_obs(*((infos["final_obs"][k], ...) if terminated[k] else (obs, k)), theirs)
        assert terminated[k] or vector.world.state.shown[k] == shown


@each_setting
def test_step_limits_are_equal(setting):
    env = MemoryRewriteEnv(*setting)
    env.reset(seed=0)
    world = MiniGridMemoryRewrite(*setting)
    assert env.max_steps == world.rules.limit
    env.step_count = env.max_steps - 2
    vector, _ = twin(setting, [copied(env)])
    for cut in (False, True):
        *_, their_end, their_cut, _ = env.step(DONE)
        *_, terminated, truncated, _ = vector.step(np.array([DONE]))
        assert (terminated[0], truncated[0]) == (their_end, their_cut) == (False, cut)


@each_setting
def test_starts_are_equal_and_evenly_drawn(setting):
    B = 4000
    replacements, length, random_length, _ = setting
    vector = WorldVectorEnv(MiniGridMemoryRewrite, B, **arguments(setting))
    vector.reset(seed=0)
    state = vector.world.state
    env = MemoryRewriteEnv(*setting)
    drawn = []
    for seed in range(200):
        env.reset(seed=seed)
        row = copied(env)
        drawn.append((*np.diff([*row["niches"], row["junction"]]), *row["cues"], row["upper"]))
    ours = np.column_stack([np.diff(np.column_stack([state.niches, state.junction])), state.cues, state.upper])
    assert (ours.min(0) == np.min(drawn, 0)).all()
    assert (ours.max(0) == np.max(drawn, 0)).all()
    for column in ours[:, replacements + 1 :].T:
        assert abs(column.mean() - 0.5) < 5 * 0.5 / np.sqrt(B)
    for column in ours[:, : replacements + 1].T:
        found = np.bincount(column)[7:] if random_length else np.bincount(column)[length:]
        assert np.abs(found - B / len(found)).max() < 5 * np.sqrt(B / len(found))
    assert len(np.unique(ours[:, replacements + 1 :], axis=0)) == 2 ** (replacements + 2)


@each_setting
def test_there_is_one_cue_and_each_is_seen_as_it_comes(setting):
    world = MiniGridMemoryRewrite(*setting)
    for seed in range(12):
        obs, _ = world.reset(seed=seed)
        over, shown, seen = False, 0, [bool(world.event_mask(obs))]
        while not over:
            obs, _, over, *_ = world.step(world.expert_action())
            state = world.state
            grid = state.grid[0].reshape(HEIGHT + 2 * PAD, -1)[PAD:-PAD, PAD:-PAD]
            niches = [int(x) for x in state.niches[0] if grid[MIDDLE - 1, x] & 15 in (KEY, BALL)]
            assert niches == [state.niches[0, state.shown[0]]]
            assert grid[MIDDLE - 1, niches[0]] & 15 == KEY + state.cues[0, state.shown[0]]
            if state.shown[0] > shown:
                shown += 1
                seen.append(bool(world.event_mask(obs)))
        assert seen == [True] * (world.rules.replacements + 1)


@each_setting
def test_events_are_sights_of_the_cue(setting):
    """Told by painting the cue red in the MiniGridEnv."""
    env = MemoryRewriteEnv(*setting)
    rng = np.random.default_rng(2)
    rows, shown = [], []
    for seed in range(3):
        env.reset(seed=seed)
        for _ in range(250):
            rows.append(copied(env))
            cell = env.niches[env.shown], MIDDLE - 1
            cue = env.grid.get(*cell)
            env.grid.set(*cell, type(cue)("red"))
            image = env.gen_obs()["image"]
            env.grid.set(*cell, cue)
            shown.append(bool((np.isin(image[..., 0], (KEY, BALL)) & (image[..., 1] == 0)).any()))
            *_, over, _, _ = env.step(int(rng.choice(7, p=[0.2, 0.15, 0.6, 0.05, 0, 0, 0])))
            if over:
                break
    vector, obs = twin(setting, rows)
    assert np.array_equal(vector.event_mask(obs), shown)
    assert 0 < np.mean(shown) < 1
    for seed in range(4):
        world = MiniGridMemoryRewrite(*setting)
        world.reset(seed=seed)
        over = False
        while not over:
            obs, _, over, *_ = world.step(world.expert_action())
        assert not world.event_mask(obs)


@each_setting
def test_nothing_hidden_is_needed_and_the_newest_cue_is(setting):
    """A player that keeps the newest cue wins always, one that keeps the first wins half where it is replaced."""
    won: dict[str, list[bool]] = {"newest": [], "first": []}
    world = MiniGridMemoryRewrite(*setting)
    for keeps, results in won.items():
        for seed in range(100 if setting[0] < 4 else 60):
            obs, _ = world.reset(seed=seed)
            cue, turned, over = 0, False, False
            while not over:
                things, middle, near = obs["image"][..., 0], setting[3] // 2, setting[3] - 1
                beside = int(things[middle - 1, near])
                if beside in (KEY, BALL) and not turned and (keeps == "newest" or not cue):
                    cue = beside
                action = FORWARD
                if turned and near == 2 and obs["direction"] in (EAST, WEST):
                    action = LEFT
                elif turned and near == 2 and things[middle, 0] in (KEY, BALL):
                    action = FORWARD if things[middle, 0] == cue else LEFT
                elif things[middle, near - 1] == WALL & 15 and not turned:
                    action, turned = LEFT if near == 2 or things[middle - 2, near] == cue else RIGHT, True
                obs, reward, over, _, info = world.step(action)
            results.append(info["success"])
            if results[-1] and not setting[2]:
                assert reward == 1 - 0.9 * (((setting[0] + 1) * setting[1] + 2) / world.rules.limit)
    assert all(won["newest"])
    assert all(won["first"]) if setting[0] == 0 else 0.25 < np.mean(won["first"]) < 0.75


@each_setting
def test_horizons_are_those_of_played_episodes(setting):
    B = 300
    vector = WorldVectorEnv(MiniGridMemoryRewrite, B, **arguments(setting))
    obs, _ = vector.reset(seed=0)
    last, going, found = np.full(B, -1), np.ones(B, bool), set()
    for t in itertools.count():
        last = np.where(vector.event_mask(obs), t, last)
        actions, state = vector.expert_action(), vector.world.state
        looked = actions != FORWARD if setting[3] > 3 else state.direction == NORTH
        recall = going & (state.x == state.junction) & looked
        found |= set((t - last + 1)[recall].tolist())
        obs, _, terminated, *_ = vector.step(actions)
        going &= ~terminated
        if not going.any():
            break
    assert tuple(sorted(found)) == vector.memory_horizons()


def test_nothing_shows_the_cue_at_the_junction():
    """So a player without memory is left with a guess: neither there nor on the way in do its views tell the cues."""
    env = MemoryRewriteEnv(1, 7)
    mazes: dict[tuple[int, int], MemoryRewriteEnv] = {}
    for seed in range(60):
        env.reset(seed=seed)
        while env.shown == 0:
            env.step(FORWARD)
        row = copied(env)
        mazes.setdefault((row["upper"], row["cues"][1]), env)
        env = MemoryRewriteEnv(1, 7)
    assert len(mazes) == 4
    for upper in (0, 1):
        pair = [mazes[upper, cue] for cue in (0, 1)]
        junction = pair[0].junction
        for x, direction in [(junction - 1, EAST), *((junction, d) for d in range(4))]:
            views = []
            for maze in pair:
                maze.agent_pos, maze.agent_dir = (x, MIDDLE), direction
                views.append(maze.gen_obs()["image"])
            assert np.array_equal(*views)
    assert MiniGridMemoryRewrite().chance_level() == 0.5


def test_minigrids_tools_play_it():
    env = gym.make("Palimpsest/MiniGridMemoryRewrite-MiniGrid-v0", replacements=1, render_mode="rgb_array")
    base = env.unwrapped
    assert isinstance(base, MiniGridEnv)
    control = ManualControl(env, seed=0)
    control.reset(0)
    before = env.render()
    for key in ["up"] * 7 + ["space", "pageup", "pagedown", "enter"]:
        control.key_handler(SimpleNamespace(key=key))
    assert base.shown == 1
    assert base.step_count == 11
    assert base.carrying is None
    assert base.agent_sees(base.niches[1], MIDDLE - 1)
    after = env.render()
    assert before.shape == after.shape
    assert (before != after).any()
    assert ImgObsWrapper(env).reset(seed=0)[0].shape == (7, 7, 3)
    assert RGBImgPartialObsWrapper(env, tile_size=8).reset(seed=0)[0]["image"].shape == (56, 56, 3)
    assert ViewSizeWrapper(env, agent_view_size=5).reset(seed=0)[0]["image"].shape == (5, 5, 3)
    full = FullyObsWrapper(env).reset(seed=0)[0]["image"]
    assert Grid.decode(full)[0].get(1, MIDDLE - 1).type in ("key", "ball")
    copy = pickle.loads(pickle.dumps(base))
    assert all(np.array_equal(base.step(FORWARD)[0]["image"], copy.step(FORWARD)[0]["image"]) for _ in range(9))


def test_the_minigrid_env_is_a_gymnasium_env():
    made = gym.make("Palimpsest/MiniGridMemoryRewrite-MiniGrid-v0")
    check_env(made.unwrapped, skip_render_check=True)
    first, again = (made.reset(seed=5)[0]["image"] for _ in range(2))
    assert np.array_equal(first, again)
    assert made.reset(seed=1)[0]["mission"] == made.unwrapped.mission


@pytest.mark.programs
def test_the_batched_world_leaves_minigrid_out():
    code = (
        "import sys, gymnasium as g; g.make('palimpsest:Palimpsest/MiniGridMemoryRewrite-v0').reset(seed=0); "
        "print([m for m in ('minigrid', 'pygame', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("make", [MiniGridMemoryRewrite, MemoryRewriteEnv])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(replacements=-1), "replacements must be an integer, 0 to 300; got -1"),
        (dict(replacements=301), "replacements must be an integer, 0 to 300; got 301"),
        (dict(length=6), "length must be an integer, 7 to 100; got 6"),
        (dict(length=101), "length must be an integer, 7 to 100; got 101"),
        (dict(random_length=2), "random_length must be True or False; got 2"),
    ],
)
def test_arguments_that_are_refused(make, wrong, message):
    with pytest.raises(ValueError, match=message):
        make(**wrong)
