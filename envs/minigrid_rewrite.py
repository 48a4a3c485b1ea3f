"""A MiniGrid hallway in which the cue is replaced on the way; only the last cue counts. Ours, after MiniGrid's Memory.

`envs.minigrid_rewrite_env` has the same rules for the package minigrid.
"""

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
    KEY,
    NORTH,
    NUM_ACTIONS,
    PAD,
    SOUTH,
    VIEW,
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

HEIGHT = 7
"""Height of the maze in cells, walls included."""
MIDDLE = HEIGHT // 2
"""The y of the hallway."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    replacements: int
    length: int
    random_length: bool
    width: int
    view_size: int
    """Cells along a side of the view."""


class State(NamedTuple):
    """What changes during an episode; one entry per row of the batch."""

    rng: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    """int64, the player's column"""
    y: np.ndarray
    """int64, the player's row in the maze, downwards"""
    direction: np.ndarray
    """int64, 0 east, 1 south, 2 west, 3 north"""
    shown: np.ndarray
    """int64, number of replacements so far; also the index of the niche with the cue"""
    junction: np.ndarray
    """int64, column of the junction"""
    upper: np.ndarray
    """int64, the object at the junction's northern end, 0 key, 1 ball; the other object is at its southern end"""
    niches: np.ndarray
    """[B, replacements + 1] int64, columns of the niches"""
    cues: np.ndarray
    """[B, replacements + 1] int64, the cue of each niche, 0 key, 1 ball"""
    grid: np.ndarray
    """[B, cells] uint8, see `envs.minigrid_view`"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Draw a new hallway. The player stands at its western end, beside the first cue."""
    state.x[i], state.y[i], state.direction[i], state.shown[i] = 1, MIDDLE, EAST, 0
    state.upper[i] = draw(state.rng, i, 2)
    column = 1
    for niche in range(rules.replacements + 1):
        state.niches[i, niche] = column
        state.cues[i, niche] = draw(state.rng, i, 2)
        column += VIEW + draw(state.rng, i, rules.length - VIEW + 1) if rules.random_length else rules.length
    state.junction[i] = column
    build(rules, state, i)


