"""Rune T-Maze: runes in the corridor invert or replace the cue, undo or repeat a change (after arXiv 2610.00592)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.raster import AGENT, CUE, INK, PALETTE, Canvas, Colour, faded
from palimpsest.envs.runes import CANCEL, INVERT, KINDS, REPEAT, RESET, Rules, State, kernel, unpacked
from palimpsest.envs.tmaze import arms, corridor, window
from palimpsest.refusals import check_choice, check_integer

MIXED = ("invert", "invert", "reset", "repeat", "repeat", "cancel", "cancel")
_COLOURS = (PALETTE[4], PALETTE[5], PALETTE[6], PALETTE[8])


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
    action_names: ClassVar[tuple[str, ...]] = ("forward", "left", "right")
    branches: ClassVar[int] = 2
    names: ClassVar[tuple[str, ...]] = KINDS
    """Of the four kinds."""
    sides: ClassVar[tuple[str, ...]] = ("left", "right")
    marks: ClassVar[str] = "<>"
    """Characters for the branches."""
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
            listed = ", ".join(map(repr, self.names))
            raise ValueError(f"kinds must be a list of 1 to 16 names out of {listed}; got {kinds!r}")
        names, n_branches = self.names, self.branches
        codes = [names.index(check_choice("each of kinds", kind, names)) for kind in kinds]
        if not {INVERT, RESET} & set(codes):
            raise ValueError(f"kinds must hold {names[0]!r} or 'reset', or the cue never changes; got {list(kinds)}")
        packed = sum(code << 2 * k for k, code in enumerate(codes))
        self.kinds = tuple(names[code] for code in codes)
        limit, bits = 6 * (length + 1) * n, n_branches.bit_length() - 1
        rules = Rules(limit, n, length, most, 1 / length, packed, len(codes), n_branches, bits)
        space = spaces.Box(0, 1, (n_branches + 5,), np.float32)
        super().__init__(rules, space, spaces.Discrete(n_branches + 1), render_mode)

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
        return (1 / self.branches) ** self.rules.corridors

    def first_cue_level(self) -> float:
        """Success, 0 to 1, of the best player who remembers only the first cue of each corridor."""
        share = [self.kinds.count(kind) / len(self.kinds) for kind in self.names]
        R, n = self.rules.runes, self.branches
        # The kinds on the stack do not depend on its depth, except that the first is no repeat.
        # weight[operation, b]: the top operation, and the cue counted from the first cue on.
        weight, cue = np.zeros((1 + n, n)), np.eye(n)[0]
        cues = [cue]
        for _ in range(R):
            again = share[REPEAT] * weight
            weight = np.zeros((1 + n, n))
            weight[0] = share[INVERT] * np.roll(cue, 1) + np.roll(again[0], 1)
            weight[range(1, 1 + n), range(n)] = share[RESET] / n + again[1:].sum(1)
            weight /= weight.sum()
            cue = weight.sum(0)
            cues.append(cue)
        depth = np.eye(R + 1)[0]
        level = np.zeros(n)
        for _ in range(R):
            up = (1 - share[CANCEL]) * depth
            up[0] = (share[INVERT] + share[RESET]) * depth[0]
            stay = (share[CANCEL] + share[REPEAT]) * depth[0]
            depth = np.append(share[CANCEL] * depth[1:], 0) + np.append(0, up[:-1])
            depth[0] += stay
            level += depth @ np.array(cues) / R
        return float(level.max()) ** self.rules.corridors

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """The observation shows a cue or a rune."""
        return np.asarray((np.delete(obs, self.branches, -1) > 0).any(-1))

    def picture(self) -> np.ndarray:
        """The corridor with its runes, by their initials, resets by the cue they set. The correct branch is green."""
        state, length, n = self.state, self.rules.length, self.branches
        x, cue, middle = int(state.x[0]), int(state.cue[0]), self.branches // 2 + 1
        first, cells = window(x, length)
        canvas = Canvas(n + 2, cells + 1)
        canvas.label(0, 0, f"{state.corridor[0]}/{self.rules.corridors}")
        corridor(canvas, first, cells, length, cue, n)
        if first == 0:
            self._point(canvas, 0, int(state.first[0]), CUE if x == 0 else faded(CUE))
        for cell, kind, value in self._runes():
            if not first <= cell < first + cells:
                continue
            seen, colour = cell == x, _COLOURS[kind]
            canvas.box(middle, cell - first, colour if seen else faded(colour))
            if kind == RESET:
                self._point(canvas, cell - first, value, CUE if seen else faded(CUE))
            else:
                canvas.label(middle, cell - first, self.names[kind][0], INK if seen else colour)
        canvas.disc(middle + 0.29, x - first + 0.29, AGENT, radius=0.19)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the player, `<` and `>` resets, `*` the branch of the cue as it is now."""
        state, length = self.state, self.rules.length
        x, cue = int(state.x[0]), int(state.cue[0])
        first, cells = window(x, length)
        marks = ["."] * cells
        for cell, kind, value in self._runes():
            if first <= cell < first + cells:
                marks[cell - first] = self.marks[value] if kind == RESET else self.names[kind][0].upper()
        under = marks[x - first]
        marks[x - first] = "@"
        title = (
            f"passed {state.corridor[0]} of {self.rules.corridors}, cell {x} of {length}, on {under}, "
            f"cue {self.sides[cue]}, runes that count {state.depth[0]} of {state.met[0]} met"
        )
        return "\n".join((title, *arms(marks, first, length, cue, self.branches)))

    def _point(self, canvas: Canvas, column: int, cue: int, colour: Colour) -> None:
        """Draw a cue in the corridor."""
        canvas.arrow(2, column, ("up", "down")[cue], colour, size=0.44)

    def _runes(self) -> list[tuple[int, int, int]]:
        state, total = self.state, int(self.state.total[0])
        cells = np.flatnonzero(unpacked(state.cells)[0])
        return list(zip(cells.tolist(), state.kind[0, :total].tolist(), state.value[0, :total].tolist()))
