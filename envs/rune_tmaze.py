"""Rune T-Maze: runes in the corridor invert or replace the cue, undo or repeat a change (after arXiv 2610.00592)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, below, compiled, either, halves, run_rows
from palimpsest.envs.raster import AGENT, CUE, INK, PALETTE, Canvas, faded
from palimpsest.envs.tmaze import arms, corridor, window
from palimpsest.refusals import check_choice, check_integer

KINDS = ("invert", "cancel", "reset", "repeat")
INVERT, CANCEL, RESET, REPEAT = range(4)
MIXED = ("invert", "invert", "reset", "repeat", "repeat", "cancel", "cancel")
SET_LEFT = 1
"""A rune applies an operation to the cue: 0 inverts it, 1 sets it to left, 2 sets it to right."""
NOTHING = -1
_COLOURS = (PALETTE[4], PALETTE[5], PALETTE[6], PALETTE[8])


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    corridors: int
    length: int
    runes: int
    cell: float
    """1 / length. A product with it, rounded to float32, equals the quotient."""
    kinds: int
    """The kinds that are drawn, two bits each, the first in the lowest bits."""
    num_kinds: int


class State(NamedTuple):
    """What changes during an episode; one entry per row. R is the maximum number of runes in a corridor."""

    rng: np.ndarray
    steps: np.ndarray
    corridor: np.ndarray
    """int32, corridors passed"""
    x: np.ndarray
    """int32, 0 at the start cell, `length` at the junction"""
    cue: np.ndarray
    """int8, 0 left, 1 right: the cue after the runes so far"""
    first: np.ndarray
    """int8, the cue that the start cell showed"""
    total: np.ndarray
    """int16, number of runes in this corridor"""
    met: np.ndarray
    """int16, how many of these runes have acted"""
    depth: np.ndarray
    """int16, operations on the stack: applied and not undone"""
    here: np.ndarray
    """int8, an index of KINDS: the rune on the player's cell; NOTHING if there is none"""
    cells: np.ndarray
    """[B, length // 64 + 1] uint64, one bit per cell, lowest first: whether the cell has a rune"""
    kind: np.ndarray
    """[B, R] int8, an index of KINDS"""
    value: np.ndarray
    """[B, R] int8, the cue that a reset sets"""
    done: np.ndarray
    """[B, R] int8, the stack of operations, the oldest first"""
    before: np.ndarray
    """[B, R] int8, the cue before each of them"""


@compiled
def laid(state: State, i: int, x: int) -> int:
    """Whether cell x has a rune, 0 or 1."""
    return np.int64(state.cells[i, x >> 6] >> np.uint64(x & 63)) & 1  # type: ignore[return-value]


