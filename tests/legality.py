"""What is always so of a world that is being played: invariants of each family's state, every row at once.

`LEGAL[family](world)` gives name -> [B] bool. A new family needs an entry; the laws look for one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from legality_popgym import LEGAL_POPGYM

from palimpsest.envs.color_cubes import NOTHING, START
from palimpsest.envs.core import World
from palimpsest.envs.key_value import ASK, QUERY, QUESTION, UNKNOWN, WRITE
from palimpsest.envs.minigrid_rewrite import MIDDLE as REWRITE_MIDDLE
from palimpsest.envs.minigrid_view import BALL, EMPTY, KEY, PAD
from palimpsest.envs.room_ballet_tasks import TASKS
from palimpsest.envs.runes import RESET, unpacked

Invariants = dict[str, np.ndarray]


def broken(world: World) -> list[str]:
    """Names of the invariants that do not hold, with a row of each."""
    found = {"steps": within(world.state.steps, 0, world.rules.limit - 1), **LEGAL[type(world).__name__](world)}
    return [f"{name} in row {np.flatnonzero(~holds)[0]}" for name, holds in found.items() if not holds.all()]


def within(array: Any, low: Any, high: Any) -> np.ndarray:
    """[B] bool: every number of a row lies in low to high."""
    array = np.asarray(array)
    return ((array >= low) & (array <= high)).reshape(len(array), -1).all(1)


def different(array: np.ndarray) -> np.ndarray:
    """[B] bool: no number of a row comes twice."""
    ordered = np.sort(array, axis=1)
    return (ordered[:, 1:] != ordered[:, :-1]).all(1)


def is_permutation(array: np.ndarray) -> np.ndarray:
    """[B] bool: a row holds 0 to N - 1."""
    return different(array) & within(array, 0, array.shape[1] - 1)


def endless_tmaze(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    shortest = 1 if rules.uniform else rules.length
    return {
        "corridor": within(state.corridor, 0, rules.corridors - 1),
        "length": within(state.length, shortest, rules.length),
        "x in the corridor": within(state.x, 0, state.length),
        "x no further than steps": state.x <= state.steps,
        "cue": within(state.cue, 0, 1),
    }


def active_tmaze(world: Any) -> Invariants:
    state = world.state
    return {
        "x between oracle and junction": within(state.x, -1, world.rules.length),
        "cue": within(state.cue, 0, 1),
        "told at the oracle": state.told | (state.x >= 0),
        "told takes a step": ~state.told | (state.steps > 0),
    }


def rune_tmaze(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    laid = np.arange(rules.runes) < state.total[:, None]
    cells, x = unpacked(state.cells), state.x[:, None]
    kinds = [world.names.index(kind) for kind in world.kinds]
    place, resets = np.arange(cells.shape[1]), state.kind == RESET
    rows, last = np.arange(world.num_rows), np.clip(state.met - 1, 0, rules.runes - 1)
    return {
        "corridor": within(state.corridor, 0, rules.corridors - 1),
        "x in the corridor": within(state.x, 0, rules.length),
        "cue": within(state.cue, 0, rules.branches - 1),
        "first cue": within(state.first, 0, rules.branches - 1),
        "runes": within(state.total, 1, rules.runes),
        "runes laid": cells.sum(1) == state.total,
        "runes inside": ~(cells & ((place == 0) | (place >= rules.length))).any(1),
        "runes of the task": (np.isin(state.kind, kinds) | ~laid).all(1),
        "values of resets alone": (
            within(state.value, 0, rules.branches - 1) & ((state.value == 0) | ~laid | resets).all(1)
        ),
        "met are behind": state.met == (cells & (place <= x)).sum(1),
        "the one here": state.here == np.where((cells & (place == x)).any(1), state.kind[rows, last], -1),
        "operations that count": within(state.depth, 0, state.met),
    }


def color_cubes(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    last = rules.grid**2 - 1
    return {
        "agent on the grid": within(np.stack([state.x, state.y], 1), 0, rules.grid - 1),
        "cubes on the grid": within(state.cell, 0, last),
        "no two cubes in a cell": different(state.cell),
        "taken cells": (np.sort(state.cell, axis=1) == state.taken).all(1),
        "target": within(state.target, 0, rules.cubes - 1),
        "phases": within(state.passed, 0, rules.phases - 1),
        "shown": within(state.shown, NOTHING, START),
    }


def key_value(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    keys, rows = np.arange(rules.keys), np.arange(world.num_rows)
    coming = np.arange(rules.events) < rules.events - 1 - state.steps[:, None]
    cards = np.where(coming, state.deck, 255)
    written = rules.updates - (cards[:, :, None] == keys).sum(1)
    first = np.arange(rules.keys) < state.known[:, None]
    key = np.clip(state.key, 0, rules.keys - 1)
    shuffled = cards[:, rules.keys :]
    return {
        "kind": within(state.kind, WRITE, ASK),
        "key": within(state.key, 0, rules.keys - 1),
        "values": within(state.value, UNKNOWN, rules.values - 1),
        "cards": ((cards < rules.keys) | ((cards - QUESTION) < rules.keys) | (cards == QUERY) | ~coming).all(1),
        "writes of keys": within(written, 0, rules.updates),
        "queries left": within((cards == QUERY).sum(1), 0, rules.queries),
        "questions at the end below the others": ~((shuffled >= QUESTION) & (shuffled < QUERY)).any(1),
        "no question twice": within((cards[:, :, None] == QUESTION + keys).sum(1), 0, 1),
        "a value since the first write": ((state.value == UNKNOWN) == (written == 0)).all(1),
        "keys by their first writes": different(np.where(first, state.order[:, :-1], QUESTION + keys)),
        "the keys that have a value": state.known == (written > 0).sum(1),
        "the key shown and its answer": (state.answer == state.value[rows, key]) & (state.answer != UNKNOWN),
    }


def hide_and_seek(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    slot = np.clip(state.slot, 0, rules.objects - 1)
    box = state.box[np.arange(len(slot)), slot]
    return {
        "room": within(state.room, 0, rules.rooms - 1),
        "slot": within(state.slot, 0, rules.objects - 1),
        "objects": is_permutation(state.object),
        "no two objects in a box": is_permutation(state.box),
        "the object shown": state.shown == state.object[np.arange(len(slot)), slot],
        "in the room of the event": (state.steps >= rules.question) | (state.room == box // rules.boxes),
        "at the box of the event": (state.steps >= rules.question) | (state.at == box % rules.boxes),
        "moves": state.moved.sum(1) == np.maximum(0, (state.steps - rules.objects + 1) // 2),
        "moved": within(state.moved, 0, world.moves),
    }


def room_ballet(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    rooms = world.layout[0] * world.layout[1]
    seen, asked = state.place[:, :-1], state.place[:, -1:]
    last = rules.views - 1 - (seen == asked)[:, ::-1].argmax(1)
    return {
        "places": within(state.place, 0, rooms - 1),
        "dances": within(state.dance, 0, rules.dances - 1),
        "task": within(state.task, 0, len(TASKS) - 1),
        "asked for what was seen": (seen == asked).any(1),
        "answer": state.dance[np.arange(len(last)), last] == state.dance[:, -1],
    }


def short_stay(world: Any) -> Invariants:
    row, column = np.divmod(world.state.place[:, :-1].astype(int), world.rules.side)
    doors = np.abs(np.diff(row, axis=1)) + np.abs(np.diff(column, axis=1))
    return {**room_ballet(world), "neighbouring rooms": within(doors, 1, 1)}


def ballet(world: Any) -> Invariants:
    state, n, rows = world.state, world.rules.dancers, np.arange(world.num_rows)[:, None]
    order = np.clip(state.order, 0, 7)
    return {
        "inside the walls": within(np.stack([state.x, state.y], 1), 1, 9),
        "no walk before the choice": (state.steps >= world.rules.choice) | ((state.x == 5) & (state.y == 5)),
        "places": different(state.order) & within(state.order, 0, 7),
        "dancers": ((state.dance >= 0).sum(1) == n) & (state.dance[rows, order] >= 0).all(1),
        "target": (state.order == state.target[:, None]).any(1),
        **{name: different(getattr(state, name)[rows, order]) for name in ("dance", "shape", "colour")},
    }


def minigrid_cells(state: Any, width: int) -> Callable[[Any, Any], np.ndarray]:
    """The grid's byte at column x, row y of every row; a wall outside."""
    stride = width + 2 * PAD

    def at(x: Any, y: Any) -> np.ndarray:
        index = np.clip((y + PAD) * stride + x + PAD, 0, state.grid.shape[1] - 1)
        return state.grid[np.arange(len(state.grid)), index]

    return at


