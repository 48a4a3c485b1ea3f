"""Room Ballet: the player sees dances in rooms; then it must name that of one room (after SAT, arXiv 2402.15160)."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, below, compiled, draw, either, halves, run_rows
from palimpsest.envs.raster import AGENT, FLOOR, GOAL, INK, PALETTE, WALL, Canvas, faded
from palimpsest.refusals import check_integer

MOST_DANCES = 64


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    views: int
    dances: int
    side: int


class State(NamedTuple):
    """The whole episode, drawn when it begins; one entry per row of the batch. `steps` says where the player is in it.

    Small dtypes: a step is faster if it reads less memory.
    """

    rng: np.ndarray
    steps: np.ndarray
    place: np.ndarray
    """[B, views + 1] uint16, the room of every view, then the room of the question"""
    dance: np.ndarray
    """[B, views + 1] uint8, the dance of every view, then the answer"""
    task: np.ndarray
    """[B] uint8; 0 if there is only one task"""
    rooms: np.ndarray
    """[B, rooms + 1] uint16, scratch: the rooms in the order of first views, or shuffled; the rest is undefined"""
    known: np.ndarray
    """[B, rooms] int8, scratch: the dance of a room, -1 if the room was not seen"""


class Observation(NamedTuple):
    """The arrays that `observe` writes."""

    place: np.ndarray
    seen: np.ndarray


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Draw a random walk: a random first room, then a random neighbouring room at every step. Ask for a seen room."""
    side, rooms, known = rules.side, state.rooms, state.known
    for r in range(side * side):
        known[i, r] = -1
    high, low = halves(state.rng, i)
    row, column = below(state.rng, i, high, side), below(state.rng, i, low, side)
    seen = 0
    # No branches: the processor would mispredict the door and whether a room is new. So both numbers are always drawn.
    for t in range(rules.views):
        high, low = halves(state.rng, i)
        r = row * side + column
        before = np.int64(known[i, r])
        new = before < 0
        dance = either(new, below(state.rng, i, low, rules.dances), before)
        rooms[i, seen], known[i, r] = r, dance
        seen += int(new)
        state.place[i, t], state.dance[i, t] = r, dance
        up, left = int(row > 0), int(column > 0)
        upright = up + int(row < side - 1)
        door = below(state.rng, i, high, upright + left + int(column < side - 1))
        row += int((door >= up) & (door < upright)) - int(door < up)
        column += int(door >= upright + left) - int((door >= upright) & (door < upright + left))
    asked = rooms[i, draw(state.rng, i, seen)]
    state.place[i, rules.views], state.dance[i, rules.views] = asked, known[i, asked]


