"""Room Ballet in four tasks, each made for one way to choose what a full memory drops (after SAT, arXiv 2402.15160)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import IO, below, compiled, draw, either, halves, run_rows
from palimpsest.envs.room_ballet import MOST_DANCES, RoomBallet, State, move, show
from palimpsest.refusals import check_choice, check_integer

ROOMS = 8
VIEWS = 18
TASKS = ("fifo", "lifo", "mvfo", "lvfo")
FIFO, LIFO, MVFO, LVFO = range(4)


class Rules(NamedTuple):
    """What stays the same in all episodes."""

    limit: int
    views: int
    dances: int
    task: int
    """-1 where every episode draws its own"""


class Observation(NamedTuple):
    """What the kernel writes."""

    place: np.ndarray
    seen: np.ndarray
    task: np.ndarray


@compiled
def shuffle(state: State, i: int, place: np.ndarray, first: int, end: int) -> None:
    """Put the entries first to end - 1 of row i of `place` into a random order (Fisher and Yates), two at a time."""
    for t in range(end - 1, first, -2):
        high, low = halves(state.rng, i)
        other = first + below(state.rng, i, high, t - first + 1)
        place[i, t], place[i, other] = place[i, other], place[i, t]
        other = first + below(state.rng, i, low, t - first)
        place[i, t - 1], place[i, other] = place[i, other], place[i, t - 1]


@compiled
def favourites(state: State, i: int, late: bool) -> None:
    """Visits of one room early, four times and more than any other, then of a second one; the other six once each.

    The last visit of the first favourite, rooms[0], is among the views 10 to 12 if `late`, else among 0 to 7.
    """
    place, rooms = state.place, state.rooms
    first, second = rooms[i, 0], rooms[i, 1]
    place[i, 0] = place[i, 1] = place[i, 2] = first
    place[i, 3] = place[i, 4] = second
    place[i, 5], place[i, 6] = rooms[i, 2], rooms[i, 3]
    if late:
        place[i, 7], place[i, 8] = rooms[i, 4], rooms[i, 5]
        shuffle(state, i, place, 0, 9)
        last = 10 + draw(state.rng, i, 3)
        place[i, 9] = rooms[i, 6]
        for t in range(10, 13):
            place[i, t] = rooms[i, 7]
        place[i, last] = first
        place[i, 11 if last == 12 else 12] = second
    else:
        place[i, 7] = first
        shuffle(state, i, place, 0, 8)
        place[i, 8] = second
        for t in range(9, 13):
            place[i, t] = rooms[i, t - 5]
        shuffle(state, i, place, 8, 13)
    for t in range(13, VIEWS):
        place[i, t] = second


@compiled
def in_the_middle(state: State, i: int, visits: int) -> None:
    """The last visit of rooms[0] is view 8 or 9, its others are among the first eight; the other rooms as they come."""
    place, rooms = state.place, state.rooms
    before = visits - 1
    others = ROOMS - 1  # all of them twice, and more where room is left; what this writes too far is written over below
    for k in range(others):
        place[i, before + k] = place[i, before + others + k] = rooms[i, 1 + k]
    for t in range(before + 2 * others, VIEWS - 1, 2):
        high, low = halves(state.rng, i)
        place[i, t] = rooms[i, 1 + below(state.rng, i, high, others)]
        place[i, t + 1] = rooms[i, 1 + below(state.rng, i, low, others)]
    shuffle(state, i, place, before, VIEWS - 1)
    for t in range(before):
        place[i, t] = rooms[i, 0]
    shuffle(state, i, place, 0, 8)
    last = 8 + draw(state.rng, i, 2)
    for t in range(VIEWS - 1, last, -1):
        place[i, t] = place[i, t - 1]
    place[i, last] = rooms[i, 0]


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Draw the task, deal the rooms their parts, lay out the visits, and ask for rooms[0]."""
    state.task[i] = task = draw(state.rng, i, 4) if rules.task < 0 else rules.task
    for r in range(ROOMS):
        state.rooms[i, r] = r
    shuffle(state, i, state.rooms, 0, ROOMS)
    if task <= LIFO:
        favourites(state, i, task == FIFO)
    else:
        in_the_middle(state, i, 1 if task == MVFO else 4 + draw(state.rng, i, 3))
    asked, answer = state.rooms[i, 0], np.int64(0)
    for t in range(0, VIEWS, 2):
        high, low = halves(state.rng, i)
        one, two = below(state.rng, i, high, rules.dances), below(state.rng, i, low, rules.dances)
        state.dance[i, t], state.dance[i, t + 1] = one, two
        answer = either(state.place[i, t + 1] == asked, two, either(state.place[i, t] == asked, one, answer))
    state.place[i, VIEWS], state.dance[i, VIEWS] = asked, answer


