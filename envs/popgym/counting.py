"""POPGym's games of counting cards: say how often one was seen, or bet on the next one."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import IO, compiled, run_rows
from palimpsest.envs.popgym.cards import (
    MOST_SHOWN,
    RANK_NAMES,
    RANKS,
    SUIT_NAMES,
    check_decks,
    draw_cards,
    shuffle,
)
from palimpsest.envs.popgym.parts import PartsWorld, check_flat, clear, put
from palimpsest.envs.raster import Canvas
from palimpsest.refusals import check_choice

HIGHER = 0
"""Action 0 bets on a higher card, action 1 on a lower one."""
NAMES = {"colors": ("black", "red"), "suits": SUIT_NAMES, "ranks": RANK_NAMES}
"""What cards may differ in -> the names of the kinds."""


class CountRules(NamedTuple):
    """Constants of all episodes of CountRecall."""

    limit: int
    length: int
    """Steps until the episode terminates."""
    kinds: int
    reward: float
    flat: bool


class CountState(NamedTuple):
    """What changes during an episode of CountRecall; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    value: np.ndarray
    """[B, cards] uint8, the kinds of the cards in the order in which they are dealt"""
    query: np.ndarray
    """[B, cards] uint8, the kinds in the order in which they are asked for"""
    counts: np.ndarray
    """[B, kinds] int16, how many cards of each kind were dealt, the one in sight included"""
    wrong: np.ndarray
    """bool, whether an answer was wrong so far"""


@compiled
def begin_count(rules: CountRules, state: CountState, i: int) -> None:
    """Shuffle both decks and deal a card of each."""
    shuffle(state.rng, i, state.value, rules.kinds)
    shuffle(state.rng, i, state.query, rules.kinds)
    for kind in range(rules.kinds):
        state.counts[i, kind] = kind == np.int64(state.value[i, 0])
    state.wrong[i] = False


@compiled
def move_count(rules: CountRules, state: CountState, i: int, action: int) -> tuple[float, bool, bool]:
    """Judge the answer, then deal."""
    steps = state.steps[i]
    right = action == state.counts[i, np.uint64(state.query[i, np.uint64(steps)])]
    wrong = state.wrong[i] | (not right)
    state.wrong[i] = wrong
    state.counts[i, np.uint64(state.value[i, np.uint64(steps + 1)])] += 1
    terminated = steps == rules.length - 1
    return (rules.reward if right else -rules.reward), terminated, terminated & (not wrong)


@compiled
def observe_count(rules: CountRules, state: CountState, i: int, obs: np.ndarray, j: int) -> None:
    """The card that was dealt and the kind that is asked for."""
    at = np.uint64(state.steps[i])
    clear(obs, j, rules.flat)
    put(obs, j, rules.flat, 0, 0, np.int64(state.value[i, at]))
    put(obs, j, rules.flat, 1, rules.kinds, np.int64(state.query[i, at]))


@compiled
def kernel_count(rules: CountRules, state: CountState, io: IO, mode: int) -> int:
    """Run `mode` for all rows of CountRecall."""
    return run_rows(begin_count, move_count, observe_count, rules, state, io, mode)