def minigrid(state: Any, at: Callable[[Any, Any], np.ndarray]) -> Invariants:
    return {
        "on floor": at(state.x, state.y) == EMPTY,
        "direction": within(state.direction, 0, 3),
        "upper": within(state.upper, 0, 1),
        "three objects": ((state.grid == KEY) | (state.grid == BALL)).sum(1) == 3,
    }


def minigrid_memory(world: Any) -> Invariants:
    state, size = world.state, world.rules.size
    at = minigrid_cells(state, size)
    return {
        **minigrid(state, at),
        "hallway": within(state.end, 4 if world.rules.random_length else size - 3, size - 3),
        "inside": within(np.stack([state.x, state.y], 1), 1, size - 2),
        "cue": within(state.cue, 0, 1) & (at(np.int64(1), np.int64(size // 2 - 1)) == KEY + state.cue),
        "not behind the junction": (state.x <= state.end) | (state.y == size // 2),
    }


def minigrid_rewrite(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    at = minigrid_cells(state, rules.width)
    shown = np.clip(state.shown, 0, rules.replacements)
    row = np.arange(len(shown))
    column = state.niches[row, shown]
    reached = (state.niches <= state.x[:, None]).sum(1) - 1
    return {
        **minigrid(state, at),
        "shown": within(state.shown, 0, rules.replacements) & (state.shown >= reached),
        "niches": (np.diff(state.niches, axis=1) >= 7).all(1),
        "cues": within(state.cues, 0, 1),
        "the cue lies in its niche": at(column, REWRITE_MIDDLE - 1) == KEY + state.cues[row, shown],
        "not beyond the junction": within(state.x, 1, state.junction),
        "beside the hallway in a niche alone": (state.y == REWRITE_MIDDLE)
        | ((state.y == REWRITE_MIDDLE - 1) & (state.niches == state.x[:, None]).any(1)),
    }


def noise(world: Any) -> Invariants:
    return {"noise": within(world.state.noise, -9 * world.rules.sigma, 9 * world.rules.sigma)}


def pole(world: Any) -> Invariants:
    motion = world.state.motion
    return noise(world) | {
        "the cart on its track": within(motion[:, 0], -2.4, 2.4),
        "the pole not fallen": within(motion[:, 2], -0.21, 0.21),
        "speeds": within(motion[:, [1, 3]], -20, 20),
    }


def pendulum(world: Any) -> Invariants:
    state = world.state
    upright = np.abs(np.mod(state.angle + np.pi, 2 * np.pi) - np.pi) <= 0.2
    return noise(world) | {
        "angle": np.abs(state.angle) <= np.pi + 0.4001 * state.steps,
        "speed": within(state.turning, -8, 8),
        "held while upright": (state.held <= 0) | upright,
        "held no longer than steps": within(state.held, 0, state.steps),
    }


def mountain_car(world: Any) -> Invariants:
    return {
        "in the valley": within(world.state.position, np.float32(-1.2), np.float32(0.6)),
        "velocity": within(world.state.velocity, -0.0701, 0.0701),
    }


def bandit(world: Any) -> Invariants:
    state, rules = world.state, world.rules
    return {
        "means": within(state.mean, 0, 1),
        "wins in pulls": within(state.wins, 0, state.pulled),
        "a pull for every step": state.pulled.sum(1) == state.steps,
        "last": within(state.last, -1, rules.arms - 1) & ((state.last >= 0) == (state.steps > 0)),
        "nothing paid at the start": (state.steps > 0) | ~state.paid,
        "regret": within(state.regret, 0, state.steps),
        "regret of the last episode": within(state.last_regret, 0, rules.limit),
    }


def tiny(world: Any) -> Invariants:
    return {"item": within(world.state.item, 0, 2), "question": within(world.state.asked_at, 3, 9)}


LEGAL: dict[str, Callable[[Any], Invariants]] = {
    "EndlessTMaze": endless_tmaze,
    "ActiveTMaze": active_tmaze,
    "RuneTMaze": rune_tmaze,
    "RuneMultiCorridor": rune_tmaze,
    "ColorCubes": color_cubes,
    "KeyValueRewrite": key_value,
    "HideAndSeek": hide_and_seek,
    "RoomBalletShortStay": short_stay,
    "RoomBalletMultiTask": room_ballet,
    "Ballet": ballet,
    "MiniGridMemory": minigrid_memory,
    "MiniGridMemoryRewrite": minigrid_rewrite,
    "CartPoleNoVel": pole,
    "POPGymCartPole": pole,
    "PendulumNoVel": pendulum,
    "POPGymPendulum": pendulum,
    "MountainCarContinuousNoVel": mountain_car,
    "Bandit": bandit,
    "MultiarmedBandit": bandit,
    "Tiny": tiny,
    "TinyPair": tiny,
    "TinyPush": tiny,
    **LEGAL_POPGYM,
}
