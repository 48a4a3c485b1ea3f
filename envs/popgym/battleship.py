"""POPGym's Battleship: sink hidden ships on a board that shows only whether the last shot hit."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import IO, below, compiled, halves, run_rows
from palimpsest.envs.popgym.parts import PartsWorld, check_flat, clear, put
from palimpsest.envs.raster import AGENT, CUE, FLOOR, Canvas, faded
from palimpsest.machine_code import njit
from palimpsest.refusals import check_integer

SHIPS = (2, 3, 3, 4)
"""Lengths of the ships in cells, in the order in which they are placed."""
SHIP_CELLS = 12
GOOD = 0.5
"""A return above this is a success."""
WEIGHT = 10.0
"""How much more a place of a ship counts for the expert with each of its cells that was hit."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    side: int
    miss: float
    """The reward of a shot that hits nothing new."""
    flat: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    ship: np.ndarray
    """[B, side * side] bool, line by line"""
    shot: np.ndarray
    """[B, side * side] bool, cells that were shot at"""
    hits: np.ndarray
    """int16, cells of ships that were hit"""
    misses: np.ndarray
    """int16, the other shots"""
    hit: np.ndarray
    """bool, whether the last shot hit a new cell of a ship"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Place one ship after the other, each uniformly among the places that are free. Ships may touch."""
    side = rules.side
    for cell in range(side * side):
        state.ship[i, cell] = state.shot[i, cell] = False
    for k in range(4):
        size = 2 if k == 0 else (4 if k == 3 else 3)
        free = False
        start, stride = 0, 1
        while not free:
            high, low = halves(state.rng, i)
            # bit 0 of `across` says whether the ship stands upright, the rest in which line or column
            across, along = below(state.rng, i, high, 2 * side), below(state.rng, i, low, side - size + 1)
            upright = across & 1
            stride = side if upright else 1
            start = (along * side + (across >> 1)) if upright else ((across >> 1) * side + along)
            free = True
            for n in range(size):
                free &= not state.ship[i, np.uint64(start + n * stride)]
        for n in range(size):
            state.ship[i, np.uint64(start + n * stride)] = True
    state.hits[i] = state.misses[i] = 0
    state.hit[i] = False


@compiled
def move(rules: Rules, state: State, i: int, action: np.ndarray) -> tuple[float, bool, bool]:
    """Shoot at a cell. A cell that was shot at before is a miss."""
    cell = np.uint64(action[0] * rules.side + action[1])
    hit = state.ship[i, cell] & (not state.shot[i, cell])
    state.shot[i, cell] = True
    state.hit[i] = hit
    hits, misses = state.hits[i] + hit, state.misses[i] + (not hit)
    state.hits[i], state.misses[i] = hits, misses
    sunk = hits == SHIP_CELLS
    few = misses < (1 - GOOD) * (rules.side * rules.side - SHIP_CELLS)
    return (1.0 / SHIP_CELLS if hit else rules.miss), sunk, sunk & few


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """Whether the last shot hit."""
    clear(obs, j, rules.flat)
    put(obs, j, rules.flat, 0, 0, np.int64(state.hit[i]))


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


@njit(cache=True)
def likely_cells(ship: np.ndarray, shot: np.ndarray, side: int) -> np.ndarray:
    """[B] int64: the cell not shot at that lies in most of the places where ships can still be.

    Args:
        ship: [B, side * side] bool.
        shot: [B, side * side] bool; `ship` is read only where it is true.
        side: cells along a side of the board.
    """
    best = np.zeros(len(ship), np.int64)
    votes = np.zeros(side * side)
    for i in range(len(ship)):
        votes[:] = 0
        for size, ships in ((2, 1), (3, 2), (4, 1)):
            for upright in range(2):
                stride = side if upright else 1
                for line in range(side):
                    for along in range(side - size + 1):
                        start = along * side + line if upright else line * side + along
                        hits, open_ = 0, True
                        for n in range(size):
                            cell = start + n * stride
                            if shot[i, cell]:
                                hits += ship[i, cell]
                                open_ &= ship[i, cell]
                        if open_ and hits < size:
                            for n in range(size):
                                votes[start + n * stride] += ships * WEIGHT**hits
        for cell in range(side * side):
            if shot[i, cell]:
                votes[cell] = -1
        best[i] = votes.argmax()
    return best