@compiled
def observe(rules: Rules, state: State, i: int, obs: Observation, j: int) -> None:
    """All three keys."""
    show(rules, state, i, obs.place, obs.seen, j)
    obs.task[j] = state.task[i]


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """All rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class RoomBalletMultiTask(RoomBallet):
    """Eighteen dances seen in eight rooms, told at once which of four tasks it is; then: what was last danced there?

    A memory with room for nine of the eighteen must choose what to drop, and each task is solved by exactly one of
    four ways to choose. The player is led from room to room; it may stay in one for several dances. Every view shows
    a new dance, drawn evenly and independently. One step shows one whole dance, so that an entry of a memory that
    stores steps is a dance; the question is an entry too, the nineteenth. Room names are dealt anew every episode.

    Observation: Dict.

    | key | meaning | space |
    |---|---|---|
    | place | the room the player is in, or is asked about | Discrete(8) |
    | seen[d] | dance d is shown | Box(0, 1, (dances + 1,), float32) |
    | seen[dances] | the question: which dance was last seen at `place`? | |
    | task | 0 fifo, 1 lifo, 2 mvfo, 3 lvfo; the same throughout the episode | Discrete(4) |

    After the answer `place` stays and `seen` is zeros.

    Actions: 0 to dances - 1, the answer; before the question they do nothing.

    Rewards: +1 for the right answer, 0 for everything else.

    Ends: terminated by the answer, which is step 19.

    Strategies, for a memory of nine entries that is full: fifo drops the oldest entry; lifo overwrites the newest;
    mvfo and lvfo drop the oldest entry of the most and of the least visited place that still holds one (the entry
    that comes in is counted after that; ties to the lowest index). With views 0 to 17, the question stored too:

    - fifo holds views 10 to 17 and lifo 0 to 7, whatever the places are. So what only mvfo or only lvfo can answer
      must be view 8 or 9.
    - **mvfo**: the room asked for is visited once, at 8 or 9, the others as they come. Eight of nine entries are from
      seven other rooms, so one of those holds two and is visited more: mvfo never drops the single one. lvfo drops
      it, or another single one, which each room offers at most once, within eight views.
    - **lvfo**: the room is visited four to six times, last at 8 or 9, the others at most twice. Being visited most
      whenever something is dropped, its entries are what mvfo drops first and what lvfo never drops.
    - **fifo**, **lifo**: a first favourite is visited four times, three of them before anything is dropped, last at
      10 to 12 (fifo) or by 7 (lifo). A second one is visited eight times, twice or more before anything is dropped
      but less than the first until all entries of the first are gone from mvfo. The six single rooms all come by
      view 12, so that lvfo drops those until step 14, and then, as the second is ahead, the four of the first.

    Horizons Ξ, from the last dance in the room to the question, both included: {7, 8, 9} fifo, {12, ..., 16} lifo,
    {10, 11} mvfo and lvfo; all of these with `task="all"`. Chance level: 1 / dances, which is also what a reader of
    one of the other three memories gets.

    Args:
        dances: kinds of dances, 2 to 64.
        task: "all" draws one of the four in every episode; or the one to set.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the multi-task Room Ballet of arXiv 2402.15160 (18 dances, 8 rooms, memory for 9); a
    reinforcement learning task here, the visits and the number of dances ours. Versions: v0, the first.
    """

    kernel = kernel
    observed = Observation
    task_names = TASKS
    layout = (2, 4)
    closing_settings = tuple({"task": task} for task in TASKS)

    def __init__(self, dances: int = 8, task: str = "all", render_mode: str | None = None) -> None:
        dances = check_integer("dances", dances, 2, MOST_DANCES)
        chosen = -1 if check_choice("task", task, ("all", *TASKS)) == "all" else TASKS.index(task)
        space = spaces.Dict(
            {
                "place": spaces.Discrete(ROOMS),
                "seen": spaces.Box(0, 1, (dances + 1,), np.float32),
                "task": spaces.Discrete(4),
            }
        )
        super().__init__(Rules(VIEWS + 1, VIEWS, dances, chosen), space, dances, render_mode)

    def breakdown(self) -> dict[str, np.ndarray]:
        """The answer by task, 0 fifo, 1 lifo, 2 mvfo, 3 lvfo: by what a memory must drop to have it."""
        return {"task": np.where(self.state.steps == self.rules.views, self.state.task, np.int64(-1))}

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last dance in the room to the question, both included."""
        by_task = (range(7, 10), range(12, 17), range(10, 12), range(10, 12))
        chosen = by_task if self.rules.task < 0 else by_task[self.rules.task : self.rules.task + 1]
        return tuple(sorted({horizon for horizons in chosen for horizon in horizons}))