@compiled
def enter(rules: Rules, state: State, i: int) -> None:
    """Put the player at the start of a new corridor, with runes on a uniform choice of cells (Floyd's algorithm)."""
    high, low = halves(state.rng, i)
    total = 1 + below(state.rng, i, high, rules.runes)
    cue = below(state.rng, i, low, 2)
    state.x[i], state.met[i], state.depth[i], state.total[i] = 0, 0, 0, total
    state.cue[i], state.first[i], state.here[i] = cue, cue, NOTHING
    for w in range(state.cells.shape[1]):
        state.cells[i, w] = 0
    for k in range(total):
        high, low = halves(state.rng, i)
        last = rules.length - total + k
        x = 1 + below(state.rng, i, high, last)
        x += (last - x) * laid(state, i, x)
        state.cells[i, x >> 6] |= np.uint64(1) << np.uint64(x & 63)
        rune = below(state.rng, i, low, 2 * rules.num_kinds)
        kind = rules.kinds >> (rune & -2) & 3
        state.kind[i, k] = kind
        state.value[i, k] = rune & (kind == RESET)


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Enter the first corridor."""
    state.corridor[i] = 0
    enter(rules, state, i)


@compiled
def meet(state: State, i: int) -> None:
    """Apply the next rune. There is no branch on its kind: it would be mispredicted."""
    met, depth, cue = state.met[i], np.int64(state.depth[i]), np.int64(state.cue[i])
    kind = np.int64(state.kind[i, met])
    cancel, repeat = kind == CANCEL, kind == REPEAT
    some = depth > 0
    top, works = depth - some, some | (kind == INVERT) | (kind == RESET)
    operation = np.int64(kind == RESET) * (SET_LEFT + np.int64(state.value[i, met]))
    operation = either(repeat, np.int64(state.done[i, top]), operation)
    result = either(operation == INVERT, 1 - cue, operation - SET_LEFT)
    result = either(cancel, np.int64(state.before[i, top]), result)
    state.done[i, depth], state.before[i, depth] = operation, cue  # if nothing is pushed, this is above the stack
    state.cue[i] = either(works, result, cue)
    state.depth[i] = depth + np.int64(works) * (1 - 2 * np.int64(cancel))
    state.met[i] = met + 1
    state.here[i] = kind


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Action 0 forward, 1 left, 2 right."""
    if state.x[i] < rules.length:
        # No branch on the action alone: it would be mispredicted. NOTHING is -1, all bits set.
        forward = action == 0
        x = state.x[i] + forward
        state.x[i] = x
        state.here[i] |= NOTHING * forward
        if laid(state, i, x) & forward:
            meet(state, i)
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
    """A rune is visible only on its own cell, the cue at the start and on a reset rune."""
    x, here = state.x[i], np.int64(state.here[i])
    for k in range(7):
        obs[j, k] = 0
    obs[j, state.cue[i]] = (x == 0) | (here == RESET)
    obs[j, 3 + here] = 1  # for NOTHING, this is index 2, which the next line overwrites
    obs[j, 2] = x * rules.cell


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


def unpacked(cells: np.ndarray) -> np.ndarray:
    """[B, 64 W] bool from `State.cells` [B, W]: whether cell x has a rune."""
    return np.unpackbits(cells.astype("<u8").view(np.uint8), axis=1, bitorder="little") > 0


