"""Color-Cubes: find cubes that were shown once, while other cubes teleport (ours, after arXiv 2601.15086)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.blind_tour import tour_success
from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, chance, compiled, draw, quotient, reciprocal, run_rows
from palimpsest.envs.raster import AGENT, FLOOR, GOAL, INK, PALETTE, WALL, Canvas, faded
from palimpsest.refusals import check_flag, check_integer, check_number

LEFT, RIGHT, UP, DOWN, INTERACT = range(5)
NOTHING, POSITIONS, COLOURS, START = range(4)
"""What an observation shows of the cubes. START shows all that COLOURS does, and the target's colour."""
NOWHERE = -1
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    grid: int
    per_grid: int
    """`reciprocal(grid)`."""
    cubes: int
    phases: int
    teleport: float
    hide_colours: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row of the batch. A cell is grid * row + column of the grid."""

    rng: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    """uint8, the agent's column"""
    y: np.ndarray
    """uint8, the agent's row"""
    target: np.ndarray
    """uint8, colour of the target"""
    passed: np.ndarray
    """uint16, phases passed"""
    shown: np.ndarray
    """uint8, NOTHING, POSITIONS, COLOURS or START"""
    cell: np.ndarray
    """[B, N] uint16, the cell of the cube of each colour"""
    taken: np.ndarray
    """[B, N] uint16, the same cells in ascending order"""


@compiled
def agent_cell(rules: Rules, state: State, i: int) -> int:
    """The agent's cell."""
    return rules.grid * state.y[i] + state.x[i]


@compiled
def draw_free(rules: Rules, state: State, i: int, cubes: int, agent: int) -> int:
    """A uniform cell that holds neither the agent nor one of the `cubes` cubes on the grid."""
    # Here and below: no early exit, because the branch that ends a search would be mispredicted.
    beside, before = int(agent != NOWHERE), 0
    for s in range(cubes):
        taken = np.int64(state.taken[i, s])
        beside &= int(taken != agent)
        before += int(taken < agent)
    cell = draw(state.rng, i, rules.grid * rules.grid - cubes - beside)
    cell += beside & int(cell >= agent - before)
    for s in range(cubes):
        cell += np.int64(state.taken[i, s]) <= cell
    return cell


@compiled
def insert(state: State, i: int, cell: int, last: int) -> None:
    """Insert `cell` into the first `last` entries of `taken`, which stay in ascending order."""
    lower = np.int64(0)
    for s in range(last):
        here = np.int64(state.taken[i, s])
        state.taken[i, s] = max(lower, min(here, cell))
        lower = here
    state.taken[i, last] = max(lower, cell)


@compiled
def jump(rules: Rules, state: State, i: int, colour: int) -> None:
    """Teleport a cube to a uniform free cell."""
    cell = draw_free(rules, state, i, rules.cubes, agent_cell(rules, state, i))
    left = np.int64(state.cell[i, colour])
    state.cell[i, colour] = cell
    lower, here = np.int64(0), np.int64(state.taken[i, 0])
    for s in range(rules.cubes - 1):
        above = np.int64(state.taken[i, s + 1])
        kept = above if here >= left else here
        state.taken[i, s] = max(lower, min(kept, cell))
        lower, here = kept, above
    state.taken[i, rules.cubes - 1] = max(lower, cell)


@compiled
def other(rules: Rules, state: State, i: int) -> int:
    """A uniform colour other than the target's."""
    colour = draw(state.rng, i, rules.cubes - 1)
    return colour + (colour >= state.target[i])


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Put the cubes and the agent on different uniform cells."""
    for colour in range(rules.cubes):
        cell = draw_free(rules, state, i, colour, NOWHERE)
        state.cell[i, colour] = cell
        insert(state, i, cell, colour)
    cell = draw_free(rules, state, i, rules.cubes, NOWHERE)
    state.y[i] = quotient(cell, rules.per_grid)
    state.x[i] = cell - rules.grid * state.y[i]
    state.target[i] = draw(state.rng, i, rules.cubes)
    state.passed[i] = 0
    state.shown[i] = START


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Do the action; then start the next phase, or perhaps teleport another cube."""
    state.shown[i] = NOTHING
    colour = np.int64(state.target[i])
    # One comparison: `and` compiles to two branches, and a branch on the action alone is mispredicted too often.
    cells = rules.grid * rules.grid
    found = cells * action + agent_cell(rules, state, i) == cells * INTERACT + state.cell[i, colour]
    if found:
        state.passed[i] += 1
        if state.passed[i] == rules.phases:
            return 1.0, True, True
        state.shown[i] = START
    else:
        walk(rules, state, i, action)
        if not (rules.cubes > 1 and rules.teleport > 0 and chance(state.rng, i) < rules.teleport):
            return -0.01, False, False
        colour = other(rules, state, i)
        state.shown[i] = POSITIONS if rules.hide_colours else COLOURS
    jump(rules, state, i, colour)
    if not found:
        return -0.01, False, False
    if rules.cubes > 1:
        state.target[i] = other(rules, state, i)
    return 1.0, False, False


