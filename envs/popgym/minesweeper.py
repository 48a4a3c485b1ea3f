"""POPGym's MineSweeper: view all cells without mines, on a board that shows only the last count."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import IO, compiled, draw, run_rows
from palimpsest.envs.popgym.parts import PartsWorld, check_flat, clear, put
from palimpsest.envs.raster import AGENT, FLOOR, WALL, Canvas, faded
from palimpsest.machine_code import njit
from palimpsest.refusals import check_integer

MOST_COUNTED = 9
"""A cell and its eight neighbours."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    side: int
    mines: int
    new: float
    """The reward of a cell that is viewed for the first time."""
    again: float
    """The reward of a cell that was viewed before."""
    mine: float
    """The reward of a mine."""
    flat: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    mine: np.ndarray
    """[B, side * side] bool, line by line"""
    viewed: np.ndarray
    """[B, side * side] bool"""
    left: np.ndarray
    """int16, cells without a mine that are still to be viewed"""
    last: np.ndarray
    """int8, the number of mines around the last cell, that cell included; 0 at the start"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Lay the mines, on a uniform set of cells."""
    cells = rules.side * rules.side
    for cell in range(cells):
        state.mine[i, cell] = state.viewed[i, cell] = False
    laid = 0
    while laid < rules.mines:
        place = np.uint64(draw(state.rng, i, cells))
        laid += not state.mine[i, place]
        state.mine[i, place] = True
    state.left[i] = cells - rules.mines
    state.last[i] = 0


@compiled
def move(rules: Rules, state: State, i: int, action: np.ndarray) -> tuple[float, bool, bool]:
    """View a cell."""
    side, line, column = rules.side, action[0], action[1]
    count = 0
    for y in range(max(line - 1, 0), min(line + 2, side)):
        for x in range(max(column - 1, 0), min(column + 2, side)):
            count += state.mine[i, np.uint64(y * side + x)]
    state.last[i] = count
    cell = np.uint64(line * side + column)
    if state.mine[i, cell]:
        return rules.mine, True, False
    if state.viewed[i, cell]:
        return rules.again, False, False
    state.viewed[i, cell] = True
    left = state.left[i] - 1
    state.left[i] = left
    return rules.new, left == 0, left == 0


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """The count of the last cell."""
    clear(obs, j, rules.flat)
    put(obs, j, rules.flat, 0, 0, np.int64(state.last[i]))


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


@njit(cache=True)
def around(cell: int, side: int) -> np.uint64:
    """The set of a cell and its neighbours. A set of cells is a number with bit c for cell c."""
    found = np.uint64(0)
    line, column = cell // side, cell % side
    for y in range(max(line - 1, 0), min(line + 2, side)):
        for x in range(max(column - 1, 0), min(column + 2, side)):
            found |= np.uint64(1) << np.uint64(y * side + x)
    return found


@njit(cache=True)
def size_of(cells: np.uint64) -> int:
    """The number of cells in a set."""
    size = 0
    while cells:
        cells &= cells - np.uint64(1)
        size += 1
    return size


@njit(cache=True)
def deduce(sets: np.ndarray, mines: np.ndarray) -> tuple[np.uint64, np.uint64]:
    """What follows from the numbers of `mines` [N] int64 in `sets` [N] uint64: the sets of safe cells and of mines.

    Each set, and each difference of a set and one inside it, that holds no mine is safe; one that is full is all mines.
    """
    safe, full, known = np.uint64(0), np.uint64(0), -1
    while size_of(safe | full) > known:
        known = size_of(safe | full)
        for a in range(len(sets)):
            open_a = sets[a] & ~(safe | full)
            mines_a = mines[a] - size_of(sets[a] & full)
            for b in range(len(sets)):
                open_b = sets[b] & ~(safe | full)
                if b != a and (open_b & ~open_a):
                    continue
                mines_b = mines[b] - size_of(sets[b] & full)
                rest, number = open_a, mines_a
                if b != a:
                    rest, number = open_a & ~open_b, mines_a - mines_b
                if number == 0:
                    safe |= rest
                elif number == size_of(rest):
                    full |= rest
    return safe, full


@njit(cache=True)
def likely_safe(mine: np.ndarray, viewed: np.ndarray, side: int, mines: int) -> np.ndarray:
    """[B] int64: a cell that must be safe, else the one that seems least likely to hold a mine.

    Args:
        mine: [B, side * side] bool; only the counts of viewed cells are taken from it.
        viewed: [B, side * side] bool.
        side: cells along a side of the board, 8 at most.
        mines: the number of mines on the board.
    """
    cells = side * side
    best = np.zeros(len(mine), np.int64)
    one = np.uint64(1)
    for i in range(len(mine)):
        closed = np.uint64(0)
        for cell in range(cells):
            if not viewed[i, cell]:
                closed |= one << np.uint64(cell)
        sets, counts = np.zeros(cells + 1, np.uint64), np.zeros(cells + 1, np.int64)
        sets[0], counts[0], number = closed, mines, 1
        for cell in range(cells):
            near = around(cell, side)
            if viewed[i, cell] and (near & closed):
                sets[number] = near & closed
                for other in range(cells):
                    counts[number] += mine[i, other] and (near >> np.uint64(other)) & one
                number += 1
        safe, full = deduce(sets[:number], counts[:number])
        # the risk of a cell: the largest share of mines in a set around it; away from viewed cells, that of the rest
        risk, far, expected = np.full(cells, 2.0), 0, mines * 1.0
        for cell in range(cells):
            bit = one << np.uint64(cell)
            if not closed & bit:
                continue
            if safe & bit:
                risk[cell] = -1
            elif full & bit:
                expected -= 1
            else:
                share = -1.0
                for k in range(1, number):
                    if sets[k] & bit:
                        open_ = sets[k] & ~(safe | full)
                        share = max(share, (counts[k] - size_of(sets[k] & full)) / size_of(open_))
                if share < 0:
                    far += 1
                else:
                    risk[cell] = share
                    expected -= share
        for cell in range(cells):
            bit = one << np.uint64(cell)
            if risk[cell] == 2 and (closed & bit) and not (full & bit):
                risk[cell] = max(expected, 0.0) / far
        best[i] = risk.argmin()
    return best