class RuneTMaze(World):
    """A T-Maze with runes in its corridor that change the cue. The turn must follow the final cue.

    Observation: Box(0, 1, (7,), float32).

    | index | meaning | range |
    |---|---|---|
    | 0 | the cue says left; shown while x = 0 and on a reset rune | 0 or 1 |
    | 1 | the cue says right; shown while x = 0 and on a reset rune | 0 or 1 |
    | 2 | position x / length | 0 to 1 |
    | 3, 4, 5, 6 | on an invert, a cancel, a reset, a repeat rune | 0 or 1 |

    Actions: 0 forward, 1 left, 2 right. Before the junction (x < length) forward moves one cell, and a turn does not
    move. At the junction (x = length) the correct turn enters the next corridor. It has a new cue and new runes;
    nothing of the last corridor matters there.

    Runes: each corridor has 1 to `runes` runes in cells 1 to length - 1. Their number and their cells are uniform. Each
    is one of `kinds`, uniform and independent. A rune acts once, when the player enters its cell. It is shown as long
    as the player stays there. The operations that are applied and not undone form a stack. The stack is empty at the
    start of a corridor. b is the cue.

    | rune | cue becomes | stack |
    |---|---|---|
    | invert | 1 - b | pushes "invert" |
    | reset | v, uniform, left or right, and shown | pushes "set v" |
    | repeat | the result of applying the top operation to b | pushes that operation again; if empty, does nothing |
    | cancel | the cue before the top operation | pops it; if empty, does nothing |

    So a cancel rune removes itself and the last rune on the stack, as if neither had been there, and the others act in
    order. A repeat rune repeats the last rune on the stack:

    - Two cancels undo two runes; there is no redo.
    - Repeat after cancel repeats the rune before the undone one.
    - Cancel after repeat undoes only the repetition.
    - Cancel after reset brings back the overwritten cue.
    - Repeat after "set v" sets v again. This changes nothing and shows nothing.
    - Repeat after repeat applies the same operation a third time.

    Rewards: +1 for a correct turn, -1 for anything else at a junction, forward included, -0.01 for every other step.

    Ends: terminated by a wrong move at a junction (failure) or by the last correct turn (success); x does not change.
    Truncated after 6 (length + 1) corridors steps.

    Tasks, each with the success of players who remember too little (length 20, 8 runes, one corridor). "First cue"
    follows the cue at the start (`first_cue_level`). "Last shown" follows the cue seen last. "Blind to one" ignores one
    kind of rune; the table has the kind that matters least.

    | task | kinds | first cue | last shown | blind to one |
    |---|---|---|---|---|
    | invert | invert | 0.50 | 0.50 | 0.50 |
    | cancel | 2 invert, 1 reset, 2 cancel | 0.56 | 0.62 | 0.75 |
    | reset | reset | 0.50 | 1.00 | 0.50 |
    | repeat | 2 invert, 1 reset, 2 repeat | 0.52 | 0.64 | 0.79 |
    | mixed | 2 invert, 1 reset, 2 repeat, 2 cancel | 0.60 | 0.67 | 0.83 |

    Resets are rarer than the other kinds, because after a reset earlier runes matter less.

    Horizons Ξ: {2, ..., length + 1}, from the first cue and the runes to the turn. If all runes are resets, length + 1
    is not among them, because a reset replaces the first cue. Chance level: 0.5^corridors, a guess at every junction.

    Args:
        length: number of cells before a junction, runes + 1 to 1,000,000.
        runes: the most runes in a corridor, 2 to 1,000. (With one rune, an invert would leave only the cue to
            remember.)
        kinds: which runes, up to 16 names out of "invert", "cancel", "reset", "repeat". A name that is given twice is
            drawn twice as often. One must be "invert" or "reset": the others alone never change the cue.
        corridors: number of corridors, one after the other, 1 to 1,000,000.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after arXiv 2610.00592, whose code and exact rules are not public. Versions: v0, the first.
    """

    kernel = kernel
    closing_settings = ({"length": 50, "runes": 16}, {"corridors": 10})

    def __init__(
        self,
        length: int = 20,
        runes: int = 8,
        kinds: Sequence[str] = MIXED,
        corridors: int = 1,
        render_mode: str | None = None,
    ) -> None:
        most = check_integer("runes", runes, 2, 1_000)
        length = check_integer("length", length, most + 1, 1_000_000)
        n = check_integer("corridors", corridors, 1, 1_000_000)
        if isinstance(kinds, str) or not isinstance(kinds, Sequence) or not 1 <= len(kinds) <= 16:
            listed = ", ".join(map(repr, KINDS))
            raise ValueError(f"kinds must be a list of 1 to 16 names out of {listed}; got {kinds!r}")
        codes = [KINDS.index(check_choice("each of kinds", kind, KINDS)) for kind in kinds]
        if not {INVERT, RESET} & set(codes):
            raise ValueError(f"kinds must hold 'invert' or 'reset', or the cue never changes; got {list(kinds)}")
        packed = sum(code << 2 * k for k, code in enumerate(codes))
        self.kinds = tuple(KINDS[code] for code in codes)
        rules = Rules(6 * (length + 1) * n, n, length, most, 1 / length, packed, len(codes))
        super().__init__(rules, spaces.Box(0, 1, (7,), np.float32), spaces.Discrete(3), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, R = rows, self.rules.runes
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            corridor=np.zeros(B, np.int32),
            x=np.zeros(B, np.int32),
            cue=np.zeros(B, np.int8),
            first=np.zeros(B, np.int8),
            total=np.zeros(B, np.int16),
            met=np.zeros(B, np.int16),
            depth=np.zeros(B, np.int16),
            here=np.zeros(B, np.int8),
            cells=np.zeros((B, self.rules.length // 64 + 1), np.uint64),
            kind=np.zeros((B, R), np.int8),
            value=np.zeros((B, R), np.int8),
            done=np.zeros((B, R), np.int8),
            before=np.zeros((B, R), np.int8),
        )

    def expert(self) -> np.ndarray:
        """Forward to the junction, then turn where the final cue says."""
        return np.where(self.state.x < self.rules.length, np.int64(0), 1 + self.state.cue)

    def breakdown(self) -> dict[str, np.ndarray]:
        """Turns at a junction by the number of runes in the corridor."""
        return {"runes": np.where(self.state.x == self.rules.length, self.state.total, np.int64(-1))}

    def memory_horizons(self) -> tuple[int, ...]:
        """From the first cue, and from every cell that can have a rune, to the turn, both included."""
        return tuple(range(2, self.rules.length + 1 + (set(self.kinds) != {"reset"})))

    def chance_level(self) -> float:
        """One guess per corridor."""
        return 0.5**self.rules.corridors

    def first_cue_level(self) -> float:
        """Success, 0 to 1, of the best player who remembers only the first cue of each corridor."""
        share = [self.kinds.count(kind) / len(self.kinds) for kind in KINDS]
        R = self.rules.runes
        # The kinds on the stack do not depend on its depth, except that the first is no repeat.
        # weight[operation, b]: the top operation, and whether the cue is the first cue (b = 0) or the other (b = 1).
        weight, cue = np.zeros((3, 2)), np.array([1.0, 0.0])
        unchanged = [1.0]
        for _ in range(R):
            again = share[REPEAT] * weight
            weight = np.zeros((3, 2))
            weight[0] = share[INVERT] * cue[::-1] + again[0, ::-1]
            weight[1, 0], weight[2, 1] = share[RESET] / 2 + again[1:].sum(1)
            weight /= weight.sum()
            cue = weight.sum(0)
            unchanged.append(cue[0])
        depth = np.eye(R + 1)[0]
        level = 0.0
        for _ in range(R):
            up = (1 - share[CANCEL]) * depth
            up[0] = (share[INVERT] + share[RESET]) * depth[0]
            stay = (share[CANCEL] + share[REPEAT]) * depth[0]
            depth = np.append(share[CANCEL] * depth[1:], 0) + np.append(0, up[:-1])
            depth[0] += stay
            level += float(depth @ unchanged) / R
        return max(level, 1 - level) ** self.rules.corridors

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """The observation shows a cue or a rune."""
        return np.asarray((obs[..., [0, 1, 3, 4, 5, 6]] > 0).any(-1))

    def picture(self) -> np.ndarray:
        """The corridor with its runes: I invert, C cancel, R repeat, arrows for resets. The correct arm is green."""
        state, length = self.state, self.rules.length
        x, cue = int(state.x[0]), int(state.cue[0])
        first, cells = window(x, length)
        canvas = Canvas(4, cells + 1)
        canvas.label(0, 0, f"{state.corridor[0]}/{self.rules.corridors}")
        corridor(canvas, first, cells, length, cue)
        if first == 0:
            canvas.arrow(2, 0, ("up", "down")[state.first[0]], CUE if x == 0 else faded(CUE), size=0.44)
        for cell, kind, value in self._runes():
            if not first <= cell < first + cells:
                continue
            seen, colour = cell == x, _COLOURS[kind]
            canvas.box(2, cell - first, colour if seen else faded(colour))
            if kind == RESET:
                canvas.arrow(2, cell - first, ("up", "down")[value], CUE if seen else faded(CUE), size=0.44)
            else:
                canvas.label(2, cell - first, "IC?R"[kind], INK if seen else colour)
        canvas.disc(2.29, x - first + 0.29, AGENT, radius=0.19)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the player, `<` and `>` resets, `*` the arm of the cue as it is now."""
        state, length = self.state, self.rules.length
        x, cue = int(state.x[0]), int(state.cue[0])
        first, cells = window(x, length)
        marks = ["."] * cells
        for cell, kind, value in self._runes():
            if first <= cell < first + cells:
                marks[cell - first] = "<>"[value] if kind == RESET else "IC?R"[kind]
        under = marks[x - first]
        marks[x - first] = "@"
        title = (
            f"passed {state.corridor[0]} of {self.rules.corridors}, cell {x} of {length}, on {under}, "
            f"cue {('left', 'right')[cue]}, runes that count {state.depth[0]} of {state.met[0]} met"
        )
        return "\n".join((title, *arms(marks, first, length, cue)))

    def _runes(self) -> list[tuple[int, int, int]]:
        state, total = self.state, int(self.state.total[0])
        cells = np.flatnonzero(unpacked(state.cells)[0])
        return list(zip(cells.tolist(), state.kind[0, :total].tolist(), state.value[0, :total].tolist()))
