"""Both labyrinths: equal to the package from its mazes; our mazes are distributed alike; no memory is needed."""

from __future__ import annotations

import random
import warnings
from collections import Counter

import numpy as np
import pytest
from oracle import assert_same_episodes, assert_same_spaces, ours, presets, theirs, with_fields, won

from palimpsest.envs.popgym.labyrinth import DOWN, ENTRANCE, EXIT, LEFT, NO_ACTION, OBSTACLE, RIGHT, UP, LabyrinthEscape

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mazelib import Maze
    from mazelib.generate.HuntAndKill import HuntAndKill

CASES = [*presets("LabyrinthEscape"), *presets("LabyrinthExplore")]
TURNS = {
    LEFT: (UP, LEFT, DOWN, RIGHT),
    RIGHT: (DOWN, RIGHT, UP, LEFT),
    UP: (RIGHT, UP, LEFT, DOWN),
    DOWN: (LEFT, DOWN, RIGHT, UP),
}
"""Heading -> right, straight on, left, back."""


def copy(env):
    free = (env.maze.grid == 0).sum()
    return {
        "square": env.maze.grid.ravel(),
        "visited": env.explored.ravel() == 1,
        "free": free,
        "left": free,
        "y": env.position[0],
        "x": env.position[1],
        "action": NO_ACTION,
    }


@pytest.mark.parametrize(("game", "level"), CASES)
def test_equals_the_package(game, level):
    """At random an episode has 1,023 steps nearly always, and the walk meets all borders."""
    assert_same_spaces(game, level)
    returns = assert_same_episodes(game, level, copy, 60 if level == "Easy" else 24)
    assert np.median(returns[3::4]) > 0.8


@pytest.mark.parametrize(("game", "level"), CASES)
def test_a_step_limit_and_an_end_in_one_step(game, level):
    """Episodes of a few steps, so that both ends meet: the package tells of both, ours of the termination."""
    env, both = theirs(game, "Easy"), 0
    for seed in range(60):
        env.reset(seed=seed)
        world = ours(game, "Easy")
        start = with_fields(world, copy(env))
        world.reset(options={"hidden_state": start})
        script, over = [], False
        while not over:
            script.append(world.expert_action())
            *_, terminated, truncated, _ = world.step(script[-1])
            over = terminated or truncated
        if truncated:
            continue
        for extra in (1, 0):
            env.max_episode_length = len(script) + extra
            env.reset(seed=seed)
            world = ours(game, "Easy", episode_length=len(script) + extra)
            world.reset(options={"hidden_state": start})
            for action in script:
                *_, their_terminated, their_truncated, _ = env.step(action)
                *_, terminated, truncated, info = world.step(action)
                assert (terminated, truncated) == (their_terminated, their_truncated and not their_terminated)
                both += their_terminated and their_truncated
                if terminated or truncated:
                    assert info["success"] == terminated
                    break
    assert both > 40


def follow_the_wall(world, obs):
    """By the observation alone: right if there is a way, else straight on, else left, else back."""
    numbers = world.numbers(obs)
    return np.array([turn(view.reshape(3, 3), last) for view, last in zip(numbers[:, :9], numbers[:, 9])])


def turn(view, last):
    y, x = (1, 1) if last != NO_ACTION else np.argwhere(view == ENTRANCE)[0]
    beside = {LEFT: (y, x - 1), RIGHT: (y, x + 1), UP: (y - 1, x), DOWN: (y + 1, x)}
    for action in TURNS[int(last)] if last != NO_ACTION else (LEFT, RIGHT, UP, DOWN):
        line, column = beside[action]
        if 0 <= line < 3 and 0 <= column < 3 and view[line, column] not in (OBSTACLE, ENTRANCE):
            return action
    return LEFT


FIGURES = {
    "LabyrinthEscape": ((0.95, 0.98), (0.90, 0.96), (0.84, 0.95)),
    "LabyrinthExplore": ((0.97, 0.97), (0.92, 0.93), (0.87, 0.87)),
}
"""Mean returns of the data sheets: along the wall, and of the expert."""


@pytest.mark.parametrize(("game", "level"), CASES)
def test_no_memory_is_needed(game, level):
    world = ours(game, level)
    wall, expert = FIGURES[game][("Easy", "Medium", "Hard").index(level)]
    assert won(world, follow_the_wall, 200) == (world.chance_level(), pytest.approx(wall, abs=0.02))
    assert won(world, lambda world, obs: world.expert(), 200) == (1, pytest.approx(expert, abs=0.01))


