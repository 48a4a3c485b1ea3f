"""POPGym's labyrinths: leave a maze, or visit all of it, seeing only the nine squares around."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import IO, below, compiled, draw, halves, run_rows
from palimpsest.envs.popgym.parts import PartsWorld, check_flat, clear, put
from palimpsest.envs.raster import AGENT, CUE, FLOOR, GOAL, Canvas, faded
from palimpsest.machine_code import njit
from palimpsest.refusals import MOST, Allowed, check, check_integer, is_integer

FREE, OBSTACLE, ENTRANCE, EXIT = range(4)
CONTENTS = 5
"""What a square can show. The package has a fifth content, hidden, that no observation shows."""
LEFT, RIGHT, UP, DOWN, NO_ACTION = range(5)
DX, DY = (-1, 1, 0, 0), (0, 0, -1, 1)
SIZE = Allowed("an even integer, 6 to 40", lambda value: is_integer(value, 6, 40) and value % 2 == 0)


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    side: int
    """Squares along a side; walls are squares too."""
    explore: bool
    """Whether the maze is to be visited, not left."""
    step: float
    """The reward of a step."""
    flat: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    square: np.ndarray
    """[B, side * side] uint8, what each square is, line by line"""
    visited: np.ndarray
    """[B, side * side] bool"""
    free: np.ndarray
    """int16, the number of free squares"""
    left: np.ndarray
    """int16, free squares that were not visited yet"""
    x: np.ndarray
    """int16, the player's column"""
    y: np.ndarray
    """int16, the player's line"""
    action: np.ndarray
    """int8, the last action; NO_ACTION at the start"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Build a maze with an entrance and, on the opposite side, an exit."""
    side = rules.side
    for square in range(side * side):
        state.square[i, square] = OBSTACLE
        state.visited[i, square] = False
    free = carve(state, i, side)
    high, low = halves(state.rng, i)
    enter, leave = 1 + 2 * below(state.rng, i, high, side // 2), 1 + 2 * below(state.rng, i, low, side // 2)
    border = draw(state.rng, i, 4)
    near, far = (side - 1, 0) if border & 1 else (0, side - 1)
    # border 0 and 1: the upper and the lower line; 2 and 3: the left and the right column
    y, x = (near, enter) if border < 2 else (enter, near)
    state.y[i], state.x[i] = y, x
    at = np.uint64(y * side + x)
    state.square[i, at] = ENTRANCE
    state.visited[i, at] = True
    if not rules.explore:
        state.square[i, np.uint64(far * side + leave if border < 2 else leave * side + far)] = EXIT
    state.free[i] = state.left[i] = free
    state.action[i] = NO_ACTION


@compiled
def carve(state: State, i: int, side: int) -> int:
    """Hunt and kill: random walks through closed cells, begun at random open ones. Returns the number of free squares.

    Cells are the squares with odd line and column. A walk begins at a random cell, if that is open. After side² of them
    the maze is taken as it is.
    """
    cells = side // 2
    closed = cells * cells - 1
    high, low = halves(state.rng, i)
    line, column = below(state.rng, i, high, cells), below(state.rng, i, low, cells)
    state.square[i, np.uint64((2 * line + 1) * side + 2 * column + 1)] = FREE
    free, walks = 1, 0
    while walks <= side * side and closed > 0:
        walking = state.square[i, np.uint64((2 * line + 1) * side + 2 * column + 1)] == FREE
        while walking:
            # bit d of `ways`: the next cell in direction d is closed
            ways, number = 0, 0
            for d in range(4):
                to_line, to_column = line + DY[d], column + DX[d]
                if 0 <= to_line < cells and 0 <= to_column < cells:
                    shut = state.square[i, np.uint64((2 * to_line + 1) * side + 2 * to_column + 1)] == OBSTACLE
                    ways += shut * (1 << d)
                    number += shut
            walking = number > 0
            if walking:
                skip, d = draw(state.rng, i, number), 0
                while skip > 0 or not (ways >> d) & 1:
                    skip -= (ways >> d) & 1
                    d += 1
                wall = (2 * line + 1 + DY[d]) * side + 2 * column + 1 + DX[d]
                line, column = line + DY[d], column + DX[d]
                state.square[i, np.uint64(wall)] = FREE
                state.square[i, np.uint64((2 * line + 1) * side + 2 * column + 1)] = FREE
                free += 2
                closed -= 1
        high, low = halves(state.rng, i)
        line, column = below(state.rng, i, high, cells), below(state.rng, i, low, cells)
        walks += 1
    return free


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Walk one square, unless there is a wall."""
    side, y, x = rules.side, np.int64(state.y[i]), np.int64(state.x[i])
    to_y, to_x = y + (action == DOWN) - (action == UP), x + (action == RIGHT) - (action == LEFT)
    inside = (to_y >= 0) & (to_y < side) & (to_x >= 0) & (to_x < side)
    if inside and state.square[i, np.uint64(to_y * side + to_x)] != OBSTACLE:
        y, x = to_y, to_x
    state.y[i], state.x[i], state.action[i] = y, x, action
    at = np.uint64(y * side + x)
    new = not state.visited[i, at]
    state.visited[i, at] = True
    out = state.square[i, at] == EXIT
    left = state.left[i] - (new & (not out))
    state.left[i] = left
    if rules.explore:
        return (1 / state.free[i] if new else rules.step), left == 0, left == 0
    return rules.step + out, out, out


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """The squares around the player, and its last action.

    At the upper and the left border the view begins at the border, so that the player is not in its middle.
    """
    side, y, x = rules.side, np.int64(state.y[i]), np.int64(state.x[i])
    top, first = y - (y > 0), x - (x > 0)
    clear(obs, j, rules.flat)
    for line in range(3):
        for column in range(3):
            to_y, to_x = top + line, first + column
            outside = (to_y > y + 1) | (to_y == side) | (to_x > x + 1) | (to_x == side)
            at = np.uint64(0 if outside else to_y * side + to_x)
            shown = OBSTACLE if outside else np.int64(state.square[i, at])
            part = 3 * line + column
            put(obs, j, rules.flat, part, CONTENTS * part, shown)
    put(obs, j, rules.flat, 9, 9 * CONTENTS, np.int64(state.action[i]))


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


@njit(cache=True)
def towards(square: np.ndarray, wanted: np.ndarray, y: np.ndarray, x: np.ndarray, side: int) -> np.ndarray:
    """[B] int64: the first action of a shortest way to a wanted square; LEFT if there is no way.

    Args:
        square: [B, side * side] uint8.
        wanted: [B, side * side] bool.
        y: [B] int16.
        x: [B] int16.
        side: squares along a side.
    """
    action = np.zeros(len(square), np.int64)
    queue, first = np.zeros(side * side, np.int64), np.zeros(side * side, np.int64)
    for i in range(len(square)):
        first[:] = -1
        queue[0] = y[i] * side + x[i]
        first[queue[0]] = NO_ACTION
        read, written = 0, 1
        while read < written:
            at = queue[read]
            read += 1
            if wanted[i, at]:
                action[i] = first[at] % NO_ACTION
                break
            for d in range(4):
                to_y, to_x = at // side + DY[d], at % side + DX[d]
                if 0 <= to_y < side and 0 <= to_x < side:
                    to = to_y * side + to_x
                    if square[i, to] != OBSTACLE and first[to] < 0:
                        first[to] = d if first[at] == NO_ACTION else first[at]
                        queue[written] = to
                        written += 1
    return action


class Labyrinth(PartsWorld):
    """What both labyrinths share. `wanted` says which squares the expert walks to."""

    def __init__(self, maze_size: Any, episode_length: Any, explore: bool, flat: Any, render_mode: str | None) -> None:
        check("maze_size", maze_size, SIZE)
        length = check_integer("episode_length", episode_length, 2, MOST)
        rules = Rules(length - 1, int(maze_size) + 1, explore, -1 / length, check_flat(flat))
        super().__init__(rules, [CONTENTS] * 9 + [5], spaces.Discrete(4), render_mode)
        # a maze of n cells has 2 n - 1 free squares; a walk along all its walls enters each of them twice at most
        self.long_enough = rules.limit >= 4 * (rules.side // 2) ** 2
        self.expert_success = 0.99 if self.long_enough else None

    def wanted(self) -> np.ndarray:
        """[B, side * side] bool: the squares to go to."""
        raise NotImplementedError

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, squares = rows, self.rules.side**2
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            square=np.zeros((B, squares), np.uint8),
            visited=np.zeros((B, squares), bool),
            free=np.zeros(B, np.int16),
            left=np.zeros(B, np.int16),
            x=np.zeros(B, np.int16),
            y=np.zeros(B, np.int16),
            action=np.zeros(B, np.int8),
        )

    def expert(self) -> np.ndarray:
        """A shortest way to the next wanted square."""
        state = self.state
        return towards(state.square, self.wanted(), state.y, state.x, self.rules.side)

    def memory_horizons(self) -> tuple[int, ...]:
        """The last observation is enough."""
        return (1,)

    def chance_level(self) -> float | None:
        """A player that follows the wall on its right needs no memory, but steps for the whole maze."""
        return 1.0 if self.long_enough else None

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Nothing must be remembered."""
        return np.zeros(self.numbers(obs).shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The maze: the player red, entrance blue, exit green; squares that were visited are tinted."""
        side, at = self.rules.side, int(self.state.y[0]) * self.rules.side + int(self.state.x[0])
        canvas = Canvas(side + 2, side, cell=12)
        canvas.label(0, 0, f"{self.state.steps[0]}/{self.rules.limit}")
        colours = {FREE: FLOOR, ENTRANCE: CUE, EXIT: GOAL}
        for place, (square, visited) in enumerate(zip(self.state.square[0].tolist(), self.state.visited[0].tolist())):
            line, column = divmod(place, side)
            if square != OBSTACLE:
                colour = faded(AGENT) if visited and square == FREE else colours[square]
                canvas.box(line + 2, column, colour, margin=0)
            if place == at:
                canvas.disc(line + 2, column, AGENT)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the player, `S` the entrance, `G` the exit, `+` visited."""
        state, side = self.state, self.rules.side
        marks = np.array([" ", "#", "S", "G"])[state.square[0]]
        marks[state.visited[0] & (state.square[0] == FREE)] = "+"
        marks[state.y[0] * side + state.x[0]] = "@"
        told = f"step {state.steps[0]}/{self.rules.limit}, {state.left[0]} of {state.free[0]} squares not visited"
        return "\n".join([told, *("".join(line) for line in marks.reshape(side, side))])


class LabyrinthEscape(Labyrinth):
    """The player enters a random maze and must find the exit on the opposite side, seeing only the squares around it.

    Observation: Box(0, 1, (50,), float32), or MultiDiscrete([5] * 10) with `flat=False`.

    | index | meaning |
    |---|---|
    | 5 k to 5 k + 4 | square k of the 3 × 3 around the player, by lines, one-hot: free, wall, entrance, exit, unused |
    | 45 to 49 | the last action, one-hot: left, right, up, down; 49 at the start |

    As in the package, the view does not reach over the upper and the left border. A player at the entrance there is in
    the first line or column of the view, and the last one is filled with walls.

    Actions: Discrete(4): 0 left, 1 right, 2 up, 3 down. A step against a wall or the border does not move.

    A maze has cells at odd lines and columns, maze_size / 2 along a side, joined by random walks (hunt and kill, as in
    mazelib 0.9.16). There is one way between any two cells. As there, building ends after a number of walks: in about
    one of 5,000 mazes a cell stays closed. If the entrance or the exit leads to one, the maze cannot be solved.

    Rewards: -1 / episode_length for each step, and 1 more at the exit.

    Ends: terminated at the exit (success). Truncated after episode_length - 1 steps. If the exit is reached in the last
    one, the package reports both; here termination wins.

    Horizons Ξ: {1}. Chance level: 1. A player that follows the wall on its right needs only the view and its last
    action, and returns 0.95, 0.90 and 0.84 at Easy, Medium and Hard; the package itself warns that its mazes need no
    memory. The shortest way, which the expert takes, returns 0.98, 0.96 and 0.95. In fewer than maze_size² steps the
    player may not get through, and the chance level is not known.

    Args:
        maze_size: squares along a side of the maze, less one, even, 6 to 40.
        episode_length: one more than the most steps, 2 to 1,048,576.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has a maze_size of 10, Medium 14, Hard 18.
    Versions: v0, the first.
    """

    kernel = kernel

    def __init__(
        self, maze_size: int = 10, episode_length: int = 1024, flat: bool = True, render_mode: str | None = None
    ) -> None:
        super().__init__(maze_size, episode_length, False, flat, render_mode)

    def wanted(self) -> np.ndarray:
        """The exit."""
        return self.state.square == EXIT


class LabyrinthExplore(Labyrinth):
    """The player enters a random maze and must visit all squares of it, seeing only the squares around it.

    Observation: Box(0, 1, (50,), float32), or MultiDiscrete([5] * 10) with `flat=False`.

    | index | meaning |
    |---|---|
    | 5 k to 5 k + 4 | square k of the 3 × 3 around the player, by lines, one-hot: free, wall, entrance, unused twice |
    | 45 to 49 | the last action, one-hot: left, right, up, down; 49 at the start |

    The view and the mazes are those of LabyrinthEscape, without an exit. Squares that were visited look like others.

    Actions: Discrete(4): 0 left, 1 right, 2 up, 3 down. A step against a wall or the border does not move.

    Rewards: 1 / (number of free squares) for a square that is visited for the first time, -1 / episode_length for any
    other step.

    Ends: terminated when all free squares are visited (success). Truncated after episode_length - 1 steps. If the last
    square is visited in the last one, the package reports both; here termination wins.

    The expert walks to the nearest square that was not visited yet.

    Horizons Ξ: {1}. Chance level: 1. A player that follows the wall on its right visits all squares (LabyrinthEscape),
    and returns 0.97, 0.92 and 0.87 at Easy, Medium and Hard, no less than the expert: memory gains nothing. In fewer
    than maze_size² steps it may not get through, and the chance level is not known.

    Args:
        maze_size: squares along a side of the maze, less one, even, 6 to 40.
        episode_length: one more than the most steps, 2 to 1,048,576.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has a maze_size of 10, Medium 14, Hard 18.
    Versions: v0, the first.
    """

    kernel = kernel

    def __init__(
        self, maze_size: int = 10, episode_length: int = 1024, flat: bool = True, render_mode: str | None = None
    ) -> None:
        super().__init__(maze_size, episode_length, True, flat, render_mode)

    def wanted(self) -> np.ndarray:
        """Free squares that were not visited."""
        return (self.state.square == FREE) & ~self.state.visited
