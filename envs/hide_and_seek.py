"""Hide and seek: the player sees objects put into boxes and moved; then it must say where one of them is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, compiled, draw, quotient, reciprocal, run_rows
from palimpsest.envs.raster import AGENT, CUE, FLOOR, GOAL, INK, PALETTE, WALL, Canvas, Colour, faded
from palimpsest.refusals import check_integer

BOX: Colour = (206, 198, 180)
_COLOURS = PALETTE[1:]
"""Colours of the objects. The first colour of the palette is the player's."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    question: int
    """The step whose observation asks the question."""
    rooms: int
    boxes: int
    """Boxes of one room."""
    per_room: int
    """`reciprocal(boxes)`."""
    objects: int


class State(NamedTuple):
    """What changes during an episode; one entry per row. N objects, M boxes in all rooms together."""

    rng: np.ndarray
    steps: np.ndarray
    room: np.ndarray
    """uint8, the player's room"""
    slot: np.ndarray
    """uint16, the object of this step's event or question, by its number in the order of hiding"""
    shown: np.ndarray
    """uint16, the same object by its number in the observation"""
    at: np.ndarray
    """uint8, the box of the last event, counted from the first box of its room"""
    object: np.ndarray
    """[B, N] uint16, a permutation: the object that is hidden first, second, ..."""
    box: np.ndarray
    """[B, M] uint16, a permutation: the boxes of the objects in the order of hiding, then the empty boxes. Room r has
    the boxes r * boxes to (r + 1) * boxes - 1"""
    moved: np.ndarray
    """[B, N] int32, for each object, in the order of hiding, how often it was put into another box"""


@compiled
def exchange(array: np.ndarray, i: int, j: int, k: int) -> int:
    """Exchange entries j and k of row i. Returns the new entry j, because reading it back would wait for the store."""
    now = array[i, k]
    array[i, k] = array[i, j]
    array[i, j] = now
    return now


@compiled
def happen(rules: Rules, state: State, i: int, t: int) -> None:
    """Draw what the observation of step t shows."""
    N, M = rules.objects, rules.rooms * rules.boxes
    if t == rules.question:
        slot = draw(state.rng, i, N)
        state.slot[i], state.shown[i] = slot, state.object[i, slot]
        state.room[i] = draw(state.rng, i, rules.rooms)
        return
    if t < N:
        state.slot[i] = t
        state.shown[i] = exchange(state.object, i, t, t + draw(state.rng, i, N - t))
        box = exchange(state.box, i, t, t + draw(state.rng, i, M - t))
    elif (t - N) & 1 == 0:
        slot = draw(state.rng, i, N)
        state.slot[i], state.shown[i] = slot, state.object[i, slot]
        box = state.box[i, slot]
    else:
        slot = state.slot[i]
        box = exchange(state.box, i, slot, N + draw(state.rng, i, M - N))
        state.moved[i, slot] += 1
    room = quotient(box, rules.per_room)
    state.room[i], state.at[i] = room, box - room * rules.boxes


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Empty all boxes and hide the first object."""
    for k in range(rules.objects):
        state.object[i, k] = k
        state.moved[i, k] = 0
    for k in range(rules.rooms * rules.boxes):
        state.box[i, k] = k
    happen(rules, state, i, 0)


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Before the question, actions do nothing. At the question, the action names a box."""
    if state.steps[i] < rules.question:
        happen(rules, state, i, state.steps[i] + 1)
        return 0.0, False, False
    right = action == state.box[i, state.slot[i]]
    return 1.0 if right else 0.0, True, right