class CountRecall(PartsWorld):
    """Cards are dealt one by one; each time the player must say how many cards of one kind it has seen so far.

    Observation: Box(0, 1, (2 kinds,), float32), or MultiDiscrete([kinds, kinds]) with `flat=False`. `kinds` is 2 for
    colors, 4 for suits, 13 for ranks.

    | index | meaning |
    |---|---|
    | 0 to kinds - 1 | the kind of the card that was dealt, one-hot |
    | kinds to 2 kinds - 1 | the kind that is asked for, one-hot |

    Actions: Discrete(52 num_decks / kinds + 1), the number of cards of that kind so far, the one in sight included. The
    questions are a second shuffled deck.

    Rewards: 1 / (52 num_decks - 1) for a right answer, the negative of it for a wrong one. A perfect episode returns 1.

    Ends: terminated when the last card is dealt, after 52 num_decks - 1 steps; success if all answers were right.

    Horizons Ξ: {1, ..., 52 num_decks - 1}, from each card to every later question about its kind. Chance level: 0. The
    same observation comes again with another right answer; guesses win less than once in 1e20 episodes.

    Args:
        num_decks: decks of 52 cards, shuffled together, 1 to 100.
        deck_type: what is counted, "colors", "suits" or "ranks".
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has 1 deck and colors, Medium 2 and suits, Hard 4 and
    ranks. As there, an answer is right or wrong: the package's `error_clamp` has no effect. Versions: v0, the first.
    """

    kernel = kernel_count

    def __init__(
        self, num_decks: int = 1, deck_type: str = "colors", flat: bool = True, render_mode: str | None = None
    ) -> None:
        cards = check_decks(num_decks)
        self.names = NAMES[check_choice("deck_type", deck_type, NAMES)]
        self.cards, kinds = cards, len(self.names)
        rules = CountRules(cards - 1, cards - 1, kinds, 1 / (cards - 1), check_flat(flat))
        super().__init__(rules, [kinds, kinds], spaces.Discrete(cards // kinds + 1), render_mode)

    def new_state(self, rows: int) -> CountState:
        """Arrays for `rows` rows."""
        return CountState(
            rng=np.zeros(rows, np.uint64),
            steps=np.zeros(rows, np.int64),
            value=np.zeros((rows, self.cards), np.uint8),
            query=np.zeros((rows, self.cards), np.uint8),
            counts=np.zeros((rows, self.rules.kinds), np.int16),
            wrong=np.zeros(rows, bool),
        )

    def expert(self) -> np.ndarray:
        """The number of cards of the kind that is asked for."""
        state, rows = self.state, np.arange(self.num_rows)
        return state.counts[rows, state.query[rows, state.steps]].astype(np.int64)

    def breakdown(self) -> dict[str, np.ndarray]:
        """Answers by the number that is right."""
        return {"count": np.where(self.state.steps < self.rules.length, self.expert(), -1)}

    def memory_horizons(self) -> tuple[int, ...]:
        """From each card to every question about its kind, both included."""
        return tuple(range(1, self.cards))

    def chance_level(self) -> float:
        """No answer is right twice for one observation."""
        return 0.0

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every card."""
        return np.ones(self.numbers(obs).shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The last cards, the newest at the right; below them each kind with its number, the one asked for bright."""
        state, steps = self.state, int(self.state.steps[0])
        canvas = Canvas(4, 2 * max(MOST_SHOWN, self.rules.kinds))
        canvas.label(0, 0, f"{steps}/{self.rules.limit}")
        kinds = state.value[0, max(0, steps + 1 - MOST_SHOWN) : steps + 1].tolist()
        draw_cards(canvas, 1, [self.names[kind][:2] for kind in kinds], kinds, len(kinds) - 1)
        every = list(range(self.rules.kinds))
        draw_cards(canvas, 2, [name[:2] for name in self.names], every, int(state.query[0, steps]))
        draw_cards(canvas, 3, [str(count) for count in state.counts[0].tolist()], every, -1)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters."""
        state, steps = self.state, int(self.state.steps[0])
        counts = ", ".join(f"{name} {count}" for name, count in zip(self.names, state.counts[0].tolist()))
        return (
            f"step {steps}/{self.rules.limit}, {'a wrong' if state.wrong[0] else 'no wrong'} answer; "
            f"dealt: {self.names[state.value[0, steps]]}; asked: {self.names[state.query[0, steps]]}; so far: {counts}"
        )


class BetRules(NamedTuple):
    """Constants of all episodes of HigherLower."""

    limit: int
    length: int
    """Steps until the episode terminates."""
    cards: int
    reward: float
    flat: bool


class BetState(NamedTuple):
    """What changes during an episode of HigherLower; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    deck: np.ndarray
    """[B, cards] uint8, the ranks in the order in which they are dealt"""
    score: np.ndarray
    """int16, right guesses minus wrong ones"""


@compiled
def begin_bets(rules: BetRules, state: BetState, i: int) -> None:
    """Shuffle."""
    shuffle(state.rng, i, state.deck, RANKS)
    state.score[i] = 0


@compiled
def move_bets(rules: BetRules, state: BetState, i: int, action: int) -> tuple[float, bool, bool]:
    """Deal the next card and compare it with the last one."""
    steps = state.steps[i]
    last, new = np.int64(state.deck[i, np.uint64(steps)]), np.int64(state.deck[i, np.uint64(steps + 1)])
    up = np.int64(new > last) - np.int64(new < last)
    point = up if action == HIGHER else -up
    score = state.score[i] + point
    state.score[i] = score
    terminated = steps == rules.length - 1
    return rules.reward * point, terminated, terminated & (2 * score > rules.cards)


@compiled
def observe_bets(rules: BetRules, state: BetState, i: int, obs: np.ndarray, j: int) -> None:
    """The card that was dealt."""
    clear(obs, j, rules.flat)
    put(obs, j, rules.flat, 0, 0, np.int64(state.deck[i, np.uint64(state.steps[i])]))


@compiled
def kernel_bets(rules: BetRules, state: BetState, io: IO, mode: int) -> int:
    """Run `mode` for all rows of HigherLower."""
    return run_rows(begin_bets, move_bets, observe_bets, rules, state, io, mode)


class HigherLower(PartsWorld):
    """Cards are dealt one by one; the player bets on the next one to be higher or lower than the last.

    Observation: Box(0, 1, (13,), float32), or Discrete(13) with `flat=False`.

    | index | meaning |
    |---|---|
    | 0 to 12 | the rank of the card that was dealt, one-hot: ace (lowest), 2 to 10, jack, queen, king |

    Actions: Discrete(2): 0 higher, 1 lower.

    Rewards: 1 / (52 num_decks) for a right guess, the negative of it for a wrong one, 0 for a card of the same rank.

    Ends: terminated when the last card is dealt, after 52 num_decks - 1 steps; success if the return is above 0.5.

    The best player counts cards and bets on the side with more cards left (`expert_action`; on higher if there are
    equally many). It gains little: with 1, 2 and 3 decks its mean return is 0.528, 0.517 and 0.511, with success 0.58,
    0.57 and 0.56. The best player without memory, who bets on higher up to the 7 and
    on lower from the 8 on, has mean return 0.497.

    Horizons Ξ: {1, ..., 52 num_decks - 1}, from each card to every later guess. Chance level: the success of the player
    without memory, measured on shuffled decks: 0.46 for 1, 2 and 3 decks.

    Args:
        num_decks: decks of 52 cards, shuffled together, 1 to 100.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has 1 deck, Medium 2, Hard 3. Versions: v0, the first.
    """

    kernel = kernel_bets
    expert_success = 0.45

    def __init__(self, num_decks: int = 1, flat: bool = True, render_mode: str | None = None) -> None:
        cards = check_decks(num_decks)
        rules = BetRules(cards - 1, cards - 1, cards, 1 / cards, check_flat(flat))
        super().__init__(rules, [RANKS], spaces.Discrete(2), render_mode)

    def new_state(self, rows: int) -> BetState:
        """Arrays for `rows` rows."""
        steps, deck = np.zeros(rows, np.int64), np.zeros((rows, self.rules.cards), np.uint8)
        return BetState(np.zeros(rows, np.uint64), steps, deck, np.zeros(rows, np.int16))

    def expert(self) -> np.ndarray:
        """The side with more cards left. Cards that come are counted; their order is not looked at."""
        state, (higher, lower) = self.state, self._left()
        return np.where(higher >= lower, HIGHER, np.ones_like(state.steps))

    def memory_horizons(self) -> tuple[int, ...]:
        """From each card to every guess, both included."""
        return tuple(range(1, self.rules.cards))

    def chance_level(self) -> float:
        """Measured on shuffled decks."""
        return middle_bettor(self.rules.cards)

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every card."""
        return np.ones(self.numbers(obs).shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The last cards, the newest at the right; below them how many higher and lower ones are left."""
        steps, (higher, lower) = int(self.state.steps[0]), self._left()
        canvas = Canvas(3, 2 * MOST_SHOWN)
        canvas.label(0, 0, f"{steps}/{self.rules.limit} score {self.state.score[0]}")
        kinds = self.state.deck[0, max(0, steps + 1 - MOST_SHOWN) : steps + 1].tolist()
        draw_cards(canvas, 1, [RANK_NAMES[kind] for kind in kinds], kinds, len(kinds) - 1)
        canvas.label(2, 0, f"higher {higher[0]} lower {lower[0]}")
        return canvas.pixels

    def text(self) -> str:
        """The same in characters."""
        steps, (higher, lower) = int(self.state.steps[0]), self._left()
        names = " ".join(RANK_NAMES[kind] for kind in self.state.deck[0, max(0, steps + 1 - MOST_SHOWN) : steps + 1])
        told = f"right minus wrong {self.state.score[0]}; {names}; left: {higher[0]} higher, {lower[0]} lower"
        return f"step {steps}/{self.rules.limit}, {told}"

    def _left(self) -> tuple[np.ndarray, np.ndarray]:
        """[B] int64 each: how many of the cards to come are higher and lower than the last one."""
        deck, steps = self.state.deck, self.state.steps
        last = deck[np.arange(self.num_rows), steps][:, None]
        to_come = np.arange(self.rules.cards) > steps[:, None]
        return ((deck > last) & to_come).sum(1), ((deck < last) & to_come).sum(1)


@functools.cache
def middle_bettor(cards: int) -> float:
    """Share of shuffled decks on which bets by the middle rank return more than 0.5, measured on 2 million cards."""
    rng = np.random.default_rng(0)
    decks = rng.permuted(np.tile(np.arange(RANKS), (2_000_000 // cards, cards // RANKS)), axis=1)
    last, new = decks[:, :-1], decks[:, 1:]
    points = np.where(last <= RANKS // 2, 1, -1) * np.sign(new - last)
    return float((2 * points.sum(1) > cards).mean())
