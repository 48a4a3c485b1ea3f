"""Decks of 52 cards: how they are shuffled, named and drawn. Cards differ only in what a game looks at."""

from __future__ import annotations

from typing import Any

import numpy as np

from palimpsest.envs.kernels import below, compiled, halves
from palimpsest.envs.raster import INK, PALETTE, WALL, Canvas, faded
from palimpsest.refusals import check_integer

CARDS = 52
COLOURS, SUITS, RANKS = 2, 4, 13
SUIT_NAMES = ("spades", "diamonds", "clubs", "hearts")
RANK_NAMES = ("A", "2", "3", "4", "5", "6", "7", "8", "9", "10", "J", "Q", "K")
MOST_DECKS = 100
MOST_SHOWN = 8
"""The most cards that a picture shows in a line."""


@compiled
def shuffle(rng: np.ndarray, i: int, deck: np.ndarray, kinds: int) -> None:
    """Fill deck[i] with equally many cards of each kind, 0 to kinds - 1, in random order."""
    cards = deck.shape[1]
    kind = 0
    for t in range(cards):
        deck[i, t] = kind
        kind = kind + 1 if kind + 1 < kinds else 0
    for last in range(cards - 1, 0, -2):
        high, low = halves(rng, i)
        exchange(deck, i, last, below(rng, i, high, last + 1))
        exchange(deck, i, last - 1, below(rng, i, low, last))


@compiled
def exchange(deck: np.ndarray, i: int, a: int, b: int) -> None:
    """Exchange two cards of row i."""
    # Unsigned: a signed index would be checked for negative values.
    one, other = np.uint64(a), np.uint64(b)
    card = deck[i, one]
    deck[i, one] = deck[i, other]
    deck[i, other] = card


def check_decks(num_decks: Any) -> int:
    """The number of cards in `num_decks` decks; ValueError unless it is allowed."""
    return CARDS * check_integer("num_decks", num_decks, 1, MOST_DECKS)


def draw_cards(canvas: Canvas, line: int, names: list[str], kinds: list[int], bright: int) -> None:
    """Cards from left to right in one line of a picture, two cells each; all are faded but number `bright`."""
    for column, (name, kind) in enumerate(zip(names, kinds)):
        colour, seen = PALETTE[kind % len(PALETTE)], column == bright
        canvas.box(line, 2 * column, colour if seen else faded(colour), width=2)
        canvas.label(line, 2 * column, name, INK if seen else WALL)