# No branch on the action: a mispredicted branch costs more than all of this.
@compiled
def walk(rules: Rules, state: State, i: int, action: int) -> None:
    """Move one cell, unless the edge of the grid is in the way. An interaction does not move."""
    x, y, last = np.int64(state.x[i]), np.int64(state.y[i]), rules.grid - 1
    state.x[i] = min(max(x + np.int64(action == RIGHT) - np.int64(action == LEFT), 0), last)
    state.y[i] = min(max(y + np.int64(action == DOWN) - np.int64(action == UP), 0), last)


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """Write the agent's cell always, the cubes when they are shown, and the target's colour when a phase begins."""
    grid, N, shown = rules.grid, rules.cubes, state.shown[i]
    for k in range(obs.shape[1]):
        obs[j, k] = 0
    obs[j, state.x[i]] = 1
    obs[j, grid + state.y[i]] = 1
    if shown == NOTHING:
        return
    if shown == START:
        obs[j, 2 * grid + state.target[i]] = 1
    obs[j, 2 * grid + N] = 1
    obs[j, 2 * grid + N + 1] = shown >= COLOURS
    for s in range(N):
        cell = state.cell[i, s] if shown >= COLOURS else state.taken[i, s]
        row = quotient(cell, rules.per_grid)
        at = 2 * grid + N + 2 + 2 * grid * s
        obs[j, at + cell - row * grid] = 1
        obs[j, at + grid + row] = 1


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class ColorCubes(World):
    """Coloured cubes on a grid are shown once, then hidden. In each phase the player goes to the target cube.

    There are G × G cells, N cubes of different colours and K phases. The first observation of a phase shows the
    target's colour and all cubes; then they are hidden. Cubes other than the target may teleport. A teleport shows all
    cubes for one step.

    Observation: Box(0, 1, (2 G + N + 2 + 2 G N,), float32), all 0 or 1.

    | index | meaning |
    |---|---|
    | 0 to G - 1 | the agent's column, one-hot; always shown |
    | G to 2 G - 1 | the agent's row, one-hot, downwards; always shown |
    | 2 G to 2 G + N - 1 | the target's colour, one-hot; only in a phase's first observation |
    | 2 G + N | update: this observation shows the cubes (start of a phase, or teleport) |
    | 2 G + N + 1 | 1 if the cubes below are ordered by colour, 0 if they are ordered by cell, row by row |
    | from 2 G + N + 2 | for each of N cubes its column and its row, one-hot, 2 G numbers; zeros unless update |

    Colours are shown at the start of every phase. They are shown at teleports too, unless `hide_colours`. With hidden
    colours, a player who remembers all cubes can still tell which one moved: exactly one cube has left its cell for a
    free one.

    Actions: 0 left, 1 right, 2 up, 3 down, 4 interact. Cubes do not block; the edge does. Interacting succeeds if the
    agent stands on the target.

    A step does the action first. On success the target cube teleports, and the new target is uniform over the other
    cubes (the same cube if N = 1). Otherwise, with probability p, a uniform cube other than the target teleports. A
    teleport goes to a uniform free cell, without cubes and agent. The first cells are uniform and all different.

    Rewards: +1 for a success, -0.01 for every other step. An interaction that misses costs no more than any other step.

    Ends: terminated by the K-th success; no further phase is shown. Truncated after 8 G K steps.

    Horizons Ξ: {2, ..., 2 G - 1}, from a phase's first observation to the interaction, both included. The player need
    not remember what a teleport shows, because the target never moves within its phase. A teleport must *not* disturb
    the memory; the memory is rewritten from target to target. The expert always wins, in at most (2 G - 1) K steps.

    Chance level: success of the player without memory of `envs.blind_tour`. At the start of a phase it steps towards
    the target. At all other steps it interacts with a fixed probability, or else continues its tour of the grid.
    Gradient ascent over all policies without memory finds less than 0.003 more, for one cube and one phase on G = 4 and
    5. A deterministic player without memory hardly ever wins: where it interacts in vain, it stays for ever.

    Args:
        grid: G, 2 to 20.
        cubes: N, 1 to 26 and at most G² - 2, so that a free cell is left.
        phases: K, 1 to 1,000.
        teleport: p, 0 to 1.
        hide_colours: whether teleports show the cubes without colours.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the outline in arXiv 2601.15086. It does not publish grid, numbers, actions, rewards and limit.
    Versions: v0, the first.
    """

    kernel = kernel
    action_names = ("left", "right", "up", "down", "interact")
    closing_settings = ({"phases": 15}, {"phases": 100}, {"teleport": 0.3})

    def __init__(
        self,
        grid: int = 5,
        cubes: int = 3,
        phases: int = 3,
        teleport: float = 0.05,
        hide_colours: bool = False,
        render_mode: str | None = None,
    ) -> None:
        G = check_integer("grid", grid, 2, 20)
        N = check_integer("cubes", cubes, 1, min(len(NAMES), G * G - 2))
        K = check_integer("phases", phases, 1, 1000)
        p = check_number("teleport", teleport, 0, 1)
        rules = Rules(8 * G * K, G, reciprocal(G), N, K, p, check_flag("hide_colours", hide_colours))
        super().__init__(
            rules, spaces.Box(0, 1, (2 * G + N + 2 + 2 * G * N,), np.float32), spaces.Discrete(5), render_mode
        )

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, N = rows, self.rules.cubes
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            x=np.zeros(B, np.uint8),
            y=np.zeros(B, np.uint8),
            target=np.zeros(B, np.uint8),
            passed=np.zeros(B, np.uint16),
            shown=np.zeros(B, np.uint8),
            cell=np.zeros((B, N), np.uint16),
            taken=np.zeros((B, N), np.uint16),
        )

    def expert(self) -> np.ndarray:
        """Go to the target's column, then to its row, then interact."""
        state, G = self.state, self.rules.grid
        goal = np.take_along_axis(state.cell, state.target[:, None], 1)[:, 0]
        across, down = goal % G - state.x.astype(int), goal // G - state.y.astype(int)
        return np.select([across < 0, across > 0, down < 0, down > 0], [LEFT, RIGHT, UP, DOWN], INTERACT)

    def memory_horizons(self) -> tuple[int, ...]:
        """From a phase's first observation to the interaction, both included."""
        return tuple(range(2, 2 * self.rules.grid))

    def chance_level(self) -> float:
        """A tour of the grid with random interactions; see the class."""
        return tour_success(self.rules.grid, self.rules.phases)

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """The first observation of a phase."""
        G, N = self.rules.grid, self.rules.cubes
        return np.asarray((obs[..., 2 * G : 2 * G + N] > 0).any(-1))

    def picture(self) -> np.ndarray:
        """The grid, with the target framed in green and named above.

        Cubes whose colours are hidden are faded. Of these, cubes that the player sees have a dark edge.
        """
        state, G, shown = self.state, self.rules.grid, int(self.state.shown[0])
        canvas = Canvas(G + 1, max(G, len(str(self.rules.phases)) + 3))
        told = f"{state.passed[0]}/{self.rules.phases}:"
        canvas.label(0, 0, told)
        for cell in range(G * G):
            canvas.box(cell // G + 1, cell % G, FLOOR)
        for colour, cell in enumerate(state.cell[0].tolist()):
            row, column, paint = cell // G + 1, cell % G, PALETTE[colour % len(PALETTE)]
            seen, ink = (paint, INK) if shown >= COLOURS else (faded(paint), WALL)
            if shown == POSITIONS:
                canvas.box(row, column, WALL, margin=0.12)
            if colour == state.target[0]:
                frame, known = (GOAL, paint) if shown == START else (faded(GOAL), faded(paint))
                canvas.box(row, column, frame)
                canvas.box(row, column, FLOOR, margin=0.12)
                canvas.box(0, len(told) * 0.5 + 0.25, known, margin=0.12)
                canvas.label(0, len(told) * 0.5 + 0.41, NAMES[colour], INK if shown == START else WALL)
            canvas.box(row, column, seen, margin=0.18)
            canvas.label(row, column + 0.16, NAMES[colour], ink)
        row, column = int(state.y[0]) + 1, int(state.x[0])
        canvas.disc(row, column, INK, radius=0.3)
        canvas.disc(row, column, AGENT, radius=0.22)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the agent; a cube has a small letter if the player does not see its colour."""
        state, G, shown = self.state, self.rules.grid, int(self.state.shown[0])
        seen = ("nothing", "positions", "colours", "colours and target")[shown]
        lines = [["."] * G for _ in range(G)]
        for colour, cell in enumerate(state.cell[0].tolist()):
            lines[cell // G][cell % G] = NAMES[colour] if shown >= COLOURS else NAMES[colour].lower()
        row, column = int(state.y[0]), int(state.x[0])
        under = lines[row][column]
        lines[row][column] = "@"
        told = f"phase {state.passed[0]} of {self.rules.phases} passed, target {NAMES[state.target[0]]}, shown: {seen}"
        standing = "" if under == "." else f", agent on {under}"
        return "\n".join([told + standing, *("".join(line) for line in lines)])
