"""Ballet: dancers perform one after the other; then the player must find the dancer of one dance (HCAM)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.ballet_view import (
    DANCE_NAMES,
    DANCES,
    DX,
    DY,
    LOOKS,
    MOVES,
    ROOM,
    SQUARE,
    paint_figure,
    paint_room,
    somebody_off_centre,
)
from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, compiled, draw, quotient, reciprocal, run_rows
from palimpsest.envs.raster import AGENT, FLOOR, GOAL, PALETTE, WALL, Canvas, faded
from palimpsest.refusals import check_flag, check_integer

MIDDLE = ROOM // 2
PLACES = 8
"""Places of dancers: the eight squares of 3 × 3 cells around the middle square, clockwise from north."""
NUM_DANCES = len(DANCE_NAMES)
ABOUT_ONE = 3 + 2 * LOOKS
"""Numbers per place in the symbolic view."""
AHEAD_X, AHEAD_Y = (3 * DX / 8).astype(np.float32), (3 * DY / 8).astype(np.float32)
"""Centres of the places relative to the middle of the room, in the unit of the symbolic view."""
OFF_X, OFF_Y = (np.pad(step[DANCES], ((0, 0), (0, 1))) for step in (DX, DY))
"""[16 dances, 17] int64: the dancer's offset from the centre of its place after each move, and last at rest."""
FREE, BLOCKED = -1, -2
GROUND = np.full((ROOM, ROOM), BLOCKED)
"""[11, 11] int64: for each cell (row, column) the place whose centre it is, or FREE, or BLOCKED."""
GROUND[1:-1, 1:-1] = FREE
GROUND[MIDDLE + 3 * DY, MIDDLE + 3 * DX] = np.arange(PLACES)


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    dancers: int
    turn: int
    """Steps from the first move of one dancer to the first move of the next."""
    per_turn: int
    """`reciprocal(turn)`."""
    choice: int
    """The step at which the player is told the name of a dance."""


class State(NamedTuple):
    """What changes during an episode; one entry per row. Small dtypes: a step is faster if it reads less memory."""

    rng: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    """[B] uint8, the player's column, 1 to 9"""
    y: np.ndarray
    """[B] uint8, the player's row, downwards, 1 to 9"""
    target: np.ndarray
    """[B] uint8, the place of the dancer that the player must find"""
    order: np.ndarray
    """[B, dancers] uint8, places in the order in which their dancers perform"""
    dance: np.ndarray
    """[B, 8] int8, the dance of the dancer at each place; -1 if there is none"""
    shape: np.ndarray
    """[B, 8] uint8"""
    colour: np.ndarray
    """[B, 8] uint8"""
    deck: np.ndarray
    """[B, 16] uint8, scratch"""


class Observation(NamedTuple):
    """The arrays that `observe` writes."""

    told: np.ndarray
    seen: np.ndarray


