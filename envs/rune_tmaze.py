"""Rune T-Maze: on its way the cue is inverted, replaced, changed once more, or brought back (arXiv 2610.00592)."""

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
"""What a rune does to the cue is an operation: 0 inverts it, 1 sets it to left, 2 to right."""
NOTHING = -1
_COLOURS = (PALETTE[4], PALETTE[5], PALETTE[6], PALETTE[8])


class Rules(NamedTuple):
    """What stays the same in all episodes."""

    limit: int
    corridors: int
    length: int
    runes: int
    cell: float
    """1 / length; a product with it is the quotient, once rounded to float32."""
    kinds: int
    """The kinds that are drawn, two bits each, the first one lowest."""
    num_kinds: int


class State(NamedTuple):
    """What changes, one entry per row; R is the most runes that a corridor holds."""

    rng: np.ndarray
    steps: np.ndarray
    corridor: np.ndarray
    """int32, corridors passed"""
    x: np.ndarray
    """int32, 0 at the start cell, `length` at the junction"""
    cue: np.ndarray
    """int8, 0 left, 1 right: where to turn, by the runes met so far"""
    first: np.ndarray
    """int8, the cue that the start cell showed"""
    total: np.ndarray
    """int16, runes in this corridor"""
    met: np.ndarray
    """int16, how many of them have been met"""
    depth: np.ndarray
    """int16, operations that count: done and not undone"""
    here: np.ndarray
    """int8, an index of KINDS: the rune that the player stands on; NOTHING elsewhere"""
    cells: np.ndarray
    """[B, length // 64 + 1] uint64, a bit per cell, lowest first: whether a rune lies there"""
    kind: np.ndarray
    """[B, R] int8, an index of KINDS"""
    value: np.ndarray
    """[B, R] int8, the cue that a reset sets"""
    done: np.ndarray
    """[B, R] int8, the operations that count, the oldest first"""
    before: np.ndarray
    """[B, R] int8, the cue that each of them found"""


@compiled
def laid(state: State, i: int, x: int) -> int:
    """Whether a rune lies in cell x, 0 or 1."""
    return np.int64(state.cells[i, x >> 6] >> np.uint64(x & 63)) & 1  # type: ignore[return-value]


@compiled
def enter(rules: Rules, state: State, i: int) -> None:
    """Stand at the start of a new corridor; lay its runes, every choice of cells alike (Floyd's algorithm)."""
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
    """The first corridor."""
    state.corridor[i] = 0
    enter(rules, state, i)


@compiled
def meet(state: State, i: int) -> None:
    """The next rune acts; no branch on its kind, which a processor cannot guess."""
    met, depth, cue = state.met[i], np.int64(state.depth[i]), np.int64(state.cue[i])
    kind = np.int64(state.kind[i, met])
    cancel, repeat = kind == CANCEL, kind == REPEAT
    some = depth > 0
    top, works = depth - some, some | (kind == INVERT) | (kind == RESET)
    operation = np.int64(kind == RESET) * (SET_LEFT + np.int64(state.value[i, met]))
    operation = either(repeat, np.int64(state.done[i, top]), operation)
    result = either(operation == INVERT, 1 - cue, operation - SET_LEFT)
    result = either(cancel, np.int64(state.before[i, top]), result)
    state.done[i, depth], state.before[i, depth] = operation, cue  # where nothing is pushed, above the stack
    state.cue[i] = either(works, result, cue)
    state.depth[i] = depth + np.int64(works) * (1 - 2 * np.int64(cancel))
    state.met[i] = met + 1
    state.here[i] = kind


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Action 0 forward, 1 left, 2 right."""
    if state.x[i] < rules.length:
        # No branch on the action alone, which a processor cannot guess; NOTHING is -1, all bits set.
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
    """A rune is visible from its own cell; the cue at the start and on a reset."""
    x, here = state.x[i], np.int64(state.here[i])
    for k in range(7):
        obs[j, k] = 0
    obs[j, state.cue[i]] = (x == 0) | (here == RESET)
    obs[j, 3 + here] = 1  # NOTHING is the place of x, which comes next
    obs[j, 2] = x * rules.cell


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """All rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


def unpacked(cells: np.ndarray) -> np.ndarray:
    """[B, 64 W] bool from `State.cells` [B, W]: whether a rune lies in cell x."""
    return np.unpackbits(cells.astype("<u8").view(np.uint8), axis=1, bitorder="little") > 0