class MineSweeper(PartsWorld):
    """Mines lie hidden on a board; the player views cells and learns of each how many mines lie around it.

    Observation: Box(0, 1, (n,), float32), or Discrete(n) with `flat=False`, n = min(num_mines, 9) + 1.

    | index | meaning |
    |---|---|
    | c | c mines lie at the last cell and its eight neighbours; c = 0 also at the start |

    The observation does not say which cell that was. The package means the player to see its previous action: add it
    with `envs.wrappers` or `--previous-action-reward`.

    Actions: MultiDiscrete([board_size, board_size]), line and column of the cell to view. The first one may be a mine.

    Rewards, with L = board_size² - num_mines: 1 / L for a cell that is viewed for the first time, -0.5 / (L - 2) for a
    cell that was viewed before, -0.5 - 1 / L for a mine. A perfect game returns 1. (Rewards: as in the package.)

    Ends: terminated when all cells without mines are viewed (success) or by a mine (failure). Truncated after L steps,
    so that a single wasted step loses the game.

    The expert views cells that must be safe, by the counts of cells that it has viewed; where none must be, the cell
    that seems least likely to hold a mine. Its success is 0.82, 0.61 and 0.60 at Easy, Medium and Hard. Nobody can win
    always: the first cell is a guess, and later ones may be.

    Horizons Ξ: {1, ..., L - 1}, from a count to all later choices. Chance level: the success of random cells,
    L! / board_size^(2 L), 1e-6 at Easy.

    Args:
        board_size: cells along a side of the board, 3 to 8.
        num_mines: 1 to board_size² - 3.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has a board of 4 with 2 mines, Medium 6 and 6, Hard 8
    and 10. Versions: v0, the first.
    """

    kernel = kernel
    expert_success = 0.5

    def __init__(
        self, board_size: int = 4, num_mines: int = 2, flat: bool = True, render_mode: str | None = None
    ) -> None:
        side = check_integer("board_size", board_size, 3, 8)
        mines = check_integer("num_mines", num_mines, 1, side * side - 3)
        clear = side * side - mines
        rules = Rules(clear, side, mines, 1 / clear, -0.5 / (clear - 2), -0.5 - 1 / clear, check_flat(flat))
        super().__init__(rules, [min(mines, MOST_COUNTED) + 1], spaces.MultiDiscrete([side, side]), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, cells = rows, self.rules.side**2
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            mine=np.zeros((B, cells), bool),
            viewed=np.zeros((B, cells), bool),
            left=np.zeros(B, np.int16),
            last=np.zeros(B, np.int8),
        )

    def expert(self) -> np.ndarray:
        """A cell that must be safe, else the one that seems least likely to hold a mine."""
        cell = likely_safe(self.state.mine, self.state.viewed, self.rules.side, self.rules.mines)
        return np.stack(np.divmod(cell, self.rules.side), 1)

    def memory_horizons(self) -> tuple[int, ...]:
        """From a count to every later choice, both included."""
        return tuple(range(1, self.rules.limit))

    def chance_level(self) -> float:
        """Every random cell must be a new one without a mine."""
        clear = self.rules.limit
        return math.factorial(clear) / self.rules.side ** (2 * clear)

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every count."""
        return np.ones(self.numbers(obs).shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The board: counts of viewed cells; mines faded."""
        side = self.rules.side
        canvas = Canvas(side + 1, side)
        canvas.label(0, 0, f"{self.state.steps[0]}/{self.rules.limit}")
        for cell, (mark, viewed) in enumerate(zip(self._marks(), self.state.viewed[0].tolist())):
            line, column = divmod(cell, side)
            canvas.box(line + 1, column, FLOOR if viewed else faded(WALL))
            if viewed:
                canvas.label(line + 1, column, mark, WALL)
            elif self.state.mine[0, cell]:
                canvas.disc(line + 1, column, faded(AGENT))
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `*` a mine, `.` a cell that is not viewed yet."""
        side, marks = self.rules.side, self._marks()
        lines = ["".join(marks[k : k + side]) for k in range(0, side * side, side)]
        return "\n".join([f"step {self.state.steps[0]}/{self.rules.limit}, {self.state.left[0]} left", *lines])

    def _marks(self) -> list[str]:
        """A character for each cell of the first row."""
        side, mine = self.rules.side, self.state.mine[0]
        board = np.pad(mine.reshape(side, side).astype(int), 1)
        counts = sum(board[y : y + side, x : x + side] for y in range(3) for x in range(3)).ravel()  # type: ignore[union-attr]
        return [
            str(count) if viewed else "*" if mined else "."
            for count, viewed, mined in zip(counts.tolist(), self.state.viewed[0].tolist(), mine.tolist())
        ]
