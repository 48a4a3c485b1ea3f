"""Ballet: dancers perform one after the other; then one dance is named, and its dancer must be found (HCAM)."""

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
"""Places of dancers: the squares of 3 × 3 cells around the middle one, clockwise from north."""
NUM_DANCES = len(DANCE_NAMES)
ABOUT_ONE = 3 + 2 * LOOKS
"""Numbers that the symbolic view tells of a place."""
AHEAD_X, AHEAD_Y = (3 * DX / 8).astype(np.float32), (3 * DY / 8).astype(np.float32)
"""The places' centres from the room's middle, in the unit of the symbolic view."""
OFF_X, OFF_Y = (np.pad(step[DANCES], ((0, 0), (0, 1))) for step in (DX, DY))
"""[16 dances, 17] int64: where a dancer stands from the centre of its place after each move, and then at rest."""
FREE, BLOCKED = -1, -2
GROUND = np.full((ROOM, ROOM), BLOCKED)
"""[11, 11] int64: the place with its centre in (row, column), FREE or BLOCKED."""
GROUND[1:-1, 1:-1] = FREE
GROUND[MIDDLE + 3 * DY, MIDDLE + 3 * DX] = np.arange(PLACES)


class Rules(NamedTuple):
    """What stays the same in all episodes."""

    limit: int
    dancers: int
    turn: int
    """Steps from one dancer's first move to the next one's."""
    per_turn: int
    """The turn's reciprocal."""
    choice: int
    """The step at which the dance is named."""


class State(NamedTuple):
    """What changes, one entry per row; in small types, as a step takes the longer the more memory it goes through."""

    rng: np.ndarray
    steps: np.ndarray
    x: np.ndarray
    """[B] uint8, the player's column, 1 to 9"""
    y: np.ndarray
    """[B] uint8, its row, downwards"""
    target: np.ndarray
    """[B] uint8, the place of the dancer that will be asked for"""
    order: np.ndarray
    """[B, dancers] uint8, places in the order in which their dancers perform"""
    dance: np.ndarray
    """[B, 8] int8, the dance of each place's dancer; -1 where there is none"""
    shape: np.ndarray
    """[B, 8] uint8"""
    colour: np.ndarray
    """[B, 8] uint8"""
    deck: np.ndarray
    """[B, 16] uint8, scratch"""


class Observation(NamedTuple):
    """What the kernel writes."""

    told: np.ndarray
    seen: np.ndarray


