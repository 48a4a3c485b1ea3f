"""Keys that get new values again and again, and questions for the last one: proactive interference."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from envs.arguments import check_int
from envs.core import World
from envs.kernels import IO, compiled, draw, run_rows
from envs.raster import CUE, GOAL, INK, PALETTE, WALL, Canvas, faded

WRITE, ASK, OVER = range(3)
UNKNOWN = -1
MOST_SHOWN = 32
"""Keys that a picture shows."""


class Rules(NamedTuple):
    """What stays the same in all episodes."""

    limit: int
    keys: int
    values: int
    updates: int
    queries: int


class State(NamedTuple):
    """What changes, one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    kind: np.ndarray
    """int64, what is shown: WRITE, ASK or OVER"""
    key: np.ndarray
    """int64, the key that is shown"""
    writes: np.ndarray
    """int64, writes still to come"""
    queries: np.ndarray
    """int64, queries on the way still to come"""
    wrong: np.ndarray
    """bool, whether an answer was wrong"""
    value: np.ndarray
    """[B, keys] int64, last value written, UNKNOWN before the first"""
    left: np.ndarray
    """[B, keys] int64, writes of this key still to come"""
    asked: np.ndarray
    """[B, keys] bool, whether it has been asked at the end"""


@compiled
def write(rules: Rules, state: State, i: int) -> None:
    """Another value for a key, drawn with the odds of its writes that are left: all orders are equally likely."""
    rank = draw(state.rng, i, state.writes[i])
    # Sums over all keys, without a way out: where a random search ends is what a processor cannot guess.
    key, left = 0, 0
    for k in range(rules.keys):
        left += state.left[i, k]
        key += left <= rank
    old = state.value[i, key]
    known = old != UNKNOWN
    new = draw(state.rng, i, rules.values - known)
    state.value[i, key] = new + (known & (new >= old))
    state.left[i, key] -= 1
    state.writes[i] -= 1
    state.kind[i], state.key[i] = WRITE, key