@compiled
def move(rules: Any, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Only the answer has an effect."""
    if state.steps[i] < rules.views:
        return 0.0, False, False
    won = action == state.dance[i, rules.views]
    return 1.0 if won else 0.0, True, won


@compiled
def show(rules: Any, state: State, i: int, place: np.ndarray, seen: np.ndarray, j: int) -> None:
    """Write the room, and the dance or the question."""
    steps, views = state.steps[i], rules.views
    t = min(steps, views)
    place[j] = state.place[i, t]
    for k in range(seen.shape[1]):
        seen[j, k] = 0
    seen[j, either(steps < views, np.int64(state.dance[i, t]), rules.dances)] = steps <= views


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """Write both keys."""
    show(rules, state, i, obs.place, obs.seen, j)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class RoomBallet(World):
    """Base class of `RoomBalletShortStay` and `RoomBalletMultiTask`: views, then one question and one answer."""

    layout: tuple[int, int]
    """Number of lines and columns of rooms in a picture."""
    task_names: ClassVar[tuple[str, ...]] = ()

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, rooms, views = rows, self.layout[0] * self.layout[1], self.rules.views
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            place=np.zeros((B, views + 1), np.uint16),
            dance=np.zeros((B, views + 1), np.uint8),
            task=np.zeros(B, np.uint8),
            rooms=np.zeros((B, rooms + 1), np.uint16),
            known=np.zeros((B, rooms), np.int8),
        )

    def expert(self) -> np.ndarray:
        """The answer. Before the question it is 0, because actions do nothing there."""
        return np.where(self.state.steps < self.rules.views, np.int64(0), self.state.dance[:, -1])

    def chance_level(self) -> float:
        """A guess: the dances are independent and uniform."""
        return 1 / self.rules.dances

    def event_mask(self, obs: Any) -> np.ndarray:
        """The observation shows a dance."""
        return obs["seen"][..., :-1].any(-1)

    def picture(self) -> np.ndarray:
        """The rooms with the last dance seen in each, faded unless it is shown now. Green: the room of the question."""
        t, place, shown = self._where()
        height, width = self.layout
        canvas = Canvas(2 * height + 1, 2 * width)
        canvas.label(0, 0, self._title())
        for r in range(height * width):
            row, column = 1 + 2 * (r // width), 2 * (r % width)
            here = r == place
            if here and t >= self.rules.views:
                canvas.box(row, column, GOAL, 2, 2)
            canvas.box(row, column, FLOOR, 2, 2, margin=0.15 if here else 0.04)
            if r in shown:
                colour = PALETTE[shown[r] % len(PALETTE)]
                bright = here and t < self.rules.views
                canvas.disc(row + 0.25, column + 0.7, colour if bright else faded(colour), radius=0.6)
                label = f"{shown[r]}"
                canvas.label(row + 0.25, column + (0.47 if len(label) > 1 else 0.75), label, INK if bright else WALL)
            if here:
                canvas.disc(row + 0.8, column + 0.2, AGENT, radius=0.2)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `5` a dance seen before, `[5]` a dance shown now, `[?]` the room of the question."""
        t, place, shown = self._where()
        width = self.layout[1]
        lines = [self._title()]
        for row in range(self.layout[0]):
            cells = []
            for r in range(row * width, (row + 1) * width):
                dance = str(shown.get(r, "."))
                cells.append(f"[{'?' if t >= self.rules.views else dance}]" if r == place else f" {dance} ")
            lines.append("".join(cell.rjust(4) for cell in cells))
        return "\n".join(lines)

    def _title(self) -> str:
        t = min(int(self.state.steps[0]), self.rules.views)
        task = f" {self.task_names[self.state.task[0]]}" if self.task_names else ""
        return f"{t}/{self.rules.views}{task}"

    def _where(self) -> tuple[int, int, dict[int, int]]:
        """The step, the room, and the last dance seen in each room so far."""
        steps = int(self.state.steps[0])
        t = min(steps, self.rules.views)
        place, dance = self.state.place[0].tolist(), self.state.dance[0].tolist()
        seen = min(t + 1, self.rules.views)
        return t, place[t], dict(zip(place[:seen], dance[:seen]))


class RoomBalletShortStay(RoomBallet):
    """A walk through many rooms with a dancer in each, one room per step. Then: which dance was in that room?

    The rooms form a square of side × side. The player is led. It starts in a random room and enters a random
    neighbouring room at every step. The dancer of a room keeps its dance for the episode. Dances are uniform and
    independent, so two rooms may share one. One step shows one whole dance, so a memory that stores steps has one entry
    per dance. After `views` steps, a uniform room among those seen is asked for.

    Observation: Dict.

    | key | meaning | space |
    |---|---|---|
    | place | the player's room, or the room of the question: line × side + column | Discrete(side²) |
    | seen[d] | dance d is shown | Box(0, 1, (dances + 1,), float32) |
    | seen[dances] | the question: which dance was seen at `place`? | |

    After the answer `place` does not change and `seen` is zeros.

    Actions: 0 to dances - 1, the answer. Before the question actions do nothing.

    Rewards: +1 for the right answer, 0 for everything else.

    Ends: terminated by the answer, which is step views + 1.

    Horizons Ξ, from the last view of the room to the question, both included: {2, ..., views + 1}.
    Chance level: 1 / dances.

    Args:
        views: number of steps of the walk, 1 to 100,000.
        dances: number of different dances, 2 to 64.
        side: rooms along a side, 2 to 32.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the Room Ballet of arXiv 2402.15160 (25 rooms). Here it is a reinforcement learning task; the
    numbers of steps and dances are ours. Versions: v0, the first.
    """

    kernel = kernel
    observed = Observation
    closing_settings = ({"views": 80}, {"views": 160})

    def __init__(self, views: int = 40, dances: int = 8, side: int = 5, render_mode: str | None = None) -> None:
        views = check_integer("views", views, 1, 100_000)
        dances = check_integer("dances", dances, 2, MOST_DANCES)
        side = check_integer("side", side, 2, 32)
        self.layout = (side, side)
        space = spaces.Dict(
            {"place": spaces.Discrete(side * side), "seen": spaces.Box(0, 1, (dances + 1,), np.float32)}
        )
        super().__init__(Rules(views + 1, views, dances, side), space, spaces.Discrete(dances), render_mode)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last view of a room to the question, both included."""
        return tuple(range(2, self.rules.views + 2))
