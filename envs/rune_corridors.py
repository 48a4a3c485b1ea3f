"""Rune Multi-Corridor: a Rune T-Maze whose corridors end in four branches (after arXiv 2610.00592)."""

from __future__ import annotations

from collections.abc import Sequence

from palimpsest.envs.raster import Canvas, Colour
from palimpsest.envs.rune_tmaze import RuneTMaze

MIXED = ("rotate", "rotate", "reset", "repeat", "repeat", "cancel", "cancel")


class RuneMultiCorridor(RuneTMaze):
    """A corridor that ends in four branches, with runes in it that change the cue. The final cue names the branch.

    Observation: Box(0, 1, (9,), float32).

    | index | meaning | range |
    |---|---|---|
    | 0, 1, 2, 3 | the cue says branch 0, 1, 2, 3; shown while x = 0 and on a reset rune | 0 or 1 |
    | 4 | position x / length | 0 to 1 |
    | 5, 6, 7, 8 | on a rotate, a cancel, a reset, a repeat rune | 0 or 1 |

    Actions: 0 forward, 1 + b into branch b. Before the junction (x < length) forward moves one cell, and the others do
    not move. At the junction (x = length) the correct branch leads into the next corridor. It has a new cue and new
    runes; nothing of the last corridor matters there.

    Runes: each corridor has 1 to `runes` runes in cells 1 to length - 1. Their number and their cells are uniform. Each
    is one of `kinds`, uniform and independent. A rune acts once, when the player enters its cell. It is shown as long
    as the player stays there. The operations that are applied and not undone form a stack. The stack is empty at the
    start of a corridor. b is the cue.

    | rune | cue becomes | stack |
    |---|---|---|
    | rotate | b + 1, after 3 comes 0 | pushes "rotate" |
    | reset | v, uniform, one of the four, and shown | pushes "set v" |
    | repeat | the result of applying the top operation to b | pushes that operation again; if empty, does nothing |
    | cancel | the cue before the top operation | pops it; if empty, does nothing |

    These are the rules of `RuneTMaze`, whose docstring spells out what follows from them. There are four branches for
    two. With two, "rotate" would be its "invert". Rotations must be counted, modulo four.

    Rewards: +1 for the correct branch, -1 for anything else at a junction, forward included, -0.01 for every other
    step.

    Ends: terminated by a wrong move at a junction (failure) or by the last correct one (success); x does not change.
    Truncated after 6 (length + 1) corridors steps.

    Success of players who remember too little (the default arguments): 0.41 with the first cue alone
    (`first_cue_level`), 0.53 with the cue shown last, 0.77 blind to one kind of rune, the one that matters least.

    Horizons Ξ: {2, ..., length + 1}, from the first cue and the runes to the choice. If all runes are resets,
    length + 1 is not among them, because a reset replaces the first cue. Chance level: 0.25^corridors, a guess at
    every junction.

    Args:
        length: number of cells before a junction, runes + 1 to 1,000,000.
        runes: the most runes in a corridor, 2 to 1,000.
        kinds: which runes, up to 16 names out of "rotate", "cancel", "reset", "repeat". A name that is given twice is
            drawn twice as often. One must be "rotate" or "reset": the others alone never change the cue.
        corridors: number of corridors, one after the other, 1 to 1,000,000.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after arXiv 2610.00592, whose code and exact rules are not public. Versions: v0, the first.
    """

    action_names = ()
    branches = 4
    names = ("rotate", "cancel", "reset", "repeat")
    sides = ("0", "1", "2", "3")
    marks = "0123"

    def __init__(
        self,
        length: int = 20,
        runes: int = 8,
        kinds: Sequence[str] = MIXED,
        corridors: int = 1,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(length, runes, kinds, corridors, render_mode)

    def _point(self, canvas: Canvas, column: int, cue: int, colour: Colour) -> None:
        canvas.label(3, column, self.marks[cue], colour)
