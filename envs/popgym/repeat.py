"""POPGym's games of repeating cards: the card k inputs ago, the first card, or all cards backwards."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gymnasium import spaces

from palimpsest.envs.kernels import IO, compiled, run_rows
from palimpsest.envs.popgym.cards import MOST_SHOWN, SUIT_NAMES, SUITS, check_decks, draw_cards, shuffle
from palimpsest.envs.popgym.parts import PartsWorld, check_flat, clear, put
from palimpsest.envs.raster import Canvas
from palimpsest.refusals import check_integer


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    length: int
    """Steps until the episode terminates."""
    cards: int
    k: int
    """Number of inputs from the card to its repetition, both included; 0 where it varies."""
    reward: float
    flat: bool


class State(NamedTuple):
    """What changes during an episode; one entry per row."""

    rng: np.ndarray
    steps: np.ndarray
    deck: np.ndarray
    """[B, cards] uint8, the suits in the order in which they are dealt"""
    wrong: np.ndarray
    """bool, whether an answer was wrong so far"""


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Shuffle."""
    shuffle(state.rng, i, state.deck, SUITS)
    state.wrong[i] = False


@compiled
def judge(rules: Rules, state: State, i: int, action: int, card: int) -> tuple[float, bool, bool]:
    """The answer where the suit of deck[card] is asked for; no answer where `card` is negative."""
    terminated = state.steps[i] == rules.length - 1
    if card < 0:
        return 0.0, terminated, terminated & (not state.wrong[i])
    right = action == np.int64(state.deck[i, np.uint64(card)])
    wrong = state.wrong[i] | (not right)
    state.wrong[i] = wrong
    return (rules.reward if right else -rules.reward), terminated, terminated & (not wrong)


