"""The chance level of the cubes: what a player without memory wins, and that it is right."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_color_cubes import DOWN, IDS, INTERACT, LEFT, RIGHT, STEPS, UP, rows
from twins import first_success

from palimpsest.envs.blind_tour import tour
from palimpsest.envs.color_cubes import ColorCubes


def blind_player(grid: int, q: float):
    """Where a tour of the grid reaches the target soonest; then by the tour, interacting with probability q."""
    rng = np.random.default_rng(1)
    cells = tour(grid)
    place = {cell: k for k, cell in enumerate(cells)}
    moves = {LEFT: (-1, 0), RIGHT: (1, 0), UP: (0, -1), DOWN: (0, 1), INTERACT: (0, 0)}
    onward = np.zeros((grid, grid), int)
    informed = np.zeros((grid, grid, grid, grid), int)
    for x, y in np.ndindex(grid, grid):
        near = {a: place[x + dx, y + dy] for a, (dx, dy) in moves.items() if (x + dx, y + dy) in place}
        after = (place.get((x, y), near[min(near)] - 1) + 1) % len(cells)
        onward[x, y] = next(a for a, k in near.items() if k == after)
        for u, v in np.ndindex(grid, grid):
            goal = place.get((u, v), 0)
            informed[x, y, u, v] = min(near, key=lambda a: (goal - near[a]) % len(cells))

    def act(obs, fresh):
        B, G = len(obs), grid
        N = (obs.shape[1] - 2 * G - 2) // (2 * G + 1)
        x, y = obs[:, :G].argmax(1), obs[:, G : 2 * G].argmax(1)
        colour = obs[:, 2 * G : 2 * G + N]
        goal = obs[:, 2 * G + N + 2 :].reshape(B, N, 2, G)[np.arange(B), colour.argmax(1)].argmax(-1)
        blind = np.where(rng.random(B) < q, INTERACT, onward[x, y])
        return np.where(colour.any(1), informed[x, y, goal[:, 0], goal[:, 1]], blind)

    return act


@pytest.mark.parametrize(
    ("kwargs", "slack"),
    [
        (dict(grid=5, cubes=1, phases=1, teleport=0), 0.0),
        (dict(grid=4, cubes=1, phases=1, teleport=0), 0.0),
        (dict(grid=5, cubes=3, phases=3, teleport=0.05), 0.01),
        (dict(grid=2, cubes=2, phases=2, teleport=0.05), 0.02),
    ],
)
def test_the_chance_level_is_what_the_tour_wins(kwargs, slack):
    R = 4000
    level = ColorCubes(**kwargs).chance_level()
    found = []
    for q in (0.58, 0.66, 0.74):
        vector, obs = rows(R, **kwargs)
        found.append(first_success(vector, obs, blind_player(kwargs["grid"], q)))
    sigma = np.sqrt(level * (1 - level) / R)
    assert level - slack - 4 * sigma < max(found) < level + slack + 4 * sigma


def test_no_player_without_memory_is_found_that_wins_more():
    """Gradient ascent over all stochastic policies without memory, on the exact success with one cube and phase."""
    G, T = 4, 32
    C = G * G
    beyond = torch.tensor(
        [[min(max(y + dy, 0), G - 1) * G + min(max(x + dx, 0), G - 1) for dy, dx in STEPS.values()]
         for y in range(G) for x in range(G)]
    )  # fmt: skip
    here = torch.eye(C, dtype=torch.bool)

    def success(policy: torch.Tensor) -> torch.Tensor:
        V = torch.zeros(C, C, dtype=torch.float64)
        for _ in range(T - 1):
            interact = torch.where(here, 1.0, V)
            V = policy[:, 4:] * interact + (policy[:, :4, None] * V[beyond]).sum(1)
        return torch.maximum(V, V[beyond].max(1).values)[~here].mean()

    logits = torch.randn(C, 5, dtype=torch.float64) * 0.3
    order = [y * G + x for x, y in tour(G)]
    for a, b in zip(order, [*order[1:], order[0]]):
        logits[a] += torch.tensor([*(4.0 * (beyond[a] == b)).tolist(), 4.0]) - 4
    logits.requires_grad_()
    ascent = torch.optim.Adam([logits], lr=0.25)
    start = success(logits.softmax(-1)).item()
    for _ in range(60):
        ascent.zero_grad()
        (-success(logits.softmax(-1))).backward()
        ascent.step()
    end = success(logits.softmax(-1)).item()
    level = ColorCubes(grid=G, cubes=1, phases=1, teleport=0).chance_level()
    assert start < level - 0.05
    assert level - 0.01 < end < level + 0.01


@pytest.mark.parametrize("grid", range(2, 21))
def test_the_tour_is_closed_and_leaves_out_no_more_than_a_corner(grid):
    cells = tour(grid)
    every = set(np.ndindex(grid, grid)) - ({(0, grid - 1)} if grid % 2 else set())
    assert len(cells) == len(every)
    assert set(cells) == every
    for (x, y), (u, v) in zip(cells, [*cells[1:], cells[0]]):
        assert abs(x - u) + abs(y - v) == 1


@pytest.mark.parametrize("id", IDS)
def test_chance_levels_of_the_presets(id):
    level = gym.make(id).unwrapped.chance_level()
    low, high = dict(zip(IDS, [(0.51, 0.53), (0.32, 0.34), (0.32, 0.34), (0.02, 0.04), (0, 1e-4)]))[id]
    assert low < level < high


def test_chance_levels_of_large_tasks_are_probabilities():
    assert ColorCubes(grid=2, cubes=1, phases=1000).chance_level() == pytest.approx(1)
    assert 0 <= ColorCubes(grid=12, cubes=1, phases=100).chance_level() < 1e-6