class RuneTMaze(World):
    """A T-Maze whose corridor holds runes that change what its cue says; the turn must follow the resulting cue.

    Observation: Box(0, 1, (7,), float32).

    | index | meaning | range |
    |---|---|---|
    | 0 | the cue says left; shown while x = 0 and on a reset rune | 0 or 1 |
    | 1 | the cue says right; shown while x = 0 and on a reset rune | 0 or 1 |
    | 2 | position x / length | 0 to 1 |
    | 3, 4, 5, 6 | on an invert, a cancel, a reset, a repeat rune | 0 or 1 |

    Actions: 0 forward, 1 left, 2 right. Before the junction (x < length) forward moves one cell and a turn stays. At
    the junction (x = length) the correct turn enters the next corridor, with a new cue and new runes, all else
    forgotten.

    Runes: each corridor holds 1 to `runes`, each number as likely, in cells 1 to length - 1, every choice as likely;
    each is one of `kinds`, drawn alike and independently. A rune acts when its cell is entered, once; it shows as
    long as the player stays. The operations that count form a stack, empty at the corridor's start; b is the cue.

    | rune | cue becomes | stack |
    |---|---|---|
    | invert | 1 - b | pushes "invert" |
    | reset | v, drawn left or right alike, and shown | pushes "set v" |
    | repeat | what the operation on top makes of b | pushes that operation again; if empty, nothing happens |
    | cancel | what it was before the operation on top | pops it; if empty, nothing happens |

    In other words a cancel rune strikes out itself and the last rune that counts, as if neither had been there, and
    the others act in order; "the last rune" of a repeat is the last that still counts. So two cancels undo two runes
    (no redo); repeat after cancel repeats the rune before the one undone; cancel after repeat undoes the repetition
    alone; cancel after reset brings back the cue that was overwritten; repeat after "set v" sets v once more, which
    changes nothing and shows nothing; repeat after repeat applies the same operation a third time.

    Rewards: +1 for a correct turn, -1 for anything else at a junction, forward included, -0.01 for every other step.

    Ends: terminated by a wrong move at a junction (failure) or by the last correct turn (success); x stays.
    Truncated after 6 (length + 1) corridors steps.

    Tasks, each with the success (length 20, 8 runes, one corridor) of players who remember less than they must.
    "First cue" follows what the start showed (`first_cue_level`), "last shown" the cue seen last, "blind to one" all
    but the kind of rune that is missed least.

    | task | kinds | first cue | last shown | blind to one |
    |---|---|---|---|---|
    | invert | invert | 0.50 | 0.50 | 0.50 |
    | cancel | 2 invert, 1 reset, 2 cancel | 0.56 | 0.62 | 0.75 |
    | reset | reset | 0.50 | 1.00 | 0.50 |
    | repeat | 2 invert, 1 reset, 2 repeat | 0.52 | 0.64 | 0.79 |
    | mixed | 2 invert, 1 reset, 2 repeat, 2 cancel | 0.60 | 0.67 | 0.83 |

    Resets are rarer than the others because they make what was before them matter less.

    Horizons Ξ: {2, ..., length + 1} from the start's cue and the runes to the turn; without length + 1 where all
    runes are resets, which leave nothing of the first cue. Chance level: 0.5^corridors, a guess at every junction.

    Args:
        length: cells before a junction, runes + 1 to 1,000,000.
        runes: the most runes in a corridor, 2 to 1,000 (a single invert would leave nothing to know but the cue).
        kinds: which runes, up to 16 names out of "invert", "cancel", "reset", "repeat"; a name that comes twice is
            drawn twice as often. One must be "invert" or "reset": the others alone never change the cue.
        corridors: how many, one after the other, 1 to 1,000,000.
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
        super().__init__(rules, spaces.Box(0, 1, (7,), np.float32), 3, render_mode)

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
        """Forward, and at the junction where the resulting cue says."""
        return np.where(self.state.x < self.rules.length, np.int64(0), 1 + self.state.cue)

    def breakdown(self) -> dict[str, np.ndarray]:
        """Turns at a junction by how many runes the corridor held."""
        return {"runes": np.where(self.state.x == self.rules.length, self.state.total, np.int64(-1))}

    def memory_horizons(self) -> tuple[int, ...]:
        """From the start's cue and from every cell that can hold a rune to the turn, both included."""
        return tuple(range(2, self.rules.length + 1 + (set(self.kinds) != {"reset"})))

    def chance_level(self) -> float:
        """One guess per corridor."""
        return 0.5**self.rules.corridors

    def first_cue_level(self) -> float:
        """Success of the best player who remembers of each corridor only the cue that its start showed, 0 to 1."""
        share = [self.kinds.count(kind) / len(self.kinds) for kind in KINDS]
        R = self.rules.runes
        # The kinds of the runes that count do not depend on how many they are, but that the first is no repeat.
        # weight[operation, b]: the last of them, and whether the cue is the first one (b = 0) or the other (1).
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
        """A cue or a rune is shown."""
        return np.asarray((obs[..., [0, 1, 3, 4, 5, 6]] > 0).any(-1))

    def picture(self) -> np.ndarray:
        """The corridor; runes are I invert, C cancel, R repeat, arrows resets. In green the arm that the cue means."""
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
        """The same in characters; `@` the player, `<` and `>` resets, `*` the arm that the cue means now."""
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