@compiled
def deal(rules: Rules, state: State, i: int, cards: int) -> None:
    """Put random different numbers below `cards`, one per dancer, at the front of the deck."""
    deck = state.deck
    for k in range(cards):
        deck[i, k] = k
    for k in range(rules.dancers):
        other = k + draw(state.rng, i, cards - k)
        deck[i, k], deck[i, other] = deck[i, other], deck[i, k]


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Draw dancers that differ in place, dance, shape and colour. The player stands in the middle."""
    n = rules.dancers
    state.x[i] = state.y[i] = MIDDLE
    for p in range(PLACES):
        state.dance[i, p] = -1
    deal(rules, state, i, PLACES)
    for k in range(n):
        state.order[i, k] = state.deck[i, k]
    deal(rules, state, i, NUM_DANCES)
    for k in range(n):
        state.dance[i, state.order[i, k]] = state.deck[i, k]
    deal(rules, state, i, LOOKS)
    for k in range(n):
        state.shape[i, state.order[i, k]] = state.deck[i, k]
    deal(rules, state, i, LOOKS)
    for k in range(n):
        state.colour[i, state.order[i, k]] = state.deck[i, k]
    state.target[i] = state.order[i, draw(state.rng, i, n)]


# Masks, no branches: rows are at different steps of their episodes, and a mispredicted branch costs more than the work
# that it skips.
@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """The player can walk after it was told the dance. It chooses a dancer by walking onto it."""
    ground = GROUND[state.y[i] + DY[action], state.x[i] + DX[action]]
    walks = (state.steps[i] >= rules.choice) & (ground != BLOCKED)
    state.x[i] += walks * DX[action]
    state.y[i] += walks * DY[action]
    met = walks & (ground >= 0) & (state.dance[i, max(ground, 0)] >= 0)
    won = met & (ground == state.target[i])
    return np.float64(won), met, won


@compiled
def performing(rules: Rules, state: State, i: int) -> tuple[int, int, int]:
    """The place p whose dancer performs, and the dancer's offset from the centre: (p, x, y).

    Before the first turn and after the last one it is the last dancer, at rest.
    """
    t = (state.steps[i] - 1) & 0xFFFFFFFF  # at step 0 this wraps around, to beyond the last turn
    k = min(quotient(t, rules.per_turn), rules.dancers - 1)
    m = min(t - k * rules.turn, MOVES)
    p = state.order[i, k]
    return p, OFF_X[state.dance[i, p], m], OFF_Y[state.dance[i, p], m]


@compiled
def tell(rules: Rules, state: State, i: int, seen: np.ndarray, j: int) -> None:
    """The view in numbers [B, 154]. It reads back nothing that it wrote: a load would wait for all earlier stores."""
    for k in range(seen.shape[1]):
        seen[j, k] = 0
    x, y = MIDDLE - state.x[i], MIDDLE - state.y[i]
    seen[j, 0], seen[j, 1] = x / 4, y / 4
    to_x, to_y = np.float32(x / 8), np.float32(y / 8)
    for k in range(rules.dancers):
        p = state.order[i, k]
        first = 2 + ABOUT_ONE * p
        seen[j, first], seen[j, first + 1], seen[j, first + 2] = 1, to_x + AHEAD_X[p], to_y + AHEAD_Y[p]
        seen[j, first + 3 + state.shape[i, p]] = 1
        seen[j, first + 3 + LOOKS + state.colour[i, p]] = 1
    p, off_x, off_y = performing(rules, state, i)
    seen[j, 3 + ABOUT_ONE * p] = (x + 3 * DX[p] + off_x) / 8
    seen[j, 4 + ABOUT_ONE * p] = (y + 3 * DY[p] + off_y) / 8


@compiled
def paint(rules: Rules, state: State, i: int, seen: np.ndarray, j: int) -> None:
    """The view in pixels [B, 99, 99, 3]."""
    x, y = state.x[i], state.y[i]
    paint_room(seen, j, x, y)
    performer, off_x, off_y = performing(rules, state, i)
    for k in range(rules.dancers):
        p = state.order[i, k]
        to_x, to_y = MIDDLE + 3 * DX[p] - x, MIDDLE + 3 * DY[p] - y
        if p == performer:
            to_x, to_y = to_x + off_x, to_y + off_y
        if to_x != 0 or to_y != 0:
            paint_figure(seen, j, MIDDLE + to_y, MIDDLE + to_x, state.shape[i, p], state.colour[i, p])


@compiled
def show(rules: Rules, state: State, i: int, seen: np.ndarray, j: int) -> None:
    """The view, in numbers or in pixels. Only the branch that is used is compiled."""
    if seen.ndim == 2:
        tell(rules, state, i, seen, j)
    else:
        paint(rules, state, i, seen, j)


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """Write what the player is told and what it sees."""
    for k in range(1 + NUM_DANCES):
        obs.told[j, k] = 0
    asked = 1 + state.dance[i, state.target[i]]
    obs.told[j, asked * (state.steps[i] >= rules.choice)] = 1
    show(rules, state, i, obs.seen, j)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class Ballet(World):
    """Dancers perform one after the other. Then the player is told the name of a dance and must walk to its dancer.

    The room has 11 × 11 cells: walls around 9 × 9 free cells. The player stands in the middle. Around the middle square
    of 3 × 3 cells lie eight squares of the same size; dancers stand on the centres of some of them. Every episode draws
    place, dance, shape and colour of each dancer, and no two dancers share any of them.

    At step 0 all dancers rest. From step 1 on they perform in turn. Each makes 16 moves, one per step, and then all
    rest for `delay` steps. Meanwhile the player is told to watch and cannot move. From step 1 + n (16 + delay) on it
    is told the name of one of the dances, and it can walk.

    A dance is a sequence of 16 cells around the centre of the dancer's place (`envs.ballet_view.DANCES`). After it the
    dancer is back at the centre. Dances are circles, stars, squares and diamonds in both directions, crosses and lines.
    Any two of the sixteen differ in eight moves or more. No move goes to the centre. No single move tells all dances
    apart, so the player must watch several.

    Observation: Dict. Positions are relative to the player: x to the east, y to the south.

    | key | meaning | space |
    |---|---|---|
    | told[0] | watch | Box(0, 1, (17,), float32) |
    | told[1 + d] | find the dancer of dance d | |
    | seen[0], seen[1] | the middle of the room, (x, y) / 4 | Box(-1, 1, (154,), float32) |
    | seen[2 + 19 p] | place p has a dancer: 0 north, 1 north-east, ..., 7 north-west | |
    | + 1, + 2 | the dancer's position now, (x, y) / 8 | |
    | + 3, ..., + 10 | its shape, one-hot | |
    | + 11, ..., + 18 | its colour, one-hot | |

    With `pixels`, `seen` is a Box(0, 255, (99, 99, 3), uint8): 11 × 11 squares of 9 × 9 pixels, with the player in the
    middle square. Walls are grey; floor and everything outside the walls are black.

    Actions: 0 north, 1 north-east, ..., 7 north-west, one cell. A step into a wall does not move.

    Rewards: +1 for walking onto the right dancer, 0 for everything else.

    Ends: terminated by walking onto a dancer. Truncated after 320 steps for a delay of up to 16, and after
    8 (16 + delay) + 512 steps for a longer one, which is 1,024 for 48.

    Horizons Ξ, from the last move of a dancer to the step that names the dance, both included:
    {k (16 + delay) - 14 : k = 1, ..., n}. The earlier moves of a dance are not counted. Chance level: 1 / n. The
    expert walks three steps.

    Args:
        dancers: n, 2 to 8.
        delay: steps of rest after each dance, 0 to 10,000.
        pixels: whether to show pixels instead of numbers.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the Ballet of arXiv 2105.14039. Room, timing, rewards and limits are from there. The dances, the
    eight shapes and colours, the eight walking directions and the view in numbers are ours. Versions: v0, the first.
    """

    kernel = kernel
    action_names = ("north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west")
    observed = Observation
    closing_settings = ({"dancers": 8, "delay": 16}, {"dancers": 8, "delay": 48}, {"dancers": 8, "delay": 160})

    def __init__(self, dancers: int = 2, delay: int = 16, pixels: bool = False, render_mode: str | None = None) -> None:
        n = check_integer("dancers", dancers, 2, PLACES)
        delay = check_integer("delay", delay, 0, 10_000)
        turn = MOVES + delay
        rules = Rules(320 if delay <= 16 else 8 * turn + 512, n, turn, reciprocal(turn), 1 + n * turn)
        seen = (
            spaces.Box(0, 255, (ROOM * SQUARE, ROOM * SQUARE, 3), np.uint8)
            if check_flag("pixels", pixels)
            else spaces.Box(-1, 1, (2 + ABOUT_ONE * PLACES,), np.float32)
        )
        told = spaces.Box(0, 1, (1 + NUM_DANCES,), np.float32)
        super().__init__(rules, spaces.Dict({"told": told, "seen": seen}), spaces.Discrete(8), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, n = rows, self.rules.dancers
        widths = dict(x=(), y=(), target=(), order=(n,), shape=(PLACES,), colour=(PLACES,), deck=(NUM_DANCES,))
        small = {name: np.zeros((B, *width), np.uint8) for name, width in widths.items()}
        return State(np.zeros(B, np.uint64), np.zeros(B, np.int64), dance=np.zeros((B, PLACES), np.int8), **small)

    def expert(self) -> np.ndarray:
        """The step that brings the player nearest to the right dancer without walking onto another one."""
        state = self.state
        x, y = state.x[:, None] + DX, state.y[:, None] + DY
        to_x = abs(MIDDLE + 3 * DX[state.target][:, None] - x)
        to_y = abs(MIDDLE + 3 * DY[state.target][:, None] - y)
        others = (state.dance >= 0) & (np.arange(PLACES) != state.target[:, None])
        on = (x[:, :, None] == MIDDLE + 3 * DX) & (y[:, :, None] == MIDDLE + 3 * DY) & others[:, None, :]
        cost = 2 * ROOM * np.maximum(to_x, to_y) + to_x + to_y
        return np.where(on.any(2), 9 * ROOM**2, cost).argmin(1)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last move of a dancer to the step that names the dance, both included."""
        return tuple(k * self.rules.turn - MOVES + 2 for k in range(1, self.rules.dancers + 1))

    def chance_level(self) -> float:
        """One dancer in n."""
        return 1 / self.rules.dancers

    def event_mask(self, obs: Any) -> np.ndarray:
        """Somebody dances: the player watches, and a dancer is off the centre of its place."""
        seen = obs["seen"]
        if self.observation_space["seen"].dtype == np.uint8:  # type: ignore[index]
            off = somebody_off_centre(seen)
        else:
            about = seen[..., 2:].reshape(*seen.shape[:-1], PLACES, ABOUT_ONE)
            there = np.stack([3 * DX, 3 * DY], -1)
            off = ((about[..., 0] > 0) & (8 * about[..., 1:3] != there).any(-1)).any(-1)
        return off & (obs["told"][..., 0] > 0)

    def picture(self) -> np.ndarray:
        """The room from above. The number of each dance is faded; the place of the right dancer is in faded green."""
        canvas = Canvas(ROOM + 1, ROOM)
        canvas.label(0, 0, self._title())
        canvas.box(2, 1, FLOOR, ROOM - 2, ROOM - 2, margin=0)
        state = self.state
        performer, off_x, off_y = performing(self.rules, state, 0)
        for p in np.flatnonzero(state.dance[0] >= 0).tolist():
            row, column = 1 + MIDDLE + 3 * DY[p], MIDDLE + 3 * DX[p]
            if p == state.target[0]:
                canvas.box(row - 1, column - 1, faded(GOAL), 3, 3)
            label = f"{state.dance[0, p]}"
            canvas.label(row + 1, column + 0.5 - 0.25 * len(label), label, faded(WALL))
            if p == performer:
                row, column = row + off_y, column + off_x
            canvas.disc(row, column, PALETTE[state.colour[0, p]], radius=0.42)
        canvas.box(1 + int(state.y[0]), int(state.x[0]), WALL)
        canvas.disc(1 + int(state.y[0]), int(state.x[0]), AGENT)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the player, `*` the right dancer, `o` the others."""
        state = self.state
        performer, off_x, off_y = performing(self.rules, state, 0)
        lines = [list("#" * ROOM), *(list(f"#{'.' * (ROOM - 2)}#") for _ in range(ROOM - 2)), list("#" * ROOM)]
        for p in np.flatnonzero(state.dance[0] >= 0).tolist():
            step = p == performer
            row, column = MIDDLE + 3 * DY[p] + step * off_y, MIDDLE + 3 * DX[p] + step * off_x
            lines[row][column] = "*" if p == state.target[0] else "o"
        lines[state.y[0]][state.x[0]] = "@"
        return "\n".join([self._title(), *("".join(line) for line in lines)])

    def _title(self) -> str:
        steps, choice = int(self.state.steps[0]), self.rules.choice
        if steps < choice:
            return f"watch {steps}/{choice}"
        return DANCE_NAMES[self.state.dance[0, self.state.target[0]]]
