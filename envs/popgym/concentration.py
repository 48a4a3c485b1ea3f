"""POPGym's Concentration: find pairs of equal cards that lie face down."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import IO, compiled, run_rows
from palimpsest.envs.popgym.cards import COLOURS, RANK_NAMES, check_decks, shuffle
from palimpsest.envs.popgym.parts import PartsWorld, check_flat, clear, put
from palimpsest.envs.raster import FLOOR, INK, PALETTE, WALL, Canvas, faded
from palimpsest.refusals import check_choice

NONE = -1
NAMES = {"colors": ("B", "R"), "ranks": RANK_NAMES}
"""In what cards must be equal -> the names of the kinds."""
LINE = 13
"""Cards in a line of a picture."""


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    cards: int
    kinds: int
    pair: float
    """The reward of a pair."""
    card: float
    """The reward of each card of an attempt that failed."""
    flat: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    deck: np.ndarray
    """[B, cards] uint8, the kind of the card at each place"""
    found: np.ndarray
    """[B, cards] bool, whether the card lies face up for good"""
    seen: np.ndarray
    """[B, cards] bool, whether the card was turned over in this episode"""
    first: np.ndarray
    """int16, the card that was turned over first in this attempt or, until the next one, in the last; NONE: no card"""
    second: np.ndarray
    """int16, the second card of an attempt that failed, until the next attempt; NONE: no card"""
    open: np.ndarray
    """bool, whether an attempt waits for its second card"""
    left: np.ndarray
    """int16, cards face down, those of an attempt included"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Lay out the cards."""
    shuffle(state.rng, i, state.deck, rules.kinds)
    for card in range(rules.cards):
        state.found[i, card] = state.seen[i, card] = False
    state.first[i] = state.second[i] = NONE
    state.open[i] = False
    state.left[i] = rules.cards


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Turn over a card. An attempt ends with its second card, or with a card that lies face up already."""
    card, first, waiting = np.uint64(action), np.int64(state.first[i]), state.open[i]
    up = state.found[i, card]
    state.seen[i, card] = True
    if not waiting:
        state.open[i] = not up
        state.first[i] = NONE if up else action
        state.second[i] = NONE
        return (rules.card if up else 0.0), False, False
    state.open[i] = False
    other = np.uint64(first)
    if (not up) & (action != first) & (state.deck[i, card] == state.deck[i, other]):
        state.found[i, card] = state.found[i, other] = True
        state.first[i] = NONE
        left = state.left[i] - 2
        state.left[i] = left
        return rules.pair, left == 0, left == 0
    state.second[i] = NONE if up else action
    return 2 * rules.card, False, False


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """The kind of each card that lies face up, those of this attempt or of the one that just failed included."""
    choices = rules.kinds + 1
    first, second = np.int64(state.first[i]), np.int64(state.second[i])
    clear(obs, j, rules.flat)
    for card in range(rules.cards):
        up = state.found[i, card] | (card == first) | (card == second)
        kind = np.int64(state.deck[i, card]) if up else rules.kinds
        put(obs, j, rules.flat, card, card * choices, kind)


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


class Concentration(PartsWorld):
    """All cards lie face down; the player turns over two at a time, and two equal ones stay face up.

    Observation: Box(0, 1, (52 num_decks (kinds + 1),), float32), or MultiDiscrete([kinds + 1] * 52 num_decks) with
    `flat=False`. `kinds` is 2 for colors, 13 for ranks.

    | index | meaning |
    |---|---|
    | (kinds + 1) c + v | card c lies face up and is of kind v |
    | (kinds + 1) c + kinds | card c lies face down |

    The first card of an attempt is face up while the player chooses the second. Two cards that differ are face up in
    the observation after them, and face down again from the next action on.

    Actions: Discrete(52 num_decks), the card to turn over. A card that lies face up for good ends the attempt.

    Rewards: 1 / (26 num_decks) for a pair. An attempt that fails costs 1 / limit for each card that was turned over in
    it, one or two. A game without a failure returns 1.

    Ends: terminated when all pairs are found (success). Truncated after 104 num_decks steps. If the last pair is found
    in the last step, the package reports both; here termination wins.

    The expert has a perfect memory of the cards that it has seen, and never looks at others. Its mean return is 0.81 at
    Easy and Medium and 0.70 at Hard.

    Horizons Ξ: {1, ..., 104 num_decks - 1}, from a card that is turned over to its use. Chance level: with colors 0.97
    for 1 deck and 0.99 for 2, with ranks 0 (below 1e-6). Two colors can be paired without memory, because the board
    itself remembers: of the three lowest cards that are face down, two are equal, and an order of trying them can be
    read off the cards that are face up. That player returns 0.64. So with colors it is the return that shows memory.

    Args:
        num_decks: decks of 52 cards, shuffled together, 1 to 100.
        deck_type: in what cards must be equal, "colors" or "ranks".
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has 1 deck and colors, Medium 2 and colors, Hard 1 and
    ranks. Versions: v0, the first.
    """

    kernel = kernel

    def __init__(
        self, num_decks: int = 1, deck_type: str = "colors", flat: bool = True, render_mode: str | None = None
    ) -> None:
        cards = check_decks(num_decks)
        self.names = NAMES[check_choice("deck_type", deck_type, NAMES)]
        kinds = len(self.names)
        rules = Rules(2 * cards, cards, kinds, 1 / (cards // 2), -1 / (2 * cards), check_flat(flat))
        super().__init__(rules, [kinds + 1] * cards, spaces.Discrete(cards), render_mode)

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        B, cards = rows, self.rules.cards
        return State(
            rng=np.zeros(B, np.uint64),
            steps=np.zeros(B, np.int64),
            deck=np.zeros((B, cards), np.uint8),
            found=np.zeros((B, cards), bool),
            seen=np.zeros((B, cards), bool),
            first=np.zeros(B, np.int16),
            second=np.zeros(B, np.int16),
            open=np.zeros(B, bool),
            left=np.zeros(B, np.int16),
        )

    def expert(self) -> np.ndarray:
        """A card whose twin was seen, then the twin; else a card that was not seen yet."""
        state, cards = self.state, np.arange(self.rules.cards)
        known = np.where(state.seen & ~state.found, state.deck, self.rules.kinds)
        first = np.where(state.open, state.first, NONE)[:, None]
        kind = np.take_along_axis(state.deck, np.maximum(first, 0), 1)
        twins = (known == kind) & (cards != first) & state.open[:, None]
        pairs = [known == each for each in range(self.rules.kinds)]
        paired = np.logical_or.reduce([each & (each.sum(1) > 1)[:, None] for each in pairs])
        good = np.where(state.open[:, None], twins, paired)
        choice = np.where(good.any(1)[:, None], good, ~state.seen)
        return choice.argmax(1)

    def memory_horizons(self) -> tuple[int, ...]:
        """From a card that is turned over to its use, both included."""
        return tuple(range(1, self.rules.limit))

    def chance_level(self) -> float:
        """For colors measured on shuffled decks, without memory; see the class."""
        return three_lowest(self.rules.cards) if self.rules.kinds == COLOURS else 0.0

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """A card lies face up."""
        return np.asarray((self.numbers(obs) != self.rules.kinds).any(-1))

    def picture(self) -> np.ndarray:
        """All cards, faded unless face up; those of the attempt have a dark frame."""
        lines = -(-self.rules.cards // LINE)
        canvas = Canvas(lines + 1, 2 * LINE)
        canvas.label(0, 0, f"{self.state.steps[0]}/{self.rules.limit}")
        for card, (kind, up, tried) in enumerate(self._cards()):
            line, column = divmod(card, LINE)
            colour = PALETTE[(kind + 8 * (self.rules.kinds == COLOURS) * (1 - kind)) % len(PALETTE)]
            if not tried:
                canvas.box(line + 1, 2 * column, FLOOR, width=2)
            canvas.box(line + 1, 2 * column, colour if up or tried else faded(colour), width=2, margin=0.12)
            canvas.label(line + 1, 2 * column, self.names[kind], INK if up or tried else WALL)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters: `[B]` a card of the attempt, ` B ` face up, ` b ` face down."""
        marks = [
            f"[{self.names[kind]}]" if tried else f" {self.names[kind] if up else self.names[kind].lower()} "
            for kind, up, tried in self._cards()
        ]
        lines = ["".join(mark.rjust(4) for mark in marks[k : k + LINE]) for k in range(0, len(marks), LINE)]
        return "\n".join([f"step {self.state.steps[0]}/{self.rules.limit}, {self.state.left[0]} face down", *lines])

    def _cards(self) -> list[tuple[int, bool, bool]]:
        """Kind, whether found, and whether in the attempt, of each card of the first row."""
        state, cards = self.state, np.arange(self.rules.cards)
        tried = (cards == state.first[0]) | (cards == state.second[0])
        return list(zip(state.deck[0].tolist(), state.found[0].tolist(), tried.tolist()))


@functools.cache
def three_lowest(cards: int) -> float:
    """Share of decks of two colours, of 2 million cards, that are paired in time by trying the three lowest cards.

    The cards a < m < n are tried as (a, n), (m, a), (n, m) until a pair is found. The one that is left is the next a.
    """
    rng = np.random.default_rng(0)
    decks = rng.permuted(np.tile(np.arange(cards) % 2, (2_000_000 // cards, 1)), axis=1)
    a, attempts = decks[:, 0], np.ones(len(decks), int)  # the last pair takes one attempt
    for m, n in zip(decks[:, 1:-1:2].T, decks[:, 2::2].T):
        attempts += np.where(a == n, 1, np.where(m == a, 2, 3))
        a = np.where(a == n, m, np.where(m == a, n, a))
    return float((attempts <= cards).mean())
