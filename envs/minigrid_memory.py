"""MiniGrid's Memory environment (`MemoryEnv` of the package minigrid): an object says which way to turn at the end."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, compiled, draw, run_rows
from palimpsest.envs.minigrid_picture import paint, spell
from palimpsest.envs.minigrid_view import (
    BALL,
    EAST,
    EMPTY,
    FORWARD,
    KEY,
    LEFT,
    NORTH,
    NUM_ACTIONS,
    PAD,
    RIGHT,
    SOUTH,
    WALL,
    WEST,
    Observation,
    at,
    check_view_size,
    choose_side,
    look,
    observation_space,
    towards,
    walk,
)
from palimpsest.refusals import check_flag, check_integer


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    size: int
    random_length: bool
    view_size: int
    """Cells along a side of the view, and the easternmost column from which the cue, in column 1, can be seen."""


class State(NamedTuple):
    """What changes during an episode; one entry per row of the batch. The cue lies at (1, size // 2 - 1)."""

    rng: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    """int64, the player's column"""
    y: np.ndarray
    """int64, the player's row in the maze, downwards"""
    direction: np.ndarray
    """int64, 0 east, 1 south, 2 west, 3 north"""
    end: np.ndarray
    """int64, column of the hallway's last cell; the junction is in the next column"""
    cue: np.ndarray
    """int64, 0 key, 1 ball"""
    upper: np.ndarray
    """int64, the object at the junction's northern end, 0 key, 1 ball; the other object is at its southern end"""
    seen: np.ndarray
    """bool, whether the player has seen the cue; only the expert reads it"""
    grid: np.ndarray
    """[B, cells] uint8, see `envs.minigrid_view`"""


@compiled
def cue_in_sight(rules: Rules, state: State, i: int) -> bool:
    """Whether the player of row i sees the cue."""
    aside, x, d = rules.view_size // 2, state.x[i], state.direction[i]
    below = state.y[i] - (rules.size // 2 - 1)
    if d == WEST:
        return (x <= rules.view_size) & (below <= aside)
    if d == NORTH:
        return x <= 1 + aside
    return (x == 1) & (below <= aside) if d == EAST else (below <= 0) & (x <= 1 + aside)


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Draw a new maze. The player stands anywhere between the room's western wall and the hallway's end."""
    size, middle = rules.size, rules.size // 2
    end = 4 + draw(state.rng, i, size - 6) if rules.random_length else size - 3
    state.end[i] = end
    state.x[i], state.y[i], state.direction[i] = 1 + draw(state.rng, i, end), middle, EAST
    state.cue[i] = draw(state.rng, i, 2)
    state.upper[i] = draw(state.rng, i, 2)
    state.seen[i] = cue_in_sight(rules, state, i)
    build(rules, state, i)


@compiled
def build(rules: Rules, state: State, i: int) -> None:
    """Lay out walls and objects as minigrid does. This includes cells that the player cannot reach."""
    size, middle, end, grid = rules.size, rules.size // 2, state.end[i], state.grid
    grid[i] = WALL
    for y in range(1, size - 1):
        for x in range(1, size - 1):
            grid[i, at(size, x, y)] = EMPTY
    for x in range(1, 5):
        grid[i, at(size, x, middle - 2)] = WALL
        grid[i, at(size, x, middle + 2)] = WALL
    for x in range(4, end):
        grid[i, at(size, x, middle - 1)] = WALL
        grid[i, at(size, x, middle + 1)] = WALL
    for y in range(1, size - 1):
        if y != middle:
            grid[i, at(size, end, y)] = WALL
        grid[i, at(size, end + 2, y)] = WALL
    grid[i, at(size, 1, middle - 1)] = KEY + state.cue[i]
    grid[i, at(size, end + 1, middle - 2)] = KEY + state.upper[i]
    grid[i, at(size, end + 1, middle + 2)] = BALL - state.upper[i]


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Do the action. The episode ends one cell before either object."""
    middle = rules.size // 2
    walk(state, i, rules.size, action)
    state.seen[i] |= cue_in_sight(rules, state, i)
    if state.x[i] <= state.end[i] or state.y[i] == middle:
        return 0.0, False, False
    won = (state.y[i] < middle) == (state.cue[i] == state.upper[i])
    return 1.0 - 0.9 * ((state.steps[i] + 1) / rules.limit) if won else 0.0, True, won


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """Write the player's view, as MiniGrid does."""
    look(state, i, rules.size, obs, j)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class MiniGridMemory(World):
    """The cue, an object in the first room, says which of two objects at the end of a hallway to go to.

    It equals `MemoryEnv` of the package minigrid, step by step: the same maze, observations, actions, rewards and ends.
    The mission text is left out, because it never changes. `view_size` is minigrid's `agent_view_size`; published
    results use 3.

    The maze has `size` × `size` cells. A room of 3 × 3 cells holds the cue (a green key or ball) in its north-western
    cell. A hallway leads east along the middle row of the maze. At its end is a junction, with a key two cells to one
    side and a ball two cells to the other. The player starts on the middle row, anywhere from the room's western wall
    to the hallway's end, and looks east. Unless it starts at the western wall, it must turn to see the cue.

    Observation: Dict.

    | key | meaning | space |
    |---|---|---|
    | image[i, j, 0] | 0 unseen, 1 floor, 2 wall, 5 key, 6 ball | uint8 |
    | image[i, j, 1] | its colour: 1 green (key, ball), 5 grey (wall), else 0 | uint8 |
    | image[i, j, 2] | its state, always 0 here | uint8 |
    | direction | where the player looks: 0 east, 1 south, 2 west, 3 north | Discrete(4) |

    image has v × v cells, v = `view_size`. Its cell [i, j] lies i - v // 2 to the right of the player and v - 1 - j
    ahead. Walls hide the cells behind them, by MiniGrid's own rule.

    Actions: 0 turn left, 1 turn right, 2 forward; 3 pickup, 4 drop, 5 toggle and 6 done do nothing (in minigrid's
    `MemoryEnv` nothing can be picked up).

    Rewards: 1 - 0.9 t / limit for success at step t, else 0. limit = 5 size².

    Ends: terminated one cell before an object of the junction; it is success if the object is like the cue. Truncated
    after `limit` steps. If both happen in one step, minigrid reports both; here termination wins.

    Horizons Ξ, from the last sight of the cue to the turn at the junction, for a player that first looks for the cue
    and then walks to the junction (`expert`). Let h be the column of the hallway's last cell. h is size - 3; with
    `random_length`, they are the union over h = 4, ..., size - 3.

    | view_size | Ξ |
    |---|---|
    | 7 | {h - 3, ..., h + 1} for h ≥ 7, {h - 2, ..., h + 1} for h = 6, {h - 1, ..., h + 1} for h = 4 and 5 |
    | 5 | {h - 1, ..., h + 1} for h ≥ 5, {h, h + 1} for h = 4 |
    | 3 | {h + 2}: the player must turn to one object of the junction before it can choose |

    Chance level: 0.5 if h + 1 > view_size. In shorter mazes (at view 7 S7, S9 and some random ones, at view 5 S7) the
    player can see the cue from the junction. A player without memory that mostly looks back, turns to the matching side
    and rarely goes forward wins nearly always. So success there proves no memory, and the bound for them is 1. A
    deterministic player without memory wins at most half of these episodes.

    Args:
        size: side of the maze, odd, 7 to 101.
        random_length: whether every episode draws h from 4 to size - 3; else h = size - 3.
        view_size: cells along a side of the view: 3, 5 or 7.
        render_mode: "rgb_array", "ansi" or None.

    Source: minigrid's `MemoryEnv` (arXiv 2306.13831), version 3. Versions: v0, the first.
    """

    kernel = kernel
    action_names = ("turn left", "turn right", "forward", "pickup", "drop", "toggle", "done")
    observed = Observation
    closing_settings = ({"size": 17}, {"size": 33}, {"size": 65})

    def __init__(
        self, size: int = 13, random_length: bool = False, view_size: int = 7, render_mode: str | None = None
    ) -> None:
        size = check_integer("size", size, 7, 101)
        if size % 2 == 0:
            raise ValueError(f"size must be odd, so that the hallway is in the middle; got {size}")
        view = check_view_size(view_size)
        rules = Rules(5 * size**2, size, check_flag("random_length", random_length), view)
        super().__init__(rules, observation_space(view), spaces.Discrete(NUM_ACTIONS), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        steps, x, y, direction, end, cue, upper = np.zeros((7, rows), np.int64)
        seen, grid = np.zeros(rows, bool), np.zeros((rows, (self.rules.size + 2 * PAD) ** 2), np.uint8)
        return State(np.zeros(rows, np.uint64), steps, x, y, direction, end, cue, upper, seen, grid)

    def expert(self) -> np.ndarray:
        """Look for the cue if it has not been in sight: go west as far as needed. Then go east and to the right side.

        No player that sees the cue before it enters the junction, and an object of the junction before it chooses,
        takes fewer steps on average. (Where the cue can be seen from the junction, a player that looks back from there
        saves up to two turns.)
        """
        state, middle = self.state, self.rules.size // 2
        looking = np.array([LEFT, RIGHT, FORWARD, LEFT])[state.direction]
        wanted = np.where(state.y < middle, SOUTH, np.where(state.y > middle, NORTH, EAST))  # out of the room's corners
        side = np.where(state.cue == state.upper, NORTH, SOUTH)
        choice = choose_side(state.direction, side, self.rules.view_size)
        onward = np.where(state.x > state.end, choice, towards(state.direction, wanted))
        return np.where(state.seen, onward, looking)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last sight of the cue to the turn at the junction, both included."""
        view = self.rules.view_size
        look = 0 if view > 3 else 1  # at one of the junction's objects
        found = set()
        for end in self._ends():
            for x in range(1, end + 1):
                turns = 0 if x == 1 else 1 if x <= 1 + view // 2 else 2
                found.add(end + 2 - min(x, view) + turns + look)
        return tuple(sorted(found))

    def chance_level(self) -> float:
        """An upper bound for players without memory: 0.5 for a guess, 1 if the cue can be seen from the junction."""
        return float(np.mean([1.0 if end + 1 <= self.rules.view_size else 0.5 for end in self._ends()]))

    def event_mask(self, obs: Any) -> np.ndarray:
        """The cue is in sight: the view shows an object that, for this direction, cannot be one of the junction's."""
        image = obs["image"][..., 0]
        direction = np.asarray(obs["direction"])
        thing = (image == KEY & 15) | (image == BALL & 15)
        beside = thing[..., -1].any(-1)
        blocked = image[..., self.rules.view_size // 2, -2] == WALL & 15
        free_to_the_right = image[..., 1:, :] == EMPTY
        return np.select(
            [direction == EAST, direction == SOUTH, direction == WEST],
            [beside & ~blocked, beside, thing[..., :-1].any((-1, -2)) | (beside & blocked)],
            (thing[..., :-1, :] & free_to_the_right).any((-1, -2)),
        )

    def picture(self) -> np.ndarray:
        """The maze from above, with the cue in blue and the cell to go to in green."""
        state, middle = self.state, self.rules.size // 2
        side = -1 if state.cue[0] == state.upper[0] else 1
        return paint(
            state, self.rules.size, self.rules.view_size, (1, middle - 1), (int(state.end[0]) + 1, middle + side)
        )

    def text(self) -> str:
        """The same in characters."""
        state = self.state
        side = "north" if state.cue[0] == state.upper[0] else "south"
        cue = f"cue {('key', 'ball')[state.cue[0]]}, {'has' if state.seen[0] else 'has not'} been in sight"
        maze = spell(state, self.rules.size, self.rules.view_size)
        return f"step {state.steps[0]} of {self.rules.limit}, {cue}, go {side}\n{maze}"

    def _ends(self) -> range:
        last = self.rules.size - 3
        return range(4 if self.rules.random_length else last, last + 1)
