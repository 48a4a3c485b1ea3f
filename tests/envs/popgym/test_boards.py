"""Battleship and MineSweeper: equal to the package; their experts win, read only what was seen, and boards are fair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from oracle import assert_same_episodes, assert_same_spaces, ours, presets, theirs, with_fields, won

from palimpsest.envs.popgym.battleship import Battleship
from palimpsest.envs.popgym.minesweeper import MineSweeper


def copy_ships(env):
    return {"ship": env.board.ravel() > 0}


def copy_mines(env):
    mine = env.hidden_grid.ravel() == 1
    return {"mine": mine, "left": (~mine).sum()}


@pytest.mark.parametrize(("game", "level"), presets("Battleship"))
def test_battleship_equals_the_package(game, level):
    assert_same_spaces(game, level)
    side = ours(game, level).rules.side
    returns = assert_same_episodes(game, level, copy_ships, 160, lowest=-(side**2) / (side**2 - 12))
    assert min(returns[3::4]) > 0
    assert np.mean(returns[::4]) < -0.3


@pytest.mark.parametrize(("game", "level"), presets("MineSweeper"))
def test_minesweeper_equals_the_package(game, level):
    assert_same_spaces(game, level)
    returns = assert_same_episodes(game, level, copy_mines, 800)
    assert np.mean(np.isclose(returns[3::4], 1, rtol=0, atol=1e-12)) > 0.5
    assert max(returns[::4]) < 0.9


def test_a_cell_again_and_again():
    for game, copy in (("Battleship", copy_ships), ("MineSweeper", copy_mines)):
        env, world = theirs(game, "Easy"), ours(game, "Easy")
        for seed in range(30):
            env.reset(seed=seed)
            world.reset(options={"hidden_state": with_fields(world, copy(env))})
            cells, over, t = np.random.default_rng(seed).integers(4, size=(3, 2)), False, 0
            while not over:
                action = cells[t % 3]
                their = env.step(action)
                our = world.step(action)
                assert world.numbers(our[0]).tolist() == [their[0]]
                assert our[1:3] == their[1:3]
                over = our[2] or our[3]
                assert over == (their[2] or their[3])
                t += 1


@pytest.mark.parametrize(
    ("level", "success", "mean"), [("Easy", 0.64, 0.55), ("Medium", 0.77, 0.59), ("Hard", 0.84, 0.61)]
)
def test_hunting_ships(level, success, mean):
    """The figures of the data sheet; 1,000 episodes have a standard error of 0.015 and 0.004."""
    world = ours("Battleship", level)
    told = won(world, lambda world, obs: world.expert(), 1000)
    assert told == (pytest.approx(success, abs=0.05), pytest.approx(mean, abs=0.015))


@pytest.mark.parametrize(("level", "success"), [("Easy", 0.82), ("Medium", 0.61), ("Hard", 0.60)])
def test_sweeping_mines(level, success):
    assert won(ours("MineSweeper", level), lambda world, obs: world.expert(), 1000)[0] == pytest.approx(
        success, abs=0.05
    )


def test_shots_at_random_and_in_order():
    world, rng = ours("Battleship", "Easy"), np.random.default_rng(0)
    assert world.chance_level() == pytest.approx(1.75e-5, rel=0.01)
    assert won(world, lambda world, obs: rng.integers(8, size=(len(obs), 2)), 1000)[0] == 0

    def in_order(world, obs):
        return np.stack(np.divmod(np.minimum(world.state.steps, 63), 8), 1)

    success, mean = won(world, in_order, 2000)
    assert success == pytest.approx(0.03, abs=0.015)
    assert mean == pytest.approx(0.17, abs=0.02)


def test_the_chance_of_shots_at_random():
    """By a simulation of shots on a small board, whose chance is larger."""
    world, rng = Battleship(board_size=6), np.random.default_rng(0)
    # 12 cells of 36 hit with fewer than 12 misses: among the first 23 shots
    shots = rng.integers(36, size=(400_000, 23))
    hit = np.zeros((400_000, 36), bool)
    np.put_along_axis(hit, shots, True, 1)
    assert world.chance_level() == pytest.approx(hit[:, :12].all(1).mean(), rel=0.2)


def test_the_chance_of_random_cells():
    world, rng = MineSweeper(board_size=3, num_mines=5), np.random.default_rng(0)
    cells = rng.integers(9, size=(200_000, 4))
    fair = (np.sort(cells)[:, 1:] != np.sort(cells)[:, :-1]).all(1) & (cells < 4).all(1)
    assert world.chance_level() == pytest.approx(fair.mean(), rel=0.2)
    assert won(ours("MineSweeper", "Easy"), lambda world, obs: rng.integers(4, size=(len(obs), 2)), 2000)[0] == 0


def test_places_of_ships_are_those_of_the_package():
    """How often each cell holds a ship, and how often two neighbours both do, in 20,000 boards of each."""
    env, world, boards = theirs("Battleship", "Easy"), Battleship(), 20_000
    world.allocate(boards)
    world.begin(np.ones(boards, bool), range(boards), lambda: np.random.default_rng(0), None)
    env.reset(seed=0)
    their = np.empty((boards, 8, 8), bool)
    for board in their:
        placed = np.zeros((8, 8), np.int8)
        for size in env.ship_sizes:
            placed = env.place_ship(placed, size)
        board[:] = placed
    our = world.state.ship.reshape(boards, 8, 8)
    for a, b in ((our, their), (our[:, 1:] & our[:, :-1], their[:, 1:] & their[:, :-1])):
        share = (a.mean(0) + b.mean(0)) / 2
        error = np.abs(a.mean(0) - b.mean(0)) / np.sqrt(2 * share * (1 - share) / boards)
        assert error.max() < 4.5
    corner = our[:, 0, 0].mean()
    assert corner < our[:, 3, 3].mean() / 1.5, "ships lie in the middle more often"


def test_mines_are_uniform():
    world = MineSweeper()
    world.allocate(40_000)
    world.begin(np.ones(40_000, bool), range(40_000), lambda: np.random.default_rng(0), None)
    pairs = dict.fromkeys(itertools.combinations(range(16), 2), 0)
    for mine in world.state.mine:
        pairs[tuple(np.flatnonzero(mine))] += 1
    expected = 40_000 / len(pairs)
    chi_square = sum((found - expected) ** 2 / expected for found in pairs.values())
    assert chi_square < 119 + 5 * np.sqrt(2 * 119)


def every_board():
    """All places of two mines on 4 × 4 cells [120, 16] bool, and the counts of all cells [120, 16]."""
    boards = np.array([[cell in pair for cell in range(16)] for pair in itertools.combinations(range(16), 2)])
    padded = np.pad(boards.reshape(-1, 4, 4).astype(int), ((0, 0), (1, 1), (1, 1)))
    return boards, sum(padded[:, y : y + 4, x : x + 4] for y in range(3) for x in range(3)).reshape(-1, 16)


def test_experts_read_only_what_was_seen():
    """Ships and mines that were not met move elsewhere, with the same results so far: the choice stays."""
    world, rng = ours("Battleship", "Medium"), np.random.default_rng(0)
    world.reset(seed=0)
    over = False
    while not over:
        action = world.expert_action()
        kept = world.state.ship.copy()
        hidden = np.flatnonzero(~world.state.shot[0])
        world.state.ship[0, hidden] = kept[0, rng.permutation(hidden)]
        assert np.array_equal(world.expert_action(), action)
        world.state.ship[:] = kept
        *_, terminated, truncated, _ = world.step(action)
        over = terminated or truncated

    world = ours("MineSweeper", "Easy")
    boards, counts = every_board()
    moved = 0
    for seed in range(20):
        world.reset(seed=seed)
        over = False
        while not over:
            action, viewed = world.expert_action(), world.state.viewed[0]
            mine = world.state.mine[0].copy()
            own = (boards == mine).all(1).argmax()
            alike = ~(boards & viewed).any(1) & (counts[:, viewed] == counts[own, viewed]).all(1)
            for board in boards[alike]:
                world.state.mine[0] = board
                assert np.array_equal(world.expert_action(), action)
            moved += alike.sum() > 1
            world.state.mine[0] = mine
            *_, over, _, _ = world.step(action)
    assert moved > 20


def test_what_is_deduced_is_true():
    """Wherever the expert calls a cell safe, no board with the same counts has a mine there, and it misses few."""
    world = ours("MineSweeper", "Easy")
    boards, counts = every_board()
    lost_though_safe = guesses = 0
    for seed in range(200):
        world.reset(seed=seed)
        over = False
        while not over:
            viewed, mine = world.state.viewed[0].copy(), world.state.mine[0].copy()
            own = (boards == mine).all(1).argmax()
            alike = boards[~(boards & viewed).any(1) & (counts[:, viewed] == counts[own, viewed]).all(1)]
            risk = np.where(viewed, 2, alike.mean(0))
            action = world.expert_action()
            chosen = risk[action[0] * 4 + action[1]]
            assert chosen < 2, "a cell that was viewed"
            guesses += chosen > 0
            lost_though_safe += (chosen > 0) and risk.min() == 0
            *_, terminated, truncated, _ = world.step(action)
            over = terminated or truncated
    assert guesses > 200
    assert lost_though_safe < 0.05 * guesses
