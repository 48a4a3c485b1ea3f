"""Endless T-Maze: the player must remember a cue, use it, and then replace it by the next (arXiv 2601.15086)."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, compiled, draw, run_rows
from palimpsest.envs.raster import AGENT, CUE, FLOOR, GOAL, Canvas, faded
from palimpsest.refusals import check_choice, check_integer

MOST_CELLS = 40
"""The most cells of a corridor that a picture shows."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    corridors: int
    length: int
    uniform: bool
    by_length: bool
    hidden: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    corridor: np.ndarray
    """int64, corridors passed"""
    length: np.ndarray
    """int64, number of cells in this corridor before its junction"""
    x: np.ndarray
    """int64, 0 at the start cell, `length` at the junction"""
    cue: np.ndarray
    """int64, 0 left, 1 right"""


@compiled
def enter(rules: Rules, state: State, i: int) -> None:
    """Put the player at the start of a new corridor."""
    state.x[i] = 0
    state.cue[i] = draw(state.rng, i, 2)
    state.length[i] = 1 + draw(state.rng, i, rules.length) if rules.uniform else rules.length


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Enter the first corridor."""
    state.corridor[i] = 0
    enter(rules, state, i)


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Action 0 forward, 1 left, 2 right."""
    if state.x[i] < state.length[i]:
        state.x[i] += action == 0
        return -0.01, False, False
    if action != 1 + state.cue[i]:
        return -1.0, True, False
    state.corridor[i] += 1
    if state.corridor[i] == rules.corridors:
        return 1.0, True, True
    enter(rules, state, i)
    return 1.0, False, False


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """The cue is visible only at the start cell."""
    x = state.x[i]
    obs[j, 0] = obs[j, 1] = 0
    obs[j, state.cue[i]] = x == 0
    if rules.hidden:
        obs[j, 2] = x == state.length[i]
    else:
        obs[j, 2] = x / (state.length[i] if rules.by_length else rules.length)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class EndlessTMaze(World):
    """A chain of corridors. The cue at the start of each says where to turn at its end, and replaces the last cue.

    Observation: Box(0, 1, (3,), float32).

    | index | meaning | range |
    |---|---|---|
    | 0 | the cue says left; shown while x = 0 | 0 or 1 |
    | 1 | the cue says right; shown while x = 0 | 0 or 1 |
    | 2 | position x / l_max, or x / l with `normalise_by="length"` | 0 to 1 |
    | 2 | with `position="none"` instead: the player is at the junction, x = l | 0 or 1 |

    Actions: 0 forward, 1 left, 2 right. Before the junction (x < l) forward moves one cell, and a turn does not move.
    At the junction (x = l) the correct turn enters the next corridor: that step's observation is at its first cell.

    Rewards: +1 for a correct turn, -1 for anything else at a junction, forward included, -0.01 for every other step.

    Ends: terminated by a wrong move at a junction (failure) or by the last correct turn (success). x does not change
    then, and no cue is shown, because x > 0. Truncated after 6 (l_max + 1) n steps; the observation is that of the
    last step.

    Regimes: in "fixed", every corridor has l = l_max; in "uniform", each draws l from 1 to l_max. With x / l_max, the
    player cannot see the junction in "uniform": it must also remember that it has tried to turn here.

    With `position="none"`, nothing but memory is asked: every observation between the cue and the junction is zeros, so
    that a policy has no unseen positions at other lengths.

    Horizons Ξ: {l_max + 1} in "fixed", {2, ..., l_max + 1} in "uniform". Chance level: 0.5^n, a guess at every
    junction. A perfect episode takes n (l_max + 1) steps in "fixed".

    Args:
        corridors: n, 1 to 1,000,000.
        length: l_max, the number of cells before a junction, 1 to 1,000,000.
        regime: "fixed" or "uniform".
        normalise_by: "l_max" or "length"; of no effect without a position.
        position: "shown", or "none" for a flag at the junction in its place.
        render_mode: "rgb_array", "ansi" or None.

    Source: arXiv 2601.15086. Versions: v0, the first.
    """

    kernel = kernel
    action_names = ("forward", "left", "right")
    closing_settings = ({"corridors": 100}, {"corridors": 1000})

    def __init__(
        self,
        corridors: int = 5,
        length: int = 10,
        regime: Literal["fixed", "uniform"] = "fixed",
        normalise_by: Literal["l_max", "length"] = "l_max",
        position: Literal["shown", "none"] = "shown",
        render_mode: str | None = None,
    ) -> None:
        n = check_integer("corridors", corridors, 1, 1_000_000)
        l_max = check_integer("length", length, 1, 1_000_000)
        uniform = check_choice("regime", regime, ("fixed", "uniform")) == "uniform"
        by_length = check_choice("normalise_by", normalise_by, ("l_max", "length")) == "length"
        hidden = check_choice("position", position, ("shown", "none")) == "none"
        rules = Rules(6 * (l_max + 1) * n, n, l_max, uniform, by_length, hidden)
        super().__init__(rules, spaces.Box(0, 1, (3,), np.float32), spaces.Discrete(3), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        return State(np.zeros(rows, np.uint64), *(np.zeros(rows, np.int64) for _ in range(5)))

    def expert(self) -> np.ndarray:
        """Forward to the junction, then turn where the cue said."""
        return np.where(self.state.x < self.state.length, 0, 1 + self.state.cue)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the cue to the turn, both included."""
        return tuple(range(2 if self.rules.uniform else self.rules.length + 1, self.rules.length + 2))

    def chance_level(self) -> float:
        """One guess per corridor."""
        return 0.5**self.rules.corridors

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """The observation shows a cue."""
        return (obs[..., 0] > 0) | (obs[..., 1] > 0)

    def picture(self) -> np.ndarray:
        """The corridor from left to right, with its cue at the start and the correct arm in green."""
        x, length, cue, passed = self._where()
        first = min(max(0, x - MOST_CELLS // 2), max(0, length + 1 - MOST_CELLS))
        cells = min(length + 1, MOST_CELLS)
        canvas = Canvas(4, min(self.rules.length + 1, MOST_CELLS) + 1)
        canvas.label(0, 0, f"{passed}/{self.rules.corridors}")
        for column in range(cells):
            canvas.box(2, column, FLOOR)
        if first == 0:
            canvas.arrow(2, 0, ("up", "down")[cue], CUE if x == 0 else faded(CUE), size=0.44)
        if first + cells == length + 1:
            for turn, row in enumerate((1, 3)):
                canvas.box(row, cells - 1, faded(GOAL) if turn == cue else FLOOR)
        canvas.disc(2, x - first, AGENT, radius=0.2)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the player, `*` the correct arm."""
        x, length, cue, passed = self._where()
        first = min(max(0, x - MOST_CELLS // 2), max(0, length + 1 - MOST_CELLS))
        cells = ["@" if first + c == x else "." for c in range(min(length + 1, MOST_CELLS))]
        arm = " " * (len(cells) - 1) if first + len(cells) == length + 1 else ""
        left, right = ("*", "o") if cue == 0 else ("o", "*")
        return "\n".join(
            (
                f"passed {passed} of {self.rules.corridors}, cell {x} of {length}, "
                f"cue {('left', 'right')[cue]} ({'shown' if x == 0 else 'hidden'})",
                arm + (left if first + len(cells) == length + 1 else ""),
                "".join(cells),
                arm + (right if first + len(cells) == length + 1 else ""),
            )
        )

    def _where(self) -> tuple[int, int, int, int]:
        state = self.state
        return int(state.x[0]), int(state.length[0]), int(state.cue[0]), int(state.corridor[0])