@compiled
def move_previous(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Judge the answer: the card k inputs ago, this input included."""
    return judge(rules, state, i, action, state.steps[i] + 1 - rules.k)


@compiled
def move_first(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Judge the answer: the first card."""
    return judge(rules, state, i, action, 0)


@compiled
def move_backwards(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Judge the answer: the last card that was not asked for yet, once all cards are dealt."""
    card = 2 * rules.cards - 2 - state.steps[i]
    return judge(rules, state, i, action, card if card < rules.cards else -1)


@compiled
def observe_card(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """The card that was dealt."""
    clear(obs, j, rules.flat)
    put(obs, j, rules.flat, 0, 0, np.int64(state.deck[i, np.uint64(state.steps[i])]))


@compiled
def observe_mode(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """Whether more cards come, and the card that was dealt; suit 0 once all are dealt."""
    steps = state.steps[i]
    clear(obs, j, rules.flat)
    put(obs, j, rules.flat, 0, 0, np.int64(steps < rules.cards - 1))
    suit = np.int64(state.deck[i, np.uint64(min(steps, rules.cards - 1))])
    put(obs, j, rules.flat, 1, 2, suit * (steps < rules.cards))


@compiled
def kernel_previous(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows of RepeatPrevious."""
    return run_rows(begin, move_previous, observe_card, rules, state, io, mode)


@compiled
def kernel_first(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows of RepeatFirst."""
    return run_rows(begin, move_first, observe_card, rules, state, io, mode)


@compiled
def kernel_backwards(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows of Autoencode."""
    return run_rows(begin, move_backwards, observe_mode, rules, state, io, mode)


class Repeating(PartsWorld):
    """What the three games share. `asked` says which card each of them asks for."""

    def asked(self) -> np.ndarray:
        """[B] int64: the card that the next action must name, as its number in the deck; -1 if there is none."""
        raise NotImplementedError

    def new_state(self, rows: int) -> State:
        """Arrays for `rows` rows."""
        steps, deck = np.zeros(rows, np.int64), np.zeros((rows, self.rules.cards), np.uint8)
        return State(np.zeros(rows, np.uint64), steps, deck, np.zeros(rows, bool))

    def expert(self) -> np.ndarray:
        """The suit that is asked for; 0 where none is."""
        card = self.asked()
        suits = self.state.deck[np.arange(self.num_rows), np.maximum(card, 0)].astype(np.int64)
        return np.where(card < 0, 0, suits)

    def breakdown(self) -> dict[str, np.ndarray]:
        """Answers by the octave of their horizon: 0 for the card in sight, 1 for 2 or 3 inputs, 2 for 4 to 7, ..."""
        card = self.asked()
        octave = np.log2(np.minimum(self.state.steps, self.rules.length) - card + 1).astype(np.int64)
        return {"octave": np.where(card < 0, -1, octave)}

    def event_mask(self, obs: np.ndarray) -> np.ndarray:
        """Every card."""
        return np.ones(self.numbers(obs).shape[:-1], bool)

    def picture(self) -> np.ndarray:
        """The last cards, the newest at the right; below them the card that is asked for."""
        names, kinds, asked = self._shown()
        canvas = Canvas(4, 2 * MOST_SHOWN)
        canvas.label(0, 0, f"{self.state.steps[0]}/{self.rules.limit}")
        draw_cards(canvas, 1, names, kinds, len(names) - 1 if self.state.steps[0] < self.rules.cards else -1)
        if asked >= 0:
            canvas.label(2, 0, "asked")
            draw_cards(canvas, 3, [SUIT_NAMES[asked][0]], [asked], -1)
        return canvas.pixels

    def text(self) -> str:
        """The same in characters."""
        names, _, asked = self._shown()
        told = SUIT_NAMES[asked] if asked >= 0 else "nothing"
        wrong = "a wrong" if self.state.wrong[0] else "no wrong"
        return f"step {self.state.steps[0]}/{self.rules.limit}, {wrong} answer; {' '.join(names)}; asked: {told}"

    def _shown(self) -> tuple[list[str], list[int], int]:
        """Names and suits of the last cards dealt, and the suit asked for, -1 if none."""
        dealt = min(int(self.state.steps[0]) + 1, self.rules.cards)
        kinds = self.state.deck[0, max(0, dealt - MOST_SHOWN) : dealt].tolist()
        card = int(self.asked()[0])
        return [SUIT_NAMES[kind][0] for kind in kinds], kinds, int(self.state.deck[0, card]) if card >= 0 else -1


class RepeatPrevious(Repeating):
    """Cards are dealt one by one; the player must name the suit of the card k inputs ago, the one in sight included.

    Observation: Box(0, 1, (4,), float32), or Discrete(4) with `flat=False`.

    | index | meaning |
    |---|---|
    | 0 to 3 | the suit of the card that was dealt, one-hot: spades, diamonds, clubs, hearts |

    Actions: Discrete(4), the suit. Before card k is dealt, actions do nothing.

    Rewards: 1 / (52 num_decks - k) for a right answer, the negative of it for a wrong one. A perfect episode returns 1.

    Ends: terminated when the last card is dealt, after 52 num_decks - 1 steps; success if all answers were right.

    Horizons Ξ: {k}. Chance level: 1 for k = 1; 13 / 51 (of one deck) if a single card is asked for, by another suit
    than the one in sight; else 4^-(52 num_decks - k), a guess for every answer, which the best player exceeds a little.

    Args:
        num_decks: decks of 52 cards, shuffled together, 1 to 100.
        k: inputs from a card to its repetition, both included, 1 to 52 num_decks - 1.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has 1 deck and k = 4, Medium 2 and 32, Hard 3 and 64.
    Versions: v0, the first.
    """

    kernel = kernel_previous

    def __init__(self, num_decks: int = 1, k: int = 4, flat: bool = True, render_mode: str | None = None) -> None:
        cards = check_decks(num_decks)
        k = check_integer("k", k, 1, cards - 1)
        rules = Rules(cards - 1, cards - 1, cards, k, 1 / (cards - k), check_flat(flat))
        super().__init__(rules, [SUITS], spaces.Discrete(SUITS), render_mode)

    def asked(self) -> np.ndarray:
        """The card k inputs ago."""
        return np.maximum(self.state.steps + 1 - self.rules.k, -1)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the card to its repetition, both included."""
        return (self.rules.k,)

    def chance_level(self) -> float:
        """A single answer is another suit than the one in sight, of which a card fewer is left.

        Of several answers it is a lower bound, a guess for each: what is in sight tells a little of each of them.
        """
        cards, answers = self.rules.cards, self.rules.cards - self.rules.k
        if self.rules.k == 1:
            return 1.0
        return cards / SUITS / (cards - 1) if answers == 1 else 0.25**answers


class RepeatFirst(Repeating):
    """Cards are dealt one by one; the player must name the suit of the first one again and again.

    Observation: Box(0, 1, (4,), float32), or Discrete(4) with `flat=False`.

    | index | meaning |
    |---|---|
    | 0 to 3 | the suit of the card that was dealt, one-hot: spades, diamonds, clubs, hearts |

    Nothing marks the first card.

    Actions: Discrete(4), the suit.

    Rewards: 1 / (52 num_decks - 1) for a right answer, the negative of it for a wrong one. A perfect episode returns 1.

    Ends: terminated when the last card is dealt, after 52 num_decks - 1 steps; success if all answers were right.

    Horizons Ξ: {1, ..., 52 num_decks - 1}. Chance level: 0.25, the same answer at every step: an episode shows cards of
    all suits, and any of them may have been the first.

    Args:
        num_decks: decks of 52 cards, shuffled together, 1 to 100.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has 1 deck, Medium 8, Hard 16.
    Versions: v0, the first.
    """

    kernel = kernel_first

    def __init__(self, num_decks: int = 1, flat: bool = True, render_mode: str | None = None) -> None:
        cards = check_decks(num_decks)
        rules = Rules(cards - 1, cards - 1, cards, 0, 1 / (cards - 1), check_flat(flat))
        super().__init__(rules, [SUITS], spaces.Discrete(SUITS), render_mode)

    def asked(self) -> np.ndarray:
        """The first card."""
        return np.zeros(self.num_rows, np.int64)

    def memory_horizons(self) -> tuple[int, ...]:
        """From the first card to every step, both included."""
        return tuple(range(1, self.rules.cards))

    def chance_level(self) -> float:
        """The same suit at every step."""
        return 0.25


class Autoencode(Repeating):
    """All cards of the decks are shown one by one; then the player must name their suits backwards, the last one first.

    Observation: Box(0, 1, (6,), float32), or MultiDiscrete([2, 4]) with `flat=False` (in the package a Tuple of two
    Discrete spaces, with the same numbers).

    | index | meaning |
    |---|---|
    | 0 | play: the action of this step is an answer |
    | 1 | watch: the action of this step does nothing, and another card follows |
    | 2 to 5 | the suit of the card that was dealt, one-hot; index 2 (spades) once all cards have been shown |

    Actions: Discrete(4), the suit. The last card is shown together with "play", so that the first answer is in sight.

    Rewards: 1 / (52 num_decks) for a right answer, the negative of it for a wrong one, 0 while the player watches. A
    perfect episode returns 1.

    Ends: terminated after the last answer, after 104 num_decks - 1 steps; success if all answers were right.

    Horizons Ξ: {1, 3, ..., 104 num_decks - 1}. Chance level: 4^-(52 num_decks - 1), a guess for every answer but the
    first one.

    Args:
        num_decks: decks of 52 cards, shuffled together, 1 to 100.
        flat: whether the observation is a Box of one-hots.
        render_mode: "rgb_array", "ansi" or None.

    Source: POPGym (arXiv 2303.01859), package popgym 1.0.7: Easy has 1 deck, Medium 2, Hard 3. Versions: v0, the first.
    """

    kernel = kernel_backwards

    def __init__(self, num_decks: int = 1, flat: bool = True, render_mode: str | None = None) -> None:
        cards = check_decks(num_decks)
        rules = Rules(2 * cards - 1, 2 * cards - 1, cards, 0, 1 / cards, check_flat(flat))
        super().__init__(rules, [2, SUITS], spaces.Discrete(SUITS), render_mode)

    def asked(self) -> np.ndarray:
        """The last card that was not asked for yet, once all are dealt."""
        card = 2 * self.rules.cards - 2 - self.state.steps
        return np.where(card < self.rules.cards, card, -1)

    def memory_horizons(self) -> tuple[int, ...]:
        """From each card to its answer, both included."""
        return tuple(range(1, 2 * self.rules.cards, 2))

    def chance_level(self) -> float:
        """A guess for every answer but the first."""
        return 0.25 ** (self.rules.cards - 1)