@compiled
def deal(rules: Rules, state: State, i: int, cards: int) -> None:
    """Lay as many different numbers below `cards` as there are dancers at the front of the deck, in random order."""
    deck = state.deck
    for k in range(cards):
        deck[i, k] = k
    for k in range(rules.dancers):
        other = k + draw(state.rng, i, cards - k)
        deck[i, k], deck[i, other] = deck[i, other], deck[i, k]


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Dancers who differ in place, dance, shape and colour; the player in the middle."""
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


# Rows are at different moments of their episodes, and a branch that the processor guesses wrong costs more than all
# that it skips: hence masks.
@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """The player may walk once the dance is named; whom it walks into is its choice."""
    ground = GROUND[state.y[i] + DY[action], state.x[i] + DX[action]]
    walks = (state.steps[i] >= rules.choice) & (ground != BLOCKED)
    state.x[i] += walks * DX[action]
    state.y[i] += walks * DY[action]
    met = walks & (ground >= 0) & (state.dance[i, max(ground, 0)] >= 0)
    won = met & (ground == state.target[i])
    return np.float64(won), met, won


@compiled
def performing(rules: Rules, state: State, i: int) -> tuple[int, int, int]:
    """The place whose turn it is, and where its dancer stands from the centre: (p, x, y).

    The last one's, at rest, before all turns and after them.
    """
    t = (state.steps[i] - 1) & 0xFFFFFFFF  # at step 0 beyond the last turn, too
    k = min(quotient(t, rules.per_turn), rules.dancers - 1)
    m = min(t - k * rules.turn, MOVES)
    p = state.order[i, k]
    return p, OFF_X[state.dance[i, p], m], OFF_Y[state.dance[i, p], m]


@compiled
def tell(rules: Rules, state: State, i: int, seen: np.ndarray, j: int) -> None:
    """The view in numbers [B, 154]. Nothing of it is read again: the processor would wait for all writes before."""
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
    """The view, in numbers or in pixels; the other branch is not even compiled."""
    if seen.ndim == 2:
        tell(rules, state, i, seen, j)
    else:
        paint(rules, state, i, seen, j)


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """What the player is told, and what it sees."""
    for k in range(1 + NUM_DANCES):
        obs.told[j, k] = 0
    asked = 1 + state.dance[i, state.target[i]]
    obs.told[j, asked * (state.steps[i] >= rules.choice)] = 1
    show(rules, state, i, obs.seen, j)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """All rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class Ballet(World):
    """Who danced that? Dancers perform one after the other; then a dance is named, and its dancer must be walked to.

    A room of 11 × 11 cells with walls around 9 × 9 free ones. The player stands in its middle; dancers stand on the
    centres of some of the eight squares of 3 × 3 cells around the middle one. Place, dance, shape and colour are
    drawn anew every episode, and no two dancers share any of them. Step 0 shows all at rest. From step 1 on each in
    turn makes 16 moves, one a step, and then all rest for `delay` steps. Meanwhile the player is told to watch and
    cannot move. From step 1 + n (16 + delay) on it is told the name of one of the dances and can walk.

    A dance is a sequence of 16 cells around the centre of the dancer's place (`envs.ballet_view.DANCES`), after
    which the dancer is back at the centre: circles, stars, squares and diamonds both ways round, crosses and lines.
    Any two of the sixteen differ in eight moves or more, no move goes to the centre, and no single move tells all
    dances apart, so that several must be watched.

    Observation: Dict. What is seen is egocentric: x is to the east and y to the south of the player.

    | key | meaning | space |
    |---|---|---|
    | told[0] | watch | Box(0, 1, (17,), float32) |
    | told[1 + d] | the name of the dance asked for | |
    | seen[0], seen[1] | the room's middle, (x, y) / 4 | Box(-1, 1, (154,), float32) |
    | seen[2 + 19 p] | a dancer belongs to place p: 0 north, 1 north-east, ..., 7 north-west | |
    | + 1, + 2 | where it is now, (x, y) / 8 | |
    | + 3, ..., + 10 | its shape, one-hot | |
    | + 11, ..., + 18 | its colour, one-hot | |

    With `pixels`, `seen` is a Box(0, 255, (99, 99, 3), uint8): 11 × 11 squares of 9 × 9 pixels, the player in the
    middle one; walls grey, floor and what is beyond the walls black.

    Actions: 0 north, 1 north-east, ..., 7 north-west, one cell; a step into a wall stays.

    Rewards: +1 for walking onto the dancer asked for, 0 for everything else.

    Ends: terminated by walking onto a dancer. Truncated after 320 steps up to a delay of 16, and after
    8 (16 + delay) + 512 above, which is 1,024 for 48.

    Horizons Ξ, from a dancer's last move (what comes before it in a dance is taken off) to the naming, both
    included: {k (16 + delay) - 14 : k = 1, ..., n}. Chance level: 1 / n. The expert walks three steps.

    Args:
        dancers: n, 2 to 8.
        delay: steps of rest after a dance, 0 to 10,000.
        pixels: show pixels rather than numbers.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the Ballet of arXiv 2105.14039: room, timing, rewards and limits are its own; the dances, the
    eight shapes and colours, eight directions to walk in, and the view in numbers are ours. Versions: v0, the first.
    """

    kernel = kernel
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
        super().__init__(rules, spaces.Dict({"told": told, "seen": seen}), 8, render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, n = rows, self.rules.dancers
        widths = dict(x=(), y=(), target=(), order=(n,), shape=(PLACES,), colour=(PLACES,), deck=(NUM_DANCES,))
        small = {name: np.zeros((B, *width), np.uint8) for name, width in widths.items()}
        return State(np.zeros(B, np.uint64), np.zeros(B, np.int64), dance=np.zeros((B, PLACES), np.int8), **small)

    def expert(self) -> np.ndarray:
        """The step that brings the player nearest to the dancer asked for without walking onto another one."""
        state = self.state
        x, y = state.x[:, None] + DX, state.y[:, None] + DY
        to_x = abs(MIDDLE + 3 * DX[state.target][:, None] - x)
        to_y = abs(MIDDLE + 3 * DY[state.target][:, None] - y)
        others = (state.dance >= 0) & (np.arange(PLACES) != state.target[:, None])
        on = (x[:, :, None] == MIDDLE + 3 * DX) & (y[:, :, None] == MIDDLE + 3 * DY) & others[:, None, :]
        cost = 2 * ROOM * np.maximum(to_x, to_y) + to_x + to_y
        return np.where(on.any(2), 9 * ROOM**2, cost).argmin(1)

    def memory_horizons(self) -> tuple[int, ...]:
        """From a dancer's last move to the naming, both included."""
        return tuple(k * self.rules.turn - MOVES + 2 for k in range(1, self.rules.dancers + 1))

    def chance_level(self) -> float:
        """One dancer in n."""
        return 1 / self.rules.dancers

    def event_mask(self, obs: Any) -> np.ndarray:
        """Somebody dances: while the player watches, a dancer is off the centre of its place."""
        seen = obs["seen"]
        if self.observation_space["seen"].dtype == np.uint8:  # type: ignore[index]
            off = somebody_off_centre(seen)
        else:
            about = seen[..., 2:].reshape(*seen.shape[:-1], PLACES, ABOUT_ONE)
            there = np.stack([3 * DX, 3 * DY], -1)
            off = ((about[..., 0] > 0) & (8 * about[..., 1:3] != there).any(-1)).any(-1)
        return off & (obs["told"][..., 0] > 0)

    def picture(self) -> np.ndarray:
        """The room from above with the number of each dance, faded; the place to go to in faded green."""
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
        """The same in characters: `@` the player, `*` the dancer asked for, `o` the others."""
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