@pytest.mark.parametrize("game", ["LabyrinthEscape", "LabyrinthExplore"])
def test_a_maze_that_takes_longer_than_an_episode_is_not_declared(game):
    """In maze_size² steps the wall leads through any maze; in the steps of Easy it does not through the largest."""
    arguments = dict(maze_size=6, episode_length=37)
    just = ours(game, "Easy", **arguments)
    assert won(just, follow_the_wall, 2000, **arguments)[0] == just.chance_level() == 1
    assert won(just, lambda world, obs: world.expert(), 2000, **arguments)[0] >= just.expert_success == 0.99
    for hasty in (dict(maze_size=6, episode_length=36), dict(maze_size=40), dict(episode_length=2)):
        world = ours(game, "Easy", **hasty)
        assert world.chance_level() is world.expert_success is None
    assert won(world, follow_the_wall, 40, maze_size=40)[0] < 1


def test_mazes_are_distributed_as_those_of_the_package():
    """All mazes of 3 × 3 cells, 20,000 of each; two counts a, b differ by chance with (a - b)² / (a + b) of mean 1."""
    many = 20_000
    world = LabyrinthEscape(maze_size=6)
    world.allocate(many)
    world.begin(np.ones(many, bool), range(many), lambda: np.random.default_rng(0), None)
    squares = world.state.square.copy()
    squares[squares >= ENTRANCE] = OBSTACLE
    our = Counter(maze.tobytes() for maze in squares)
    random.seed(0)
    their = Counter(HuntAndKill(3, 3).generate().astype(np.uint8).tobytes() for _ in range(many))
    mazes = [maze for maze in our | their if our[maze] + their[maze] >= 10]
    assert 150 < len(mazes) <= 192, "a grid of 3 × 3 cells has 192 spanning trees; some are not built, or hardly ever"
    terms = [(our[maze] - their[maze]) ** 2 / (our[maze] + their[maze]) for maze in mazes]
    assert sum(terms) < len(mazes) + 5 * np.sqrt(2 * len(mazes))
    assert sum(terms) > len(mazes) - 5 * np.sqrt(2 * len(mazes))


def test_doors_are_distributed_as_those_of_the_package():
    many = 20_000
    world = LabyrinthEscape(maze_size=6)
    world.allocate(many)
    world.begin(np.ones(many, bool), range(many), lambda: np.random.default_rng(0), None)
    doors = [(world.state.square == door).argmax(1).tolist() for door in (ENTRANCE, EXIT)]
    our = Counter(zip(*doors))
    random.seed(0)
    maze, their = Maze(), Counter()
    maze.grid = np.ones((7, 7), np.int8)
    for _ in range(many):
        maze.generate_entrances(start_outer=True)
        their[tuple(7 * y + x for y, x in (maze.start, maze.end))] += 1
    assert our.keys() == their.keys()
    assert len(our) == 4 * 3 * 3
    terms = [(our[pair] - their[pair]) ** 2 / (our[pair] + their[pair]) for pair in our]
    assert sum(terms) < 36 + 5 * np.sqrt(72)


@pytest.mark.parametrize("size", [10, 14, 18])
def test_large_mazes_are_like_those_of_the_package(size):
    """Closed cells, dead ends and crossings a maze, in 1,000 of each."""
    many, cells = 1000, size // 2
    world = LabyrinthEscape(maze_size=size)
    world.allocate(many)
    world.begin(np.ones(many, bool), range(many), lambda: np.random.default_rng(0), None)
    squares = world.state.square.copy().reshape(many, size + 1, size + 1)
    squares[squares >= ENTRANCE] = OBSTACLE
    random.seed(0)
    theirs = np.array([HuntAndKill(cells, cells).generate() for _ in range(many)])
    for find in (closed, lambda maze: ways(maze, 1), lambda maze: ways(maze, 3), lambda maze: ways(maze, 4)):
        a, b = find(squares), find(theirs)
        assert abs(a.mean() - b.mean()) < 5 * np.sqrt((a.var() + b.var() + 1e-3) / many)


def closed(mazes):
    return (mazes[:, 1::2, 1::2] == OBSTACLE).sum((1, 2))


def ways(mazes, number):
    """How many cells of each maze have `number` ways out."""
    free = mazes == 0
    out = free[:, :-1:2, 1::2].astype(int) + free[:, 2::2, 1::2] + free[:, 1::2, :-1:2] + free[:, 1::2, 2::2]
    return (out == number).sum((1, 2))
