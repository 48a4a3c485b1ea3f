"""Invariants of POPGym's games; see `legality`."""

from __future__ import annotations

from typing import Any

import numpy as np

Invariants = dict[str, np.ndarray]


def whole_deck(deck: np.ndarray, kinds: int) -> np.ndarray:
    """[B] bool: equally many cards of each kind."""
    return ((deck[:, :, None] == np.arange(kinds)).sum(1) == deck.shape[1] // kinds).all(1)


def repeating(world: Any) -> Invariants:
    state = world.state
    return {
        "whole deck": whole_deck(state.deck, 4),
        "an answer before a wrong one": ~state.wrong | (state.steps > 0),
    }


LEGAL_POPGYM = {
    "RepeatPrevious": repeating,
    "RepeatFirst": repeating,
    "Autoencode": repeating,
}
