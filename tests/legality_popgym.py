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


def count_recall(world: Any) -> Invariants:
    state, kinds = world.state, np.arange(world.rules.kinds)
    dealt = np.arange(world.cards) <= state.steps[:, None]
    return {
        "whole deck": whole_deck(state.value, len(kinds)),
        "whole deck of questions": whole_deck(state.query, len(kinds)),
        "counts": (state.counts == ((state.value[:, :, None] == kinds) & dealt[:, :, None]).sum(1)).all(1),
        "an answer before a wrong one": ~state.wrong | (state.steps > 0),
    }


def higher_lower(world: Any) -> Invariants:
    state = world.state
    return {"whole deck": whole_deck(state.deck, 13), "score": np.abs(state.score) <= state.steps}


def concentration(world: Any) -> Invariants:
    state, cards = world.state, np.arange(world.rules.cards)
    first, second = state.first[:, None] == cards, state.second[:, None] == cards
    found = np.where(state.found, state.deck, 99)
    return {
        "whole deck": whole_deck(state.deck, world.rules.kinds),
        "found in pairs": ((found[:, :, None] == np.arange(world.rules.kinds)).sum(1) % 2 == 0).all(1),
        "found was seen": (state.seen | ~state.found).all(1),
        "seen at most one a step": state.seen.sum(1) <= state.steps,
        "cards of an attempt were seen": (state.seen | ~(first | second)).all(1),
        "cards of an attempt are face down": ~(state.found & (first | second)).any(1),
        "first": (state.first >= -1) & (state.first < len(cards)) & ((state.first >= 0) | ~state.open),
        "second": (state.second >= -1) & (state.second < len(cards)) & ((state.second < 0) | ~state.open),
        "left": state.left == (~state.found).sum(1),
    }


def battleship(world: Any) -> Invariants:
    state, side = world.state, world.rules.side
    board = np.pad(state.ship.reshape(-1, side, side), ((0, 0), (1, 1), (1, 1)))
    beside = board[:, 2:, 1:-1] | board[:, :-2, 1:-1] | board[:, 1:-1, 2:] | board[:, 1:-1, :-2]
    return {
        "cells of ships": state.ship.sum(1) == 12,
        "no ship of one cell": (beside | ~board[:, 1:-1, 1:-1]).all((1, 2)),
        "hits": state.hits == (state.ship & state.shot).sum(1),
        "shots": state.hits + state.misses == state.steps,
        "a hit needs hits": ~state.hit | (state.hits > 0),
    }


def minesweeper(world: Any) -> Invariants:
    state, side, mines = world.state, world.rules.side, world.rules.mines
    return {
        "mines": state.mine.sum(1) == mines,
        "no viewed mine": ~(state.mine & state.viewed).any(1),
        "left": state.left == side * side - mines - state.viewed.sum(1),
        "viewed at most one a step": state.viewed.sum(1) <= state.steps,
        "count": (state.last >= 0) & (state.last <= min(mines, 9)),
    }


def labyrinth(world: Any) -> Invariants:
    state, side = world.state, world.rules.side
    maze, rows = state.square.reshape(-1, side, side), np.arange(world.num_rows)
    inner, corners = maze[:, 1:-1, 1:-1], maze[:, ::2, ::2]
    at = np.clip(state.y.astype(int) * side + state.x, 0, side * side - 1)
    border = np.ones((side, side), bool)
    border[1:-1, 1:-1] = False
    doors = np.sort(maze[:, border], axis=1)[:, -2:]
    return {
        "on the grid": ((state.x >= 0) & (state.x < side) & (state.y >= 0) & (state.y < side)),
        "on a square that was visited": state.visited[rows, at] & (state.square[rows, at] != 1),
        "no wall was visited": ~(state.visited & (state.square == 1)).any(1),
        "visited at most one a step": state.visited.sum(1) <= state.steps + 1,
        "free or wall inside": (inner <= 1).all((1, 2)),
        "corners are walls": (corners[:, 1:-1, 1:-1] == 1).all((1, 2)),
        "an entrance": doors[:, 1] == (2 if world.rules.explore else 3),
        "an exit in escapes": doors[:, 0] == (1 if world.rules.explore else 2),
        "free": state.free == (state.square == 0).sum(1),
        "left": state.left == ((state.square == 0) & ~state.visited).sum(1),
        "action": (state.action >= 0) & (state.action <= 4) & ((state.action == 4) == (state.steps == 0)),
    }


LEGAL_POPGYM = {
    "RepeatPrevious": repeating,
    "RepeatFirst": repeating,
    "Autoencode": repeating,
    "CountRecall": count_recall,
    "HigherLower": higher_lower,
    "Concentration": concentration,
    "Battleship": battleship,
    "MineSweeper": minesweeper,
    "LabyrinthEscape": labyrinth,
    "LabyrinthExplore": labyrinth,
}
