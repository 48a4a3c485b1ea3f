"""Runes in a corridor that change a cue, as compiled code: `envs.rune_tmaze` and `envs.rune_corridors` share it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from palimpsest.envs.kernels import IO, below, compiled, either, halves, run_rows

KINDS = ("invert", "cancel", "reset", "repeat")
INVERT, CANCEL, RESET, REPEAT = range(4)
SET = 1
"""A rune applies an operation to the cue: 0 inverts it, 1 + v sets it to v."""
NOTHING = -1


class Rules(NamedTuple):
    """Constants of all episodes."""

    limit: int
    corridors: int
    length: int
    runes: int
    cell: float
    """1 / length. A product with it, rounded to float32, equals the quotient."""
    kinds: int
    """The kinds that are drawn, two bits each, the first in the lowest bits."""
    num_kinds: int
    branches: int
    """At the junction: 2, left and right, or another power of two (`envs.rune_corridors`)."""
    bits: int
    """The logarithm of `branches`."""


class State(NamedTuple):
    """What changes during an episode; one entry per row. R is the maximum number of runes in a corridor."""

    rng: np.ndarray
    steps: np.ndarray
    corridor: np.ndarray
    """int32, corridors passed"""
    x: np.ndarray
    """int32, 0 at the start cell, `length` at the junction"""
    cue: np.ndarray
    """int8, a branch, 0 left, 1 right: the cue after the runes so far"""
    first: np.ndarray
    """int8, the cue that the start cell showed"""
    total: np.ndarray
    """int16, number of runes in this corridor"""
    met: np.ndarray
    """int16, how many of these runes have acted"""
    depth: np.ndarray
    """int16, operations on the stack: applied and not undone"""
    here: np.ndarray
    """int8, an index of KINDS: the rune on the player's cell; NOTHING if there is none"""
    cells: np.ndarray
    """[B, length // 64 + 1] uint64, one bit per cell, lowest first: whether the cell has a rune"""
    kind: np.ndarray
    """[B, R] int8, an index of KINDS"""
    value: np.ndarray
    """[B, R] int8, the cue that a reset sets"""
    done: np.ndarray
    """[B, R] int8, the stack of operations, the oldest first"""
    before: np.ndarray
    """[B, R] int8, the cue before each of them"""


@compiled
def laid(state: State, i: int, x: int) -> int:
    """Whether cell x has a rune, 0 or 1."""
    return np.int64(state.cells[i, x >> 6] >> np.uint64(x & 63)) & 1  # type: ignore[return-value]


@compiled
def enter(rules: Rules, state: State, i: int) -> None:
    """Put the player at the start of a new corridor, with runes on a uniform choice of cells (Floyd's algorithm)."""
    high, low = halves(state.rng, i)
    total = 1 + below(state.rng, i, high, rules.runes)
    cue = below(state.rng, i, low, rules.branches)
    state.x[i], state.met[i], state.depth[i], state.total[i] = 0, 0, 0, total
    state.cue[i], state.first[i], state.here[i] = cue, cue, NOTHING
    for w in range(state.cells.shape[1]):
        state.cells[i, w] = 0
    for k in range(total):
        high, low = halves(state.rng, i)
        last = rules.length - total + k
        x = 1 + below(state.rng, i, high, last)
        x += (last - x) * laid(state, i, x)
        state.cells[i, x >> 6] |= np.uint64(1) << np.uint64(x & 63)
        rune = below(state.rng, i, low, rules.branches * rules.num_kinds)
        kind = rules.kinds >> 2 * (rune >> rules.bits) & 3
        state.kind[i, k] = kind
        state.value[i, k] = rune & (rules.branches - 1) & -np.int64(kind == RESET)


@compiled
def begin(rules: Rules, state: State, i: int) -> None:
    """Enter the first corridor."""
    state.corridor[i] = 0
    enter(rules, state, i)


@compiled
def meet(rules: Rules, state: State, i: int) -> None:
    """Apply the next rune. There is no branch on its kind: it would be mispredicted."""
    met, depth, cue = state.met[i], np.int64(state.depth[i]), np.int64(state.cue[i])
    kind = np.int64(state.kind[i, met])
    cancel, repeat = kind == CANCEL, kind == REPEAT
    some = depth > 0
    top, works = depth - some, some | (kind == INVERT) | (kind == RESET)
    operation = np.int64(kind == RESET) * (SET + np.int64(state.value[i, met]))
    operation = either(repeat, np.int64(state.done[i, top]), operation)
    result = either(operation == INVERT, (cue + 1) & (rules.branches - 1), operation - SET)
    result = either(cancel, np.int64(state.before[i, top]), result)
    state.done[i, depth], state.before[i, depth] = operation, cue  # if nothing is pushed, this is above the stack
    state.cue[i] = either(works, result, cue)
    state.depth[i] = depth + np.int64(works) * (1 - 2 * np.int64(cancel))
    state.met[i] = met + 1
    state.here[i] = kind


@compiled
def move(rules: Rules, state: State, i: int, action: int) -> tuple[float, bool, bool]:
    """Action 0 forward, 1 left, 2 right; 1 + v into branch v."""
    if state.x[i] < rules.length:
        # No branch on the action alone: it would be mispredicted. NOTHING is -1, all bits set.
        forward = action == 0
        x = state.x[i] + forward
        state.x[i] = x
        state.here[i] |= NOTHING * forward
        if laid(state, i, x) & forward:
            meet(rules, state, i)
        return -0.01, False, False
    if action != 1 + state.cue[i]:
        return -1.0, True, False
    state.corridor[i] += 1
    if state.corridor[i] == rules.corridors:
        return 1.0, True, True
    enter(rules, state, i)
    return 1.0, False, False


@compiled
def observe(rules: Rules, state: State, i: int, obs: np.ndarray, j: int) -> None:
    """A rune is visible only on its own cell, the cue at the start and on a reset rune."""
    x, here, place = state.x[i], np.int64(state.here[i]), rules.branches
    for k in range(obs.shape[1]):
        obs[j, k] = 0
    obs[j, state.cue[i]] = (x == 0) | (here == RESET)
    obs[j, place + 1 + here] = 1  # for NOTHING, this is the position, which the next line overwrites
    obs[j, place] = x * rules.cell


@compiled
def kernel(rules: Rules, state: State, io: IO, mode: int) -> int:
    """Run `mode` for all rows."""
    return run_rows(begin, move, observe, rules, state, io, mode)


def unpacked(cells: np.ndarray) -> np.ndarray:
    """[B, 64 W] bool from `State.cells` [B, W]: whether cell x has a rune."""
    return np.unpackbits(cells.astype("<u8").view(np.uint8), axis=1, bitorder="little") > 0
