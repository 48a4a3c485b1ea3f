"""Active T-Maze: the player must fetch the cue before it can remember it (arXiv 2307.03864).

The passive T-Maze is `envs.endless_tmaze` with one corridor.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.endless_tmaze import MOST_CELLS
from palimpsest.envs.kernels import IO, compiled, draw, run_rows
from palimpsest.envs.raster import AGENT, CUE, FLOOR, GOAL, Canvas, faded
from palimpsest.refusals import check_integer

FORWARD, LEFT, RIGHT, BACK = range(4)
ORACLE = -1
"""The oracle's position."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    length: int


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    """int64, -1 at the oracle, 0 at the start cell, `length` at the junction"""
    cue: np.ndarray
    """int64, 0 left, 1 right"""
    told: np.ndarray
    """bool, whether the player has visited the oracle in this episode"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """The player stands at the start, with the oracle behind it."""
    state.x[i] = 0
    state.cue[i] = draw(state.rng, i, 2)
    state.told[i] = False


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Action 0 forward, 1 left, 2 right, 3 back."""
    x, back = state.x[i], action == BACK
    if (x == rules.length) & (not back):
        won = action == LEFT + state.cue[i]
        return (1.0 if won else -1.0), True, won
    # No branch on the action: it would be mispredicted too often.
    state.x[i] = max(x + (action == FORWARD) - back, ORACLE)
    state.told[i] |= back & (x <= 0)
    return -0.01, False, False


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """The cue is visible only at the oracle."""
    x = state.x[i]
    obs[j, 0] = obs[j, 1] = 0
    obs[j, state.cue[i]] = x == ORACLE
    obs[j, 2] = x / rules.length


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class ActiveTMaze(World):
    """A corridor with a junction at its end. An oracle behind the start says which way to turn there.

    No observation tells the player to visit the oracle, and the visit pays off only at the end. So the task also needs
    exploration and credit assignment.

    Observation: Box(-1, 1, (3,), float32).

    | index | meaning | range |
    |---|---|---|
    | 0 | the cue says left; shown at the oracle, x = -1 | 0 or 1 |
    | 1 | the cue says right; shown at the oracle, x = -1 | 0 or 1 |
    | 2 | position x / length; 0 at the start | -1 / length to 1 |

    Actions: 0 forward, 1 left, 2 right, 3 back. Forward and back move one cell. Back at the oracle does not move, and
    neither does a turn before the junction (x < length).

    Rewards: +1 for the correct turn at the junction, -1 for the other turn or forward there, -0.01 for every other
    step.

    Ends: terminated by the correct turn (success) or by a wrong move at the junction (failure); x does not change.
    Truncated after 6 (length + 3) steps. A perfect episode takes length + 3 steps: one back, length + 1 forward, the
    turn.

    Horizons Ξ: {length + 2}, from the oracle to the turn. At the start the player must also know whether it has been at
    the oracle, one input before. Chance level: 0.5, a guess at the junction. Without memory, the turn cannot depend on
    the cue.

    Args:
        length: cells from the start to the junction, 1 to 1,000,000.
        render_mode: "rgb_array", "ansi" or None.

    Source: after arXiv 2307.03864. There the position is hidden between oracle and junction, the oracle answers once,
    and an episode has exactly length + 3 steps. Here, position and rewards are those of the Endless T-Maze.
    Versions: v0, the first.
    """

    kernel = kernel
    action_names = ("forward", "left", "right", "back")
    closing_settings = ({"length": 20}, {"length": 50})

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        length = check_integer("length", length, 1, 1_000_000)
        low, high = np.array([0, 0, -1], np.float32), np.ones(3, np.float32)
        super().__init__(
            Rules(6 * (length + 3), length), spaces.Box(low, high, dtype=np.float32), spaces.Discrete(4), render_mode
        )

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        steps, x, cue = (np.zeros(rows, np.int64) for _ in range(3))
        return State(np.zeros(rows, np.uint64), steps, x, cue, np.zeros(rows, bool))

    def expert(self) -> np.ndarray:
        """Back to the oracle, as a player must who cannot see the hidden cue; then forward, then the turn."""
        state = self.state
        onward = np.where(state.x < self.rules.length, FORWARD, LEFT + state.cue)
        return np.where(state.told, onward, BACK)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the oracle to the turn, both included."""
        return (self.rules.length + 2,)

    def chance_level(self) -> float:
        """A guess at the junction."""
        return 0.5

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """The oracle shows the cue."""
        return (obs[..., 0] > 0) | (obs[..., 1] > 0)

    def picture(self) -> np.ndarray:
        """The oracle with its cue at the left, the junction at the right, the correct arm in green."""
        x, cue, length = int(self.state.x[0]), int(self.state.cue[0]), self.rules.length
        first, cells = window(x - ORACLE, length - ORACLE)
        canvas = Canvas(4, cells + 1)
        canvas.label(0, 0, "TOLD" if self.state.told[0] else "?")
        corridor(canvas, first, cells, length - ORACLE, cue)
        if first == 0:
            canvas.arrow(2, 0, ("up", "down")[cue], CUE if x == ORACLE else faded(CUE), size=0.44)
        canvas.disc(2, x - ORACLE - first, AGENT, radius=0.2)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the player, `?` the oracle, `*` the correct arm."""
        x, cue, length = int(self.state.x[0]), int(self.state.cue[0]), self.rules.length
        first, cells = window(x - ORACLE, length - ORACLE)
        marks = ["?" if first + c == 0 else "." for c in range(cells)]
        marks[x - ORACLE - first] = "@"
        shown = "shown" if x == ORACLE else "told" if self.state.told[0] else "not told"
        title = f"cell {x} of {length}, cue {('left', 'right')[cue]} ({shown})"
        return "\n".join((title, *arms(marks, first, length - ORACLE, cue)))


def window(at: int, last: int) -> tuple[int, int]:
    """Which of the cells 0 to `last` a picture shows around cell `at`: the first cell and the number of cells."""
    return min(max(0, at - MOST_CELLS // 2), max(0, last + 1 - MOST_CELLS)), min(last + 1, MOST_CELLS)


def line_of(branch: int, branches: int = 2) -> int:
    """The line of a picture that has a branch of the junction: the first half above the corridor, the rest below."""
    return 1 + branch + (branch >= branches // 2)


def corridor(canvas: Canvas, first: int, cells: int, last: int, cue: int, branches: int = 2) -> None:
    """Draw the floor of a window and the branches of the junction, the correct one in green.

    The corridor is in line `branches // 2 + 1`.
    """
    for column in range(cells):
        canvas.box(branches // 2 + 1, column, FLOOR)
    if first + cells == last + 1:
        for branch in range(branches):
            canvas.box(line_of(branch, branches), cells - 1, faded(GOAL) if branch == cue else FLOOR)


def arms(marks: list[str], first: int, last: int, cue: int, branches: int = 2) -> tuple[str, ...]:
    """A window as `branches` + 1 lines of text: `marks`, with the branches above and below if it has the junction."""
    lines = [""] * (branches + 1)
    lines[branches // 2] = "".join(marks)
    if first + len(marks) > last:
        for branch in range(branches):
            lines[line_of(branch, branches) - 1] = " " * (len(marks) - 1) + ("*" if branch == cue else "o")
    return tuple(lines)