@compiled
def ask(rules: Rules, state: State, i: int, end: bool) -> None:
    """Ask for a uniform key: on the way one that has a value, at the end one that was not asked there yet."""
    n = 0
    for key in range(rules.keys):
        n += not state.asked[i, key] if end else state.value[i, key] != UNKNOWN
    rank = draw(state.rng, i, n)
    key, passed = 0, 0
    for k in range(rules.keys):
        passed += not state.asked[i, k] if end else state.value[i, k] != UNKNOWN
        key += passed <= rank
    state.asked[i, key] = end
    state.kind[i], state.key[i] = ASK, key


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Nothing has a value; the first write."""
    for key in range(rules.keys):
        state.value[i, key] = UNKNOWN
        state.left[i, key] = rules.updates
        state.asked[i, key] = False
    state.writes[i] = rules.keys * rules.updates
    state.queries[i] = rules.queries
    state.wrong[i] = False
    write(rules, state, i)


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Judge an answer; then the next write or query."""
    asked, right = state.kind[i] == ASK, action == state.value[i, state.key[i]]
    reward = (1.0 if right else -1.0) / (rules.queries + rules.keys) if asked else 0.0
    state.wrong[i] |= asked & (not right)
    if state.steps[i] + 1 == rules.keys * (rules.updates + 1) + rules.queries:
        state.kind[i] = OVER
        return reward, True, not state.wrong[i]
    stream = state.writes[i] + state.queries[i]
    if stream == 0:
        ask(rules, state, i, True)
    elif state.queries[i] > 0 and draw(state.rng, i, stream) < state.queries[i]:
        state.queries[i] -= 1
        ask(rules, state, i, False)
    else:
        write(rules, state, i)
    return reward, False, False


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """A write with its key and value, or a query with its key."""
    kind, key = state.kind[i], state.key[i]
    for k in range(obs.shape[1]):
        obs[j, k] = 0
    obs[j, key] = kind != OVER
    obs[j, rules.keys + state.value[i, key]] = kind == WRITE
    obs[j, rules.keys + rules.values + (kind == ASK)] = kind != OVER


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """All rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class KeyValueRewrite(World):
    """Pairs of key and value pass by, each new value of a key makes its last one false; say the last one when asked.

    Observation: Box(0, 1, (keys + values + 2,), float32), all 0 or 1; zeros after the last answer.

    | index | meaning |
    |---|---|
    | 0 to keys - 1 | the key that is written or asked for, one-hot |
    | keys to keys + values - 1 | the value that is written, one-hot; zeros at a query |
    | keys + values | a write |
    | keys + values + 1 | a query: this step's action is the answer |

    Actions: Discrete(values), the answer; at writes it means nothing.

    An episode: every key is written `updates` times, all orders of the keys * updates writes equally likely. A first
    value is uniform, a new one is uniform over the values that differ from the last. After the first write, `queries`
    queries are shuffled in among the writes, each for a uniform key among those that have a value. At the end every
    key is asked once, in random order. It has keys * (updates + 1) + queries steps, whatever the player does.

    Rewards: 1 / (queries + keys) for a right answer, the same negative for a wrong one, 0 at writes: a perfect episode
    returns 1.

    Ends: terminated after the last answer, with success where all answers were right.

    Interference: `overwrites()` says how often the key that is now asked had been overwritten before its last value,
    0 to updates - 1; -1 where none is asked. Read before a step, with that step's reward above 0 for a right answer,
    it gives success by number of overwrites. At the end it is updates - 1 for every key.

    Horizons Ξ, from the last write of a key to its query: {2, ..., keys * updates + queries + keys - updates + 1}.

    Chance level: values^-keys, as the answers at the end are independent and uniform. Exact for `queries=0`; queries on
    the way can only lower it. A single answer is right with 1 / values.

    Args:
        keys: 1 to 64.
        values: 2 to 64.
        updates: writes of every key, the first included, 1 to 10,000.
        queries: on the way, 0 to 100,000.
        render_mode: "rgb_array", "ansi" or None.

    Source: ours, after the paired lists of proactive interference (Underwood 1957) as streams of updates
    (arXiv 2506.08184). Versions: v0, the first.
    """

    kernel = kernel
    closing_settings = ({"updates": 16}, {"updates": 64}, {"queries": 64})

    def __init__(
        self, keys: int = 4, values: int = 4, updates: int = 4, queries: int = 4, render_mode: str | None = None
    ) -> None:
        keys = check_int("keys", keys, 1, 64)
        values = check_int("values", values, 2, 64)
        updates = check_int("updates", updates, 1, 10_000)
        queries = check_int("queries", queries, 0, 100_000)
        rules = Rules(keys * (updates + 1) + queries, keys, values, updates, queries)
        super().__init__(rules, spaces.Box(0, 1, (keys + values + 2,), np.float32), values, render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        steps, kind, key, writes, queries = np.zeros((5, rows), np.int64)
        value, left = np.zeros((2, rows, self.rules.keys), np.int64)
        wrong, asked = np.zeros(rows, bool), np.zeros((rows, self.rules.keys), bool)
        return State(np.zeros(rows, np.uint64), steps, kind, key, writes, queries, wrong, value, left, asked)

    def expert(self) -> np.ndarray:
        """The last value of the key that is asked for; 0 at writes."""
        return np.where(self.state.kind == ASK, self._of_key(self.state.value), 0)

    def overwrites(self) -> np.ndarray:
        """[B] int64: how often the key that is asked for has been overwritten; -1 where none is asked."""
        return np.where(self.state.kind == ASK, self.rules.updates - 1 - self._of_key(self.state.left), -1)

    def breakdown(self) -> dict[str, np.ndarray]:
        """Answers by how often their key had been overwritten."""
        return {"overwrites": self.overwrites()}

    def memory_horizons(self) -> tuple[int, ...]:
        """From the last write of a key to its query, both included."""
        rules = self.rules
        return tuple(range(2, rules.keys * rules.updates + rules.queries + rules.keys - rules.updates + 2))

    def chance_level(self) -> float:
        """A guess for every key at the end; queries on the way can only lower it."""
        return float(self.rules.values) ** -self.rules.keys

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """A write."""
        return np.asarray(obs[..., self.rules.keys + self.rules.values] > 0)

    def picture(self) -> np.ndarray:
        """The keys from left to right, below each its last value, faded unless just written; the asked key in green."""
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
        """The same in characters: `!` the value just written, `?` the key that is asked for."""
        state = self.state
        kind, now = int(state.kind[0]), int(state.key[0])
        told = ("a write", "a query", "over")[kind]
        lines = [f"step {self._done()}: {told}; {'a wrong' if state.wrong[0] else 'no wrong'} answer so far"]
        for key, (value, left) in enumerate(zip(state.value[0].tolist(), state.left[0].tolist())):
            sign = "!? "[kind] if key == now else " "
            last = "." if value == UNKNOWN else str(value)
            lines.append(f"{sign} key {key}: {last} after {self.rules.updates - left} of {self.rules.updates} writes")
        return "\n".join(lines)

    def _of_key(self, table: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, self.state.key[:, None], 1)[:, 0]

    def _done(self) -> str:
        return f"{self.state.steps[0]}/{self.rules.limit}"