class Observation(NamedTuple):
    """The arrays that `observe` writes."""

    place: np.ndarray
    seen: np.ndarray


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """Write the event or the question; zeros after the answer."""
    t, N, boxes = state.steps[i], rules.objects, rules.boxes
    event = t < rules.question
    taken = event & (t >= N) & ((t - N) & 1 == 0)
    obs.place[j] = state.room[i]
    for k in range(obs.seen.shape[1]):
        obs.seen[j, k] = 0
    obs.seen[j, state.shown[i]] = t <= rules.question
    obs.seen[j, N + state.at[i]] = event
    obs.seen[j, N + boxes] = event & ~taken
    obs.seen[j, N + boxes + 1] = taken
    obs.seen[j, N + boxes + 2] = t == rules.question


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class HideAndSeek(World):
    """The player sees objects put into boxes, and some moved to other boxes. Then it must say where one of them is.

    The player is led to the room where something happens, one event per step. First, every object is put into its own
    box; the order of the objects and their boxes are random. Then come the moves. A move takes a uniform object out of
    its box (one step) and puts it into a uniform empty box of any room (the next step). The box that it came from does
    not count as empty. Last, the player is led to a uniform room and asked for a uniform object.

    Observation: a Dict.

    | key | space | meaning |
    |---|---|---|
    | place | Discrete(rooms) | the player's room |
    | seen | Box(0, 1, (objects + boxes + 3,), float32) | the event or the question, as follows |

    | index of seen | meaning | range |
    |---|---|---|
    | 0 to objects - 1 | the object of the event or the question, one-hot | 0 or 1 |
    | objects to objects + boxes - 1 | the event's box in this room, one-hot; zeros at the question | 0 or 1 |
    | the last three | an object is put in; it is taken out; the question | 0 or 1 |

    `seen` is all zeros in the observation after the answer.

    Actions: room * boxes + box, 0 to rooms * boxes - 1, answers the question. Before the question actions do nothing.

    Rewards: +1 for the box that holds the object in question, 0 for every other step.

    Ends: terminated by the answer, with success if it is right. Every episode takes objects + 2 moves + 1 steps, so
    none is truncated.

    Horizons Ξ, from the last time that the object was put into a box to the question: 2, 4, ..., 2 moves if a move put
    it there; 2 moves + 2, ..., 2 moves + objects + 1 if it was never moved; {2} with a single object.

    Chance level: 1 / (rooms * boxes), because the room of the question is independent of everything else and all boxes
    are equally likely. A player who always names the object's first box has the success of `first_place_level`, which
    is 0.2650 by default. Success by the number of moves of the object (`times_moved` at the question) separates
    retaining (0) from rewriting (1 and more).

    Args:
        rooms: 2 to 100.
        boxes: boxes in each room, 1 to 100; a box holds one object.
        objects: 1 to rooms * boxes - 1, so that at least one box is empty.
        moves: 0 to 1,000,000.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours; `place` is the input of the spatially aware memory of arXiv 2402.15160. Versions: v0, the first.
    """

    kernel = kernel
    observed = Observation
    closing_settings = ({"moves": 32}, {"moves": 128})

    def __init__(
        self, rooms: int = 4, boxes: int = 4, objects: int = 6, moves: int = 8, render_mode: str | None = None
    ) -> None:
        rooms, boxes = check_integer("rooms", rooms, 2, 100), check_integer("boxes", boxes, 1, 100)
        self.moves = check_integer("moves", moves, 0, 1_000_000)
        N = check_integer("objects", objects, 1, rooms * boxes - 1)
        question = N + 2 * self.moves
        space = spaces.Dict({"place": spaces.Discrete(rooms), "seen": spaces.Box(0, 1, (N + boxes + 3,), np.float32)})
        rules = Rules(question + 1, question, rooms, boxes, reciprocal(boxes), N)
        super().__init__(rules, space, spaces.Discrete(rooms * boxes), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, N, M = rows, self.rules.objects, self.rules.rooms * self.rules.boxes
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            room=np.zeros(B, np.uint8),
            slot=np.zeros(B, np.uint16),
            shown=np.zeros(B, np.uint16),
            at=np.zeros(B, np.uint8),
            object=np.zeros((B, N), np.uint16),
            box=np.zeros((B, M), np.uint16),
            moved=np.zeros((B, N), np.int32),
        )

    def expert(self) -> np.ndarray:
        """The box of the object in question; 0 before the question."""
        return np.where(self.state.steps == self.rules.question, self._of_slot(self.state.box), 0)

    def times_moved(self) -> np.ndarray:
        """[B] int64: how often the object in question was moved; -1 in rows that are not at the question."""
        return np.where(self.state.steps == self.rules.question, self._of_slot(self.state.moved), -1)

    def breakdown(self) -> dict[str, np.ndarray]:
        """The answer by how often its object was moved: 0 tests retaining, 1 and more test rewriting."""
        return {"times_moved": self.times_moved()}

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last time that the object was put into a box to the question, both included."""
        N, moves = self.rules.objects, self.moves
        if N == 1:
            return (2,)
        return (*range(2, 2 * moves + 1, 2), *range(2 * moves + 2, 2 * moves + N + 2))

    def chance_level(self) -> float:
        """A guess among all boxes."""
        return 1 / (self.rules.rooms * self.rules.boxes)

    def first_place_level(self) -> float:
        """Success, 0 to 1, of a player who always names the first box of the object."""
        N, empty = self.rules.objects, self.rules.rooms * self.rules.boxes - self.rules.objects
        # Transition matrix of one move; the three states of that box: it holds the object, is empty, holds another.
        one, other, hit = 1 / N, 1 - 1 / N, 1 / empty
        step = np.array(
            [
                [other, one, 0],
                [one * hit, 1 - hit, other * hit],
                [0, one, other],
            ]
        )
        return float(np.linalg.matrix_power(step, self.moves)[0, 0])

    def event_mask(self, obs: dict[str, np.ndarray]) -> np.ndarray:
        """An object is put into a box."""
        return obs["seen"][..., self.rules.objects + self.rules.boxes] > 0

    def picture(self) -> np.ndarray:
        """A line of boxes per room, with the event or the question above. Objects out of sight are faded.

        The box of the event has a blue frame. At the question, the right box has a frame in faded green.
        """
        kind, slot, room = self._now()
        boxes, objects = self.rules.boxes, self.state.object[0].tolist()
        canvas = Canvas(self.rules.rooms + 1, max(boxes + 1, 5))

        def show(row: float, column: float, object: int, seen: bool) -> None:
            colour = _COLOURS[object % len(_COLOURS)]
            canvas.disc(row, column, colour if seen else faded(colour, BOX), radius=0.4)
            canvas.label(row, column + (0.2 if object < 10 else -0.05), str(object), INK if seen else WALL)

        canvas.label(0, 0, kind)
        if kind:
            show(0, 4, objects[slot], True)
        for row in range(self.rules.rooms):
            canvas.box(row + 1, 0, FLOOR, width=boxes + 1)
            for box in range(boxes):
                canvas.box(row + 1, box + 1, BOX, margin=0.08)
        canvas.disc(room + 1, 0, AGENT)
        if kind:
            row, column = divmod(int(self.state.box[0, slot]), boxes)
            canvas.box(row + 1, column + 1, faded(GOAL) if kind == "ASK" else CUE)
            canvas.box(row + 1, column + 1, BOX, margin=0.14)
        for k, box in enumerate(self._boxes()):
            if not (kind == "TAKE" and k == slot):
                show(box // boxes + 1, box % boxes + 1, objects[k], kind == "PUT" and k == slot)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `@` the player's room; objects out of sight are in brackets."""
        kind, slot, room = self._now()
        boxes, objects = self.rules.boxes, self.state.object[0].tolist()
        held = {box: f"({objects[k]})" for k, box in enumerate(self._boxes())}
        here = int(self.state.box[0, slot])
        said = {
            "PUT": f"object {objects[slot]} is put into box {here % boxes}",
            "TAKE": f"object {objects[slot]} is taken out of box {here % boxes}",
            "ASK": f"where is object {objects[slot]}?",
            "": "over",
        }[kind]
        if kind in ("PUT", "TAKE"):
            held[here] = str(objects[slot]) if kind == "PUT" else "."
        lines = [f"step {int(self.state.steps[0])}, room {room}: {said}"]
        for row in range(self.rules.rooms):
            cells = "".join(f"{held.get(row * boxes + box, '.'):>6}" for box in range(boxes))
            lines.append(f"{'@' if row == room else ' '} room {row:<3}{cells}")
        return "\n".join(lines)

    def _of_slot(self, array: np.ndarray) -> np.ndarray:
        """[B] int64, each row's entry of `array` for the object of the event or the question."""
        return array[np.arange(self.num_rows), self.state.slot].astype(np.int64)

    def _now(self) -> tuple[str, int, int]:
        """The event of the first row: its kind, object (in the order of hiding) and room."""
        t, question, N = int(self.state.steps[0]), self.rules.question, self.rules.objects
        if t < question:
            kind = "TAKE" if t >= N and (t - N) % 2 == 0 else "PUT"
        else:
            kind = "ASK" if t == question else ""
        return kind, int(self.state.slot[0]), int(self.state.room[0])

    def _boxes(self) -> list[int]:
        """The boxes of the first row's objects that are hidden so far, in the order of hiding."""
        return self.state.box[0, : min(int(self.state.steps[0]) + 1, self.rules.objects)].tolist()
