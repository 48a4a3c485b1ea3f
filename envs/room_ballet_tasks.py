"""Room Ballet with four tasks. Each needs another rule for what a full memory drops (after SAT, arXiv 2402.15160)."""

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
FIFO, LIFO, MVFO = range(3)


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    views: int
    dances: int
    task: int
    """0 to 3, or -1 if every episode draws its task"""


class Observation(NamedTuple):
    """The arrays that `observe` writes."""

    place: np.ndarray
    seen: np.ndarray
    task: np.ndarray


@compiled
def shuffle(state: State, i: int, place: np.ndarray, first: int, end: int) -> None:
    """Shuffle the entries first to end - 1 of row i of `place`, two per draw (Fisher and Yates)."""
    for t in range(end - 1, first, -2):
        high, low = halves(state.rng, i)
        other = first + below(state.rng, i, high, t - first + 1)
        place[i, t], place[i, other] = place[i, other], place[i, t]
        other = first + below(state.rng, i, low, t - first)
        place[i, t - 1], place[i, other] = place[i, other], place[i, t - 1]


@compiled
def favourites(state: State, i: int, late: bool) -> None:
    """Lay out the visits of the tasks fifo (`late`) and lifo.

    rooms[0], the first favourite, is visited four times, early. rooms[1], the second favourite, follows with eight
    visits. The other six rooms are visited once each. The last visit of rooms[0] is one of the views 10 to 12 if
    `late`, else one of 0 to 7.
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
    """Lay out the visits of the tasks mvfo and lvfo.

    The last visit of rooms[0] is view 8 or 9; its other visits are among the first eight views. The order of the other
    rooms is random.
    """
    place, rooms = state.place, state.rooms
    before = visits - 1
    others = ROOMS - 1  # each of them twice, and random ones after that; later loops overwrite the surplus entries
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
    """Draw the task, give each room its part, lay out the visits, and ask for rooms[0]."""
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
    """Write all three keys."""
    show(rules, state, i, obs.place, obs.seen, j)
    obs.task[j] = state.task[i]


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class RoomBalletMultiTask(RoomBallet):
    """Eighteen dances in eight rooms, in one of four tasks. Then: which dance was the last one in that room?

    A memory of nine entries must drop some of the eighteen dances. There are four rules for what to drop, and each task
    is solved by exactly one of them. The observation says from the start which task it is. The player is led from room
    to room and may stay in one for several dances. Every view shows a new dance, uniform and independent. One step
    shows one whole dance, so a memory that stores steps has one entry per dance. The question is the nineteenth entry.
    Every episode draws new numbers for the rooms.

    Observation: Dict.

    | key | meaning | space |
    |---|---|---|
    | place | the player's room, or the room of the question | Discrete(8) |
    | seen[d] | dance d is shown | Box(0, 1, (dances + 1,), float32) |
    | seen[dances] | the question: which dance was last seen at `place`? | |
    | task | 0 fifo, 1 lifo, 2 mvfo, 3 lvfo; the same in the whole episode | Discrete(4) |

    After the answer `place` does not change and `seen` is zeros.

    Actions: 0 to dances - 1, the answer. Before the question actions do nothing.

    Rewards: +1 for the right answer, 0 for everything else.

    Ends: terminated by the answer, which is step 19.

    Rules for a full memory of nine entries. fifo drops the oldest entry; lifo overwrites the newest. mvfo and lvfo drop
    the oldest entry of a place: mvfo of the most visited place that still has an entry, lvfo of the least visited one.
    They count the visit of the new entry after they drop one. Ties go to the lowest index. The views are 0 to 17, and
    the question is stored too:

    - fifo holds views 10 to 17 and lifo views 0 to 7, whatever the places are. So the answer that only mvfo or only
      lvfo can give must be view 8 or 9.
    - **mvfo**: the room is visited once, at view 8 or 9; the order of the others is random. Of the nine entries, eight
      are from seven other rooms, so one of these rooms holds two and is visited more. So mvfo never drops the room's
      single entry. lvfo drops it within eight views: each drop takes this entry or that of another room visited once,
      and each room offers at most one such entry.
    - **lvfo**: the room is visited four to six times, the last time at view 8 or 9; each other room at most twice.
      At every drop the room is the most visited one. So mvfo drops its entries first, and lvfo never drops them.
    - **fifo**, **lifo**: a first favourite is visited four times, three of them before the first drop. Its last visit
      is at 10 to 12 (fifo) or by 7 (lifo). A second favourite is visited eight times, at least twice before the first
      drop. It has fewer visits than the first until mvfo has dropped all entries of the first. The six other rooms are
      visited once, all by view 12. So lvfo drops these until step 14. By then the second favourite is ahead, and lvfo
      drops the four entries of the first.

    Horizons Ξ, from the last dance in the room to the question, both included: {7, 8, 9} fifo, {12, ..., 16} lifo,
    {10, 11} mvfo and lvfo; all of these with `task="all"`. Chance level: 1 / dances. A memory with one of the other
    three rules has the same success.

    Args:
        dances: number of different dances, 2 to 64.
        task: "all" draws one of the four tasks in every episode; or the name of one task.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the multi-task Room Ballet of arXiv 2402.15160 (18 dances, 8 rooms, a memory of 9 entries).
    Here it is a reinforcement learning task; the visits and the number of dances are ours. Versions: v0, the first.
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
        super().__init__(Rules(VIEWS + 1, VIEWS, dances, chosen), space, spaces.Discrete(dances), render_mode)

    def breakdown(self) -> dict[str, np.ndarray]:
        """The answer by task, 0 fifo, 1 lifo, 2 mvfo, 3 lvfo: the rule that keeps the right entry."""
        return {"task": np.where(self.state.steps == self.rules.views, self.state.task, np.int64(-1))}

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last dance in the room to the question, both included."""
        by_task = (range(7, 10), range(12, 17), range(10, 12), range(10, 12))
        chosen = by_task if self.rules.task < 0 else by_task[self.rules.task : self.rules.task + 1]
        return tuple(sorted({horizon for horizons in chosen for horizon in horizons}))