class Battleship(PartsWorld):
    """Four ships lie hidden on a board; the player shoots at cells and learns of each shot whether it hit.

    Observation: Box(0, 1, (2,), float32), or Discrete(2) with `flat=False`.

    | index | meaning |
    |---|---|
    | 0 | the last shot was no hit; also at the start |
    | 1 | the last shot hit a cell of a ship that had not been hit before |

    The observation does not say where the shot went. The package means the player to see its previous action: add it
    with `envs.wrappers` or `--previous-action-reward`.

    Actions: MultiDiscrete([board_size, board_size]), line and column of the cell to shoot at.

    The ships have 2, 3, 3 and 4 cells, and lie along a line or a column. They are placed one after the other, each
    uniformly among the places that are free. They may touch.

    Rewards: 1 / 12 for a hit, -1 / (board_size² - 12) for any other shot; a shot at the same cell again is a miss. A
    game without a miss returns 1, a shot at every cell 0. A player who shoots at the same cells again and again returns
    less than -1, down to -board_size² / (board_size² - 12).

    Ends: terminated when all ships are sunk; a success if the return is above 0.5. Truncated after board_size² steps.
    If the last ship is sunk in the last step, the package reports both; here termination wins.

    The expert shoots where most places of ships are left that contain no miss, and places with hits count more. It
    reads only what was shot at. Its success is 0.64, 0.77 and 0.84 and its mean return 0.55, 0.59 and 0.61 at Easy,
    Medium and Hard.

    Horizons Ξ: {1, ..., board_size² - 1}, from a shot to all later ones. Chance level: the success of shots at random,
    below 1e-4. A player who sees its previous action needs no memory to shoot at one cell after the other: it sinks all
    ships, with success 0.03 and mean return 0.17.

    Args:
        board_size: cells along a side of the board, 6 to 20.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has a board of 8, Medium 10, Hard 12. Versions: v0,
    the first.
    """

    kernel = kernel
    expert_success = 0.5

    def __init__(self, board_size: int = 8, flat: bool = True, render_mode: str | None = None) -> None:
        side = check_integer("board_size", board_size, 6, 20)
        rules = Rules(side * side, side, -1 / (side * side - SHIP_CELLS), check_flat(flat))
        super().__init__(rules, [2], spaces.MultiDiscrete([side, side]), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, cells = rows, self.rules.side**2
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            ship=np.zeros((B, cells), bool),
            shot=np.zeros((B, cells), bool),
            hits=np.zeros(B, np.int16),
            misses=np.zeros(B, np.int16),
            hit=np.zeros(B, bool),
        )

    def expert(self) -> np.ndarray:
        """The cell that lies in most of the places where ships can still be."""
        cell = likely_cells(self.state.ship, self.state.shot, self.rules.side)
        return np.stack(np.divmod(cell, self.rules.side), 1)

    def memory_horizons(self) -> tuple[int, ...]:
        """From a shot to every later one, both included."""
        return tuple(range(1, self.rules.limit))

    def chance_level(self) -> float:
        """The share of successes of shots at random: all cells of ships are among them before half of the misses."""
        cells, ships = self.rules.limit, SHIP_CELLS
        shots = ships + math.ceil((1 - GOOD) * (cells - ships)) - 1
        # inclusion and exclusion of the cells that no shot hits
        return sum((-1) ** k * math.comb(ships, k) * (1 - k / cells) ** shots for k in range(ships + 1))

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """A hit."""
        return np.asarray(self.numbers(obs)[..., 0] > 0)

    def picture(self) -> np.ndarray:
        """The board: ships in blue, faded until hit; red dots are misses."""
        side = self.rules.side
        canvas = Canvas(side + 1, side)
        canvas.label(0, 0, f"{self.state.steps[0]}/{self.rules.limit}")
        for cell, (ship, shot) in enumerate(zip(self.state.ship[0].tolist(), self.state.shot[0].tolist())):
            line, column = divmod(cell, side)
            canvas.box(line + 1, column, (CUE if shot else faded(CUE)) if ship else FLOOR)
            if shot and not ship:
                canvas.disc(line + 1, column, AGENT, radius=0.2)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `X` a hit, `o` a miss, `s` a ship."""
        state, side = self.state, self.rules.side
        marks = np.where(state.ship[0], np.where(state.shot[0], "X", "s"), np.where(state.shot[0], "o", "."))
        lines = ["".join(line) for line in marks.reshape(side, side)]
        told = f"step {state.steps[0]}/{self.rules.limit}, hits {state.hits[0]}, misses {state.misses[0]}"
        return "\n".join([told, *lines])