@compiled
def build(rules: Rules, state: State, i: int) -> None:
    """Lay out walls, hallway, niches and junction, and place the first objects."""
    grid, junction = state.grid, state.junction[i]
    grid[i] = WALL
    for x in range(1, junction + 1):
        grid[i, at(rules.width, x, MIDDLE)] = EMPTY
    for niche in range(rules.replacements + 1):
        grid[i, at(rules.width, state.niches[i, niche], MIDDLE - 1)] = EMPTY
    for y in range(MIDDLE - 1, MIDDLE + 2):
        grid[i, at(rules.width, junction, y)] = EMPTY
    grid[i, at(rules.width, 1, MIDDLE - 1)] = KEY + state.cues[i, 0]
    grid[i, at(rules.width, junction, MIDDLE - 2)] = KEY + state.upper[i]
    grid[i, at(rules.width, junction, MIDDLE + 2)] = BALL - state.upper[i]


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Do the action. At the next niche the cue is replaced. The episode ends one cell before an object at the end."""
    walk(state, i, rules.width, action)
    shown = state.shown[i]
    if state.y[i] == MIDDLE:
        if shown < rules.replacements and state.x[i] == state.niches[i, shown + 1]:
            state.grid[i, at(rules.width, state.niches[i, shown], MIDDLE - 1)] = EMPTY
            state.grid[i, at(rules.width, state.x[i], MIDDLE - 1)] = KEY + state.cues[i, shown + 1]
            state.shown[i] = shown + 1
        return 0.0, False, False
    if state.x[i] < state.junction[i]:
        return 0.0, False, False
    won = (state.y[i] < MIDDLE) == (state.cues[i, shown] == state.upper[i])
    return 1.0 - 0.9 * ((state.steps[i] + 1) / rules.limit) if won else 0.0, True, won


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """Write the player's view, as MiniGrid does."""
    look(state, i, rules.width, obs, j)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class MiniGridMemoryRewrite(World):
    """The cue is replaced on the way. The last cue says which of two objects at the end to go to.

    A hallway leads east. It has a niche on its northern side every `length` cells; the first niche is at the start.
    There is always one cue, a green key or ball. At first it lies in the first niche. When the player reaches the next
    niche for the first time, the cue disappears, and a newly drawn cue lies in that niche. It is beside the player and
    in its view. After the last niche the hallway continues for `length` cells to a junction. There, a key lies two
    cells to one side and a ball two cells to the other.

    Observation, Dict, as in MiniGrid without the mission text:

    | key | meaning | space |
    |---|---|---|
    | image[i, j, 0] | 0 unseen, 1 floor, 2 wall, 5 key, 6 ball | uint8 |
    | image[i, j, 1] | its colour: 1 green (key, ball), 5 grey (wall), else 0 | uint8 |
    | image[i, j, 2] | its state, always 0 here | uint8 |
    | direction | where the player looks: 0 east, 1 south, 2 west, 3 north | Discrete(4) |

    image has v × v cells, v = `view_size`. Its cell [i, j] lies i - v // 2 to the right of the player and v - 1 - j
    ahead.

    Actions: 0 turn left, 1 turn right, 2 forward; 3 pickup, 4 drop, 5 toggle and 6 done do nothing.

    Rewards: 1 - 0.9 t / limit for success at step t, else 0. limit = 5 width², width = (replacements + 1) length + 3.

    Ends: terminated one cell before an object of the junction; it is success if the object is like the last cue.
    Truncated after `limit` steps. If both happen in one step, termination wins.

    Horizons Ξ: {length + 1}, from the niche of the last cue to the turn at the junction; with `random_length`
    {8, ..., length + 1}. At view 3 each is one more, because the player must turn to one object of the junction before
    it can choose. Chance level: 0.5, because a view reaches at most six cells and the cue cannot be seen from the
    junction. A perfect episode takes (replacements + 1) length + 2 steps (with `random_length`, at most that many; at
    view 3, two more in half of the episodes).

    Args:
        replacements: how often the cue is replaced, 0 to 300.
        length: cells from one niche to the next and from the last niche to the junction, 7 to 100.
        random_length: whether each of these distances is drawn from 7 to `length`.
        view_size: cells along a side of the view, minigrid's `agent_view_size`: 3, 5 or 7.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after minigrid's `MemoryEnv`. `envs.minigrid_rewrite_env.MemoryRewriteEnv` has the same rules on
    minigrid itself. Versions: v0, the first.
    """

    kernel = kernel
    action_names = ("turn left", "turn right", "forward", "pickup", "drop", "toggle", "done")
    observed = Observation
    closing_settings = ({"replacements": 10}, {"replacements": 30})

    def __init__(
        self,
        replacements: int = 3,
        length: int = 7,
        random_length: bool = False,
        view_size: int = 7,
        render_mode: str | None = None,
    ) -> None:
        rules = rules_for(replacements, length, random_length, view_size)
        super().__init__(rules, observation_space(rules.view_size), spaces.Discrete(NUM_ACTIONS), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        steps, x, y, direction, shown, junction, upper = np.zeros((7, rows), np.int64)
        niches, cues = np.zeros((2, rows, self.rules.replacements + 1), np.int64)
        grid = np.zeros((rows, (HEIGHT + 2 * PAD) * (self.rules.width + 2 * PAD)), np.uint8)
        return State(np.zeros(rows, np.uint64), steps, x, y, direction, shown, junction, upper, niches, cues, grid)

    def expert(self) -> np.ndarray:
        """Go east, out of a niche first. At the junction go to the object that is like the last cue."""
        state = self.state
        side = np.where(state.cues[:, -1] == state.upper, NORTH, SOUTH)
        choice = choose_side(state.direction, side, self.rules.view_size)
        onward = towards(state.direction, np.where(state.y == MIDDLE, EAST, SOUTH))
        return np.where(state.x == state.junction, choice, onward)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last niche to the turn at the junction, both included."""
        look = 0 if self.rules.view_size > 3 else 1  # at one of the junction's objects
        shortest = VIEW if self.rules.random_length else self.rules.length
        return tuple(range(shortest + 1 + look, self.rules.length + 2 + look))

    def chance_level(self) -> float:
        """A guess at the junction."""
        return 0.5

    def event_mask(self, obs: Any) -> np.ndarray:
        """The cue is in sight: the view shows an object that, for this direction, is in a niche."""
        image, ahead = obs["image"][..., 0], self.rules.view_size // 2
        direction = np.asarray(obs["direction"])
        thing = (image == KEY & 15) | (image == BALL & 15)
        in_hallway = image[..., ahead + 1, -1] == EMPTY
        return np.select(
            [direction == EAST, direction == SOUTH, direction == WEST],
            [thing[..., ahead - 1, :].any(-1), False, thing[..., ahead + 1, :].any(-1)],
            thing[..., -2].any(-1) & in_hallway,
        )

    def picture(self) -> np.ndarray:
        """The maze from above, with the cue in blue and the cell to go to in green."""
        state = self.state
        side = -1 if state.cues[0, -1] == state.upper[0] else 1
        cue = int(state.niches[0, state.shown[0]]), MIDDLE - 1
        return paint(state, self.rules.width, self.rules.view_size, cue, (int(state.junction[0]), MIDDLE + side))

    def text(self) -> str:
        """The same in characters."""
        state = self.state
        side = "north" if state.cues[0, -1] == state.upper[0] else "south"
        cue = f"cue {('key', 'ball')[state.cues[0, state.shown[0]]]}"
        count = f"replaced {state.shown[0]} times of {self.rules.replacements}"
        maze = spell(state, self.rules.width, self.rules.view_size)
        return f"step {state.steps[0]} of {self.rules.limit}, {cue}, {count}, go {side}\n{maze}"


def rules_for(replacements: int, length: int, random_length: bool, view_size: int) -> Rules:
    """The rules for these arguments; ValueError if one is out of range."""
    replacements = check_integer("replacements", replacements, 0, 300)
    length = check_integer("length", length, VIEW, 100)
    width = (replacements + 1) * length + 3
    random_length, view = check_flag("random_length", random_length), check_view_size(view_size)
    return Rules(5 * width**2, replacements, length, random_length, width, view)
