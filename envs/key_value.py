"""Keys get new values again and again, and questions ask for the last value: proactive interference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.core import World
from palimpsest.envs.kernels import IO, below, compiled, either, halves, run_rows
from palimpsest.envs.raster import CUE, GOAL, INK, PALETTE, WALL, Canvas, faded
from palimpsest.refusals import check_integer

WRITE, ASK, OVER = range(3)
UNKNOWN = -1
QUESTION, QUERY = 64, 128
"""Cards: 0 to keys - 1 is a write of that key, QUESTION + key its question at the end, QUERY a query before the end."""
MOST_SHOWN = 32
"""The most keys that a picture shows."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    keys: int
    values: int
    updates: int
    queries: int
    events: int
    """Writes and questions of an episode."""
    reward: float
    """The reward of a right answer."""


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    kind: np.ndarray
    """uint8, what is shown: WRITE, ASK or OVER"""
    key: np.ndarray
    """uint8, the key that is shown"""
    answer: np.ndarray
    """int8, the value of that key"""
    known: np.ndarray
    """uint8, how many keys have a value"""
    wrong: np.ndarray
    """bool, whether an answer was wrong so far"""
    value: np.ndarray
    """[B, keys] int8, the last value written, UNKNOWN before the first write"""
    order: np.ndarray
    """[B, keys + 1] uint8, the keys that have a value, in the order of their first writes; the rest is undefined"""
    deck: np.ndarray
    """[B, events] uint8, one card per event to come, events - 1 - steps of them; the rest is undefined. The questions
    at the end lie below the other cards. Both parts are shuffled while they are drawn."""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Draw the first write, of a uniform key, and lay out the cards of all other events."""
    high, low = halves(state.rng, i)
    key, value = below(state.rng, i, high, rules.keys), below(state.rng, i, low, rules.values)
    place = rules.keys
    for k in range(rules.keys):
        state.value[i, k] = UNKNOWN
        state.deck[i, k] = QUESTION + k
        state.deck[i, place] = k
        place += k != key
    for _ in range(rules.updates - 1):
        for k in range(rules.keys):
            state.deck[i, place + k] = k
        place += rules.keys
    for k in range(place, rules.events):
        state.deck[i, k] = QUERY
    state.value[i, key], state.order[i, 0], state.known[i] = value, key, 1
    state.kind[i], state.key[i], state.answer[i] = WRITE, key, value
    state.wrong[i] = False


@compiled
def show(rules: Rules, state: State, i: int, left: int) -> None:
    """Draw the next event from `left` cards: all orders of writes and queries are equally likely."""
    high, low = halves(state.rng, i)
    first = rules.keys if left > rules.keys else 0
    # Unsigned: a signed index would be checked for negative values.
    place = np.uint64(first + below(state.rng, i, high, left - first))
    card = np.int64(state.deck[i, place])
    state.deck[i, place] = state.deck[i, np.uint64(left - 1)]
    # One path without branches for a write and both kinds of questions: a branch would be mispredicted.
    writing, query = card < QUESTION, card == QUERY
    key, known = card & 63, np.int64(state.known[i])
    old = np.int64(state.value[i, key])
    again = old != UNKNOWN
    drawn = below(state.rng, i, low, either(query, known, rules.values - again))
    value = drawn + (again & (drawn >= old)) if writing else old
    state.value[i, key], state.order[i, known] = value, key
    state.known[i] = known + (writing & (not again))
    key = either(query, np.int64(state.order[i, either(query, drawn, 0)]), key)
    value = either(query, np.int64(state.value[i, key]), value)
    state.kind[i], state.key[i], state.answer[i] = not writing, key, value


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Judge the answer, then draw the next event."""
    asked, right = state.kind[i] == ASK, action == state.answer[i]
    reward = rules.reward * (np.int64(asked) * (2 * np.int64(right) - 1))
    wrong = state.wrong[i] | (asked & (not right))
    state.wrong[i] = wrong
    left = rules.events - 1 - state.steps[i]
    if left == 0:
        state.kind[i] = OVER
        return reward, True, not wrong
    show(rules, state, i, left)
    return reward, False, False


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """Write the key and value of a write, or the key of a query."""
    kind = state.kind[i]
    for k in range(obs.shape[1]):
        obs[j, k] = 0
    obs[j, np.int64(state.key[i])] = kind != OVER
    obs[j, rules.keys + np.int64(state.answer[i])] = kind == WRITE
    obs[j, rules.keys + rules.values + (kind == ASK)] = kind != OVER


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class KeyValueRewrite(World):
    """Pairs of key and value are shown. A new value of a key replaces its last one; the player must say the last value.

    Observation: Box(0, 1, (keys + values + 2,), float32), all 0 or 1; zeros after the last answer.

    | index | meaning |
    |---|---|
    | 0 to keys - 1 | the key of the write or the query, one-hot |
    | keys to keys + values - 1 | the value of the write, one-hot; zeros at a query |
    | keys + values | a write |
    | keys + values + 1 | a query: this step's action is the answer |

    Actions: Discrete(values), the answer; at writes actions do nothing.

    An episode writes every key `updates` times. All orders of the keys * updates writes are equally likely. A first
    value is uniform; a new value is uniform over the values that differ from the last one. After the first write,
    `queries` queries are shuffled in among the writes. Each asks for a uniform key among those that have a value. At
    the end every key is asked once, in random order. An episode always has keys * (updates + 1) + queries steps.

    Rewards: 1 / (queries + keys) for a right answer, the negative of it for a wrong one, 0 at writes. A perfect episode
    returns 1.

    Ends: terminated after the last answer, with success if all answers were right.

    Interference: `overwrites()` says how often the key of the query has been overwritten, 0 to updates - 1, or -1 if
    there is no query. Read it before a step; the answer is right if that step's reward is above 0. So it gives success
    by number of overwrites. At the end of an episode it is updates - 1 for every key.

    Horizons Ξ, from the last write of a key to its query: {2, ..., keys * updates + queries + keys - updates + 1}.

    Chance level: values^-keys, because the answers at the end are independent and uniform. It is exact for `queries=0`;
    queries before the end can only lower it. A single guess is right with probability 1 / values.

    Args:
        keys: 1 to 64.
        values: 2 to 64.
        updates: writes of every key, the first included, 1 to 10,000.
        queries: queries before the end, 0 to 100,000.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the paired lists of proactive interference (Underwood 1957) as streams of updates
    (arXiv 2506.08184). Versions: v0, the first.
    """

    kernel = kernel
    closing_settings = ({"updates": 16}, {"updates": 64}, {"queries": 64})

    def __init__(
        self, keys: int = 4, values: int = 4, updates: int = 4, queries: int = 4, render_mode: str | None = None
    ) -> None:
        keys = check_integer("keys", keys, 1, 64)
        values = check_integer("values", values, 2, 64)
        updates = check_integer("updates", updates, 1, 10_000)
        queries = check_integer("queries", queries, 0, 100_000)
        events = keys * (updates + 1) + queries
        rules = Rules(events, keys, values, updates, queries, events, 1 / (queries + keys))
        super().__init__(
            rules, spaces.Box(0, 1, (keys + values + 2,), np.float32), spaces.Discrete(values), render_mode
        )

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, keys = rows, self.rules.keys
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            kind=np.zeros(B, np.uint8),
            key=np.zeros(B, np.uint8),
            answer=np.zeros(B, np.int8),
            known=np.zeros(B, np.uint8),
            wrong=np.zeros(B, bool),
            value=np.zeros((B, keys), np.int8),
            order=np.zeros((B, keys + 1), np.uint8),
            deck=np.zeros((B, self.rules.events), np.uint8),
        )

    def expert(self) -> np.ndarray:
        """The last value of the key in question; 0 at writes."""
        return np.where(self.state.kind == ASK, self.state.answer, np.int64(0))

    def overwrites(self) -> np.ndarray:
        """[B] int64: how often the key in question has been overwritten; -1 at writes and after the last answer."""
        return np.where(self.state.kind == ASK, self.rules.updates - 1 - self._left(self.state.key[:, None]), -1)

    def breakdown(self) -> dict[str, np.ndarray]:
        """Answers by how often their key had been overwritten."""
        return {"overwrites": self.overwrites()}

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last write of a key to its query, both included."""
        rules = self.rules
        return tuple(range(2, rules.keys * rules.updates + rules.queries + rules.keys - rules.updates + 2))

    def chance_level(self) -> float:
        """A guess for every key at the end; queries before the end can only lower it."""
        return float(self.rules.values) ** -self.rules.keys

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """A write."""
        return np.asarray(obs[..., self.rules.keys + self.rules.values] > 0)

    def picture(self) -> np.ndarray:
        """The keys from left to right, and below each its last value, faded unless just written. Green: a query."""
        state, rules = self.state, self.rules
        kind, now = int(state.kind[0]), int(state.key[0])
        shown = min(rules.keys, MOST_SHOWN)
        first = min(max(0, now - MOST_SHOWN // 2), rules.keys - shown)
        canvas = Canvas(3, max(2 * shown, 5))
        canvas.label(0, 0, f"{('write', 'ask', 'over')[kind]} {self._done()}")
        for column, key in enumerate(range(first, first + shown)):
            here, value = key == now and kind != OVER, int(state.value[0, key])
            canvas.box(1, 2 * column, (CUE if kind == WRITE else GOAL) if here else faded(CUE), width=2)
            canvas.label(1, 2 * column, f"K{key}", INK if here else WALL)
            if value != UNKNOWN:
                paint, seen = PALETTE[value % len(PALETTE)], here and kind == WRITE
                canvas.box(2, 2 * column, paint if seen else faded(paint), width=2)
                canvas.label(2, 2 * column, str(value), INK if seen else WALL)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `!` the value just written, `?` the key in question."""
        state = self.state
        kind, now = int(state.kind[0]), int(state.key[0])
        told = ("a write", "a query", "over")[kind]
        lines = [f"step {self._done()}: {told}; {'a wrong' if state.wrong[0] else 'no wrong'} answer so far"]
        for key, value in enumerate(state.value[0].tolist()):
            left = self._left(key)[0]
            sign = "!? "[kind] if key == now else " "
            last = "." if value == UNKNOWN else str(value)
            lines.append(f"{sign} key {key}: {last} after {self.rules.updates - left} of {self.rules.updates} writes")
        return "\n".join(lines)

    def _left(self, key: int | np.ndarray) -> np.ndarray:
        """[B] int64: number of writes of `key` (a number or [B, 1]) that are still to come."""
        to_come = np.arange(self.rules.events) < self.rules.events - 1 - self.state.steps[:, None]
        return np.asarray((to_come & (self.state.deck == key)).sum(1))

    def _done(self) -> str:
        return f"{self.state.steps[0]}/{self.rules.limit}"
