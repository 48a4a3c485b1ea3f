"""Success of a player without memory that searches a grid: it walks a closed tour and interacts at random.

The task is that of `envs.color_cubes`: the cell of a target is shown once, and the player must interact there; then
comes the next target. The player knows the target only in the step that shows it. In that step it goes to the cell
from which the tour reaches the target soonest. At all other steps it knows only its own cell: it interacts with
probability q, or else follows the tour.

The player is near the best one without memory. Gradient ascent over all stochastic policies on the exact success, with
one target and one cube, found 0.857, 0.729, 0.621 and 0.524 on grids of side 2, 3, 4 and 5. This player's success is
0.857, 0.652, 0.619 and 0.523.
"""

from __future__ import annotations

import functools

import numpy as np


def tour(grid: int) -> list[tuple[int, int]]:
    """A closed tour of neighbouring cells (column, row). If `grid` is odd, it leaves out the lower left corner."""
    straight = grid - 2 if grid % 2 else grid
    cells = [(x, y) for y in range(straight) for x in (range(1, grid) if y % 2 == 0 else range(grid - 1, 0, -1))]
    if grid % 2:
        for x in range(grid - 1, 0, -1):
            lower = (grid - 2, grid - 1)
            cells += [(x, y) for y in (lower if x % 2 == 0 else lower[::-1])]
    return cells + [(0, y) for y in range(grid - 1 - grid % 2, -1, -1)]


@functools.cache
def tour_success(grid: int, phases: int) -> float:
    """Probability that the player finds `phases` targets within 8 · grid · phases steps, with the best q.

    Targets are uniform over the cells other than the player's. The result is exact for one phase. For more phases, the
    gain of the first step is averaged over the cells in which a phase can begin.

    s(z) = (1 - q) z / (1 - q z) is the generating function of the number of steps at a cell without the target. If u of
    the C cells of the tour are left after the first step, the number of steps of a phase has the generating function
    z s^u q z / (1 - (1 - q) z s^(C - 1)). An episode has the K-th power of its mean over u. Cauchy's formula on a
    circle sums the coefficients up to the limit.

    Args:
        grid: side of the grid, 2 or more.
        phases: K, 1 or more.
    """
    steps = 8 * grid * phases
    cells = tour(grid)
    C = len(cells)
    share = _cells_to_go(grid, cells)
    radius = 10 ** (-4 / steps)
    z = radius * np.exp(1j * np.pi * np.arange(steps + 1) / steps)
    weight = np.full(steps + 1, 2.0)
    weight[[0, -1]] = 1
    found = []
    for q in np.linspace(0.58, 0.74, 5):
        s = (1 - q) * z / (1 - q * z)
        phase = z * np.polyval(share[::-1], s) * q * z / (1 - (1 - q) * z * s ** (C - 1))
        found.append((weight * (phase**phases / (1 - z) * z ** -float(steps)).real).sum() / (2 * steps))
    return float(np.clip(max(found), 0, 1))


def _cells_to_go(grid: int, cells: list[tuple[int, int]]) -> np.ndarray:
    """[C]: probability that u cells of the tour are left after the first step, over all agent and target cells."""
    place = {cell: k for k, cell in enumerate(cells)}
    share = np.zeros(len(cells))
    for x, y in np.ndindex(grid, grid):
        beside = [place[cell] for cell in ((x, y), (x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1)) if cell in place]
        to_go = (np.arange(len(cells))[:, None] - beside) % len(cells)
        if (x, y) in place:
            to_go = np.delete(to_go, place[x, y], 0)
        share += np.bincount(to_go.min(1), minlength=len(cells))
    return share / (grid**2 * (grid**2 - 1))
